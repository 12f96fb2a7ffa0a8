"""Submitting without a SLURM: the dry run, the script, who is asked what, and what is decided after a life.

Where commands of SLURM are called they are small shell scripts that answer as one does, or as none should.
"""

import os
import pwd
import py_compile
import re
import select
import shlex
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from importlib.util import cache_from_source
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cnnjob import files
from cnnjob.cli.main import app
from cnnjob.errors import SchedulerError
from cnnjob.runs.restart_log import try_read_restart_log
from cnnjob.runs.run import Run
from cnnjob.slurm.scheduler import client, queue
from cnnjob.slurm.submit import submission
from cnnjob.slurm.submit.code_snapshot import save_snapshot, snapshot_folder
from cnnjob.slurm.submit.request import Request
from tests.cli.test_cli import JOB
from tests.helpers.run_folders import finished_run, lost_run, pending_run, running_run, stopped_run
from tests.helpers.toy_jobs import dataset, outcome_of, trained

JOB_OF_NUMPY = f'{JOB}[resources]\nbackend = "numpy"\n'
QUEUED = 'printf "%s\\n" "16|RUNNING|None|n1|N/A|N/A|other" "" "17"'
ANSWERS = {
    "srun": 'shift 4; exec "$@"',
    "sbatch": 'export -p > environment; echo "Submitted batch job 17"',
    "squeue": QUEUED,
    "scontrol": """case "$*" in
*"show partition"*) for name in debug gpu gpu-long; do echo "PartitionName=$name MaxTime=1-00:00:00 State=UP"; done;;
*"show config"*) echo "JobRequeue = 1"; echo "MaxArraySize = 1001";;
*"show job"*) echo "JobId=17 JobState=RUNNING Restarts=0";;
esac""",
}

PACKAGE = Path(files.__file__).parent


def cnnjob(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


class Site:
    """Commands of SLURM on an otherwise empty PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def says(self, **answers: str | None) -> None:
        """Let a command run these lines of shell; None takes it away."""
        for name, lines in answers.items():
            (self.folder / name).unlink(missing_ok=True)
            if lines is not None:
                (self.folder / name).write_text(f"#!/bin/sh\n{lines}\n")
                (self.folder / name).chmod(0o755)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A machine without a SLURM, with the toy dataset and job."""
    site = Site(tmp_path / "commands")
    place = tmp_path / "here and there"
    (place / "data").mkdir(parents=True)
    dataset(place / "data")
    (place / "toy.toml").write_text(JOB_OF_NUMPY)
    monkeypatch.chdir(place)
    monkeypatch.setenv("PATH", str(site.folder))
    return site


@pytest.fixture
def site(nowhere: Site) -> Site:
    """The same, with a SLURM that takes every job as number 17."""
    nowhere.says(**ANSWERS)
    return nowhere


def run_folder() -> Run:
    [found] = [path for path in Path("runs").iterdir() if not path.name.startswith(".")]
    return Run(found)


def tree() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


# --- the dry run


@pytest.mark.usefixtures("nowhere")
def test_a_dry_run_shows_and_rehearses_and_leaves_nothing() -> None:
    before = tree()
    found = cnnjob("submit", "toy.toml", "--profile", "lab", "--partition", "gpu", "--time", "2h", "--dry-run")
    assert found.exit_code == 0, found.output
    assert 'name = "toy"' in found.stdout
    assert re.search(r"^run: runs/toy-[0-9a-f]{8}, pending$", found.stdout, re.MULTILINE)
    assert "\nrequest: 1 node, 1 task, 2 cores, 1 G, 2 h on gpu\n" in found.stdout
    assert "\nmemory of the arrays: " in found.stdout
    assert "\n#!/bin/bash\n" in found.stdout
    said = re.findall(r"^rehearsal: (.*?)(?:, a checkpoint of [\d,]+ bytes|: \d files)?$", found.stdout, re.MULTILINE)
    assert said == [
        "life 1: 2 steps, stopped by a signal", "life 2: 2 steps, stopped by a signal", "report",
    ]  # fmt: skip
    assert found.stdout.endswith("\nnothing was submitted\n")
    assert tree() == before


@pytest.mark.usefixtures("nowhere")
def test_a_rehearsal_of_less_than_four_steps_ends() -> None:
    short = ("--set", "train.epochs=1", "--set", "train.batch_size=60")
    found = cnnjob("submit", "toy.toml", "--dry-run", *short)
    assert "rehearsal: life 2: finished, test accuracy 0." in found.stdout, found.output
    assert found.stdout.count("rehearsal: ") == 3


@pytest.mark.usefixtures("nowhere")
def test_no_rehearsal() -> None:
    found = cnnjob("submit", "toy.toml", "-n", "--no-rehearsal")
    assert (found.exit_code, "\nrehearsal: " in found.stdout) == (0, False), found.output


@pytest.mark.usefixtures("nowhere")
def test_what_is_wrong_with_a_job_shows_in_its_rehearsal() -> None:
    found = cnnjob("submit", "toy.toml", "--dry-run", "--set", "train.batch_size=500")
    assert (found.exit_code, "500 is more than the 162 training images" in found.stderr) == (2, True), found.output


def lines(*options: str) -> list[str]:
    """The script that a dry run shows."""
    found = cnnjob("submit", "toy.toml", "--dry-run", "--no-rehearsal", *options)
    assert found.exit_code == 0, found.output
    return found.stdout.partition("#!/bin/bash\n")[2].removesuffix("\nnothing was submitted\n").splitlines()


@pytest.mark.usefixtures("nowhere")
def test_the_script() -> None:
    found = lines(
        "-p", "gpu", "-A", "us", "-q", "high", "-t", "90m", "-c", "3", "--mem-per-cpu", "2G", "-C", "nvlink",
        "-w", "n1", "-x", "n2", "--dependency", "afterok:7", "--no-requeue", "--gpus", "2",
        "--sbatch", "mail-type=FAIL",
    )  # fmt: skip
    place = Path.cwd()
    [name] = [line.partition("=")[2] for line in found if line.startswith("#SBATCH --job-name=")]
    assert [line.removeprefix("#SBATCH --") for line in found if line.startswith("#SBATCH")] == [
        "account=us", f"comment='cnnjob {place}/runs/{name} 1'", "constraint=nvlink", "cpus-per-task=3",
        "dependency=afterok:7", "exclude=n2", "gpus-per-node=2", f"job-name={name}", "mail-type=FAIL",
        "mem-per-cpu=2G", "no-requeue", "nodelist=n1", "nodes=1", "open-mode=append",
        f"output='{place}/runs/{name}/slurm/%j_0_log.out'", "partition=gpu", "qos=high", "signal=USR2@90", "time=90",
    ]  # fmt: skip
    start = found.index("# setup")
    assert found[start + 1] == "own_code() {"
    code = rf"    export PYTHONPATH='{place}/runs/\.code/[0-9a-f]{{8}}' PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1"
    assert re.fullmatch(code, found[start + 3])
    restart = f"    own_code; {sys.executable} -P -m cnnjob.slurm.node.restart '{place}/runs/{name}' $1 || "
    assert (found[start + 5], found[start + 7].startswith(restart)) == ("restart() {", True)
    assert found[start + 10].startswith("trap 'restart $?' EXIT")
    assert "own_code" in found[start + 11 :]
    output = f"--unbuffered --output '{place}/runs/{name}/slurm/%j_%t_log.out' --export=ALL"
    assert f"srun {output} {sys.executable} -P -u -m submitit.core._submit '{place}/runs/{name}/slurm'" in found


@pytest.mark.usefixtures("nowhere")
def test_without_a_time_the_site_decides() -> None:
    assert not [line for line in lines() if "--time" in line]


@pytest.mark.usefixtures("nowhere")
def test_setup_lines_end_the_job_when_they_fail() -> None:
    Path("site.toml").write_text('setup = ["module load cuda"]\n')
    found = lines("--profile", "site.toml")
    start = found.index("set -e")
    assert found[start : start + 3] == ["set -e", "module load cuda", "set +e"]
    assert next(place for place, line in enumerate(found) if line.startswith("trap : ")) < start


def asked_of_gpus(*options: str) -> list[str]:
    return [line for line in lines(*options) if line.startswith("#SBATCH --g")]


@pytest.mark.usefixtures("nowhere")
def test_one_gpu_unless_the_backend_is_numpy() -> None:
    assert not asked_of_gpus()
    assert asked_of_gpus("--set", "resources.backend=auto") == ["#SBATCH --gpus-per-node=1"]
    assert not asked_of_gpus("--set", "resources.backend=auto", "--gpus", "0")


@pytest.mark.parametrize(("first", "asked"), [("numpy", []), ("cuda", ["#SBATCH --gpus-per-node=1"])])
def test_a_resumed_run_asks_for_the_gpus_of_the_backend_that_it_began_with(
    site: Site, first: str, asked: list[str]
) -> None:
    words = ("--set", "resources.backend=auto")
    cnnjob("submit", "toy.toml", *words)
    files.write_json(run_folder().environment_file, {"backend": first})
    assert asked_of_gpus(*words) == asked
    site.says(sbatch='while read -r l; do echo "$l" >> script; done < "$1"; echo "Submitted batch job 18"')
    assert "submitted as job 18" in cnnjob("submit", "toy.toml", *words).stdout
    assert [line for line in Path("script").read_text().splitlines() if line.startswith("#SBATCH --g")] == asked
    assert asked_of_gpus(*words, "--gpus", "2") == ["#SBATCH --gpus-per-node=2"]
    other = {"numpy": "cuda", "cuda": "numpy"}[first]
    refused = cnnjob("submit", "toy.toml", "--set", f"resources.backend={other}")
    assert (refused.exit_code, f"was started with {first!r}" in refused.stderr) == (2, True), refused.output


def test_a_sweep_of_runs_that_began_with_different_backends_is_several_jobs(site: Site) -> None:
    words = ("submit", "toy.toml", "--set", "resources.backend=auto", "--seeds", "3")
    cnnjob(*words)
    first = Run.all(Path("runs"))[0]
    files.write_json(first.environment_file, {"backend": "numpy"})
    shown = cnnjob(*words, "--dry-run", "--no-rehearsal").stdout
    assert "\nrequest: 1 node, 1 task, 2 cores, " in shown
    assert ", 1 of 3 runs\n" in shown
    assert ", 1 GPU, 2 cores, " in shown
    site.says(sbatch='[ -e jobs ] && n=19 || n=18; : > jobs; echo "Submitted batch job $n"')
    said = cnnjob(*words).stdout
    assert [said.count(f"submitted as job {number}") for number in ("18", "19", "18_", "19_")] in (
        [1, 2, 0, 2], [2, 1, 2, 0],
    )  # fmt: skip


@pytest.mark.usefixtures("nowhere")
def test_the_command_line_goes_before_the_backend_of_a_profile() -> None:
    Path("site.toml").write_text('backend = "auto"\n')
    assert asked_of_gpus("--profile", "site.toml") == ["#SBATCH --gpus-per-node=1"]
    assert not asked_of_gpus("--profile", "site.toml", "--set", "resources.backend=numpy")


# --- which job


@pytest.mark.usefixtures("nowhere")
def test_the_job_of_the_one_prepared_dataset() -> None:
    none = cnnjob("submit", "--dry-run")
    assert (none.exit_code, "no dataset in data/ has one; name one of cifar10, " in none.stderr) == (2, True)
    Path("jobs").mkdir()
    Path("jobs/toy.toml").write_text(JOB_OF_NUMPY)
    one = cnnjob("submit", "--dry-run", "--no-rehearsal")
    assert (one.exit_code, 'name = "toy"' in one.stdout) == (0, True), one.output
    Path("data/digits.h5").touch()
    two = cnnjob("submit", "--dry-run")
    assert (two.exit_code, "2 prepared datasets have one; name one of " in two.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["toyy.toml"], 2, "toyy.toml: no such file"),
        (["toy.toml", "--profile", "lob"], 2, "--profile lob: no such profile; did you mean 'lab'?"),
        (["toy.toml", "--mem", "4G", "--mem-per-cpu", "1G"], 2, "mem and mem_per_cpu exclude each other"),
        (["toy.toml", "--time", "soon"], 2, "'soon' is no time"),
        (["toy.toml", "--sbatch", "=5"], 2, "--sbatch =5: not of the form KEY=VALUE"),
        (["toy.toml", "--cpus-per-task", "0"], 2, "'--cpus-per-task' / '-c'"),
        (["toy.toml", "--set", "dataset=mnist"], 3, "Prepare it:\n    cnnjob prepare mnist"),
        (["toy.toml"], 4, "scontrol: not found; this machine has no SLURM, log in to one that has"),
        (["toy.toml", "-p", "gpu"], 4, "scontrol: not found; this machine has no SLURM, log in to one that has"),
    ],
)
@pytest.mark.usefixtures("nowhere")
def test_mistakes_are_one_message(arguments: list[str], code: int, message: str) -> None:
    found = cnnjob("submit", *arguments)
    assert (found.exit_code, message in found.stderr) == (code, True), found.output
    assert found.stdout == ""
    assert "Traceback" not in found.output


# --- submitting


@pytest.mark.usefixtures("site")
def test_what_is_submitted_is_what_the_dry_run_shows() -> None:
    options = ("toy.toml", "--partition", "gpu", "--time", "2h")
    shown = cnnjob("submit", *options, "--dry-run", "--no-rehearsal").stdout
    found = cnnjob("submit", *options)
    assert found.exit_code == 0, found.output
    run = run_folder()
    assert found.stdout == f"{run.path}: submitted as job 17: {Request(partition='gpu', time='2h').sentence()}\n"
    script = (run.path / "slurm" / "17_submission.sh").read_text()
    assert f"\n{script}\nnothing was submitted\n" in shown
    assert Request.model_validate(files.read_json(run.path / "slurm" / "request.json")).gpus == 0


@pytest.mark.usefixtures("site")
def test_the_batch_script_lives_the_run_to_its_end(tmp_path: Path) -> None:
    """The real script, pickle and code copy, with only the commands of SLURM played."""
    cnnjob("submit", "toy.toml", "--set", "train.epochs=3")
    run = run_folder()
    done = batch_script(run)
    assert done.returncode == 0, done.stdout
    assert f"cnnjob: {run.path.resolve()}: finished" in done.stdout
    assert [told["said"] for told in try_read_restart_log(run)] == ["finished"]
    whole = trained(tmp_path / "whole", train__epochs=3).run
    assert outcome_of(run) == outcome_of(whole)
    again = cnnjob("submit", "toy.toml", "--set", "train.epochs=3")
    assert (again.exit_code, again.stdout) == (0, f"{run.path}: finished, nothing submitted\n")


def batch_script(run: Run, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {**os.environ, "SLURM_JOB_ID": "17", "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", **environment}
    return subprocess.run(
        ["/bin/bash", run.path / "slurm" / "17_submission.sh"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env=known, check=False,
    )  # fmt: skip


@pytest.mark.usefixtures("site")
def test_the_code_that_was_submitted_is_kept_once() -> None:
    cnnjob("submit", "toy.toml")
    [code] = Path("runs/.code").iterdir()
    assert not list(code.rglob("__pycache__"))
    source = Path(submission.__file__)
    assert (code / source.relative_to(PACKAGE.parent)).read_bytes() == source.read_bytes()
    first = code.stat().st_mtime_ns
    cnnjob("submit", "toy.toml", "--set", "seed=2")
    assert [path.stat().st_mtime_ns for path in Path("runs/.code").iterdir()] == [first]


def other_code(*names: str) -> None:
    """Write modules into the current folder that must not be imported."""
    for name in names:
        Path(name).write_text("raise SystemExit('imported from the current folder')\n")


@pytest.mark.usefixtures("site")
def test_the_code_that_was_submitted_runs_whatever_becomes_of_the_clone() -> None:
    """The clone is the current folder of the command that submits and of the job; no environment is exported."""
    shutil.copytree(PACKAGE, "cnnjob", ignore=shutil.ignore_patterns("__pycache__"))
    Path("cnnjob/clone.py").touch()
    words = [sys.executable, "-m", "cnnjob", "submit", "toy.toml", "--sbatch", "export=NIL"]
    subprocess.run(words, capture_output=True, check=True)
    [code] = Path("runs/.code").iterdir()
    assert (code / "cnnjob/clone.py").exists()
    other_code("cnnjob/__init__.py", "cnnjob/slurm/node/node_task.py", "submitit.py", "numpy.py", "json.py")
    known = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_EXPORT_ENV": "NIL"}
    script = ["/bin/bash", str(run_folder().slurm_folder / "17_submission.sh")]
    done = subprocess.run(script, capture_output=True, text=True, env=known, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert run_folder().state() == "finished"


@pytest.mark.parametrize("words", [("submit", "toy.toml", "--local"), ("verify-resume", "toy.toml", "--kills", "1")])
@pytest.mark.usefixtures("nowhere")
def test_no_process_imports_from_the_current_folder(words: tuple[str, ...]) -> None:
    Path("cnnjob").mkdir()
    other_code("cnnjob/__init__.py", "submitit.py", "numpy.py", "json.py")
    done = subprocess.run([sys.executable, "-P", "-m", "cnnjob", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.usefixtures("site")
def test_a_damaged_copy_of_the_code_is_refused_and_repaired() -> None:
    cnnjob("submit", "toy.toml")
    [code] = Path("runs/.code").resolve().iterdir()
    (code / "cnnjob/reporting/page/page.py").write_text('"""Changed."""\n')
    done = batch_script(run_folder())
    assert (done.returncode, f"\ncnnjob: {code}: not the code that was submitted (" in done.stdout) == (3, True)
    (code / "cnnjob/reporting/page/charts.py").unlink()
    (code / "numpy.py").write_text("raise SystemExit('added')\n")
    assert cnnjob("submit", "toy.toml").exit_code == 0
    package = PACKAGE
    for name in ("reporting/page/page.py", "reporting/page/charts.py"):
        assert (code / "cnnjob" / name).read_bytes() == (package / name).read_bytes()
    assert batch_script(run_folder()).returncode == 0


def compiled(source: Path, text: str) -> Path:
    """Write other byte code for a module where Python looks for it; it fits the module's time and size."""
    state = source.stat()
    other = source.with_name("other.py")
    other.write_text(text)
    cache = Path(cache_from_source(str(source)))
    py_compile.compile(str(other), cfile=str(cache), doraise=True)
    other.unlink()
    head = cache.read_bytes()[:8] + struct.pack("<II", int(state.st_mtime), state.st_size)
    cache.write_bytes(head + cache.read_bytes()[16:])
    return cache


def linked_folder(code: Path) -> None:
    """Have a folder of the package be a link to another one with the same files."""
    (code / "cnnjob/reporting").rename(code.parent.parent / "reporting")
    (code / "cnnjob/reporting").symlink_to(code.parent.parent / "reporting")


def linked_file(code: Path) -> None:
    (code / "cnnjob/files.py").rename(code.parent.parent / "files.py")
    (code / "cnnjob/files.py").symlink_to(code.parent.parent / "files.py")


def folder_for_a_file(code: Path) -> None:
    (code / "cnnjob/reporting/plots.py").unlink()
    (code / "cnnjob/reporting/plots.py").mkdir()


ODDITIES: dict[str, Callable[[Path], object]] = {
    "byte code": lambda code: compiled(code / "cnnjob/training/trainer.py", "raise SystemExit('other byte code')\n"),
    "sourceless": lambda code: (code / "sitecustomize.pyc").touch(),
    "shared object": lambda code: (code / "cnnjob/nn.so").touch(),
    "hidden": lambda code: (code / "cnnjob/.hidden").mkdir(),
    "link to nowhere": lambda code: (code / "usercustomize").symlink_to("/nonexistent"),
    "linked folder": linked_folder,
    "linked file": linked_file,
    "folder for a file": folder_for_a_file,
    "pipe": lambda code: os.mkfifo(code / "cnnjob/pipe.py"),
}


CHECK = """
import sys
sys.path.insert(0, sys.argv[1])
from cnnjob.errors import DataError
from cnnjob.slurm.submit.code_snapshot import check_snapshot
for _ in sys.stdin:
    try:
        check_snapshot()
        print("whole", flush=True)
    except DataError as error:
        print(error, flush=True)
"""


@pytest.mark.usefixtures("site")
def test_nothing_that_the_package_has_not_is_run_from_a_copy() -> None:
    cnnjob("submit", "toy.toml")
    run = run_folder()
    [code] = Path("runs/.code").resolve().iterdir()
    whole = {path.relative_to(code) for path in code.rglob("*")}
    with subprocess.Popen(
        [sys.executable, "-c", CHECK, code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin
        assert process.stdout
        for name, add in ODDITIES.items():
            add(code)
            process.stdin.write("\n")
            assert f"{code}: not the code that was submitted (found digest " in process.stdout.readline(), name
            save_snapshot(run)
            assert {path.relative_to(code) for path in code.rglob("*")} == whole, name
            process.stdin.write("\n")
            assert process.stdout.readline() == "whole\n"
    assert not any(path.is_symlink() for path in code.rglob("*"))
    assert (code.parent.parent / "reporting/__init__.py").exists()  # what a link led to is not removed
    assert [path.name for path in code.parent.iterdir()] == [code.name]


def test_a_link_in_the_place_of_a_copy_is_replaced_and_its_target_left_alone(tmp_path: Path) -> None:
    run = Run(tmp_path / "runs" / "any")
    code = snapshot_folder(run)
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone" / "mine").touch()
    code.parent.mkdir(parents=True)
    code.symlink_to(tmp_path / "clone")
    assert save_snapshot(run) == code
    assert (code.is_symlink(), [path.name for path in (tmp_path / "clone").iterdir()]) == (False, ["mine"])


@pytest.mark.usefixtures("site")
def test_no_variable_of_python_changes_what_a_job_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of the node's nor of the setup lines'; and no byte code comes to lie in the copy."""
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    Path("site.toml").write_text("setup = ['export PYTHONHOME=/nonexistent PYTHONPATH=/nonexistent PYTHONINSPECT=1']\n")
    cnnjob("submit", "toy.toml", "--profile", "site.toml")
    [code] = Path("runs/.code").resolve().iterdir()
    cache = compiled(code / "cnnjob/training/trainer.py", "raise SystemExit('other byte code')\n")
    elsewhere = Path.cwd() / "cache" / str(cache.parents[1])[1:] / cache.name
    elsewhere.parent.mkdir(parents=True)
    cache.rename(elsewhere)
    cache.parent.rmdir()
    other = {"PYTHONPYCACHEPREFIX": str(Path.cwd() / "cache"), "PYTHONWARNINGS": "error", "PYTHONOPTIMIZE": "2"}
    done = batch_script(run_folder(), **other)
    assert (done.returncode, run_folder().state()) == (0, "finished"), done.stdout
    assert not list(code.rglob("__pycache__"))


@pytest.mark.usefixtures("nowhere")
def test_runs_here_leave_no_byte_code_in_the_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    assert cnnjob("submit", "toy.toml", "--local").exit_code == 0
    assert os.environ["PYTHONWARNINGS"] == "error"
    assert not list(Path("runs/.code").rglob("__pycache__"))


@pytest.mark.usefixtures("site")
def test_a_copy_of_the_code_that_cannot_be_written_is_one_message() -> None:
    Path("runs").mkdir()
    Path("runs/.code").touch()
    found = cnnjob("submit", "toy.toml")
    assert (found.exit_code, found.stdout) == (3, ""), found.output
    assert re.search(
        r"runs/\.code/\w{8}: the copy of the code cannot be written, .*; see to that folder\n$", found.stderr
    )


@pytest.mark.usefixtures("site")
def test_an_enclosing_job_does_not_leak_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_MEM_PER_NODE", "SBATCH_EXPORT", "SRUN_CPUS_PER_TASK", "SUBMITIT_EXECUTOR"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    before = dict(os.environ)
    assert cnnjob("submit", "toy.toml").exit_code == 0
    seen = Path("environment").read_text()
    assert re.findall(r"\b((?:SLURM|SBATCH|SRUN|SUBMITIT)_\w+)=", seen) == ["SLURM_CONF"]
    assert "PATH=" in seen
    assert dict(os.environ) == before


def test_a_job_that_waits_or_runs_is_left_alone(site: Site) -> None:
    cnnjob("submit", "toy.toml")
    run = run_folder()
    line = "|PENDING|Resources||N/A|N/A|cnnjob"
    site.says(
        squeue=f'echo "16{line}"; echo "17{line} {run.path.resolve()} 1"; echo "19{line} {run.path.resolve()}2 1"'
    )
    again = cnnjob("submit", "toy.toml")
    assert (again.exit_code, again.stdout) == (0, f"{run.path}: queued as 17, nothing submitted\n")
    running = running_run(Path("other"))
    assert [done.why for done in submission.submit([running], Request())] == ["running"]
    assert [done.why for done in submission.submit([finished_run(Path("another"))], Request())] == ["finished"]


def test_a_job_whose_run_folder_was_removed_while_it_waits_gets_its_files_again(site: Site) -> None:
    cnnjob("submit", "toy.toml")
    run = run_folder()
    before = {path.name for path in run.slurm_folder.iterdir()}
    shutil.rmtree(run.path)
    site.says(squeue=f'echo "17|PENDING|Resources||N/A|N/A|cnnjob {run.path.resolve()} 1"')
    again = cnnjob("submit", "toy.toml")
    assert (again.exit_code, again.stdout) == (0, f"{run.path}: queued as 17, nothing submitted\n")
    assert {path.name for path in run.slurm_folder.iterdir()} == before - {"17_submission.sh"}


@pytest.mark.usefixtures("site")
def test_a_stopped_or_lost_run_goes_on() -> None:
    for run in (stopped_run(Path("a")), lost_run(Path("b")), pending_run(Path("c"))):
        [done] = submission.submit([run], Request())
        assert (done.job_id, done.why) == ("17", "submitted")


# --- a scheduler that does not answer as it should


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"scontrol": "exit 1"}, "scontrol --all show partition --oneliner: refused, exit code 1"),
        (
            {"scontrol": 'echo "Unable to contact slurm controller" >&2; exit 1'},
            "refused, Unable to contact slurm controller",
        ),
        (
            {"scontrol": "echo PartitionName=gpu-long; echo PartitionName=batch State=UP"},
            "--partition gpu: no such partition, this site has batch, gpu-long; ",
        ),
        ({"scontrol": "echo PartitionName=gpu State=DRAIN"}, "--partition gpu: it is DRAIN and takes no jobs"),
        ({"scontrol": "echo PartitionName=gpu State=INACTIVE"}, "--partition gpu: it is INACTIVE and takes no jobs"),
        (
            {"scontrol": "echo PartitionName=gpu MaxTime=00:30:00"},
            "--time 2h: longer than gpu allows, which is 30 min; ask for less",
        ),
        (
            {"scontrol": "echo PartitionName=gpu AllowAccounts=them,uss"},
            "--account us: not allowed in gpu, this partition has them, uss; did you mean 'uss'?",
        ),
        (
            {"squeue": "exit 1"},
            f"|{queue.FORMAT}: refused, exit code 1",
        ),
        ({"squeue": None}, "squeue: not found; this machine has no SLURM"),
        ({"srun": None}, "srun: not found; this machine has no SLURM"),
        ({"sbatch": None}, "sbatch: not found; this machine has no SLURM"),
        (
            {"sbatch": 'echo "Batch job submission failed: Invalid account" >&2; exit 1'},
            "sbatch: refused, Batch job submission failed: Invalid account",
        ),
        ({"sbatch": 'echo "sbatch: error: one" >&2; echo "two" >&2; exit 1'}, "sbatch: refused, sbatch: error: one"),
        ({"sbatch": 'echo "sbatch: no option x" >&2; echo "Try --help" >&2; exit 1'}, "refused, sbatch: no option x"),
        ({"sbatch": "exit 1"}, "sbatch: refused, exit code 1"),
        ({"sbatch": "echo garbage"}, "sbatch: gave no job's id, 'garbage', and no such job is in the queue; submit"),
        ({"sbatch": "exit 0"}, "sbatch: gave no job's id, '', and no such job is in the queue; submit again"),
    ],
)
def test_what_a_scheduler_may_do(site: Site, answers: dict[str, str | None], message: str) -> None:
    site.says(**answers)
    found = cnnjob("submit", "toy.toml", "--partition", "gpu", "--time", "2h", "--account", "us")
    assert (found.exit_code, found.stdout) == (4, ""), found.output
    assert message in found.stderr
    assert found.stderr.startswith("cnnjob: ")
    assert found.stderr.count("\n") == 1


@pytest.mark.usefixtures("site")
def test_an_unknown_partition_is_named_with_the_near_one() -> None:
    found = cnnjob("submit", "toy.toml", "--partition", "debug,gup")
    assert found.exit_code == 4
    assert "--partition gup: no such partition, this site has debug, gpu, gpu-long; did you mean 'gpu'?" in found.stderr
    assert cnnjob("submit", "toy.toml", "--partition", "debug,gpu").exit_code == 0


@pytest.mark.parametrize(
    ("asked", "states", "warned"),
    [
        ("gpu", {"gpu": "DOWN"}, "gpu"),
        ("gpu,low", {"gpu": "DOWN", "low": "DRAIN"}, "gpu"),
        ("gpu,low", {"gpu": "DOWN", "low": "DOWN"}, "gpu,low"),
        ("gpu,low", {"gpu": "DOWN", "low": "UP"}, ""),
        ("", {"gpu": "DOWN Default=YES"}, "gpu"),
        ("gpu", {"gpu": "UP"}, ""),
    ],
)
def test_a_partition_that_is_down_takes_jobs_and_a_warning_is_said(
    site: Site, asked: str, states: dict[str, str], warned: str
) -> None:
    lines = "; ".join(f'echo "PartitionName={name} State={state}"' for name, state in states.items())
    site.says(scontrol=f'case "$*" in *partition*) {lines};; esac')
    options = ["--partition", asked] * bool(asked)
    found = cnnjob("submit", "toy.toml", *options)
    said = f"cnnjob: warning: --partition {warned}: it is DOWN, the job waits in the queue until the site sets it UP\n"
    assert (found.exit_code, found.stderr) == (0, said * bool(warned)), found.output
    assert ": submitted as job 17" in found.stdout
    shown = cnnjob("submit", "toy.toml", "--set", "seed=5", *options, "--dry-run", "--no-rehearsal").stdout
    assert ("it is DOWN, the job waits" in shown) == bool(warned)


@pytest.mark.parametrize(
    ("options", "script", "said"),
    [
        (("--set", "resources.backend=numpy"), "", ""),
        (
            ("--set", "resources.backend=numpy", "--gpus", "1"),
            "#SBATCH --gpus-per-node=1",
            "a run on NumPy uses no GPU",
        ),
        (("--set", "resources.backend=auto"), "#SBATCH --gpus-per-node=1", ""),
        (("--set", "resources.backend=auto", "--gpus", "2"), "#SBATCH --gpus-per-node=2", "1 of 2 will be idle"),
    ],
)
@pytest.mark.usefixtures("site")
def test_a_profile_with_gpus_and_the_backend_of_the_command_line(
    options: tuple[str, ...], script: str, said: str
) -> None:
    Path("site.toml").write_text("gpus = 1\n[sbatch]\ngpu-bind = 'closest'\n")
    found = cnnjob("submit", "toy.toml", "--profile", "site.toml", *options)
    assert found.exit_code == 0, found.output
    asked = [
        line for line in (run_folder().slurm_folder / "17_submission.sh").read_text().splitlines() if "gpus-per" in line
    ]
    assert asked == [script] * bool(script)
    assert (said in found.stderr, bool(found.stderr)) == (True, bool(said))


@pytest.mark.usefixtures("site")
def test_a_folder_with_a_line_end_in_its_name_is_refused() -> None:
    found = cnnjob("submit", "toy.toml", "--runs", "a\nb")
    assert (found.exit_code, found.stderr.count("\n")) == (2, 1)
    assert "'a\\nb': a batch script cannot hold a control character" in found.stderr.replace(str(Path.cwd()) + "/", "")


def test_a_hidden_partition_is_there_all_the_same(site: Site) -> None:
    site.says(scontrol='case "$*" in *--all*) echo PartitionName=gpu;; esac')
    assert cnnjob("submit", "toy.toml", "--partition", "gpu").exit_code == 0


def test_the_accounts_of_the_user_are_said_when_one_is_refused(site: Site) -> None:
    refused = "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified"
    site.says(sbatch=f'echo "{refused}" >&2; exit 1', sacctmgr='printf "%s\\n" us them us')
    assert cnnjob("submit", "toy.toml", "-A", "uss").stderr.endswith(f"{refused}; yours are them, us\n")
    site.says(sacctmgr="exit 0")
    assert "SLURM knows no account of yours, ask the site" in cnnjob("submit", "toy.toml", "-A", "uss").stderr
    site.says(sacctmgr="exit 1")
    assert cnnjob("submit", "toy.toml", "-A", "uss").stderr.endswith(f"{refused}\n")


SACCTMGR = """case "$*" in
*format=account|*format=qos) echo us;;
*associations*maxsubmit*) echo "us||"; echo "us|ME|2"; echo "us|other|7";;
*associations*grpsubmit*) echo "us||9"; echo "us|ME|";;
*qos*maxsubmitpu*) echo "us|4"; echo "theirs|1";;
*qos*maxwall*) echo "us|01:00:00";;
*) exit 1;;
esac"""
POLICY = (
    "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size)"
)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "AssocMaxSubmitJobLimit",
            "your account allows you at most 2 jobs in the queue; one that is ending still counts",
        ),
        ("AssocGrpSubmitJobsLimit", "your account allows all its users together at most 9 jobs in the queue"),
        ("QOSMaxSubmitJobPerUserLimit", "your QOS allows you at most 4 jobs in the queue"),
        ("QOSGrpSubmitJobsLimit", "your QOS allows all its users together a limited number of jobs in the queue"),
        ("MaxSubmitJobsPerAccount", "your QOS allows your account a limited number of jobs in the queue"),
        (
            "QOSMaxWallDurationPerJobLimit",
            "it asks for more time than your QOS allows a job (01:00:00). Ask for another",
        ),
        ("AssocMaxWallDurationPerJobLimit", "it asks for more time than your account allows a job. Ask for another"),
        ("QOSMaxGRESPerUser", "it asks for more GPUs than your QOS allows you. Ask for another amount with --gpus"),
        ("QOSMinCpuNotSatisfied", "it asks for less cores than your QOS demands. Ask for another amount"),
    ],
)
def test_a_limit_is_said_in_a_sentence(site: Site, word: str, said: str) -> None:
    site.says(sbatch=f'echo "sbatch: error: {word}" >&2; echo "{POLICY}" >&2; exit 1')
    site.says(sacctmgr=SACCTMGR.replace("ME", pwd.getpwuid(os.getuid()).pw_name))
    found = cnnjob("submit", "toy.toml")
    assert (found.exit_code, found.stderr.count("\n")) == (4, 1)
    assert f"refused by SLURM ({word}): {said}" in found.stderr
    sweep = cnnjob("submit", "toy.toml", "--seeds", "3", "--parallel", "1").stderr
    counts = "each of these 3 array tasks counts, so --parallel does not help. Submit fewer values or seeds at once"
    assert (counts in sweep) == ("Submit" in word)
    if counts in sweep:
        command = shlex.split(sweep.splitlines()[-1])
        site.says(sbatch='echo "Submitted batch job 17"')
        assert ": submitted as job 17" in cnnjob(*command[1:]).stdout
    site.says(sacctmgr="exit 1", sbatch=f'echo "{POLICY}" >&2; exit 1')
    found = cnnjob("submit", "toy.toml", "--set", "seed=7")
    assert "A limit of your account or QOS is reached; ask the site for them" in found.stderr


def test_garbage_in_the_queue_is_no_job_of_ours(site: Site) -> None:
    site.says(squeue=r'printf "\377\376 \n\n   \nslurm_load_jobs error\n"')
    assert queue.mine() == []


def test_no_answer_in_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ANSWER_SECONDS", 0.1)
    site.says(squeue="exec /bin/sleep 60")
    with pytest.raises(SchedulerError, match=r"squeue: no answer in 0\.1 s; try again"):
        queue.mine()


def test_what_a_command_started_ends_with_it(site: Site) -> None:
    """A site's sbatch may be a wrapper, whose real one would submit the job later."""
    os.mkfifo("held")
    held = os.open("held", os.O_RDONLY | os.O_NONBLOCK)
    site.says(sbatch="/bin/sleep 60 > held & echo waits for the controller >&2; wait")
    with pytest.raises(SchedulerError, match=r"sbatch: no answer in 1 s \(it said: waits for the controller\); try"):
        client.ask(["sbatch", "x.sh"], 1)
    poll = select.poll()
    poll.register(held)
    assert poll.poll(20_000) == [(held, select.POLLHUP)]
    os.close(held)


def test_whether_there_is_a_slurm(nowhere: Site) -> None:
    assert not client.is_there()
    nowhere.says(**ANSWERS)
    assert client.is_there()


def test_the_facts_of_a_job(site: Site) -> None:
    facts = "PreemptTime=None TRES=cpu=2,mem=1G Nodes= NtasksPerN:B:S:C=0:0:*:*"
    site.says(scontrol=f'printf "%s\\n" "JobId=7 JobName=a b" "   {facts}"')
    found = client.job_facts("7")
    assert (found["JobId"], found["PreemptTime"], found["TRES"], found["Nodes"]) == ("7", "None", "cpu=2,mem=1G", "")
