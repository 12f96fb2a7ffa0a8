"""Run a job twice on a cluster, once uninterrupted and once with kills at random moments, and compare the bits.

Only the training process is killed. The batch script survives, and restarts the run as after any other failure.
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
from cnnjob.slurm import cancel, job_index
from cnnjob.slurm.scheduler import client, queue
from cnnjob.slurm.submit.request import Request
from cnnjob.slurm.submit.submission import submit
from cnnjob.training.setup import TrainingSetup

CHECKPOINT_SECONDS = 1.0
"""Checkpoint interval. Each kill waits for a new checkpoint, since a run that makes no progress is not restarted."""
POLL_SECONDS = 0.2
"""Time between two checks of the run folders."""
FIRST_QUERY_SECONDS, LONGEST_QUERY_SECONDS = 2.0, 60.0
"""Initial and maximum time between two queries of the queue."""
END_SECONDS = 60.0
"""Maximum time to wait for cancelled jobs to leave the queue."""


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
    """Run a job twice in parallel on the cluster, once uninterrupted and once with kills, and compare the two runs.

    Args:
        job: the job, already shortened if necessary.
        dataset: the job's dataset.
        folder: an empty folder for both runs, accessible from the nodes.
        request: the resources of each run.
        kills: number of kills; each occurs in a different part of the training, after a new checkpoint.
        seed: seed for the random times of the kills.
        wait_minutes: time limit for both runs, including time in the queue, after which their SLURM jobs are cancelled.
        say: called with each progress message.

    Returns:
        The comparison.

    Raises:
        CnnjobError: a run was not finished when its job ended or when the time limit was reached.
        SchedulerError: SLURM refused a job or is not available.
    """
    setup = TrainingSetup.checked(save_often(job, CHECKPOINT_SECONDS), dataset)
    uninterrupted, killed = runs = [setup.create_run(folder / name) for name in ("uninterrupted", "killed")]
    total, draw = setup.steps_per_epoch * job.train.epochs, random.Random(seed)  # noqa: S311 - no secrets
    # One point in each of the first `kills` of kills + 1 equal sections, so that steps remain after the last kill.
    kill_steps = [total * (section + draw.random()) / (kills + 1) for section in range(kills)]
    with _cancelled_unless_done(runs):
        for run in runs:
            [submitted] = submit([run], request)
            say(f"{run.path}: {submitted.status} as job {submitted.job_id}")
        watch, killer = _Watch(runs, time.monotonic() + 60 * wait_minutes), _Killer(killed, kill_steps, draw, say)
        while not watch.both_are_over():
            killer.kill_if_due()
            time.sleep(POLL_SECONDS)
    return comparison.compare_runs(uninterrupted, killed, killer.done, kills, seed)


class _Killer:
    """Kills a run's training process after checkpoints; the batch script survives and restarts the run."""

    def __init__(self, run: Run, kill_steps: list[float], draw: random.Random, say: Callable[[str], None]) -> None:
        self.done: list[Kill] = []
        self._run, self._kill_steps, self._draw, self._say = run, kill_steps, draw, say

    def kill_if_due(self) -> None:
        """Kill the current attempt if it has saved a new checkpoint at or after the step planned for the next kill."""
        if len(self.done) == len(self._kill_steps) or self._run.result_file.exists():
            return
        attempts, saved_step = self._run.attempts(), newest_step(self._run.checkpoints_folder)
        killed_attempt, killed_step = (self.done[-1].attempt, self.done[-1].saved_step) if self.done else (0, 0)
        next_step = self._kill_steps[len(self.done)]
        if not attempts or len(attempts) == killed_attempt or saved_step < next_step or saved_step <= killed_step:
            return
        # A kill occurs at a random time after a checkpoint, so that kills cover the whole interval between checkpoints.
        seconds = self._draw.uniform(0, CHECKPOINT_SECONDS)
        time.sleep(seconds)
        self._kill(len(attempts), attempts[-1]["job_id"], seconds)

    def _kill(self, attempt: int, job_id: str, seconds: float) -> None:
        saved_step = newest_step(self._run.checkpoints_folder)
        try:
            # Job step 0 is the process that srun started; KILL sent to the job itself would cancel the job.
            client.ask(["scancel", "--signal=KILL", f"{job_id}.0"])
        except SchedulerError:
            return  # the job has just ended or is being requeued; the next call will try again
        self.done.append(Kill(attempt, round(seconds, 3), None, saved_step, ""))
        number = f"kill {len(self.done)} of {len(self._kill_steps)}"
        self._say(f"{number}: attempt {attempt}, job {job_id}, step {saved_step} saved")


class _Watch:
    """Checks whether the runs are over: reads the run folders on every call, and the queue at increasing intervals."""

    def __init__(self, runs: Sequence[Run], deadline: float) -> None:
        self._runs, self._deadline = runs, deadline
        self._pause, self._next_query = FIRST_QUERY_SECONDS, 0.0
        self._misses = dict.fromkeys((run.path for run in runs), 0)

    def both_are_over(self) -> bool:
        """Return whether both runs are finished and their jobs have left the queue.

        After the time limit, the result is True if both runs are finished, even if their jobs are still in the queue.

        Raises:
            CnnjobError: a run was not finished when its job ended or when the time limit was reached.
        """
        finished = all(run.result_file.exists() for run in self._runs)
        if time.monotonic() > self._deadline:
            if finished:
                return True
            raise CnnjobError("verify-resume: not finished in time, so the jobs are cancelled. Increase --wait-minutes")
        # Once both runs are finished, the queue is read at once, even if the current pause is long.
        if time.monotonic() < self._next_query and not (finished and self._pause > FIRST_QUERY_SECONDS):
            return False
        self._pause = FIRST_QUERY_SECONDS if finished else min(1.5 * self._pause, LONGEST_QUERY_SECONDS)
        self._next_query = time.monotonic() + self._pause
        with suppress(SchedulerError):  # the scheduler may answer later
            queued = job_index.newest_job_ids(queue.list_own_jobs())
            for run in self._runs:
                self._misses[run.path] = 0 if run.path.resolve() in queued else self._misses[run.path] + 1
            self._check()
            return finished and all(self._misses.values())
        return False

    def _check(self) -> None:
        """Raise a CnnjobError if the last two queries found no job in the queue for a run that is not finished."""
        for run in self._runs:
            if self._misses[run.path] > 1 and not run.result_file.exists():
                decisions = [str(restart.get("said")) for restart in try_read_restart_log(run)]
                reason = decisions[-1] if decisions else "its job ended without recording why"
                raise CnnjobError(f"{run.path}: not finished ({reason}). See {run.log_file}")


@contextmanager
def _cancelled_unless_done(runs: Sequence[Run]) -> Iterator[None]:
    """If the ``with`` block raises an exception, cancel the runs' jobs and wait until they have left the queue."""
    try:
        yield
    except BaseException:
        with suppress(SchedulerError):
            cancel.cancel(runs)
            deadline, paths = time.monotonic() + END_SECONDS, {run.path.resolve() for run in runs}
            while paths & job_index.newest_job_ids(queue.list_own_jobs()).keys() and time.monotonic() < deadline:
                time.sleep(FIRST_QUERY_SECONDS)
        raise
