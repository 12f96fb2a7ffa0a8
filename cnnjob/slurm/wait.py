"""Waiting for runs to end, whatever jobs carry them."""

import time
from collections.abc import Iterator, Sequence

from cnnjob.errors import SchedulerError
from cnnjob.runs.run import Run
from cnnjob.slurm.scheduler import job_states
from cnnjob.slurm.status import Answer, Status, statuses

FIRST_SECONDS, LONGEST_SECONDS = 2.0, 60.0
"""First and longest pause between two queries; the pause doubles while no run ends."""
SILENT_SECONDS = 1800.0
"""Time to wait for a scheduler that does not answer."""


def wait_for_runs(runs: Sequence[Run]) -> Iterator[Status]:
    """Yield the status of each run when it has ended, and once for each job that will not start by itself.

    The scheduler is asked less and less often while no run ends.

    Raises:
        SchedulerError: nothing was learned about the remaining runs for half an hour; their jobs are not affected.
    """
    left, stuck, pause, heard = list(runs), set[str](), FIRST_SECONDS, time.monotonic()
    while left:
        answer = statuses(left, thorough=True)
        over = [one for one in answer.statuses if _has_ended(one, answer)]
        held = [one for one in answer.statuses if _is_stuck(one) and one.job_id not in stuck]
        yield from (*over, *held)
        heard = _heard(answer, heard)
        stuck |= {str(one.job_id) for one in held}
        done = {one.summary.run.path for one in over}
        left = [run for run in left if run.path not in done]
        if left:
            time.sleep(pause)
        pause = FIRST_SECONDS if over else min(2 * pause, LONGEST_SECONDS)


def _heard(answer: Answer, before: float) -> float:
    """Return the monotonic time at which something was last learned about the remaining runs.

    Args:
        answer: the latest statuses.
        before: the previous value.

    Raises:
        SchedulerError: that is longer ago than ``SILENT_SECONDS``.
    """
    now, left = time.monotonic(), [one for one in answer.statuses if not _has_ended(one, answer)]
    hidden = bool(left) and all(one.is_hidden and one.state != "running" for one in left)
    if not (answer.silent or hidden):
        return now
    if now - before > SILENT_SECONDS:
        raise SchedulerError(f"{answer.remark}; no longer waiting, the jobs are not affected")
    return before


def _has_ended(one: Status, answer: Answer) -> bool:
    """Return whether a run has ended and no job will restart it; if the queue was not read, it has not."""
    if one.state in {"finished", "damaged"}:
        return True
    if one.is_hidden:  # its job may be in a queue that was not shown, so only the run's folder counts
        return one.state in {"failed", "cancelled"}
    return not answer.silent and one.job is None and one.state != "running"


def _is_stuck(one: Status) -> bool:
    """Return whether a run waits for a job that is held or can never start."""
    if one.job is None or one.job.state not in job_states.WAITING or one.state != "pending":
        return False
    return not job_states.waits_for(one.job.reason).starts_by_itself
