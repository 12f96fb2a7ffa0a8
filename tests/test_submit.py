"""Submitting without a SLURM: the dry run, the script, who is asked what, and what is decided after a life.

Where commands of SLURM are called they are small shell scripts that answer as one does, or as none should.
"""

import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cnnjob import files
from cnnjob.cli import app
from cnnjob.errors import SchedulerError
from cnnjob.runs import Run
from cnnjob.slurm import life, queue, scheduler, submission
from cnnjob.slurm.requests import Request
from cnnjob.slurm.restart import decide, main, restarts_of, restarts_without_progress
from tests.run_folders import finished_run, lost_run, pending_run, running_run, stopped_run
from tests.test_cli import JOB
from tests.toys import dataset, outcome_of, trained

JOB_OF_NUMPY = f'{JOB}[resources]\nbackend = "numpy"\n'
QUEUED = 'printf "%s\\n" "16|RUNNING|None|n1|N/A|N/A|other" "" "17"'
ANSWERS = {
    "srun": 'shift 3; exec "$@"',
    "sbatch": 'export -p > environment; echo "Submitted batch job 17"',
    "squeue": QUEUED,
    "scontrol": """case "$*" in
*"show partition"*) for name in debug gpu gpu-long; do echo "PartitionName=$name MaxTime=1-00:00:00 State=UP"; done;;
*"show config"*) echo "JobRequeue = 1"; echo "MaxArraySize = 1001";;
*"show job"*) echo "JobId=17 JobState=RUNNING Restarts=0";;
esac""",
}


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
    assert "\nrequest: 1 node, 1 task, 2 cores, 1 G, 2 h 0 min on gpu\n" in found.stdout
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
    assert any(re.fullmatch(rf"export PYTHONPATH='{place}/runs/\.code/[0-9a-f]{{8}}'", line) for line in found)
    assert found[-3:] == [
        "code=$?", f"{sys.executable} -m cnnjob.slurm.restart '{place}/runs/{name}' $code", "exit $code",
    ]  # fmt: skip


@pytest.mark.usefixtures("nowhere")
def test_without_a_time_the_site_decides() -> None:
    assert not [line for line in lines() if "--time" in line]


@pytest.mark.usefixtures("nowhere")
def test_setup_lines_end_the_job_when_they_fail() -> None:
    Path("site.toml").write_text('setup = ["module load cuda"]\n')
    found = lines("--profile", "site.toml")
    start = found.index("# setup")
    assert found[start + 1 : start + 4] == ["set -e", "module load cuda", "set +e"]


def asked_of_gpus(*options: str) -> list[str]:
    return [line for line in lines(*options) if line.startswith("#SBATCH --g")]


@pytest.mark.usefixtures("nowhere")
def test_one_gpu_unless_the_backend_is_numpy() -> None:
    assert not asked_of_gpus()
    assert asked_of_gpus("--set", "resources.backend=auto") == ["#SBATCH --gpus-per-node=1"]
    assert not asked_of_gpus("--set", "resources.backend=auto", "--gpus", "0")


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
        (["toy.toml", "--set", "dataset=mnist"], 3, "pack it with `cnnjob prepare mnist`"),
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
    assert [told["said"] for told in restarts_of(run)] == ["finished"]
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


def test_the_batch_script_of_a_job_with_a_mistake_of_its_own(site: Site) -> None:
    site.says(scontrol='echo "$@" >> asked; echo "JobId=17 JobState=RUNNING Restarts=0"')
    cnnjob(
        "submit", "toy.toml", "--set", "train.learning_rate=900.0", "--set", "train.momentum=0.99",
        "--set", "model.blocks=[{dense=8,activation='none'}]",
    )  # fmt: skip
    done = batch_script(run_folder(), SLURM_JOB_END_TIME="99999999999")
    assert done.returncode == 1, done.stdout
    assert "the loss is" in done.stdout
    assert [told["said"] for told in restarts_of(run_folder())] == ["the job's own error is not restarted"]
    assert "requeue" not in Path("asked").read_text()


def test_the_batch_script_of_a_job_whose_time_is_over(site: Site) -> None:
    """Each life ends before its limit with a step done; the scheduler puts it back."""
    site.says(scontrol='echo "$@" >> asked; echo "JobId=17 JobState=RUNNING Restarts=0 EndTime=2001-01-01T00:00:00"')
    cnnjob("submit", "toy.toml")
    run = run_folder()
    for life_ in (1, 2):
        done = batch_script(run)
        assert done.returncode == 75, done.stdout
        assert "cnnjob: " in done.stdout
        assert (run.state(), [told["step"] for told in restarts_of(run)]) == ("stopped", list(range(1, life_ + 1)))
    assert [attempt["why"] for attempt in run.attempts()] == ["stopped: time limit"] * 2
    assert Path("asked").read_text().splitlines().count("requeue 17") == 2


@pytest.mark.usefixtures("site")
def test_the_code_that_was_submitted_is_kept_once() -> None:
    cnnjob("submit", "toy.toml")
    [code] = Path("runs/.code").iterdir()
    assert not list(code.rglob("__pycache__"))
    source = Path(submission.__file__)
    assert (code / "cnnjob" / "slurm" / source.name).read_bytes() == source.read_bytes()
    first = code.stat().st_mtime_ns
    cnnjob("submit", "toy.toml", "--set", "seed=2")
    assert [path.stat().st_mtime_ns for path in Path("runs/.code").iterdir()] == [first]


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
        ({"scontrol": "echo PartitionName=gpu State=DRAIN"}, "--partition gpu: it is DRAIN and starts nothing"),
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
            f"squeue --noheader --array --user={os.getuid()} --format {queue.FORMAT}: refused, exit code 1",
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


def test_garbage_in_the_queue_is_no_job_of_ours(site: Site) -> None:
    site.says(squeue=r'printf "\377\376 \n\n   \nslurm_load_jobs error\n"')
    assert queue.mine() == []


def test_no_answer_in_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "ANSWER_SECONDS", 0.1)
    site.says(squeue="exec /bin/sleep 60")
    with pytest.raises(SchedulerError, match=r"squeue: no answer in 0\.1 s; try again"):
        queue.mine()


def test_whether_there_is_a_slurm(nowhere: Site) -> None:
    assert not scheduler.is_there()
    nowhere.says(**ANSWERS)
    assert scheduler.is_there()


@pytest.mark.parametrize(
    ("facts", "restarts", "expected"),
    [
        ({}, 0, "itself"),
        ({"JobState": "RUNNING", "Restarts": "0"}, 0, "itself"),
        ({"JobState": "RUNNING", "Restarts": "2"}, 2, "itself"),
        ({"JobState": "COMPLETING", "Restarts": "3"}, 2, "requeued"),
        ({"JobState": "PENDING", "Restarts": "0"}, 0, "requeued"),
        ({"JobState": "REQUEUED", "Restarts": "0"}, 0, "requeued"),
        ({"JobState": "COMPLETING", "PreemptTime": "2026-01-01T00:00:00"}, 0, "preempted"),
        (
            {"JobState": "COMPLETING", "PreemptTime": "None", "RunTime": "00:01:31", "TimeLimit": "00:01:00"},
            0,
            "time limit",
        ),
        ({"JobState": "COMPLETING", "RunTime": "1-00:00:00", "TimeLimit": "1-00:00:00"}, 0, "time limit"),
        ({"JobState": "TIMEOUT"}, 0, "time limit"),
        ({"JobState": "COMPLETING", "RunTime": "00:00:59", "TimeLimit": "00:01:00"}, 0, "cancelled"),
        ({"JobState": "COMPLETING", "RunTime": "00:00:59", "TimeLimit": "UNLIMITED"}, 0, "cancelled"),
        ({"JobState": "CANCELLED", "PreemptTime": "N/A"}, 0, "cancelled"),
        ({"JobState": "??", "Restarts": "many", "RunTime": "?", "TimeLimit": ""}, 0, "itself"),
    ],
)
def test_who_ends_a_job(facts: Mapping[str, str], restarts: int, expected: str) -> None:
    assert scheduler.ended_by(facts, restarts) == expected


def test_the_facts_of_a_job(site: Site) -> None:
    site.says(scontrol='echo "JobId=7 JobName=a b PreemptTime=None TRES=cpu=2,mem=1G Nodes= NtasksPerN:B:S:C=0:0:*:*"')
    found = scheduler.job("7")
    assert (found["JobId"], found["PreemptTime"], found["TRES"], found["Nodes"]) == ("7", "None", "cpu=2,mem=1G", "")


# --- after a life


FAILED = {"why": "failed: the loss is nan"}
AGAIN, LEFT = "", "the job's own error is not restarted"
CANCELLED = "cancelled; submit the job again to go on"


@pytest.mark.parametrize(
    ("make", "how", "code", "ended_by", "expected"),
    [
        (finished_run, {}, 0, "itself", "finished"),
        (finished_run, {}, 143, "cancelled", "finished"),
        (stopped_run, {}, 75, "itself", AGAIN),
        (stopped_run, {}, 75, "time limit", AGAIN),
        (stopped_run, {}, 143, "preempted", AGAIN),
        (stopped_run, {}, 75, "unknown", AGAIN),
        (stopped_run, {}, 75, "cancelled", CANCELLED),
        (stopped_run, {}, 143, "requeued", "SLURM has put the job back into its queue"),
        (lost_run, {}, 137, "itself", AGAIN),
        (lost_run, {}, 137, "cancelled", CANCELLED),
        (running_run, {}, 137, "itself", AGAIN),
        (pending_run, {}, 137, "itself", AGAIN),
        (stopped_run, FAILED, 1, "itself", LEFT),
        (stopped_run, FAILED, 137, "itself", LEFT),
        (pending_run, {}, 1, "itself", LEFT),
        (pending_run, {}, 3, "itself", LEFT),
        (running_run, {}, 5, "itself", LEFT),
    ],
)
def test_what_is_decided(
    tmp_path: Path, make: Any, how: Mapping[str, str], code: int, ended_by: str, expected: str
) -> None:
    assert decide(make(tmp_path, **how), code, ended_by) == expected


def restarts(*steps: int) -> list[dict[str, Any]]:
    return [{"step": step} for step in steps]


@pytest.mark.parametrize(
    ("steps", "step", "count"),
    [((), 0, 0), ((0, 0), 0, 2), ((0, 0, 5), 5, 1), ((5, 0, 5, 5, 5), 5, 3), ((0, 0, 0), 1, 0), ((5, 6, 7), 7, 1)],
)
def test_restarts_without_progress(steps: tuple[int, ...], step: int, count: int) -> None:
    assert restarts_without_progress(restarts(*steps), step) == count


def test_three_restarts_without_progress_are_the_end(tmp_path: Path) -> None:
    run = lost_run(tmp_path)
    (run.path / "slurm").mkdir()
    (run.checkpoints_folder / "step-000000100.npz").touch()
    (run.checkpoints_folder / "step-000000090.npz").touch()
    for steps, expected in (
        ((100, 100), ""),
        ((100, 100, 90), ""),
        ((90, 100, 100, 100), "3 restarts without progress"),
    ):
        files.write_json(run.path / "slurm" / "restarts.json", restarts(*steps))
        assert decide(run, 137, "itself") == expected


@pytest.fixture
def lost(site: Site, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A submitted run whose first life is gone without a word, in job 17."""
    run = lost_run(Path("runs"))
    submission.submit([run], Request(partition="gpu", gpus=1))
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    site.says(sbatch='echo "Submitted batch job 18"')
    return run


SHOWN = 'case $1 in show) echo "JobId=17 JobState=RUNNING Restarts=0";; *) '


@pytest.mark.parametrize(
    ("scontrol", "ended_by", "said"),
    [
        (f"{SHOWN};; esac", "itself", "job 17 is requeued"),
        (
            f'{SHOWN} echo "is disabled" >&2; exit 1;; esac',
            "itself",
            "job 18 goes on (scontrol requeue 17: refused, is disabled)",
        ),
        ("exit 1", "unknown", "job 18 goes on (scontrol requeue 17: refused, exit code 1)"),
        ("printf '\\377 = garbage\\n'", "itself", "job 17 is requeued"),
        (None, "unknown", "job 18 goes on (scontrol: not found; this machine has no SLURM, log in to one that has)"),
        ("echo JobState=COMPLETING Restarts=0", "cancelled", "cancelled; submit the job again to go on"),
        ("echo JobState=COMPLETING Restarts=1", "requeued", "SLURM has put the job back into its queue"),
    ],
)
def test_after_a_life(
    site: Site, lost: Run, capsys: pytest.CaptureFixture[str], scontrol: str | None, ended_by: str, said: str
) -> None:
    site.says(scontrol=scontrol)
    main(str(lost.path), "137")
    assert capsys.readouterr().out.endswith(f"cnnjob: {lost.path}: {said}\n")
    told = {"job_id": "17", "ended_by": ended_by, "code": 137, "step": 0, "said": said}
    assert restarts_of(lost) == [told]
    assert (lost.path / "slurm" / "18_submission.sh").exists() == ("18" in said)


def test_a_successor_is_submitted_as_the_first_was(site: Site, lost: Run) -> None:
    site.says(scontrol="exit 1")
    main(str(lost.path), "137")
    first, second = ((lost.path / "slurm" / f"{number}_submission.sh").read_text() for number in (17, 18))
    code = re.compile("^export PYTHONPATH=.*$", re.MULTILINE)  # here it is the tests' own, not a copy of it
    assert code.sub("", first) == code.sub("", second)


def test_when_nothing_can_be_done_it_is_said(site: Site, lost: Run) -> None:
    site.says(scontrol="exit 1", sbatch='echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1')
    main(str(lost.path), "137")
    [told] = restarts_of(lost)
    assert told["said"] == f"not restarted, {lost.name}: sbatch: refused, sbatch: error: QOSMaxSubmitJobPerUserLimit"


def test_a_crash_loop_ends(lost: Run) -> None:
    for _ in range(4):
        main(str(lost.path), "137")
    assert [told["said"] for told in restarts_of(lost)] == ["job 17 is requeued"] * 3 + ["3 restarts without progress"]


# --- on the node


def test_when_the_job_ends(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1234567890")
    assert life._end_of_job() == 1234567890
    monkeypatch.delenv("SLURM_JOB_END_TIME")
    assert life._end_of_job() == math.inf
    site.says(scontrol='echo "JobId=17 EndTime=2026-01-01T00:00:00"')
    assert life._end_of_job() == math.inf  # no job, no end
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert 1.7e9 < life._end_of_job() < 1.8e9
    for answer in ('echo "EndTime=Unknown"', "exit 1", None):
        site.says(scontrol=answer)
        assert life._end_of_job() == math.inf


@pytest.mark.usefixtures("site")
def test_a_life_on_the_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(tmp_path / "whole").run
    assert life.Life(str(run.path), 30)._live() == 0
    assert capsys.readouterr().out == f"{run.path}: was finished\n"
