"""Run a job twice on this machine, once uninterrupted and once killed at random moments, and compare the results' bits.

Each attempt is a separate process, which writes the number of its last step to the file STEPS:

    python -m cnnjob.checks.resume RUN STEPS
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnjob import files
from cnnjob.checks.comparison import Kill, RunComparison, compare_runs
from cnnjob.data.dataset import Dataset
from cnnjob.errors import EXIT_STOPPED, CnnjobError, plural
from cnnjob.jobs.job import Job
from cnnjob.runs import process
from cnnjob.runs.checkpoints import newest_step
from cnnjob.runs.creation import create_run
from cnnjob.runs.run import Run
from cnnjob.training.progress import NoProgress
from cnnjob.training.setup import TrainingSetup
from cnnjob.training.train import train

CHECKPOINTS_PER_ATTEMPT = 4
"""Average number of checkpoints between two kills."""
POLL_SECONDS = 0.005
"""Time between two reads of the step file."""
STEP_BYTES = 8
"""Size of the step file: one unsigned integer, big-endian."""


def shorten_job(job: Job, dataset: Dataset, steps: int) -> Job:
    """Return the job with just enough epochs for ``steps`` steps: at least one, and no more than the job has."""
    epochs = max(1, -(-steps // max(1, steps_per_epoch(job, dataset))))
    return _with_train_settings(job, epochs=min(job.train.epochs, epochs))


def steps_per_epoch(job: Job, dataset: Dataset) -> int:
    """Return the number of steps per epoch of a job."""
    return TrainingSetup.build(job, dataset).steps_per_epoch


def save_often(job: Job, seconds: float) -> Job:
    """Return a copy of a job in which the checkpoint interval is at most ``seconds``."""
    return _with_train_settings(job, checkpoint_seconds=min(job.train.checkpoint_seconds, seconds))


def _with_train_settings(job: Job, **changes: Any) -> Job:
    return job.model_copy(update={"train": job.train.model_copy(update=changes)})


def verify_resume(
    job: Job, dataset: Dataset, folder: Path, kills: int, seed: int, say: Callable[[str], None]
) -> RunComparison:
    """Run a job on this machine, first uninterrupted and then with kills at random moments, and compare the two runs.

    Args:
        job: the job, already shortened if necessary.
        dataset: the job's dataset.
        folder: an empty folder for both runs.
        kills: number of kills.
        seed: seed for the random times of the kills.
        say: called with each progress message.

    Returns:
        The comparison.

    Raises:
        CnnjobError: an attempt failed without being killed.
    """
    uninterrupted = TrainingSetup.checked(job, dataset).create_run(folder / "uninterrupted")
    baseline = _run_attempt(uninterrupted)
    say(f"uninterrupted: finished in {baseline.seconds:.1f} s")
    # A job's digest does not cover the checkpoint interval, so both runs belong to the same job.
    often = save_often(job, baseline.seconds / (kills + 1) / CHECKPOINTS_PER_ATTEMPT)
    killed = create_run(often, dataset, folder / "killed")
    done: list[Kill] = []
    for kill_at in _draw_kills(baseline, kills, seed):
        attempt = _run_attempt(killed, kill_at)
        if not attempt.killed or killed.result_file.exists():  # a kill after the result was written interrupts nothing
            break
        done.append(_describe_kill(killed, attempt, steps_per_epoch(job, dataset)))
        say(f"kill {len(done)} of {kills}: attempt {len(done)}, after {attempt.seconds:.2f} s, at step {attempt.step}")
    if not killed.result_file.exists():
        _run_attempt(killed)  # the last attempt runs to the end
    say(f"killed: finished in {plural(len(killed.attempt_files()), 'attempt')}")
    return compare_runs(uninterrupted, killed, done, kills, seed)


@dataclass(frozen=True)
class _TimedAttempt:
    """The timing of one attempt."""

    seconds: float
    """Seconds from the start of training to the end of the attempt."""
    steps: list[tuple[float, int]]
    """Pairs of time (seconds since the start of training) and last completed step, up to the end of the attempt."""
    killed: bool

    @property
    def step(self) -> int:
        """The last step that the attempt completed; 0 if none."""
        return self.steps[-1][1] if self.steps else 0


def _draw_kills(baseline: _TimedAttempt, kills: int, seed: int) -> Iterator[tuple[int, float]]:
    """Draw the moments of the kills; each is given by the last completed step and the seconds that have passed since.

    The moments are drawn uniformly over the duration of the uninterrupted run, from the start of training to the end,
    so that kills can occur during training, evaluation and saving. A step and a delay mark the same phase of the run
    even if the machine's speed varies.
    """
    draw = random.Random(seed)  # noqa: S311 - not used for secrets
    for moment in sorted(draw.uniform(0, baseline.seconds) for _ in range(kills)):
        seconds, step = [(0.0, 0), *(entry for entry in baseline.steps if entry[0] <= moment)][-1]
        yield step, moment - seconds


def _run_attempt(run: Run, kill_at: tuple[int, float] | None = None) -> _TimedAttempt:
    """Run one attempt in a separate process.

    If ``kill_at`` (step, seconds) is given, kill the process that many seconds after the step.

    Raises:
        CnnjobError: the attempt failed without being killed.
    """
    steps_file = run.path.with_name("steps")
    steps_file.write_bytes(b"")
    saved = newest_step(run.checkpoints_folder)
    with _child(run, steps_file) as child:
        # A step that a checkpoint already covers is not repeated, so the delay counts from the start of training.
        until = None
        if kill_at:
            until = kill_at[0] if kill_at[0] > saved else 0
        started, steps = _watch_steps(child, steps_file, until)
        try:
            child.wait(kill_at[1] if kill_at else None)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        seconds, killed = time.monotonic() - started, kill_at is not None and child.returncode == -signal.SIGKILL
    if child.returncode and not killed:
        lines = run.path.with_name("stderr").read_text(errors="replace").split("\n")
        last_line = next((line for line in reversed(lines) if line.strip()), "it printed nothing")
        raise CnnjobError(f"{run.path}: an attempt failed (exit code {child.returncode}): {last_line}")
    return _TimedAttempt(seconds, [*steps, (seconds, int.from_bytes(steps_file.read_bytes()))], killed)


def _watch_steps(
    child: "subprocess.Popen[bytes]", steps_file: Path, until: int | None
) -> tuple[float, list[tuple[float, int]]]:
    """Watch an attempt until it has completed the step ``until`` or has ended.

    Returns:
        The monotonic time at which training started; and, for each observed change of the step, a pair of the seconds
        since training started and the last completed step.
    """
    # The file is empty until training starts, so the time for imports and for reading the data is not counted.
    started, steps = time.monotonic(), list[tuple[float, int]]()
    while child.poll() is None and not (steps and until is not None and steps[-1][1] >= until):
        if content := steps_file.read_bytes():
            now, step = time.monotonic(), int.from_bytes(content)
            started = started if steps else now
            if not steps or steps[-1][1] != step:
                steps.append((now - started, step))
        else:
            started = time.monotonic()
        time.sleep(POLL_SECONDS)
    return started, steps


@contextmanager
def _child(run: Run, steps_file: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process for one attempt at a run; the process is killed at the end of the ``with`` block.

    The process runs in a new session, so that it does not receive Ctrl-C from the terminal.
    """
    command = [sys.executable, "-P", "-m", "cnnjob.checks.resume", str(run.path.resolve()), str(steps_file.resolve())]
    with run.path.with_name("stderr").open("wb") as stderr:
        child = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True,
            env={**os.environ, **process.python_path_for_children()},
        )  # fmt: skip
        try:
            yield child
        finally:
            child.kill()
            child.wait()


def _describe_kill(run: Run, attempt: _TimedAttempt, steps_per_epoch: int) -> Kill:
    """Return a description of the latest kill, based on the files that the attempt left in the run folder."""
    if any(run.checkpoints_folder.glob(f".*{files.TEMPORARY_SUFFIX}")):  # a checkpoint that had not been renamed yet
        during = "saving"
    elif not attempt.step:
        during = "starting"
    else:
        during = (
            "training" if attempt.step % steps_per_epoch else "evaluation"
        )  # evaluation follows the last step of an epoch
    number, saved = len(run.attempt_files()), newest_step(run.checkpoints_folder)
    return Kill(number, round(attempt.seconds, 3), attempt.step or None, saved, during)


class _Counter(NoProgress):
    """A progress callback that writes the number of the last step to a file, which another process reads."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY)
        self._steps = 0

    def start(self, job: Job, steps: int) -> None:  # noqa: ARG002 - the signature of a progress callback
        """Store the number of steps per epoch, and write step 0 to show the other process that training has started."""
        self._steps = steps
        self._write(0)

    def step(self, epoch: int, step: int) -> None:
        """Write the step, counted over all epochs."""
        self._write((epoch - 1) * self._steps + step)

    def _write(self, step: int) -> None:
        os.pwrite(self._file, step.to_bytes(STEP_BYTES), 0)  # a reader sees either the old or the new number


def _main(run: str, steps_file: str) -> None:
    try:
        outcome = train(Run(Path(run)), _Counter(Path(steps_file)))
    except CnnjobError as error:
        raise SystemExit(str(error)) from error
    if outcome.state == "stopped":
        raise SystemExit(EXIT_STOPPED)


if __name__ == "__main__":
    _main(*sys.argv[1:3])
