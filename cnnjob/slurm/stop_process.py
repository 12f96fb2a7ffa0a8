"""Functions that stop training processes that run outside cnnjob's own SLURM jobs.

A training process is sent a signal, directly or through its job step. If neither is possible, the user is shown the
command that stops it. This module also writes the cancellation record, which must exist before anything is stopped.
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
    """The result as a phrase, such as ``cancelled job 17, …`` or ``nothing to cancel: finished``."""
    exit_code: int = 0
    """Exit code of the error that left a job or process of the run alive; 0 if there was no such error."""


def job_ids_of(status: Status) -> list[str]:
    """Return the ids of the jobs in the queue that cnnjob submitted for a run."""
    return [job.job_id for job in status.own_jobs]


def write_record(summary: RunSummary, job_ids: Sequence[str]) -> None:
    """Record that the user cancelled a run, so that the batch scripts of the jobs do not restart it."""
    record = {
        "by": getpass.getuser(),
        "cluster": summary.here or None,
        "jobs": job_ids,
        "attempt": summary.n_attempts,
        "time": now(),
    }
    with suppress(PermissionError):  # another user's folder: SLURM decides whether the current user may cancel the job
        summary.run.slurm_folder.mkdir(exist_ok=True)
        files.write_json(cancellation_file(summary.run), record | summary.run.identity())


def restore_record(summary: RunSummary) -> None:
    """Restore the record of an earlier cancellation; if there was none, remove the record."""
    with suppress(OSError):
        if summary.cancellation:
            files.write_json(cancellation_file(summary.run), summary.cancellation)
        else:
            cancellation_file(summary.run).unlink(missing_ok=True)


def stop_process(status: Status) -> Cancellation:
    """Ask a process that trains a run outside cnnjob's own SLURM jobs to save and stop."""
    summary = status.summary
    if summary.state != "running":
        return _cancel_without_process(status)
    if summary.run.unrecorded_seconds() is not None:
        return _not_cancelled(summary, UNRECORDED)
    owner = summary.attempt
    if not (summary.is_on_this_host and is_alive(owner, summary.run.attempt_files()[-1])):
        return _stop_remote_process(status)
    pid = int(owner["pid"])
    # before the signal, so that a batch script that then decides about a restart finds the record
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
    """Stop a remote process through its job step, if possible; otherwise, return a message with the command to run."""
    if status.is_elsewhere:
        return _not_cancelled(status.summary, _advise_other_cluster(status.summary))
    if status.summary.attempt.get("job_step"):
        return _stop_step(status)
    return _not_cancelled(status.summary, _advise_signal(status.summary))


def _cancel_without_process(status: Status) -> Cancellation:
    """Return the result for a run that is not being trained and has no visible job in the queue."""
    summary = status.summary
    if status.is_elsewhere:
        return _not_cancelled(summary, _advise_other_cluster(summary))
    if status.is_hidden and status.state not in {"failed", "cancelled"}:
        owner = f"another user's job {status.job_id} may belong to this run"
        return _not_cancelled(summary, f"{owner}, and this site hides the jobs of other users. Ask that user")
    if status.state in {"finished", "damaged"} or not (waiter := find_local_wait(summary.run)):
        return Cancellation(summary.run, f"nothing to cancel: {status.state}")
    # A `submit --local` process waits to train the run. The record is written before the state is read again: if the
    # run begins between the two, the new state shows it.
    write_record(summary, [summary.job_id] if summary.job_id else [])
    latest = read_summary(summary.run).on(summary.here)
    if latest.state == "running":
        return stop_process(replace(status, summary=latest))
    return Cancellation(latest.run, f"cancelled: process {waiter['pid']} on {waiter['host']} will not train it")


def _stop_step(status: Status) -> Cancellation:
    """Ask a training process to stop by signalling its job step, which contains no other task.

    The step belongs to a SLURM job that cnnjob did not submit.
    """
    summary = status.summary
    step = f"{summary.attempt['job_id']}.{summary.attempt['job_step']}"
    write_record(summary, [*job_ids_of(status), *_enclosing_job(summary)])
    try:
        answer = client.ask_stderr(["scancel", "--signal=TERM", step])  # not the job, which belongs to its user
        refusal = answer if "error" in answer else ""
    except SchedulerError as error:
        refusal = str(error)
    if refusal:
        _withdraw_record(status)
        return Cancellation(summary.run, f"step {step} was not asked to stop: {refusal}", SchedulerError.exit_code)
    return Cancellation(summary.run, f"asked step {step} to save and stop; its job keeps running")


def _withdraw_record(status: Status) -> None:
    """Limit the cancellation record to the run's own jobs, because the process was not asked to stop."""
    if status.own_jobs:
        write_record(status.summary, job_ids_of(status))
    else:
        restore_record(status.summary)


def _enclosing_job(summary: RunSummary) -> list[str]:
    """Return a list with the id of the SLURM job that contains the training process; empty if there is none."""
    return [str(summary.attempt["job_id"])] if summary.attempt.get("job_id") else []


def _not_cancelled(summary: RunSummary, reason: str) -> Cancellation:
    return Cancellation(summary.run, f"not cancelled: {reason}", BusyError.exit_code)


def _advise_other_cluster(summary: RunSummary) -> str:
    """Return a message with the command that cancels a job on another cluster or stops training inside it."""
    reason = f"job {summary.job_id} is on cluster {summary.other_cluster}; this cluster is {summary.here}"
    scancel = f"scancel -M {shlex.quote(summary.other_cluster)}"
    if summary.job_id == str(summary.submission.get("job_id")):
        return f"{reason}. To cancel it:\n  {scancel} {summary.job_id}"
    if step := summary.attempt.get("job_step"):
        return f"{reason}. To make it save and stop:\n  {scancel} --signal=TERM {summary.job_id}.{step}"
    return _advise_signal(summary)


def _advise_signal(summary: RunSummary) -> str:
    """Return a message with the command that stops a process that runs on another host, out of reach of signals."""
    pid, host, job_id = (summary.attempt.get(key) for key in ("pid", "host", "job_id"))
    is_foreign = job_id and job_id != str(summary.submission.get("job_id"))
    inside = f", inside job {job_id}, which cnnjob did not submit" if is_foreign else ""
    command = f"kill -TERM {pid}"
    if host == socket.gethostname():  # in another container, or on another machine with the same name
        return (
            f"process {pid} on {host} is training it{inside}, in another container or on another machine with the same "
            f"name. To make it save and stop, run this command there:\n  {command}"
        )
    command = f"ssh {shlex.quote(str(host))} {command}"
    return f"process {pid} on {host} is training it{inside}. To make it save and stop:\n  {command}"
