"""Decide whether to restart a run after an attempt and, if so, restart it; each batch script calls this before exiting.

    python -P -m cnnjob.slurm.node.restart FOLDER CODE

FOLDER is the folder of the run, or of the sweep to which this array task belongs; CODE is the attempt's exit code. The
job is requeued if the site allows it; otherwise a successor is submitted. Only the number of restarts without progress
is limited. A run is never restarted after a cancellation or after the job's own error (an invalid job file, a bug, a
loss that is not finite). If the decision depends on a damaged record, the run is not restarted, and the user has to
decide.
"""

import errno
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from cnnjob import files
from cnnjob.errors import EXIT_STOPPED, BusyError, CnnjobError, DataError, SchedulerError
from cnnjob.runs import process
from cnnjob.runs.checkpoints import newest_step
from cnnjob.runs.restart_log import (
    CANCELLED,
    TO_RESUME,
    cancellation_file,
    read_cancellation,
    read_restart_log,
    restart_log_file,
    try_read_cancellation,
    try_read_restart_log,
)
from cnnjob.runs.run import Run
from cnnjob.slurm.job_array import JobArray
from cnnjob.slurm.scheduler import client
from cnnjob.slurm.scheduler.times import parse_duration

RESTARTS_WITHOUT_PROGRESS = 3
"""Number of consecutive restarts without a new checkpoint after which a run is no longer restarted."""
SIGNAL_CODES = 128
"""An exit code of at least this value means that a signal killed the process."""
PAUSES_SECONDS = (1, 2, 5, 10, 20, 40, *[60] * 28)
"""Pauses between queries to a scheduler that does not answer: about half an hour in total."""
TEMPORARY_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE}
"""Error numbers for a disk that is full, read-only or not mounted; such an error may be temporary."""
TO_BE_RESTARTED = "to be restarted"
"""Text recorded until the restart has succeeded."""


def main(folder: str, code: str) -> None:
    """Decide whether to restart, act on the decision, and record it; the batch script then exits with ``code``."""
    run = JobArray.read(Path(folder)).own_run()
    if int(code) == BusyError.exit_code:
        _log(run, "another process owns the run")  # nothing is written
        return
    earlier = _read_earlier_restarts(run)
    try:
        decision = _decide_with_retries(run, int(code), earlier)
    except (CnnjobError, OSError) as error:
        from cnnjob.slurm.next_command import continue_command  # noqa: PLC0415 - only needed here

        # on one line, since a log line that does not begin with "cnnjob: " counts as output of the training process
        decision = f"not restarted, {error}{TO_RESUME}{continue_command(run)}"
        with suppress(OSError):
            record = {**_decision_facts(run, int(code), "unknown"), "said": decision}
            files.write_json(restart_log_file(run), [*earlier, record])
    _log(run, decision)


def _read_earlier_restarts(run: Run) -> list[dict[str, Any]]:
    """Return the restart log; if it is damaged, print the error and return an empty one."""
    try:
        return read_restart_log(run)
    except DataError as error:
        _log(run, str(error))
        return []


def _decide_with_retries(run: Run, code: int, earlier: list[dict[str, Any]]) -> str:
    """Call :func:`_decide_and_restart` until the scheduler answers and the run's folder is writable.

    Raises:
        SchedulerError: the scheduler refused, or did not answer for half an hour.
        OSError: the folder was not writable for half an hour, or does not exist.
    """
    for pause in PAUSES_SECONDS:
        with suppress(_Terminated), _sigterm_retries():
            try:
                return _decide_and_restart(run, code, earlier)
            except SchedulerError as error:
                if not client.is_silent(error):
                    raise
                _log(run, f"{error}; trying again in {pause} s")
            except OSError as error:
                if error.errno not in TEMPORARY_ERRORS:
                    raise
                _log(run, f"{error}; trying again in {pause} s")
            _wait(pause)
    return _decide_and_restart(run, code, earlier)


class _Terminated(Exception):  # noqa: N818 - not an error
    """Raised when SIGTERM arrives."""


@contextmanager
def _sigterm_retries() -> Iterator[None]:
    """Raise :class:`_Terminated` on SIGTERM inside the ``with`` block, and ignore SIGTERM after the block.

    SIGTERM may mean that the job is being cancelled. The exception therefore makes the caller query SLURM again. After
    the block, the signal must not interrupt the recording of a decision.
    """

    def interrupt(*_: object) -> NoReturn:
        raise _Terminated

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _wait(seconds: float) -> None:
    """Wait until SIGTERM arrives, or until the given time has passed.

    With ``time.sleep``, a SIGTERM just before the call would not shorten the wait. A blocked signal stays pending, so
    ``sigtimedwait`` returns at once.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        signal.sigtimedwait({signal.SIGTERM}, seconds)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _decide_and_restart(run: Run, code: int, earlier: list[dict[str, Any]]) -> str:
    """Decide whether to restart the run, act on the decision, record it, and return a phrase about it for the log.

    Raises:
        SchedulerError: the restart failed.
    """
    ended_by, silent_error = _query_cause_of_end(run)
    decision = decide(run, code, ended_by)
    if silent_error and not decision:  # only a restart requires the scheduler
        raise silent_error
    facts = _decision_facts(run, code, ended_by)
    how = ""
    if ended_by == "requeued" and len(try_read_restart_log(run)) > len(earlier):
        how, decision = _requeued()  # an earlier requeue request was recorded and succeeded, but its answer was lost
    elif ended_by == "requeued":
        how = "by SLURM"
    elif not decision:
        # recorded both before and after the restart, since a requeue ends this script at once
        intention = {**facts, "restarted": "requeued", "said": TO_BE_RESTARTED}
        files.write_json(restart_log_file(run), [*earlier, intention])
        how, decision = _restart(run)
    files.write_json(restart_log_file(run), [*earlier, {**facts, "restarted": how, "said": decision}])
    return decision


def _query_cause_of_end(run: Run) -> tuple[str, SchedulerError | None]:
    """Return what ended this job, and the error if the scheduler did not answer (None if it did)."""
    if not run.result_file.exists() and _was_cancelled(run):
        return "cancelled", None
    try:
        return cause_of_end(client.query_job(_own_job_id()), process.job_restarts()), None
    except SchedulerError as error:
        return "unknown", error if client.is_silent(error) else None


def cause_of_end(job: Mapping[str, str], restarts: int) -> str:
    """Return what is ending a job; called in the job's own batch script.

    While the script is running, SLURM reports the state ``COMPLETING`` whatever the cause, so the cause is derived from
    other facts.

    Args:
        job: the facts returned by :func:`cnnjob.slurm.scheduler.client.query_job`.
        restarts: ``SLURM_RESTART_COUNT`` of this start of the job.

    Returns:
        ``requeued`` (the job is in the queue again), ``preempted``, ``time limit``, ``cancelled``, or ``itself``.
    """
    state = job.get("JobState", "")
    if client.parse_number(job.get("Restarts", "")) > restarts or state.startswith(
        ("PENDING", "REQUEUE", "CONFIGURING")
    ):
        return "requeued"
    # SLURM keeps PreemptTime after a requeue, so it may be from an earlier start. ISO times can be compared as strings.
    if job.get("PreemptTime", "")[:1].isdecimal() and job["PreemptTime"] >= job.get("StartTime", ""):
        return "preempted"
    run_seconds, limit_seconds = (parse_duration(job.get(name, "")) or 0 for name in ("RunTime", "TimeLimit"))
    if state.startswith("TIMEOUT") or run_seconds >= limit_seconds > 0:
        return "time limit"
    return "cancelled" if state.startswith(("COMPLETING", "CANCELLED")) else "itself"


def _was_cancelled(run: Run) -> bool:
    """Return whether ``cnnjob cancel`` cancelled this job.

    Raises:
        DataError: the cancellation record is damaged and newer than the last submission of the run.
    """
    try:
        record = read_cancellation(run)
        is_here = process.may_be_same_cluster(record.get("cluster"), process.cluster())
        return is_here and _own_job_id() in (record.get("jobs") or [])
    except DataError as error:
        with suppress(OSError):  # the run was submitted again later, so the cancellation no longer applies
            if run.submission_file.lstat().st_mtime > cancellation_file(run).lstat().st_mtime:
                return False
        raise DataError(f"it may have been cancelled: {error}") from error


def decide(run: Run, code: int, ended_by: str) -> str:
    """Return why a run must not be restarted, or an empty string if it is to be restarted.

    Args:
        run: the run.
        code: the exit code of its last attempt.
        ended_by: the return value of :func:`cause_of_end`.

    Returns:
        The reason, or ``""``.

    Raises:
        DataError: a record on which the decision depends is damaged.
    """
    if run.result_file.exists():
        return "finished"
    if ended_by == "cancelled":
        return CANCELLED
    if ended_by == "requeued":
        return "requeued by SLURM"
    if _is_own_error(run, code):
        return "not restarted after the job's own error"
    if _read_restarts_without_progress(run) >= RESTARTS_WITHOUT_PROGRESS:
        return f"{RESTARTS_WITHOUT_PROGRESS} restarts without progress"
    return ""


def _is_own_error(run: Run, code: int) -> bool:
    """Return whether an attempt ended with the job's own error.

    If the attempt claimed the run, its record decides. Otherwise (for example, if a package or the dataset is missing),
    the exit code decides; it is never 0 for an unfinished run.
    """
    if _has_begun(run):
        return run.state() == "failed"
    # The newest record, if any, belongs to an earlier attempt and does not describe this one.
    return code not in {0, EXIT_STOPPED} and code < SIGNAL_CODES


def _has_begun(run: Run) -> bool:
    """Return whether this SLURM job has begun an attempt at the run since the job was last started."""
    attempts = run.attempts()
    return bool(attempts) and process.is_same_job_start(attempts[-1])


def _read_restarts_without_progress(run: Run) -> int:
    """Return the length of the current series of restarts without progress.

    Raises:
        DataError: the restart log is damaged, and the last attempt made no progress.
    """
    step = newest_step(run.checkpoints_folder)
    try:
        return count_restarts_without_progress(read_restart_log(run), step)
    except DataError as error:
        if _has_begun(run) and step > (run.attempts()[-1].get("resumed_at_step") or 0):
            return 0
        raise DataError(f"it made no progress, and the number of restarts is unknown: {error}") from error


def count_restarts_without_progress(restarts: list[dict[str, Any]], step: int) -> int:
    """Return how many consecutive restarts, counted back from the latest, have led to no newer checkpoint.

    Requeues by SLURM itself, for example after a preemption, do not count. A manual submission resets the count.

    Args:
        restarts: the restart log, oldest first.
        step: the step of the newest checkpoint.
    """
    count = 0
    for restart in reversed(restarts):
        if restart.get("restarted") == "by SLURM":
            continue
        if restart["step"] != step or not restart.get("restarted", True):
            break
        count += 1
    return count


def _decision_facts(run: Run, code: int, ended_by: str) -> dict[str, Any]:
    return {
        "cluster": process.cluster(),
        "job_id": _own_job_id(),
        "job_restarts": process.job_restarts(),
        "ended_by": ended_by,
        "code": code,
        "step": newest_step(run.checkpoints_folder),
        "restarted": "",
    }


def _own_job_id() -> str:
    return process.job_id() or ""


def _restart(run: Run) -> tuple[str, str]:
    """Requeue this job, or submit a successor.

    Returns:
        How the run was restarted (``requeued``, ``successor``, or ``""`` if it was cancelled in the meantime), and a
        phrase for the log.

    Raises:
        SchedulerError: SLURM refused both, or did not answer.
    """
    from cnnjob.slurm.submit.submission import resubmit  # noqa: PLC0415 - a requeue does not need submitit

    try:
        client.ask(["scontrol", "requeue", _own_job_id()])
    except SchedulerError as refused:
        if client.is_silent(refused):  # SLURM may have requeued the job, and a successor would be a second one
            raise
        job_id = resubmit(run)
        # The successor is submitted before this check, and `cnnjob cancel` writes its record before it reads the queue.
        # Therefore, either this process finds the record or `cnnjob cancel` finds the successor.
        if _was_cancelled(run):
            return "", _cancel_successor(run, job_id)
        return "successor", f"job {job_id} resumes the run ({refused})"
    return _requeued()


def _cancel_successor(run: Run, job_id: str) -> str:
    """Cancel a successor and add it to the cancellation record; return a phrase for the log.

    Raises:
        SchedulerError: the successor could not be cancelled.
    """
    record = try_read_cancellation(run)
    refused = client.refusals([job_id], client.cancel_jobs([job_id]))
    if refused:
        raise SchedulerError(f"cancelled, but its successor {job_id} could not be cancelled: {refused[job_id]}")
    files.write_json(cancellation_file(run), {**record, "jobs": [*record.get("jobs", []), job_id]})
    return f"{CANCELLED}; its successor {job_id} was cancelled too"


def _requeued() -> tuple[str, str]:
    return "requeued", f"job {_own_job_id()} is requeued"


def _log(run: Run, text: str) -> None:
    with suppress(OSError):  # the log may be on a full disk
        print(f"cnnjob: {run.path}: {text}", flush=True)  # noqa: T201 - the job's own log


if __name__ == "__main__":
    main(*sys.argv[1:3])
