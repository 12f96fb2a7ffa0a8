"""Cancelling runs: the jobs that cnnjob submitted for them, or the process that trains them outside of any such job.

A run may be trained inside a job that cnnjob did not submit, as with ``cnnjob train`` in an ``salloc``. Such a job is
never cancelled, as other work may depend on it: only the training is asked to stop.
"""

import getpass
import os
import shlex
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from cnnjob import files
from cnnjob.errors import BusyError, DataError, SchedulerError
from cnnjob.runs.process import is_alive, now
from cnnjob.runs.restart_log import cancellation_file, find_local_wait, try_read_cancellation
from cnnjob.runs.run import UNRECORDED, Run
from cnnjob.runs.summary import RunSummary, read_summary
from cnnjob.slurm.job_index import JobIndex
from cnnjob.slurm.scheduler import client, job_states
from cnnjob.slurm.scheduler.queue import QueuedJob
from cnnjob.slurm.status import Status, queue_of, statuses


@dataclass(frozen=True)
class Cancellation:
    """The result of cancelling one run."""

    run: Run
    said: str
    """The result in words: ``cancelled job 17``, ``nothing to cancel, it is finished``."""
    exit_code: int = 0
    """Exit code of the error that kept a job or process of the run alive; 0 if nothing is left."""


def cancel(runs: Sequence[Run]) -> list[Cancellation]:
    """Cancel every job that carries one of the runs, or stop the process that trains it.

    Each run first gets a record of the cancellation, so that a batch script that is about to restart it does not. One
    that looked for the record before it was there has put a job into the queue by then, which is looked for at the end.

    SLURM is asked the questions of :func:`cnnjob.slurm.status.statuses`, then once more for the queue. There is one
    scancel for all jobs, and another for each run that has got a new job meanwhile.

    Args:
        runs: any number of runs; those with nothing to cancel are left as they are.

    Returns:
        One result per run, in their order. A run that cannot be cancelled does not keep the rest from being cancelled.

    Raises:
        SchedulerError: the queue could not be read though a run may be in it, or scancel failed; all records of
            cancellations are then as they were before.
    """
    answer = statuses(runs)
    if answer.silent and any(one.summary.job_id for one in answer.statuses if one.state not in {"finished", "damaged"}):
        raise SchedulerError(f"{answer.remark.partition(';')[0]}; nothing was cancelled, try again")
    found = [replace(one, own=_left_of(one)) for one in answer.statuses]
    linked = {one.summary.run: error for one in found if (error := _link_of(one))}
    with_jobs = [one for one in found if one.own and one.summary.run not in linked]
    with _records(with_jobs):
        said = client.cancel(sorted({job.job_id for one in with_jobs for job in one.own}))
    told = [linked.get(one.summary.run) or _told(one, said) for one in found]
    later = _cancel_later(with_jobs)  # last: a batch script that saw no record has its successor in the queue by now
    return [_and_later(first, later.get(first.run)) for first in told]


def _left_of(one: Status) -> tuple[QueuedJob, ...]:
    """Return the jobs of a run that are to be cancelled; of a finished run only those that wait.

    A running job of a finished run is about to end by itself.
    """
    return tuple(job for job in one.own if one.state != "finished" or job.state in job_states.WAITING)


def _link_of(one: Status) -> Cancellation | None:
    """Return a result for a run that is not cancelled because its folder contains links; None for other runs."""
    if not one.own and one.summary.state != "running" and not find_local_wait(one.summary.run):
        return None
    try:
        one.summary.run.require_no_links()
    except DataError as error:
        return Cancellation(one.summary.run, f"not cancelled, {error}", error.exit_code)
    return None


def _cancel_later(cancelled: Sequence[Status]) -> dict[Run, Cancellation]:
    """Cancel the jobs that were submitted or requeued while the runs were being cancelled; return results by run."""
    if not cancelled:
        return {}
    looks = [read_summary(one.summary.run).on(one.summary.here) for one in cancelled]
    asked, remark = queue_of(looks)
    if remark:
        unknown = f"whether a successor was submitted meanwhile is not known ({remark.partition(';')[0]})"
        why = f"{unknown}. Run the same command again"
        return {seen.run: Cancellation(seen.run, why, SchedulerError.exit_code) for seen in looks}
    find = JobIndex(asked.jobs if asked else [])
    new = {one.summary.run: _new(one, find.own(seen)) for one, seen in zip(cancelled, looks, strict=True)}
    return {run: _cancelled_later(run, job_ids) for run, job_ids in new.items() if job_ids}


def _new(one: Status, jobs: Sequence[QueuedJob]) -> list[str]:
    """Return the jobs of a run that are new in the queue since the cancellation, or were requeued."""
    known = {job.job_id: job.state in job_states.WAITING for job in one.own}
    left = [job for job in jobs if job.state != job_states.ENDING]
    again = {job.job_id for job in left if job.state in job_states.WAITING and known.get(job.job_id) is False}
    return [job.job_id for job in left if job.job_id not in known or job.job_id in again]


def _cancelled_later(run: Run, job_ids: Sequence[str]) -> Cancellation:
    """Cancel jobs that were not in the queue before, and add them to the record."""
    record = try_read_cancellation(run)
    with suppress(OSError):
        files.write_json(cancellation_file(run), {**record, "jobs": [*(record.get("jobs") or []), *job_ids]})
    try:
        refused = client.refusals(job_ids, client.cancel(job_ids))
    except SchedulerError as error:
        refused = dict.fromkeys(job_ids, str(error))
    told = [f"and job {job_id}, which came meanwhile" for job_id in job_ids if job_id not in refused]
    told += [f"job {job_id} was not cancelled: {line.strip()}" for job_id, line in refused.items()]
    return Cancellation(run, "; ".join(told), SchedulerError.exit_code if refused else 0)


def _and_later(first: Cancellation, later: Cancellation | None) -> Cancellation:
    if not later:
        return first
    return Cancellation(first.run, f"{first.said}; {later.said}", max(first.exit_code, later.exit_code))


@contextmanager
def _records(cancelled: Sequence[Status]) -> Iterator[None]:
    """Write a record of the cancellation into each run; if the block fails, restore the earlier records."""
    try:
        for one in cancelled:
            _write_record(one.summary, _ids(one))
        yield
    except BaseException:  # Ctrl-C too: the record of a cancellation that failed would prevent a restart
        for one in cancelled:
            _restore_record(one.summary)
        raise


def _write_record(seen: RunSummary, job_ids: Sequence[str]) -> None:
    record = {
        "by": getpass.getuser(),
        "cluster": seen.here or None,
        "jobs": job_ids,
        "attempt": seen.n_attempts,
        "time": now(),
    }
    with suppress(PermissionError):  # another user's folder: SLURM decides whether this user may cancel the job
        seen.run.slurm_folder.mkdir(exist_ok=True)
        files.write_json(cancellation_file(seen.run), record | seen.run.identity())


def _restore_record(seen: RunSummary) -> None:
    """Restore the record of an earlier cancellation, or remove the record if there was none."""
    with suppress(OSError):
        if seen.cancellation:
            files.write_json(cancellation_file(seen.run), seen.cancellation)
        else:
            cancellation_file(seen.run).unlink(missing_ok=True)


def _told(one: Status, said: Sequence[str]) -> Cancellation:
    """Return the result for a run: for its jobs, and for a process that trains it outside of them."""
    if not one.own:
        return _of_process(one)
    refused = client.refusals(_ids(one), said)
    jobs = _of_jobs(one, refused)
    if not _is_outside(one):
        return jobs
    process = _of_process(replace(one, own=tuple(job for job in one.own if job.job_id not in refused)))
    return Cancellation(jobs.run, f"{jobs.said}; {process.said}", max(jobs.exit_code, process.exit_code))


def _is_outside(one: Status) -> bool:
    """Return whether a run that has jobs is trained outside of them.

    It is not if the attempt belongs to a job that has ended and submitted its successor, even if that attempt was
    killed and so has no recorded end.
    """
    job_id = one.summary.attempt.get("job_id")
    ended = {one.summary.last_decision.get("job_id"), *(job.job_id for job in one.own)}
    return one.summary.state == "running" and (job_id is None or job_id not in ended)


def _of_jobs(one: Status, refused: Mapping[str, str]) -> Cancellation:
    """Return the result for the jobs of a run, and correct its record if some were not cancelled."""
    gone = [job for job in one.own if job.job_id not in refused]
    told = [f"job {job_id} was not cancelled: {line.strip()}" for job_id, line in refused.items()]
    if gone:
        waited = all(job.state in job_states.WAITING for job in gone)
        names = ", ".join(job.job_id for job in gone)
        told.insert(0, f"cancelled job {names}, {'which waited' if waited else 'its work is saved as it ends'}")
    if refused and gone:
        _write_record(one.summary, [job.job_id for job in gone])
    elif refused:
        _restore_record(one.summary)
    return Cancellation(one.summary.run, "; ".join(told), SchedulerError.exit_code if refused else 0)


def _of_process(one: Status) -> Cancellation:
    """Ask the process that trains a run outside of any job of cnnjob to save and stop."""
    seen = one.summary
    if seen.state != "running":
        return _without_a_process(one)
    if seen.run.unrecorded_seconds() is not None:
        return _not_cancelled(seen, f"not cancelled, {UNRECORDED}")
    holder = seen.attempt
    if not (seen.is_on_this_host and is_alive(holder, seen.run.attempt_files()[-1])):
        return _from_afar(one)
    pid = int(holder["pid"])
    # the record before the signal: what decides after the end of the training must find it
    _write_record(seen, [*_ids(one), *_allocation(seen)])
    try:
        os.kill(pid, signal.SIGTERM)
    except PermissionError:
        _take_back(one)
        return _not_cancelled(seen, f"process {pid} is another user's, not cancelled")
    except ProcessLookupError:
        return Cancellation(seen.run, "nothing to cancel, its process has just ended")
    return Cancellation(seen.run, f"asked process {pid} to save and stop")


def _from_afar(one: Status) -> Cancellation:
    """Ask a process that cannot be signalled from here to stop, or return the command that does so."""
    seen = one.summary
    if one.is_elsewhere:
        return _not_cancelled(seen, _of_another_cluster(seen))
    return _of_step(one) if seen.attempt.get("job_step") else _not_cancelled(seen, _command_of(seen))


def _without_a_process(one: Status) -> Cancellation:
    """Return the result for a run that no process trains and that has no job in the queue as it was shown."""
    if one.is_elsewhere:
        return _not_cancelled(one.summary, _of_another_cluster(one.summary))
    if one.is_hidden and one.state not in {"failed", "cancelled"}:
        hidden = f"not cancelled, job {one.job_id} of another user may carry it, and this site shows nobody the jobs of"
        return _not_cancelled(one.summary, f"{hidden} others. Ask that user")
    if one.state not in {"finished", "damaged"} and (holder := find_local_wait(one.summary.run)):
        return _of_local(one, holder)
    return Cancellation(one.summary.run, f"nothing to cancel, it is {one.state}")


def _of_local(one: Status, holder: Mapping[str, Any]) -> Cancellation:
    """Keep a ``submit --local`` from training a run that waits its turn; if it has begun meanwhile, ask it to stop."""
    # the record first, then the state: if the run begins between the two, the new state shows it
    _write_record(one.summary, [one.summary.job_id] if one.summary.job_id else [])
    seen = read_summary(one.summary.run).on(one.summary.here)
    if seen.state == "running":
        return _of_process(replace(one, summary=seen))
    return Cancellation(seen.run, f"cancelled, it waited for process {holder['pid']} on {holder['host']} to train it")


def _of_another_cluster(seen: RunSummary) -> str:
    """Return a message with the command that cancels a job of another cluster or stops a training inside it."""
    what = f"not cancelled, job {seen.job_id} is of cluster {seen.other_cluster}, and this one is {seen.here}"
    there = f"scancel -M {shlex.quote(seen.other_cluster)}"
    if seen.job_id == str(seen.submission.get("job_id")):
        return f"{what}. To cancel it:\n  {there} {seen.job_id}"
    if step := seen.attempt.get("job_step"):
        return f"{what}. To let it save and stop:\n  {there} --signal=TERM {seen.job_id}.{step}"
    return _command_of(seen)


def _ids(one: Status) -> list[str]:
    return [job.job_id for job in one.own]


def _take_back(one: Status) -> None:
    """Reduce the record to the jobs of the run, as its process was not asked to stop."""
    if one.own:
        _write_record(one.summary, _ids(one))
    else:
        _restore_record(one.summary)


def _not_cancelled(seen: RunSummary, why: str) -> Cancellation:
    return Cancellation(seen.run, why, BusyError.exit_code)


def _allocation(seen: RunSummary) -> list[str]:
    """Return the id of the job that a training is inside of, or nothing."""
    return [str(seen.attempt["job_id"])] if seen.attempt.get("job_id") else []


def _of_step(one: Status) -> Cancellation:
    """Ask a training that is the only task of its step to stop, inside a job that cnnjob did not submit."""
    seen = one.summary
    step = f"{seen.attempt['job_id']}.{seen.attempt['job_step']}"
    _write_record(seen, [*_ids(one), *_allocation(seen)])
    try:
        said = client.tell(["scancel", "--signal=TERM", step])  # only the step: the job itself is its user's
        refused = said if "error" in said else ""
    except SchedulerError as error:
        refused = str(error)
    if refused:
        _take_back(one)
        return Cancellation(seen.run, f"step {step} was not asked to stop: {refused}", SchedulerError.exit_code)
    return Cancellation(seen.run, f"asked step {step} to save and stop; its job goes on")


def _command_of(seen: RunSummary) -> str:
    """Return a message with the command that stops a process on another host, which cannot be signalled from here."""
    pid, host, job = (seen.attempt.get(key) for key in ("pid", "host", "job_id"))
    inside = f", inside job {job}, which is not cnnjob's" if job and job != str(seen.submission.get("job_id")) else ""
    stop = f"kill -TERM {pid}"
    if host == socket.gethostname():  # in another container, or on another machine of this name
        return (
            f"not cancelled, process {pid} on {host} trains it{inside}, in another container or on another machine of "
            f"this name. To let it save and stop, there:\n  {stop}"
        )
    command = f"ssh {shlex.quote(str(host))} {stop}"
    return f"not cancelled, process {pid} on {host} trains it{inside}. To let it save and stop:\n  {command}"
