"""Run a job twice on a cluster, uninterrupted and with its process killed at random moments, and compare the bits.

The batch script of the killed run restarts it as it would restart any other.
"""

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
from cnnjob.runs.restart_log import try_read_restart_log
from cnnjob.runs.run import Run
from cnnjob.slurm import cancel, job_array
from cnnjob.slurm.scheduler import client, queue
from cnnjob.slurm.submit.request import Request
from cnnjob.slurm.submit.submission import submit
from cnnjob.training.setup import TrainingSetup

CHECKPOINT_SECONDS = 1.0
"""Between two checkpoints; each kill waits for a new one, so that every attempt makes progress and is restarted."""
LOOK_SECONDS = 0.2
"""Between two reads of the run folders."""
FIRST_ASK_SECONDS, LONGEST_ASK_SECONDS = 2.0, 60.0
"""Between two questions to the queue: at first, and at most."""
END_SECONDS = 60.0
"""How long to wait for cancelled jobs to leave the queue."""


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
    """Run a job on the cluster twice at once, uninterrupted and killed at random moments, and compare the two runs.

    Args:
        job: the job, shortened already if it is to be.
        dataset: its dataset.
        folder: an empty folder for both runs that the nodes see too.
        request: the resources that each run requests.
        kills: number of kills; each follows a new checkpoint, in its own section of the steps.
        seed: seed of their moments.
        wait_minutes: time limit for both runs, queueing included; after it the jobs are cancelled.
        say: called with each line about the progress.

    Returns:
        The comparison.

    Raises:
        CnnjobError: a run ended unfinished, or the time limit has passed.
        SchedulerError: SLURM refused a job, or is not available.
    """
    often = save_often(job, CHECKPOINT_SECONDS)
    setup = TrainingSetup.checked(often, dataset)
    uninterrupted, killed = runs = [setup.create_run(folder / name) for name in ("uninterrupted", "killed")]
    total, draw = setup.steps_per_epoch * job.train.epochs, random.Random(seed)  # noqa: S311 - no secrets
    # One point in each of the first `kills` of kills + 1 equal sections: after the last kill there is work left.
    points = [total * (part + draw.random()) / (kills + 1) for part in range(kills)]
    with _cancelled_unless_done(runs):
        for run in runs:
            [done] = submit([run], request)
            say(f"{run.path}: {done.why} as job {done.job_id}")
        watch, killer = _Watch(runs, time.monotonic() + 60 * wait_minutes), _Killer(killed, points, draw, say)
        while not watch.both_are_over():
            killer.summary()
            time.sleep(LOOK_SECONDS)
    return comparison.compare_runs(uninterrupted, killed, killer.done, kills, seed)


class _Killer:
    """Kills the process of a run after checkpoints; the batch script survives and decides about a restart."""

    def __init__(self, run: Run, points: list[float], draw: random.Random, say: Callable[[str], None]) -> None:
        self.done: list[Kill] = []
        self._run, self._points, self._draw, self._say = run, points, draw, say

    def summary(self) -> None:
        """Kill the current attempt if it has saved a new checkpoint at or beyond the next point."""
        if len(self.done) == len(self._points) or self._run.result_file.exists():
            return
        attempts, saved = self._run.attempts(), newest_step(self._run.checkpoints_folder)
        before = self.done[-1] if self.done else Kill(0, 0.0, None, 0, "")
        point = self._points[len(self.done)]
        if not attempts or len(attempts) == before.attempt or saved < point or saved <= before.saved_step:
            return
        # A random time after the checkpoint, so that kills are spread over all that happens between two checkpoints.
        seconds = self._draw.uniform(0, CHECKPOINT_SECONDS)
        time.sleep(seconds)
        self._kill(len(attempts), attempts[-1]["job_id"], seconds)

    def _kill(self, attempt: int, job_id: str, seconds: float) -> None:
        saved = newest_step(self._run.checkpoints_folder)
        try:
            # Step 0 is the process that srun started; sent to the job itself, KILL would cancel the job.
            client.ask(["scancel", "--signal=KILL", f"{job_id}.0"])
        except SchedulerError:
            return  # it has just ended, or is being requeued: the next call tries again
        self.done.append(Kill(attempt, round(seconds, 3), None, saved, ""))
        self._say(
            f"kill {len(self.done)} of {len(self._points)}: attempt {attempt}, job {job_id}, saved at step {saved}"
        )


class _Watch:
    """Watches whether the runs are over: their folders at every call, the queue less and less often."""

    def __init__(self, runs: Sequence[Run], deadline: float) -> None:
        self._runs, self._deadline = runs, deadline
        self._pause, self._next, self._missing = FIRST_ASK_SECONDS, 0.0, dict.fromkeys((run.path for run in runs), 0)

    def both_are_over(self) -> bool:
        """Return whether both runs are finished and their jobs have left the queue.

        Raises:
            CnnjobError: a run ended unfinished, or the time limit has passed.
        """
        if time.monotonic() > self._deadline:
            raise CnnjobError("verify-resume: not finished in time, its jobs are cancelled; give more --wait-minutes")
        # Once both are finished, the queue is asked at once and not only after a pause that has grown.
        finished = all(run.result_file.exists() for run in self._runs)
        if time.monotonic() < self._next and not (finished and self._pause > FIRST_ASK_SECONDS):
            return False
        self._pause = FIRST_ASK_SECONDS if finished else min(1.5 * self._pause, LONGEST_ASK_SECONDS)
        self._next = time.monotonic() + self._pause
        with suppress(SchedulerError):  # a scheduler that does not answer now may do so later
            carried = job_array.queued(queue.mine())
            for run in self._runs:
                self._missing[run.path] = 0 if run.path.resolve() in carried else self._missing[run.path] + 1
            self._check()
            return finished and all(self._missing.values())
        return False

    def _check(self) -> None:
        """Raise an error if an unfinished run had no job in two successive answers of the queue."""
        for run in self._runs:
            if self._missing[run.path] > 1 and not run.result_file.exists():
                said = [str(told.get("said")) for told in try_read_restart_log(run)[-1:]] or [
                    "its job has ended without a word"
                ]
                raise CnnjobError(f"{run.path}: not finished, {said[0]}; see {run.log_file}")


@contextmanager
def _cancelled_unless_done(runs: Sequence[Run]) -> Iterator[None]:
    """Cancel the jobs of the runs if the block raises anything, and wait until they have left the queue."""
    try:
        yield
    except BaseException:
        with suppress(SchedulerError):
            cancel.cancel(runs)
            end, paths = time.monotonic() + END_SECONDS, {run.path.resolve() for run in runs}
            while paths & job_array.queued(queue.mine()).keys() and time.monotonic() < end:
                time.sleep(FIRST_ASK_SECONDS)
        raise
