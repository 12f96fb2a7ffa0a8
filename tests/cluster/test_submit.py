"""``cnnjob submit`` on a real SLURM: whatever ends a life, the run ends with the bits of the unbroken one."""

import os
import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cnnjob.runs import Run
from cnnjob.slurm.restart import restarts_of
from tests.cluster import lab
from tests.cluster.conftest import Start
from tests.test_cli import JOB
from tests.toys import dataset, outcome_of, trained

SMALL = ("--nodes", 1, "--kill-wait", 5)
REQUEST = ("--partition", "low", "--time", "10m", "--cpus-per-task", "1", "--mem", "500M")
EPOCHS = 120
CHANGES = {"train__epochs": EPOCHS, "train__checkpoint_seconds": 0.2}
TOML = JOB.replace("epochs = 2", f"epochs = {EPOCHS}\ncheckpoint_seconds = 0.2") + '[resources]\nbackend = "numpy"\n'
Outcome = tuple[bytes, bytes, list[dict[str, Any]]]


@dataclass(frozen=True)
class Place:
    """A folder of the ordinary user's with the toy dataset and job."""

    cluster: lab.Cluster
    python: Path
    folder: Path

    def cnnjob(self, *words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.cluster.run(self.python, "-m", "cnnjob", *words, cwd=self.folder, check=check)

    def submit(self, *options: object) -> str:
        """Submit the toy; the job's id."""
        said = self.cnnjob("submit", "toy.toml", *REQUEST, *options).stdout
        found = re.search(r": submitted as job (\d+): 1 node, 1 task, 1 core, 500 M, ", said)
        assert found, said
        return found[1]

    @property
    def run(self) -> Run:
        [path] = [path for path in (self.folder / "runs").iterdir() if not path.name.startswith(".")]
        return Run(path)

    def until_saved(self, lives: int = 1) -> None:
        """Wait until this life has left a checkpoint of its own."""
        lab.until(lambda: len(self.run.attempt_files()) == lives, 40, f"life {lives}")
        before = self.saved()
        lab.until(lambda: self.saved() > before, 40, "a checkpoint")

    def saved(self) -> int:
        """The step of the newest checkpoint."""
        return max((int(path.stem[5:]) for path in self.run.checkpoints_folder.glob("step-*.npz")), default=0)

    def until_finished(self, job: str, whole: Outcome, lives: int) -> None:
        """Wait for the job's end; what it made is what the unbroken run made."""
        self.cluster.wait(job, "COMPLETED", seconds=90)
        assert outcome_of(self.run) == whole
        attempts = self.run.attempts()
        assert len(attempts) == lives
        assert all(attempt["resumed_at_step"] > 0 for attempt in attempts[1:])

    def said(self) -> list[str]:
        """What was decided after each life."""
        lab.until(lambda: bool(restarts_of(self.run)), what="a decision")
        return [told["said"] for told in restarts_of(self.run)]

    def until_ended(self, job: str, state: str) -> None:
        """Wait until the job and its batch script have ended, and stay so."""
        self.cluster.wait(job, state, seconds=60)
        lab.until(lambda: not self.cluster.admin("squeue", "--noheader"), what="an empty queue")
        assert self.cluster.state(job) == state


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What the unbroken run makes, here, in this process."""
    return outcome_of(trained(tmp_path_factory.mktemp("whole") / "toy", **CHANGES).run)


@pytest.fixture
def place(cluster: Start, user_python: Path, request: pytest.FixtureRequest) -> Place:
    one = cluster(*SMALL)
    folder = one.home / request.node.name
    one.run("mkdir", folder)
    (folder / "data").mkdir()
    dataset(folder / "data")
    (folder / "toy.toml").write_text(TOML)
    return Place(one, user_python, folder)


@pytest.mark.slurm
def test_it_finishes_and_is_submitted_once(place: Place, whole: Outcome) -> None:
    options = ("submit", "toy.toml", *REQUEST)
    shown = place.cnnjob(*options, "--dry-run", "--no-rehearsal").stdout
    assert not (place.folder / "runs").exists()
    job = place.submit()
    assert f"\n{(place.run.path / 'slurm' / f'{job}_submission.sh').read_text()}\nnothing was submitted\n" in shown
    queued = place.cnnjob(*options).stdout
    assert re.search(rf": (queued as {job}|running), nothing submitted\n$", queued)
    place.until_saved()
    assert place.cnnjob(*options).stdout.endswith(": running, nothing submitted\n")
    place.until_finished(job, whole, lives=1)
    assert place.cnnjob(*options).stdout.endswith(": finished, nothing submitted\n")
    assert place.said() == ["finished"]
    assert len(list((place.run.path / "slurm").glob("*_submission.sh"))) == 1


@pytest.mark.slurm
def test_a_waiting_job_is_left_alone(place: Place) -> None:
    job = place.submit("--sbatch", "begin=now+1hour")
    assert place.cnnjob("submit", "toy.toml").stdout.endswith(f": queued as {job}, nothing submitted\n")


@pytest.mark.slurm
def test_an_unknown_partition_is_exit_4_with_the_near_one(place: Place) -> None:
    found = place.cnnjob("submit", "toy.toml", "--partition", "hihg", check=False)
    assert found.returncode == 4
    assert (
        "--partition hihg: no such partition, this site has debug, gpu, high, low; did you mean 'high'?" in found.stderr
    )
    assert found.stderr.count("\n") == 1


@pytest.mark.slurm
def test_what_sbatch_refuses_is_one_message(place: Place) -> None:
    found = place.cnnjob("submit", "toy.toml", "--mem", "9000G", check=False)
    assert found.returncode == 4
    assert re.fullmatch(r"cnnjob: toy-\w{8}: sbatch refused, sbatch: error: .*\n", found.stderr)


@pytest.mark.slurm
def test_requeued(place: Place, whole: Outcome) -> None:
    job = place.submit()
    place.until_saved()
    place.cluster.run("scontrol", "requeue", job)
    place.until_finished(job, whole, lives=2)
    assert place.said()[-1] == "finished"


@pytest.mark.slurm
def test_cancelled_stays_cancelled_and_goes_on_when_submitted_again(place: Place, whole: Outcome) -> None:
    job = place.submit()
    place.until_saved()
    place.cluster.run("scancel", job)
    place.until_ended(job, "CANCELLED")
    assert place.said() == ["cancelled; submit the job again to go on"]
    assert place.run.state() == "stopped"
    place.until_finished(place.submit(), whole, lives=2)


@pytest.mark.slurm
def test_preempted(place: Place, whole: Outcome) -> None:
    job = place.submit()
    place.until_saved()
    place.cluster.submit("--partition=high", "--exclusive", "--wrap", "true")
    place.until_finished(job, whole, lives=2)


@pytest.mark.slurm
def test_killed(place: Place, whole: Outcome) -> None:
    job = place.submit()
    place.until_saved()
    os.kill(place.run.attempts()[-1]["pid"], signal.SIGKILL)
    place.until_finished(job, whole, lives=2)
    assert [told["code"] for told in restarts_of(place.run)] == [137, 0]


@pytest.mark.slurm
def test_killed_where_requeueing_is_forbidden(place: Place, whole: Outcome) -> None:
    job = place.submit("--no-requeue")
    place.until_saved()
    os.kill(place.run.attempts()[-1]["pid"], signal.SIGKILL)
    place.cluster.wait(job, "FAILED")
    found = re.match(r"job (\d+) goes on \(", place.said()[0])
    assert found, place.said()
    place.until_finished(found[1], whole, lives=2)


@pytest.mark.slurm_matrix
@pytest.mark.skipif(lab.missing() is not None, reason=str(lab.missing()))
def test_the_time_limit_is_no_end(place: Place, whole: Outcome) -> None:
    """SLURM looks at limits every 30 s, so its signal comes at any moment of the first life, or the clock does."""
    setup = '[ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] || sleep 27'
    (place.folder / "short.toml").write_text(f"signal_seconds = 58\nsetup = ['{setup}']\n")
    job = place.submit("--profile", "short.toml", "--time", "1m", "--set", "train.checkpoint_seconds=0")
    lab.until(lambda: place.cluster.state(job) == "COMPLETED", 200, "the end")
    attempts = place.run.attempts()
    place.until_finished(job, whole, lives=len(attempts))
    assert len(place.said()) > 1
    assert {attempt["why"] for attempt in attempts} <= {"stopped: SIGUSR2", "stopped: time limit", None, "finished"}


@pytest.mark.slurm
def test_a_crash_loop_ends(place: Place) -> None:
    """The task is killed at once, each time."""
    (place.folder / "crash.toml").write_text("""setup = ["srun() { sh -c 'kill -9 $$'; }"]\n""")
    job = place.submit("--profile", "crash.toml")
    place.until_ended(job, "FAILED")
    assert len(place.said()) == 4
    assert place.said()[-1] == "3 restarts without progress"


@pytest.mark.slurm
def test_the_jobs_own_error_is_not_restarted(place: Place) -> None:
    wrong = ("train.learning_rate=900.0", "train.momentum=0.99", "model.blocks=[{dense=8,activation='none'}]")
    job = place.submit(*(word for change in wrong for word in ("--set", change)))
    place.until_ended(job, "FAILED")
    assert place.said() == ["the job's own error is not restarted"]
    assert place.cluster.job(job)["ExitCode"] == "1:0"
    assert place.run.state() == "failed"
