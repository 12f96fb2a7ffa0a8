"""The dry run and the batch script: what they show and request."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cnnjob import files
from cnnjob.runs.run import Run
from tests.helpers.cli import cnnjob
from tests.helpers.fake_slurm import FakeSlurm
from tests.helpers.slurm_runs import file_contents, only_run


@pytest.mark.usefixtures("no_slurm")
def test_a_dry_run_shows_and_rehearses_and_leaves_nothing() -> None:
    before = file_contents()
    found = cnnjob("submit", "toy.toml", "--profile", "lab", "--partition", "gpu", "--time", "2h", "--dry-run")
    assert found.exit_code == 0, found.output
    assert 'name = "toy"' in found.stdout
    assert re.search(r"^run: runs/toy-[0-9a-f]{8}, pending$", found.stdout, re.MULTILINE)
    assert "\nrequest: 1 node, 1 task, 2 cores, 1 G, 2 h on gpu\n" in found.stdout
    assert "\nmemory of the arrays: " in found.stdout
    assert "\n#!/bin/bash\n" in found.stdout
    said = re.findall(r"^rehearsal: (.*?)(?:, checkpoint of [\d,]+ bytes|: \d files)?$", found.stdout, re.MULTILINE)
    assert said == [
        "attempt 1: 2 steps, stopped by a signal", "attempt 2: 2 steps, stopped by a signal", "report",
    ]  # fmt: skip
    assert found.stdout.endswith("\nnothing was submitted\n")
    assert file_contents() == before


@pytest.mark.usefixtures("no_slurm")
def test_a_rehearsal_of_less_than_four_steps_ends() -> None:
    short = ("--set", "train.epochs=1", "--set", "train.batch_size=60")
    found = cnnjob("submit", "toy.toml", "--dry-run", *short)
    assert "rehearsal: attempt 2: finished, test accuracy 0." in found.stdout, found.output
    assert found.stdout.count("rehearsal: ") == 3


@pytest.mark.usefixtures("no_slurm")
def test_no_rehearsal() -> None:
    found = cnnjob("submit", "toy.toml", "--dry-run", "--no-rehearsal")
    assert (found.exit_code, "\nrehearsal: " in found.stdout) == (0, False), found.output


@pytest.mark.usefixtures("no_slurm")
def test_what_is_wrong_with_a_job_shows_in_its_rehearsal() -> None:
    found = cnnjob("submit", "toy.toml", "--dry-run", "--set", "train.batch_size=500")
    assert (found.exit_code, "500 is more than the 162 training images" in found.stderr) == (2, True), found.output


LOADED = """
import sys
from typer.testing import CliRunner
from cnnjob.cli.main import app
done = CliRunner().invoke(app, ["submit", "toy.toml", "--dry-run", *sys.argv[1:]])
print(done.exit_code, *sorted({"cnnjob.training.train", "cnnjob.training.trainer"} & set(sys.modules)))
"""


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize(
    ("options", "exit_code", "loads"),
    [
        (("--no-rehearsal",), 0, False),
        (("--partition", "nowhere"), 4, False),
        (("--partition", "gpu", "--time", "9d"), 4, False),
        ((), 0, True),
    ],
)
def test_only_the_rehearsal_loads_the_training_loop(options: tuple[str, ...], exit_code: int, *, loads: bool) -> None:
    command = [sys.executable, "-c", LOADED, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    loaded = " cnnjob.training.train cnnjob.training.trainer" if loads else ""
    assert done.stdout == f"{exit_code}{loaded}\n", done.stderr


def lines(*options: str) -> list[str]:
    """The script that a dry run shows."""
    found = cnnjob("submit", "toy.toml", "--dry-run", "--no-rehearsal", *options)
    assert found.exit_code == 0, found.output
    return found.stdout.partition("#!/bin/bash\n")[2].removesuffix("\nnothing was submitted\n").splitlines()


@pytest.mark.usefixtures("no_slurm")
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


@pytest.mark.usefixtures("no_slurm")
def test_without_a_time_the_site_decides() -> None:
    assert not [line for line in lines() if "--time" in line]


@pytest.mark.usefixtures("no_slurm")
def test_setup_lines_end_the_job_when_they_fail() -> None:
    Path("site.toml").write_text('setup = ["module load cuda"]\n')
    found = lines("--profile", "site.toml")
    start = found.index("set -e")
    assert found[start : start + 3] == ["set -e", "module load cuda", "set +e"]
    assert next(place for place, line in enumerate(found) if line.startswith("trap : ")) < start


def asked_of_gpus(*options: str) -> list[str]:
    return [line for line in lines(*options) if line.startswith("#SBATCH --g")]


@pytest.mark.usefixtures("no_slurm")
def test_one_gpu_unless_the_backend_is_numpy() -> None:
    assert not asked_of_gpus()
    assert asked_of_gpus("--set", "resources.backend=auto") == ["#SBATCH --gpus-per-node=1"]
    assert not asked_of_gpus("--set", "resources.backend=auto", "--gpus", "0")


@pytest.mark.parametrize(("first", "asked"), [("numpy", []), ("cuda", ["#SBATCH --gpus-per-node=1"])])
def test_a_resumed_run_asks_for_the_gpus_of_the_backend_that_it_began_with(
    slurm: FakeSlurm, first: str, asked: list[str]
) -> None:
    words = ("--set", "resources.backend=auto")
    cnnjob("submit", "toy.toml", *words)
    files.write_json(only_run().environment_file, {"backend": first})
    assert asked_of_gpus(*words) == asked
    slurm.install(sbatch='while read -r l; do echo "$l" >> script; done < "$1"; echo "Submitted batch job 18"')
    assert "submitted as job 18" in cnnjob("submit", "toy.toml", *words).stdout
    assert [line for line in Path("script").read_text().splitlines() if line.startswith("#SBATCH --g")] == asked
    assert asked_of_gpus(*words, "--gpus", "2") == ["#SBATCH --gpus-per-node=2"]
    other = {"numpy": "cuda", "cuda": "numpy"}[first]
    refused = cnnjob("submit", "toy.toml", "--set", f"resources.backend={other}")
    assert (refused.exit_code, f"was started with {first!r}" in refused.stderr) == (2, True), refused.output


def test_a_sweep_of_runs_that_began_with_different_backends_is_several_jobs(slurm: FakeSlurm) -> None:
    words = ("submit", "toy.toml", "--set", "resources.backend=auto", "--seeds", "3")
    cnnjob(*words)
    first = Run.all(Path("runs"))[0]
    files.write_json(first.environment_file, {"backend": "numpy"})
    shown = cnnjob(*words, "--dry-run", "--no-rehearsal").stdout
    assert "\nrequest: 1 node, 1 task, 2 cores, " in shown
    assert ", 1 of 3 runs\n" in shown
    assert ", 1 GPU, 2 cores, " in shown
    slurm.install(sbatch='[ -e jobs ] && n=19 || n=18; : > jobs; echo "Submitted batch job $n"')
    said = cnnjob(*words).stdout
    assert [said.count(f"submitted as job {number}") for number in ("18", "19", "18_", "19_")] in (
        [1, 2, 0, 2], [2, 1, 2, 0],
    )  # fmt: skip


@pytest.mark.usefixtures("no_slurm")
def test_the_command_line_goes_before_the_backend_of_a_profile() -> None:
    Path("site.toml").write_text('backend = "auto"\n')
    assert asked_of_gpus("--profile", "site.toml") == ["#SBATCH --gpus-per-node=1"]
    assert not asked_of_gpus("--profile", "site.toml", "--set", "resources.backend=numpy")
