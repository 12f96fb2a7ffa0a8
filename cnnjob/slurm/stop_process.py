"""Stopping a training that no job of cnnjob carries: by a signal, by its SLURM step, or by telling the user how.

Also the record of a cancellation, which is written before anything is stopped.
"""

import getpass
import os
import shlex
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from cnnjob import files
from cnnjob.errors import BusyError, SchedulerError
from cnnjob.runs.process import is_alive, now
from cnnjob.runs.restart_log import cancellation_file, find_local_wait
from cnnjob.runs.run import UNRECORDED, Run
from cnnjob.runs.summary import RunSummary, read_summary
from cnnjob.slurm.run_state import Status
from cnnjob.slurm.scheduler import client


@dataclass(frozen=True)
class Cancellation:
    """The result of cancelling one run."""

    run: Run
    message: str
    """The result in words: ``cancelled job 17, …``, ``nothing to cancel: finished``."""
    exit_code: int = 0
    """Exit code of the error that kept a job or process of the run alive; 0 if nothing is left."""


def job_ids_of(status: Status) -> list[str]:
    """Return the ids of a run's own jobs in the queue."""
    return [job.job_id for job in status.own_jobs]


def write_record(summary: RunSummary, job_ids: Sequence[str]) -> None:
    """Record that the user cancels a run, so that no batch script restarts it after one of the jobs."""
    record = {
        "by": getpass.getuser(),
        "cluster": summary.here or None,
        "jobs": job_ids,
        "attempt": summary.n_attempts,
        "time": now(),
    }
    with suppress(PermissionError):  # another user's folder: SLURM decides whether this user may cancel the job
        summary.run.slurm_folder.mkdir(exist_ok=True)
        files.write_json(cancellation_file(summary.run), record | summary.run.identity())


def restore_record(summary: RunSummary) -> None:
    """Restore the record of an earlier cancellation, or remove the record if there was none."""
    with suppress(OSError):
        if summary.cancellation:
            files.write_json(cancellation_file(summary.run), summary.cancellation)
        else:
            cancellation_file(summary.run).unlink(missing_ok=True)


def stop_process(status: Status) -> Cancellation:
    """Ask the process that trains a run outside of any job of cnnjob to save and stop."""
    summary = status.summary
    if summary.state != "running":
        return _cancel_without_process(status)
    if summary.run.unrecorded_seconds() is not None:
        return _not_cancelled(summary, UNRECORDED)
    owner = summary.attempt
    if not (summary.is_on_this_host and is_alive(owner, summary.run.attempt_files()[-1])):
        return _stop_remote_process(status)
    pid = int(owner["pid"])
    # the record before the signal: what decides after the end of the training must find it
    write_record(summary, [*job_ids_of(status), *_enclosing_job(summary)])
    try:
        os.kill(pid, signal.SIGTERM)
    except PermissionError:
        _withdraw_record(status)
        return _not_cancelled(summary, f"process {pid} belongs to another user")
    except ProcessLookupError:
        return Cancellation(summary.run, "nothing to cancel: its process has just ended")
    return Cancellation(summary.run, f"asked process {pid} to save and stop")


def _stop_remote_process(status: Status) -> Cancellation:
    """Ask a process that cannot be signalled from here to stop, or return the command that does so."""
    if status.is_elsewhere:
        return _not_cancelled(status.summary, _advise_other_cluster(status.summary))
    if status.summary.attempt.get("job_step"):
        return _stop_step(status)
    return _not_cancelled(status.summary, _advise_signal(status.summary))


def _cancel_without_process(status: Status) -> Cancellation:
    """Return the result for a run that no process trains and that has no job in the queue as it was shown."""
    summary = status.summary
    if status.is_elsewhere:
        return _not_cancelled(summary, _advise_other_cluster(summary))
    if status.is_hidden and status.state not in {"failed", "cancelled"}:
        owner = f"job {status.job_id} of another user may carry it"
        return _not_cancelled(summary, f"{owner}, and this site hides the jobs of other users. Ask that user")
    if status.state in {"finished", "damaged"} or not (waiter := find_local_wait(summary.run)):
        return Cancellation(summary.run, f"nothing to cancel: {status.state}")
    # A `submit --local` waits to train it. The record first, then the state: if the run begins between the two, the new
    # state shows it.
    write_record(summary, [summary.job_id] if summary.job_id else [])
    latest = read_summary(summary.run).on(summary.here)
    if latest.state == "running":
        return stop_process(replace(status, summary=latest))
    return Cancellation(latest.run, f"cancelled: process {waiter['pid']} on {waiter['host']} will not train it")


def _stop_step(status: Status) -> Cancellation:
    """Ask a training that is the only task of its step to stop, inside a job that cnnjob did not submit."""
    summary = status.summary
    step = f"{summary.attempt['job_id']}.{summary.attempt['job_step']}"
    write_record(summary, [*job_ids_of(status), *_enclosing_job(summary)])
    try:
        answer = client.ask_stderr(["scancel", "--signal=TERM", step])  # only the step: the job itself is its user's
        refusal = answer if "error" in answer else ""
    except SchedulerError as error:
        refusal = str(error)
    if refusal:
        _withdraw_record(status)
        return Cancellation(summary.run, f"step {step} was not asked to stop: {refusal}", SchedulerError.exit_code)
    return Cancellation(summary.run, f"asked step {step} to save and stop; its job keeps running")


def _withdraw_record(status: Status) -> None:
    """Reduce the record to the jobs of the run, as its process was not asked to stop."""
    if status.own_jobs:
        write_record(status.summary, job_ids_of(status))
    else:
        restore_record(status.summary)


def _enclosing_job(summary: RunSummary) -> list[str]:
    """Return the id of the job that a training is inside of, or nothing."""
    return [str(summary.attempt["job_id"])] if summary.attempt.get("job_id") else []


def _not_cancelled(summary: RunSummary, reason: str) -> Cancellation:
    return Cancellation(summary.run, f"not cancelled: {reason}", BusyError.exit_code)


def _advise_other_cluster(summary: RunSummary) -> str:
    """Return a message with the command that cancels a job of another cluster or stops a training inside it."""
    reason = f"job {summary.job_id} is on cluster {summary.other_cluster}, this cluster is {summary.here}"
    scancel = f"scancel -M {shlex.quote(summary.other_cluster)}"
    if summary.job_id == str(summary.submission.get("job_id")):
        return f"{reason}. To cancel it:\n  {scancel} {summary.job_id}"
    if step := summary.attempt.get("job_step"):
        return f"{reason}. To let it save and stop:\n  {scancel} --signal=TERM {summary.job_id}.{step}"
    return _advise_signal(summary)


def _advise_signal(summary: RunSummary) -> str:
    """Return a message with the command that stops a process on another host, which cannot be signalled from here."""
    pid, host, job_id = (summary.attempt.get(key) for key in ("pid", "host", "job_id"))
    is_foreign = job_id and job_id != str(summary.submission.get("job_id"))
    inside = f", inside job {job_id}, which cnnjob did not submit" if is_foreign else ""
    command = f"kill -TERM {pid}"
    if host == socket.gethostname():  # in another container, or on another machine of this name
        return (
            f"process {pid} on {host} trains it{inside}, in another container or on another machine of this name. "
            f"To let it save and stop, run there:\n  {command}"
        )
    command = f"ssh {shlex.quote(str(host))} {command}"
    return f"process {pid} on {host} trains it{inside}. To let it save and stop:\n  {command}"
