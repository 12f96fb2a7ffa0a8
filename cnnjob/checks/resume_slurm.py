"""A job run twice on a cluster, unbroken and with its task killed at random moments; its own restarts bring it back."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cnnjob.checks import comparison
from cnnjob.checks.comparison import Kill, RunComparison
from cnnjob.checks.resume import save_often
from cnnjob.data.dataset import Dataset
from cnnjob.errors import CnnjobError, SchedulerError
from cnnjob.jobs.job import Job
from cnnjob.runs.checkpoints import newest_step
from cnnjob.runs.restart_log import restarts_of
from cnnjob.runs.run import Run
from cnnjob.slurm import cancel, job_array
from cnnjob.slurm.scheduler import client, queue
from cnnjob.slurm.submit.request import Request
from cnnjob.slurm.submit.submission import submit
from cnnjob.training.setup import TrainingSetup

CHECKPOINT_SECONDS = 1.0
"""Between two checkpoints; each kill waits for one, so that every restart has made progress."""
LOOK_SECONDS = 0.2
"""Between two looks at the runs' folders."""
FIRST_ASK_SECONDS, LONGEST_ASK_SECONDS = 2.0, 60.0
"""Between two questions to the queue."""
END_SECONDS = 60.0
"""How long to wait for cancelled jobs to be gone."""


def verify_resume_on_slurm(
    job: Job,
    dataset: Dataset,
    folder: Path,
    request: Request,
    kills: int,
    seed: int,
    wait_minutes: float,
    say: Callable[[str], None],
) -> RunComparison:
    """Run a job on the cluster, unbroken and beside it killed at random moments, and compare.

    Args:
        job: as long as it is to be.
        dataset: its data.
        folder: for both runs; empty, and seen by the nodes.
        request: what each of the runs needs.
        kills: how many; each falls after a new checkpoint, in its own part of the steps.
        seed: of their moments.
        wait_minutes: for all of it; then the jobs are cancelled.
        say: hears how it goes.

    Returns:
        The verdict.

    Raises:
        CnnjobError: a run has ended unfinished, or the time is over.
        SchedulerError: SLURM refused, or is not there.
    """
    often = save_often(job, CHECKPOINT_SECONDS)
    setup = TrainingSetup.checked(often, dataset)
    unbroken, killed = runs = [setup.create_run(folder / name) for name in ("unbroken", "killed")]
    total, draw = setup.steps_per_epoch * job.train.epochs, random.Random(seed)  # noqa: S311 - no secrets
    points = [total * (part + draw.random()) / (kills + 1) for part in range(kills)]
    with _cancelled_unless_done(runs):
        for run in runs:
            [done] = submit([run], request)
            say(f"{run.path}: {done.why} as job {done.job_id}")
        watch, killer = _Watch(runs, time.monotonic() + 60 * wait_minutes), _Killer(killed, points, draw, say)
        while not watch.both_are_over():
            killer.summary()
            time.sleep(LOOK_SECONDS)
    return comparison.compare_runs(unbroken, killed, killer.done, kills, seed)


class _Killer:
    """Kills the task of a run after checkpoints; its batch script lives on and decides."""

    def __init__(self, run: Run, points: list[float], draw: random.Random, say: Callable[[str], None]) -> None:
        self.done: list[Kill] = []
        self._run, self._points, self._draw, self._say = run, points, draw, say

    def summary(self) -> None:
        """Kill if this is a life with a checkpoint of its own beyond the next point."""
        if len(self.done) == len(self._points) or self._run.result_file.exists():
            return
        attempts, saved = self._run.attempts(), newest_step(self._run.checkpoints_folder)
        before = self.done[-1] if self.done else Kill(0, 0.0, None, 0, "")
        point = self._points[len(self.done)]
        if not attempts or len(attempts) == before.life or saved < point or saved <= before.saved_step:
            return
        seconds = self._draw.uniform(0, CHECKPOINT_SECONDS)
        time.sleep(seconds)
        self._kill(len(attempts), attempts[-1]["job_id"], seconds)

    def _kill(self, life: int, job_id: str, seconds: float) -> None:
        saved = newest_step(self._run.checkpoints_folder)
        try:
            client.ask(["scancel", "--signal=KILL", f"{job_id}.0"])  # of the job itself it would cancel it
        except SchedulerError:
            return  # it has just ended, or is being requeued: there is a next look
        self.done.append(Kill(life, round(seconds, 3), None, saved, ""))
        self._say(f"kill {len(self.done)} of {len(self._points)}: life {life}, job {job_id}, saved at step {saved}")


class _Watch:
    """Whether the runs go on: their folders first, the queue less and less often."""

    def __init__(self, runs: Sequence[Run], deadline: float) -> None:
        self._runs, self._deadline = runs, deadline
        self._pause, self._next, self._missing = FIRST_ASK_SECONDS, 0.0, dict.fromkeys((run.path for run in runs), 0)

    def both_are_over(self) -> bool:
        """Whether both are finished and their jobs gone.

        Raises:
            CnnjobError: one has ended unfinished, or the time is over.
        """
        if time.monotonic() > self._deadline:
            raise CnnjobError("verify-resume: not finished in time, its jobs are cancelled; give more --wait-minutes")
        finished = all(run.result_file.exists() for run in self._runs)
        if time.monotonic() < self._next and not (finished and self._pause > FIRST_ASK_SECONDS):
            return False
        self._pause = FIRST_ASK_SECONDS if finished else min(1.5 * self._pause, LONGEST_ASK_SECONDS)
        self._next = time.monotonic() + self._pause
        with suppress(SchedulerError):  # one that does not answer now may do so later
            carried = job_array.queued(queue.mine())
            for run in self._runs:
                self._missing[run.path] = 0 if run.path.resolve() in carried else self._missing[run.path] + 1
            self._check()
            return finished and all(self._missing.values())
        return False

    def _check(self) -> None:
        """Find a run that nobody carries any more, in two looks one after the other."""
        for run in self._runs:
            if self._missing[run.path] > 1 and not run.result_file.exists():
                said = [str(told.get("said")) for told in restarts_of(run)[-1:]] or ["its job has ended without a word"]
                raise CnnjobError(f"{run.path}: not finished, {said[0]}; see {run.log_file}")


@contextmanager
def _cancelled_unless_done(runs: Sequence[Run]) -> Iterator[None]:
    """Whatever breaks the block, no job of the runs is left."""
    try:
        yield
    except BaseException:
        with suppress(SchedulerError):
            cancel.cancel(runs)
            end, paths = time.monotonic() + END_SECONDS, {run.path.resolve() for run in runs}
            while paths & job_array.queued(queue.mine()).keys() and time.monotonic() < end:
                time.sleep(FIRST_ASK_SECONDS)
        raise
