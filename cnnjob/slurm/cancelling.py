"""Cancelling runs: the jobs that cnnjob submitted for them, or the process that writes them outside of any such job.

A run may be trained inside a job that its user made, as ``cnnjob train`` in an ``salloc`` is. That job is never
cancelled, as other work may depend on it: only the training is asked to stop.
"""

import getpass
import os
import shlex
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from cnnjob import files
from cnnjob.errors import SchedulerError
from cnnjob.processes import is_alive, now
from cnnjob.runs import UNRECORDED, Run
from cnnjob.slurm import scheduler, words
from cnnjob.slurm.decisions import cancel_record
from cnnjob.slurm.looks import Look
from cnnjob.slurm.status import Status, statuses


@dataclass(frozen=True)
class Cancelled:
    """What became of one run."""

    run: Run
    said: str
    """``cancelled job 17``, ``nothing to cancel, it is finished``."""


def cancel(runs: Sequence[Run]) -> list[Cancelled]:
    """Cancel every job that carries one of the runs, or stop the process that does; other runs are left as they are.

    Each run first gets a record of it, so that a batch script that is about to bring it back does not.

    Args:
        runs: any number; one scancel for all, and the questions of :func:`cnnjob.slurm.status.statuses`.

    Returns:
        What became of each, in their order.

    Raises:
        SchedulerError: the queue could not be read though a run may be in it, or scancel failed.
    """
    answer = statuses(runs)
    if answer.remark and any(one.look.job_id for one in answer.statuses if one.state not in {"finished", "damaged"}):
        raise SchedulerError(f"{answer.remark.partition(';')[0]}; nothing was cancelled, try again")
    for one in answer.statuses:
        if one.own:
            _write_record(one.look, [job.job_id for job in one.own])
    said = scheduler.cancel(sorted({job.job_id for one in answer.statuses for job in one.own}))
    return [Cancelled(one.look.run, _of_jobs(one, said) if one.own else _of_process(one)) for one in answer.statuses]


def _write_record(seen: Look, job_ids: Sequence[str]) -> None:
    seen.run.require_no_links()
    record = {"by": getpass.getuser(), "jobs": job_ids, "attempt": seen.lives, "time": now()}
    with suppress(PermissionError):  # in another user's folder; SLURM then decides who may cancel
        seen.run.slurm_folder.mkdir(exist_ok=True)
        files.write_json(cancel_record(seen.run), record | seen.run.identity())


def _remove_record(seen: Look) -> None:
    with suppress(PermissionError):
        cancel_record(seen.run).unlink(missing_ok=True)


def _of_jobs(one: Status, said: Sequence[str]) -> str:
    """Return what became of the jobs of a run."""
    refused = scheduler.refusals([job.job_id for job in one.own], said)
    gone = [job for job in one.own if job.job_id not in refused]
    told = [f"job {job_id} was not cancelled: {line.strip()}" for job_id, line in refused.items()]
    if gone:
        waited = all(job.state in words.WAITING for job in gone)
        names = ", ".join(job.job_id for job in gone)
        told.insert(0, f"cancelled job {names}, {'which waited' if waited else 'its work is saved as it ends'}")
    if refused and gone:
        _write_record(one.look, [job.job_id for job in gone])
    elif refused:
        _remove_record(one.look)
    return "; ".join(told)


def _of_process(one: Status) -> str:
    """Stop the process that trains a run outside of the jobs of cnnjob; it saves and stops."""
    seen = one.look
    if seen.state != "running":
        return f"nothing to cancel, it is {one.state}"
    if seen.run.unrecorded_seconds() is not None:
        return f"not cancelled, {UNRECORDED}"
    holder = seen.attempt
    if not (seen.is_here and is_alive(holder, seen.run.attempt_files()[-1])):
        return _of_step(seen) if holder.get("job_step") else _command_of(seen)
    pid = int(holder["pid"])
    _write_record(seen, _allocation(seen))
    try:
        os.kill(pid, signal.SIGTERM)
    except PermissionError:
        _remove_record(seen)
        return f"process {pid} is another user's, not cancelled"
    except ProcessLookupError:
        return "nothing to cancel, its process has just ended"
    return f"asked process {pid} to save and stop"


def _allocation(seen: Look) -> list[str]:
    """Return the id of the job that a process is inside of, if any."""
    return [str(seen.attempt["job_id"])] if seen.attempt.get("job_id") else []


def _of_step(seen: Look) -> str:
    """Stop a training that is all there is in its step of a job that cnnjob did not submit."""
    step = f"{seen.attempt['job_id']}.{seen.attempt['job_step']}"
    _write_record(seen, _allocation(seen))
    try:
        said = scheduler.tell(["scancel", "--signal=TERM", step])
        refused = said if "error" in said else ""
    except SchedulerError as error:
        refused = str(error)
    if refused:
        _remove_record(seen)
        return f"step {step} was not asked to stop: {refused}"
    return f"asked step {step} to save and stop; its job goes on"


def _command_of(seen: Look) -> str:
    """Return the command that stops a process on another host, which cannot be done from here."""
    pid, host, job = (seen.attempt.get(key) for key in ("pid", "host", "job_id"))
    inside = f", inside job {job}, which is not cnnjob's" if job and job != seen.submission.get("job_id") else ""
    command = f"ssh {shlex.quote(str(host))} kill -TERM {pid}"
    return f"not cancelled, process {pid} on {host} trains it{inside}. To let it save and stop:\n  {command}"
