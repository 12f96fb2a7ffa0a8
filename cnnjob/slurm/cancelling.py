"""Cancelling runs: the jobs that carry them, or the processes of this host that write them."""

import getpass
import os
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cnnjob import files
from cnnjob.errors import SchedulerError
from cnnjob.processes import is_alive, now
from cnnjob.runs import Run
from cnnjob.slurm import scheduler, words
from cnnjob.slurm.decisions import cancel_record
from cnnjob.slurm.looks import Look, look
from cnnjob.slurm.queue import QueuedJob
from cnnjob.slurm.status import Carriers, queue_of

OVER = ("already completing", "already completed", "Invalid job id")
"""What scancel says of a job that is no more."""


@dataclass(frozen=True)
class Cancelled:
    """What became of one run."""

    run: Run
    said: str
    """``cancelled job 17``, ``nothing to cancel, it is finished``."""


def cancel(runs: Sequence[Run]) -> list[Cancelled]:
    """Cancel the jobs and processes of runs; a run that has none is left as it is.

    Each run first gets a record of it, so that a batch script that is about to bring it back does not.

    Args:
        runs: any number; one question to the queue and one scancel for all.

    Returns:
        What became of each, in their order.

    Raises:
        SchedulerError: the queue could not be read though a run may be in it, or scancel failed.
    """
    looks = [look(run) for run in runs]
    asked, remark = queue_of(looks)
    if remark and any(seen.job_id for seen in looks if seen.state not in {"finished", "damaged"}):
        raise SchedulerError(f"{remark.partition(';')[0]}; nothing was cancelled, try again")
    find = Carriers(asked.jobs if asked else [])
    carriers = [find.all_of(seen) for seen in looks]
    for seen, jobs in zip(looks, carriers, strict=True):
        if jobs or _is_written_here(seen):
            _write_record(seen, jobs)
    said = _scancel(sorted({job.job_id for jobs in carriers for job in jobs}))
    return [
        Cancelled(seen.run, _of_jobs(seen, jobs, said) if jobs else _of_process(seen))
        for seen, jobs in zip(looks, carriers, strict=True)
    ]


def _write_record(seen: Look, jobs: Iterable[QueuedJob]) -> None:
    seen.run.slurm_folder.mkdir(exist_ok=True)
    ids = [job.job_id for job in jobs]
    record = {"by": getpass.getuser(), "jobs": ids, "attempt": seen.lives, "time": now()}
    files.write_json(cancel_record(seen.run), record)


def _scancel(ids: Sequence[str]) -> list[str]:
    """Cancel jobs; what scancel said, which it does with exit code 0 and 1."""
    if not ids:
        return []
    try:
        return scheduler.tell(["scancel", *ids]).splitlines()
    except SchedulerError as error:
        lines = str(error).splitlines()
        if not any("Kill job error" in line for line in lines):
            raise
        return lines


def _of_jobs(seen: Look, jobs: Sequence[QueuedJob], said: Iterable[str]) -> str:
    """What became of the jobs of a run."""
    refused = {job.job_id: line for job in jobs for line in said if _is_about(line, job.job_id)}
    if refused:
        cancel_record(seen.run).unlink(missing_ok=True)
        return "; ".join(f"job {job_id} was not cancelled: {line.strip()}" for job_id, line in refused.items())
    waits = all(job.state in words.WAITING for job in jobs)
    names = ", ".join(job.job_id for job in jobs)
    return f"cancelled job {names}, {'which waited' if waits else 'its work is saved as it ends'}"


def _is_about(line: str, job_id: str) -> bool:
    names = job_id in line.replace(":", " ").split()
    return names and "error" in line and not any(words_ in line for words_ in OVER)


def _is_written_here(seen: Look) -> bool:
    """Whether a process of this host, outside of any job, writes it."""
    if seen.state != "running" or not seen.is_here or seen.attempt.get("job_id"):
        return False
    return is_alive(seen.attempt, seen.run.attempt_files()[-1])


def _of_process(seen: Look) -> str:
    """End the process of this host that writes a run; it saves and stops."""
    if seen.state == "running" and _is_written_here(seen):
        pid = int(seen.attempt["pid"])
        try:
            os.kill(pid, signal.SIGTERM)
        except PermissionError:
            cancel_record(seen.run).unlink(missing_ok=True)
            return f"process {pid} is another user's, not cancelled"
        except ProcessLookupError:
            return "nothing to cancel, its process has just ended"
        return f"asked process {pid} to save and stop"
    where = f" by a process on {seen.attempt.get('host')}; cancel it there" if seen.state == "running" else ""
    return f"nothing to cancel, it is {seen.state}{where}"
