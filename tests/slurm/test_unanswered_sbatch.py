"""An sbatch that does not answer, or says more than the number of the job."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cnnjob import api, files
from cnnjob.errors import BusyError, DataError, SchedulerError
from cnnjob.runs.claims import claim
from cnnjob.runs.run import Run
from cnnjob.slurm.node.node_task import NodeTask
from cnnjob.slurm.scheduler import sbatch
from cnnjob.slurm.submit import submission
from cnnjob.slurm.submit.request import Request
from tests.helpers.cli import cnnjob
from tests.helpers.fake_slurm import PENDING_FIELDS, FakeSlurm
from tests.helpers.run_folders import pending_run


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sbatch, "SETTLE_SECONDS", 0.01)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(
    "error",
    [
        "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
        "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
        "sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received",
    ],
)
def test_a_job_that_was_taken_in_silence_is_not_submitted_twice(counting_slurm: FakeSlurm, error: str) -> None:
    counting_slurm.install(
        sbatch=f'echo x >> tried; echo "{error}" >&2; exit 1', squeue=f'echo "23_1{PENDING_FIELDS}cnnjob /runs/a 1"'
    )
    assert sbatch.submit_script("cnnjob /runs/a 1", "x.sh") == "23"
    assert Path("tried").read_text() == "x\n"
    with pytest.raises(SchedulerError, match="refused, sbatch: error"):
        sbatch.submit_script("cnnjob /runs/a 2", "x.sh")
    assert Path("tried").read_text() == "x\n" * 3  # a second try, as nothing was queued
    counting_slurm.install(squeue="exit 1")
    with pytest.raises(
        SchedulerError,
        match=r"SLURM may have accepted the job\. Run the same command again; it looks for that job first",
    ):
        sbatch.submit_script("cnnjob /runs/a 2", "x.sh")


@pytest.mark.usefixtures("settled")
def test_the_second_try_may_go_well(counting_slurm: FakeSlurm) -> None:
    counting_slurm.install(
        sbatch='[ -e tried ] && echo "Submitted batch job 9" || { : > tried; echo "timed out" >&2; exit 1; }'
    )
    assert sbatch.submit_script("cnnjob /runs/a 1", "x.sh") == "9"


def test_what_an_answer_without_a_number_means_shows_in_the_queue(counting_slurm: FakeSlurm) -> None:
    counting_slurm.install(sbatch="echo Welcome to our cluster", squeue=f'echo "23{PENDING_FIELDS}cnnjob /runs/a 1"')
    assert sbatch.submit_script("cnnjob /runs/a 1", "x.sh") == "23"


@pytest.mark.usefixtures("counting_slurm")
def test_a_job_that_was_found_in_the_queue_has_its_pickle(counting_slurm: FakeSlurm) -> None:
    """The whole way, with the patience it has."""
    comment = f"cnnjob {Path.cwd()}/runs/toy"
    taken = f"""case "$*" in *user*) [ -e taken ] && echo "23{PENDING_FIELDS}$(cat taken)"; true;; esac"""
    told = (
        """grep -o "cnnjob [^']*" "$1" | head -1 > taken; echo "Socket timed out on send/recv operation" >&2; exit 1"""
    )
    counting_slurm.install(sbatch=told, squeue=taken, grep='exec /bin/grep "$@"', head='exec /usr/bin/head "$@"')
    found = cnnjob("submit", "toy.toml")
    assert ": submitted as job 23: " in found.stdout, found.output
    assert Path("taken").read_text().startswith(comment)
    [run] = Run.all(Path("runs"))
    assert {path.name for path in run.slurm_folder.glob("23_*")} == {"23_submission.sh", "23_submitted.pkl"}


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("seeds", [1, 2])
def test_a_job_that_was_taken_in_silence_is_completed_by_the_next_submission(
    counting_slurm: FakeSlurm, seeds: int
) -> None:
    from submitit.core.utils import DelayedSubmission

    taken = (counting_slurm.folder / "sbatch").read_text().partition("\n")[2].rpartition("; echo")[0]
    silent = 'echo "Socket timed out on send/recv operation" >&2; exit 1'
    counting_slurm.install(sbatch=f"{taken}; {silent}", squeue=f"[ ! -e 17.sh ] || {{ {silent}; }}")
    words = ("submit", "toy.toml", "--seeds", str(seeds))
    found = cnnjob(*words)
    assert (found.exit_code, "; it looks for that job first" in found.stderr) == (4, True), found.output
    [comment] = re.findall("cnnjob /[^']*[0-9](?=')", Path("17.sh").read_text())
    tasks = ["17"] if seeds == 1 else ["17_0", "17_1"]
    counting_slurm.install(squeue="".join(f'echo "{task}{PENDING_FIELDS}{comment}";' for task in tasks))
    again = cnnjob(*words)
    assert [f": queued as {task}, nothing submitted" in again.stdout for task in tasks] == [True] * seeds
    for run, task in zip(Run.all(Path("runs")), tasks, strict=True):
        log = Path(files.read_json(run.submission_file)["log"])
        assert log.name == f"{task}_0_log.out"
        pickle = log.with_name(f"{task}_submitted.pkl")
        assert isinstance(DelayedSubmission.load(pickle).function, NodeTask)
    assert not Path("18.sh").exists()


def test_a_job_whose_files_cannot_be_written_is_cancelled(counting_slurm: FakeSlurm) -> None:
    """It would find nothing to run."""
    taken = "for folder in runs/*/slurm; do /bin/mkdir -p $folder/17_submission.sh; done"
    counting_slurm.install(sbatch=f'{taken}; echo "Submitted batch job 17"', scancel='echo "$*" >> cancelled')
    assert cnnjob("submit", "toy.toml").exit_code != 0
    assert Path("cancelled").read_text() == "17\n"


@pytest.mark.usefixtures("settled")
def test_no_second_try_where_the_queue_is_not_understood(counting_slurm: FakeSlurm) -> None:
    silent = 'echo "Socket timed out on send/recv operation" >&2; exit 1'
    counting_slurm.install(sbatch=f"echo x >> tried; {silent}", squeue='echo "17|???"')
    with pytest.raises(SchedulerError, match="SLURM may have accepted the job"):
        sbatch.submit_script("cnnjob /runs/a 1", "x.sh")
    assert Path("tried").read_text() == "x\n"


def test_a_refused_job_leaves_no_pickle(counting_slurm: FakeSlurm) -> None:
    run = pending_run(Path("runs"))
    counting_slurm.install(sbatch='echo "sbatch: error: no" >&2; exit 1')
    with pytest.raises(SchedulerError, match="sbatch: error: no"):
        submission.submit([run], Request())
    assert [*run.slurm_folder.iterdir()] == []


@pytest.mark.parametrize("refusal", [
    {"sbatch": 'echo "sbatch: error: Memory specification can not be satisfied" >&2; exit 1'},
    {"scontrol": 'echo "scontrol: fatal: Could not establish a configuration source" >&2; exit 1'},
    {"scontrol": None, "sbatch": None, "squeue": None},
], ids=["refused", "not configured", "no SLURM"])  # fmt: skip
def test_a_submission_that_fails_leaves_no_new_run(counting_slurm: FakeSlurm, refusal: dict[str, str | None]) -> None:
    older = pending_run(Path("runs"), name="toy")
    counting_slurm.install(**refusal)
    for options in ([], ["--seeds", "3"], ["--partition", "gone"]):
        refused = cnnjob("submit", "toy.toml", *options)
        assert refused.exit_code == 4, refused.output
        assert [run.path for run in Run.all(Path("runs"))] == [older.path]
    with pytest.raises(SchedulerError):
        api.submit(["toy.toml"], data=Path("data"), runs=Path("runs"))
    assert [run.path for run in Run.all(Path("runs"))] == [older.path]


@pytest.mark.usefixtures("settled")
def test_a_submission_that_may_have_been_accepted_keeps_its_run(counting_slurm: FakeSlurm) -> None:
    counting_slurm.install(sbatch="echo > called; kill -9 $$", squeue="[ ! -e called ]")
    assert cnnjob("submit", "toy.toml").exit_code == 4
    [run] = Run.all(Path("runs"))
    assert [path.name for path in run.slurm_folder.iterdir()] == ["request.json"]


def test_a_run_that_is_used_is_not_removed(tmp_path: Path) -> None:
    claimed, trained, submitted, unused = (pending_run(tmp_path, name=name) for name in ("a", "b", "c", "d"))
    claim(claimed)
    trained.log_file.write_text("")
    submitted.slurm_folder.mkdir()
    (submitted.slurm_folder / "request.json").write_text("{}")
    unused.slurm_folder.mkdir()
    unused.initial_file.write_bytes(b"weights")
    submission.remove_unused([claimed, trained, submitted, unused])
    assert [run.name for run in Run.all(tmp_path)] == [claimed.name, trained.name, submitted.name]
    with pytest.raises(DataError, match=r"the run's folder was removed\. Run the same command again"):
        claim(unused)
    with pytest.raises(BusyError, match="removed by another submission"):
        submission.submit([unused], Request())
    assert not unused.path.exists()


def test_a_refused_job_leaves_the_files_of_others(counting_slurm: FakeSlurm) -> None:
    """Another submission of the same run is accepted in the meantime."""
    theirs = "for folder in runs/*/slurm; do : > $folder/16_submitted.pkl; : > $folder/16_submission.sh; done"
    counting_slurm.install(sbatch=f'{theirs}; echo "sbatch: error: no" >&2; exit 1')
    assert cnnjob("submit", "toy.toml").exit_code == 4
    [run] = Run.all(Path("runs"))
    assert {path.name for path in run.slurm_folder.glob("16_*")} == {"16_submitted.pkl", "16_submission.sh"}


NOISE = 'echo "Jobs here run at most as (max. job 48 hours)"; echo "your job 8 is still running"'


@pytest.mark.parametrize(
    "answer",
    [
        f'{NOISE}; echo "Submitted batch job 17"; {NOISE}',
        f'{NOISE}; echo "  Submitted batch job 17 on cluster north  "',
        "echo 17",
        'echo "17;north"',
        f'{NOISE}; echo "Submitted batch job 17" >&2',  # its comment tells
        f"{NOISE}; echo 12",
        'echo "Submitted batch job 8 an hour ago"; echo "Submitted batch job 17"',
        'echo "Submitted batch job 8"; echo "Submitted batch job 17"',
    ],
)
def test_only_the_line_of_sbatch_names_the_job(counting_slurm: FakeSlurm, answer: str) -> None:
    """A site's wrapper may print what it likes around it; without the line the queue is asked."""
    counting_slurm.install(
        sbatch=answer, squeue=f'echo "8{PENDING_FIELDS}other"; echo "17{PENDING_FIELDS}cnnjob /runs/a 1"'
    )
    assert sbatch.submit_script("cnnjob /runs/a 1", "x.sh") == "17"


def test_a_sweep_through_a_wrapper_that_talks(counting_slurm: FakeSlurm) -> None:
    counting_slurm.install(sbatch=f'{NOISE}; echo "Submitted batch job 17"; {NOISE}')
    found = cnnjob("submit", "toy.toml", "--seeds", "2")
    assert found.stdout.count("submitted as job 17_") == 2, found.output


ROUNDS = 30
RACE = """
import sys
from multiprocessing import get_context
from pathlib import Path
from random import random
from time import sleep
from cnnjob.data.dataset import Dataset
from cnnjob.errors import CnnjobError
from cnnjob.files import disk_errors_as_cnnjob_error
from cnnjob.runs.claims import claim
from cnnjob.runs.creation import create_run
from cnnjob.runs.run import Run
from cnnjob.slurm.submit.submission import remove_unused
from tests.helpers.toy_jobs import job
data, root = Dataset.open(Path("data/toy.h5")), Path("runs")
start = get_context("fork").Barrier(2, timeout=60)

def refuse():
    for seed in range(ROUNDS):
        start.wait()
        known, run = set(Run.all(root)), create_run(job(seed=seed), data, root)
        sleep(0.004 * random())
        remove_unused([run] if run not in known else [])

def train():
    for seed in range(ROUNDS):
        start.wait()
        sleep(0.02 * random())
        try:
            run = create_run(job(seed=seed), data, root)
            with disk_errors_as_cnnjob_error(run.path):
                held = claim(run)
        except CnnjobError:  # as when a job is trained: the run was removed at this moment
            continue
        run.log_file.write_text(run.manifest()["digest"])
        held.end("stopped: SIGTERM", 5)
        print(run.name, flush=True)

other = get_context("fork").Process(target=refuse, daemon=True)
other.start()
train()
other.join()
assert other.exitcode == 0
""".replace("ROUNDS", str(ROUNDS))


@pytest.mark.usefixtures("counting_slurm")
def test_no_run_that_is_trained_is_removed_at_the_same_time() -> None:
    """Each run is whole, with the work of its process, or gone."""
    words = [sys.executable, "-c", RACE]
    variables = {**os.environ, "PYTHONPATH": str(Path(submission.__file__).parents[3])}
    done = subprocess.run(words, capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 0, done.stderr
    trained = done.stdout.split()
    assert len(trained) > 0
    for run in Run.all(Path("runs")):
        assert run.manifest()["digest"]
        assert (run.name in trained) == run.log_file.exists()
    assert set(trained) <= {run.name for run in Run.all(Path("runs"))}
