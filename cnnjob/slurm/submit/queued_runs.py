"""Jobs already in the queue for runs that are about to be submitted."""

import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from cnnjob import files
from cnnjob.errors import SchedulerError, plural
from cnnjob.runs import process
from cnnjob.runs.process import now
from cnnjob.runs.restart_log import cancellation_file
from cnnjob.runs.run import Run
from cnnjob.runs.summary import RunSummary, read_summary
from cnnjob.slurm import job_array, next_command
from cnnjob.slurm.job_array import JobArray
from cnnjob.slurm.job_index import JobIndex, users_of
from cnnjob.slurm.run_state import may_be_restarted
from cnnjob.slurm.scheduler import client, job_states, queue
from cnnjob.slurm.scheduler.queue import QueuedJob
from cnnjob.slurm.submit import executor
from cnnjob.slurm.submit.request import Request

REQUEST = "request.json"
"""Name of the file that stores a run's resource request; a successor is submitted with the same request."""
ENDING_SECONDS, POLL_SECONDS = 15.0, 1.0
"""Maximum time to wait for a job that is ending, and the pause between two queries."""


def find_queued(
    runs: Sequence[Run], request: Request, say: Callable[[str], None]
) -> tuple[dict[Run, str], dict[Path, str]]:
    """Find the runs that are in the queue and those that cannot be submitted now.

    If a run's job is ending and will not restart the run, wait up to ``ENDING_SECONDS`` for the job to end.

    Args:
        runs: runs that are neither finished nor running.
        request: the runs' resources; stored for each queued run that has no request file.
        say: called with a message before waiting.

    Returns:
        The id of the oldest job for each queued run, and the reason for each run that cannot be submitted.

    Raises:
        SchedulerError: the queue could not be read.
    """
    deadline, announced = time.monotonic() + ENDING_SECONDS, False
    while True:
        summaries, index = _read_queue(runs)
        jobs = {summary.run: (summary, index.jobs_for(summary)) for summary in summaries}
        ending = {run.path: text for run, (summary, own) in jobs.items() if (text := _describe_ending(summary, own))}
        if not ending or time.monotonic() > deadline:
            break
        if not announced:
            announced = True
            say(f"{len(ending)} of {plural(len(runs), 'run')}: the job is ending; waiting up to {ENDING_SECONDS:g} s")
        time.sleep(POLL_SECONDS)
    refusals = {
        summary.run.path: text for summary, own in jobs.values() if (text := _reason_not_to_submit(summary, own, index))
    }
    refusals |= ending
    queued = {run: own for run, (_, own) in jobs.items() if own and run.path not in refusals}
    complete_files(queued, request)
    for run in queued:  # this submission revokes an earlier cancellation
        with suppress(OSError):
            cancellation_file(run).unlink(missing_ok=True)
    return {run: own[0].job_id for run, own in queued.items()}, refusals


def _read_queue(runs: Sequence[Run]) -> tuple[list[RunSummary], JobIndex]:
    """Return the summaries of runs, and an index of the jobs in the queue.

    Raises:
        SchedulerError: the queue could not be read.
    """
    cluster = client.current_cluster()
    summaries = [read_summary(run).on(cluster) for run in runs]
    listing = queue.list_queue(users_of(summaries), {job_id for summary in summaries for job_id in summary.job_ids})
    listing.require_complete()
    return summaries, JobIndex(listing.jobs)


def find_successor(array: JobArray) -> QueuedJob | None:
    """Search the queue for a successor that sbatch may have submitted without answering; None if none is found.

    Raises:
        SchedulerError: the scheduler did not answer the queue query.
    """
    try:
        listing = queue.list_queue([os.getuid()])
        matches = [job for job in listing.jobs if job.comment == array.comment and job.job_id != process.job_id()]
        if not matches:
            listing.require_complete()
    except SchedulerError as error:
        if client.is_silent(error):
            raise
        return None  # squeue refused, which does not rule out submitting a successor
    return matches[0] if matches else None


def complete_files(queued: Mapping[Run, Sequence[QueuedJob]], request: Request | None = None) -> None:
    """Write the missing files and records of jobs in the queue.

    Files or records are missing if they were removed, if the submission was killed before it wrote them, or if sbatch's
    answer with the job id was lost.

    Args:
        queued: the jobs for each run.
        request: the runs' resources; None if each run has a request file.
    """
    arrays = [(run, job, job_array.read_job_array(job)) for run, jobs in queued.items() for job in jobs]
    # collected before any files are written, since runs in the same array share its pickles
    incomplete = [(run, job, array) for run, job, array in arrays if array and executor.lacks_files(array, job.job_id)]
    for run, job, array in incomplete:
        executor.write_missing_pickles(array, job.job_id.partition("_")[0])
        if request and not os.path.lexists(run.slurm_folder / REQUEST):  # a batch script reads it to submit a successor
            run.slurm_folder.mkdir(exist_ok=True)
            files.write_json(run.slurm_folder / REQUEST, request.model_dump(mode="json"))
        record_submission(array, run, job.job_id, comment=job.comment, shown=job.comment)


def record_submission(array: JobArray, run: Run, job_id: str, *, comment: str, shown: str | None) -> None:
    """Record which SLURM job trains a run.

    Args:
        array: the runs of the SLURM job.
        run: the run, one of those in ``array``.
        job_id: id of the job, or of the run's array task.
        comment: the comment passed to sbatch.
        shown: the comment that the queue shows, which is different if the site rewrites comments; None if unknown.
    """
    record = {
        "cluster": client.current_cluster() or None,
        "job_id": job_id,
        "comment": comment,
        "shown": shown,
        "log": str(array.files_folder / f"{job_id}_0_log.out"),
        "attempt": job_array.next_attempt(run),
    }
    files.write_json(run.submission_file, {**record, **run.identity(), "submitted": now()})


def _reason_not_to_submit(summary: RunSummary, jobs: Sequence[QueuedJob], index: JobIndex) -> str:
    """Return why a run cannot be submitted; empty if it can be submitted.

    A run cannot be submitted if the queue contains a job that was submitted for the run in another folder, or if the
    run may have a job that cannot be seen by this user or from this cluster.
    """
    run, submission_file = summary.run, shlex.quote(str(summary.run.submission_file))
    if jobs and summary.moved_from:
        return (
            f"{run.path}: job {jobs[0].job_id} is in the queue for {summary.moved_from}. This folder was moved from "
            f"there, so the job would not find it. Move the folder back, or cancel the job and submit again:\n"
            f"  {next_command.cancel_command(run)}"
        )
    if not jobs and summary.other_cluster and may_be_restarted(summary):
        return (
            f"{run.path}: job {summary.job_id} on cluster {summary.other_cluster} may belong to this run, but this "
            f"cluster is {summary.here}. Look for the job there:\n"
            f"  squeue -M {shlex.quote(summary.other_cluster)} -j {summary.job_id}\n"
            f"If the job has ended, remove its record and submit again:\n  rm {submission_file}"
        )
    if not jobs and summary.is_other_users and may_be_restarted(summary) and client.hides_jobs():
        return (
            f"{run.path}: another user's job {summary.job_id} may belong to this run, and this site hides the "
            f"jobs of other users. Ask that user; if the job has ended, remove its record and submit again:\n"
            f"  rm {submission_file}"
        )
    is_moved = bool(summary.original) and not Path(summary.original).exists()
    waiting = index.for_folder(Path(summary.original)) if is_moved else []
    if waiting:  # moved to another file system: this folder is a copy of a folder that no longer exists
        return (
            f"{run.path}: job {waiting[0].job_id} is in the queue for {summary.original}, which no longer exists. "
            f"Cancel the job, then submit again:\n  scancel {waiting[0].job_id}"
        )
    return ""


def _describe_ending(summary: RunSummary, jobs: Sequence[QueuedJob]) -> str:
    """Return a message if all of a run's jobs are ending and will not restart the run; otherwise an empty string.

    A job does not restart its run if the job was cancelled or its batch script has decided against a restart.
    """
    final = set(summary.cancellation.get("jobs") or [])
    if summary.current_decision.get("restarted") == "":
        final.add(summary.job_id)
    if jobs and all(job.state == job_states.ENDING and job.job_id in final for job in jobs):
        return f"{summary.run.path}: job {jobs[-1].job_id} is ending. Run the same command again in a moment"
    return ""
