"""Wait for runs to end, regardless of the SLURM jobs in which they are trained."""

import time
from collections.abc import Iterator, Sequence

from cnnjob.errors import SchedulerError
from cnnjob.runs.run import Run
from cnnjob.slurm.run_state import Status
from cnnjob.slurm.scheduler import job_states
from cnnjob.slurm.status import Answer, query_statuses

FIRST_SECONDS, LONGEST_SECONDS = 2.0, 60.0
"""Initial and maximum pause between two queries, in seconds; the pause doubles until a run ends."""
SILENT_SECONDS = 1800.0
"""Maximum time, in seconds, to wait for a scheduler that does not answer."""


def wait_for_runs(runs: Sequence[Run]) -> Iterator[Status]:
    """Yield a run's status when the run has ended, and once for each job of the run that is held or can never start.

    The pause between two queries of the scheduler grows until a run ends.

    Raises:
        SchedulerError: there was no information about the remaining runs for half an hour; their jobs are not affected.
    """
    remaining, reported, pause, last_answer = list(runs), set[str](), FIRST_SECONDS, time.monotonic()
    while remaining:
        answer = query_statuses(remaining, thorough=True)
        ended = [status for status in answer.statuses if _has_ended(status, answer)]
        stuck = [status for status in answer.statuses if _is_stuck(status) and status.job_id not in reported]
        yield from (*ended, *stuck)
        last_answer = _time_of_last_answer(answer, last_answer)
        reported |= {str(status.job_id) for status in stuck}
        ended_paths = {status.summary.run.path for status in ended}
        remaining = [run for run in remaining if run.path not in ended_paths]
        if remaining:
            time.sleep(pause)
        pause = FIRST_SECONDS if ended else min(2 * pause, LONGEST_SECONDS)


def _time_of_last_answer(answer: Answer, before: float) -> float:
    """Return the monotonic time at which information about the remaining runs was last available.

    Args:
        answer: the latest statuses.
        before: the previous return value.

    Raises:
        SchedulerError: there has been no information for more than ``SILENT_SECONDS``.
    """
    now, remaining = time.monotonic(), [status for status in answer.statuses if not _has_ended(status, answer)]
    all_hidden = bool(remaining) and all(status.is_hidden and status.state != "running" for status in remaining)
    if not (answer.silent or all_hidden):
        return now
    if now - before > SILENT_SECONDS:
        raise SchedulerError(f"{answer.remark}. Stopped waiting; the jobs are not affected")
    return before


def _has_ended(status: Status, answer: Answer) -> bool:
    """Return whether a run has ended and no job will restart it; False if unknown because the queue was not read."""
    if status.state in {"finished", "damaged"}:
        return True
    if status.is_hidden:  # it may have a job that squeue does not show here, so only its folder counts
        return status.state in {"failed", "cancelled"}
    return not answer.silent and status.job is None and status.state != "running"


def _is_stuck(status: Status) -> bool:
    """Return whether a run is waiting for a job that is held or can never start."""
    if status.job is None or status.job.state not in job_states.WAITING or status.state != "pending":
        return False
    return not job_states.parse_reason(status.job.reason).starts_by_itself
