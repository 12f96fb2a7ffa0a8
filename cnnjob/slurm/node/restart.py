"""Whether and how a run goes on after a life of it ended; called by the batch script, whatever ended it.

    python -P -m cnnjob.slurm.node.restart FOLDER CODE

FOLDER is a run's, or a sweep's, whose element this job is. Requeues this very job where the site allows
it, else submits a successor. Only restarts without progress are counted. What the job did to itself (a
bad job, a bug, a loss that is no number) is never restarted, and what somebody cancelled stays cancelled.
Where a damaged record hides either, the run is left to its user.
"""

import errno
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

from cnnjob import files
from cnnjob.errors import EXIT_STOPPED, BusyError, CnnjobError, DataError, SchedulerError
from cnnjob.runs import process
from cnnjob.runs.checkpoints import newest_step
from cnnjob.runs.restart_log import (
    CANCELLED,
    cancel_of,
    cancel_record,
    read_cancel,
    read_restarts,
    restart_record,
    restarts_of,
)
from cnnjob.runs.run import Run
from cnnjob.slurm.job_array import JobArray
from cnnjob.slurm.scheduler import client

RESTARTS_WITHOUT_PROGRESS = 3
GONE = 128
"""Exit codes from here on are of a process that a signal ended."""
PAUSES_SECONDS = (1, 2, 5, 10, 20, 40, *[60] * 28)
"""Between the questions to a scheduler that does not answer: half an hour in all."""
PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ESTALE}
"""Errors of a disk that is full, read-only or away, which may pass."""
GOES_ON = "to be restarted"
"""Said until it is known how."""


def decide(run: Run, code: int, ended_by: str) -> str:
    """Say why a run is not to be restarted, or nothing when it is.

    Args:
        run: the run.
        code: the exit code of its last life.
        ended_by: what :func:`cnnjob.slurm.scheduler.client.ended_by` says of this job.

    Returns:
        The reason to leave it, or ``""``.

    Raises:
        DataError: a record of the run that decides is damaged.
    """
    if run.result_file.exists():
        return "finished"
    if ended_by == "cancelled":
        return CANCELLED
    if ended_by == "requeued":
        return "SLURM has put the job back into its queue"
    if _is_own_error(run, code):
        return "the job's own error is not restarted"
    if _restarts_in_vain(run) >= RESTARTS_WITHOUT_PROGRESS:
        return f"{RESTARTS_WITHOUT_PROGRESS} restarts without progress"
    return ""


def _has_progressed(run: Run) -> bool:
    """Return whether this life of this job left a newer checkpoint than the one it resumed from."""
    return _has_begun(run) and newest_step(run.checkpoints_folder) > (run.attempts()[-1].get("resumed_at_step") or 0)


def _restarts_in_vain(run: Run) -> int:
    """Count the restarts without progress up to now.

    Raises:
        DataError: the record of them is damaged, and this life of the job made no progress.
    """
    try:
        return restarts_without_progress(read_restarts(run), newest_step(run.checkpoints_folder))
    except DataError as error:
        if _has_progressed(run):
            return 0
        raise DataError(f"it made no progress, and how often it was restarted is not known: {error}") from error


def _is_own_error(run: Run, code: int) -> bool:
    """Return whether an attempt ended by what it did itself, be it before it had claimed the run (no package, no data).

    A claimed run's own record tells; an attempt that has not finished never exits with 0.
    """
    if _has_begun(run):
        return run.state() == "failed"
    return code not in {0, EXIT_STOPPED} and code < GONE


def _has_begun(run: Run) -> bool:
    """Whether the newest attempt is of this life of this job."""
    attempts = run.attempts()
    return bool(attempts) and process.is_same_job_start(attempts[-1])


def restarts_without_progress(restarts: list[dict[str, Any]], step: int) -> int:
    """How many restarts in a row, up to now, left the newest checkpoint at the same step.

    What SLURM itself put back is not counted; what was submitted again by hand begins anew.
    """
    own = [restart for restart in restarts if restart.get("restarted") != "by SLURM"]
    return len(list(takewhile(lambda one: one["step"] == step and one.get("restarted", True), reversed(own))))


def main(folder: str, code: str) -> None:
    """Decide, do it, and write it down; the batch script then ends with the life's own code."""
    run = JobArray.read(Path(folder)).own_run()
    if int(code) == BusyError.exit_code:
        _say(run, "left to the process that has it")  # nothing is written: the run is another's
        return
    before = _restarts_before(run)
    try:
        said = _with_patience(run, int(code), before)
    except (CnnjobError, OSError) as error:
        from cnnjob.slurm.next_command import continue_command  # noqa: PLC0415 - rarely needed

        said = f"not restarted, {error}; to go on: {continue_command(run)}"
        with suppress(OSError):
            files.write_json(restart_record(run), [*before, {**_facts(run, int(code), "unknown"), "said": said}])
    _say(run, said)


def _restarts_before(run: Run) -> list[dict[str, Any]]:
    """Return what was decided so far; of a damaged record nothing, and say so, as it is written anew."""
    try:
        return read_restarts(run)
    except DataError as error:
        _say(run, str(error))
        return []


def _with_patience(run: Run, code: int, before: list[dict[str, Any]]) -> str:
    """Go on as soon as the scheduler answers and the run's folder can be written.

    Raises:
        SchedulerError: it refused, or did not answer for half an hour.
        OSError: the folder could not be written for so long, or is not there.
    """
    for pause in PAUSES_SECONDS:
        with suppress(_AskedToEnd), _sigterm_asks_again():
            try:
                return _go_on(run, code, before)
            except SchedulerError as error:
                if not client.is_silent(error):
                    raise
                _say(run, f"{error}; asking again in {pause} s")
            except OSError as error:
                if error.errno not in PASSING:
                    raise
                _say(run, f"{error}; trying again in {pause} s")
            _wait(pause)
    return _go_on(run, code, before)


class _AskedToEnd(Exception):  # noqa: N818 - it is no error
    """SIGTERM came."""


@contextmanager
def _sigterm_asks_again() -> Iterator[None]:
    """Raise at SIGTERM: who ends the job is another question now; at other times it must not break a decision."""

    def ask_again(*_: object) -> NoReturn:
        raise _AskedToEnd

    signal.signal(signal.SIGTERM, ask_again)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _wait(seconds: float) -> None:
    """Wait, at most until SIGTERM: one that came right before a sleep would not end it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        signal.sigtimedwait({signal.SIGTERM}, seconds)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _go_on(run: Run, code: int, before: list[dict[str, Any]]) -> str:
    """Decide and do it; say what was done.

    Raises:
        SchedulerError: it could not be done.
    """
    ended_by, silent = _ended_by(run)
    said = decide(run, code, ended_by)
    if silent and not said:
        raise silent
    told = _facts(run, code, ended_by)
    how = ""
    if ended_by == "requeued" and len(restarts_of(run)) > len(before):
        how, said = _requeued()  # by an earlier try, whose end was not seen
    elif ended_by == "requeued":
        how = "by SLURM"
    elif not said:
        files.write_json(restart_record(run), [*before, {**told, "restarted": "requeued", "said": GOES_ON}])
        how, said = _restart(run)  # a requeue ends this script at once
    files.write_json(restart_record(run), [*before, {**told, "restarted": how, "said": said}])
    return said


def _ended_by(run: Run) -> tuple[str, SchedulerError | None]:
    """Who ended this job, and the error of a scheduler that does not answer now."""
    if not run.result_file.exists() and _was_cancelled(run):
        return "cancelled", None
    try:
        return client.ended_by(client.job_facts(_own_job()), process.job_restarts()), None
    except SchedulerError as error:
        return "unknown", error if client.is_silent(error) else None


def _facts(run: Run, code: int, ended_by: str) -> dict[str, Any]:
    step = newest_step(run.checkpoints_folder)
    own = {"cluster": process.cluster(), "job_id": _own_job(), "job_restarts": process.job_restarts()}
    return {**own, "ended_by": ended_by, "code": code, "step": step, "restarted": ""}


def _own_job() -> str:
    return process.job_id() or ""


def _restart(run: Run) -> tuple[str, str]:
    """Requeue this job, or submit a successor; say which.

    Raises:
        SchedulerError: neither could be done.
    """
    from cnnjob.slurm.submit.submission import resubmit  # noqa: PLC0415 - submitit is not needed for a requeue

    try:
        client.ask(["scontrol", "requeue", _own_job()])
    except SchedulerError as refused:
        if client.is_silent(refused):
            raise
        job_id = resubmit(run)
        if _was_cancelled(run):  # while sbatch ran: the queue did not show the successor to be cancelled
            return "", _withdrawn(run, job_id)
        return "successor", f"job {job_id} goes on ({refused})"
    return _requeued()


def _was_cancelled(run: Run) -> bool:
    """Return whether ``cnnjob cancel`` cancelled this job.

    Raises:
        DataError: the record of it is damaged, and nothing was submitted since it was written.
    """
    try:
        record = read_cancel(run)
        is_here = process.may_be_one(record.get("cluster"), process.cluster())
        return is_here and _own_job() in (record.get("jobs") or [])
    except DataError as error:
        if _submitted_after(run, cancel_record(run)):
            return False
        raise DataError(f"it may have been cancelled: {error}") from error


def _submitted_after(run: Run, record: Path) -> bool:
    """Return whether the newest submission is younger than a record."""
    with suppress(OSError):
        return run.submission_file.lstat().st_mtime > record.lstat().st_mtime
    return False


def _withdrawn(run: Run, job_id: str) -> str:
    """Cancel a successor, which the record of the cancellation then names too; say so.

    Raises:
        SchedulerError: it could not be cancelled.
    """
    record = cancel_of(run)
    refused = client.refusals([job_id], client.cancel([job_id]))
    if refused:
        raise SchedulerError(f"cancelled, but its successor {job_id} is not: {refused[job_id]}")
    files.write_json(cancel_record(run), {**record, "jobs": [*record.get("jobs", []), job_id]})
    return f"{CANCELLED}, and with it its successor {job_id}"


def _requeued() -> tuple[str, str]:
    return "requeued", f"job {_own_job()} is requeued"


def _say(run: Run, text: str) -> None:
    with suppress(OSError):  # it may lie on the disk that is full
        print(f"cnnjob: {run.path}: {text}", flush=True)  # noqa: T201 - the job's own log


if __name__ == "__main__":
    main(*sys.argv[1:3])
