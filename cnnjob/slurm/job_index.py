"""Index of all users' SLURM jobs that belong to runs, found by their comments or by the ids in run folders.

cnnjob's own jobs are recognised by their comments. A run may also be trained inside a SLURM job that cnnjob did not
submit, for example by ``cnnjob train`` in an ``salloc`` session; such a job belongs to its user and is never changed.

Only the jobs of users who are involved with the runs are listed. Before submitting into a runs folder, each user
creates a file there, ``.submitter-UID``, so that other users know whose jobs to list.
"""

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from cnnjob import files
from cnnjob.errors import DataError
from cnnjob.runs.process import now
from cnnjob.runs.summary import RunSummary
from cnnjob.slurm import job_array
from cnnjob.slurm.scheduler import job_states
from cnnjob.slurm.scheduler.client import CLOCKS_SECONDS
from cnnjob.slurm.scheduler.queue import QueuedJob
from cnnjob.slurm.scheduler.times import parse_time

_SUBMITTER = re.compile(r"\.submitter-([0-9]{1,10})", re.ASCII)


def users_of(summaries: Sequence[RunSummary]) -> set[int]:
    """Return the ids of the users whose jobs may train the runs.

    These are the current user and all users who own, submitted or trained one of the runs, or who submitted runs
    in a folder that contains one of them.
    """
    folders = {summary.run.path.resolve().parent for summary in summaries}
    known = {user for summary in summaries for user in (summary.owner, summary.submitter, summary.trainer)}
    return {os.getuid(), *(user for user in known if user is not None), *chain.from_iterable(map(_submitters, folders))}


def add_submitter(runs: Path) -> None:
    """Record in a runs folder, if it is writable, that the current user submits runs there.

    An existing record is written anew, because this changes the folder: NFS clients then discard their cached lists of
    its files.
    """
    with suppress(OSError):
        files.write_json(runs / f".submitter-{os.getuid()}", {"since": now()})


def _submitters(runs: Path) -> list[int]:
    try:
        names = [path.name for path in runs.iterdir()]
    except OSError:
        return []
    return [int(match[1]) for name in names if (match := _SUBMITTER.fullmatch(name))]


class JobIndex:
    """An index of the SLURM jobs in the queue, by run."""

    def __init__(self, jobs: Iterable[QueuedJob]) -> None:
        """Index jobs by id and by run; jobs that have ended are kept separately.

        Args:
            jobs: the jobs in the queue, possibly including some that ended recently.
        """
        jobs = list(jobs)
        live = [job for job in jobs if job.state not in job_states.ENDED]
        self._ended = {job.job_id: job for job in jobs if job.state in job_states.ENDED}
        self._by_id = {job.job_id: job for job in live}
        self._by_run = jobs_by_run(live)

    def jobs_for(self, summary: RunSummary) -> list[QueuedJob]:
        """Return all jobs in the queue that cnnjob submitted for a run, oldest first."""
        jobs = {job.job_id: job for job in self.for_folder(summary.run.path.resolve())}
        # the recorded id is looked up too, since some sites rewrite or drop comments
        recorded = self._by_id.get(str(summary.submission.get("job_id")))
        if recorded and not summary.other_cluster and _is_of(summary.submission, recorded):
            jobs[recorded.job_id] = recorded
        return sorted(jobs.values(), key=lambda job: number_of(job.job_id))

    def ended_job_for(self, summary: RunSummary) -> QueuedJob | None:
        """Return a run's newest job if it ended recently; None if it did not, or if another job now has its id."""
        job = self._ended.get(str(summary.job_id))
        is_submitted = str(summary.submission.get("job_id")) == summary.job_id
        return job if job and (not is_submitted or _is_of(summary.submission, job)) else None

    def for_folder(self, path: Path) -> list[QueuedJob]:
        """Return the jobs in the queue whose comments identify the run in the given folder."""
        return self._by_run.get(path, [])

    def job_for(self, summary: RunSummary) -> QueuedJob | None:
        """Return the job that is running or queued for a run, or None.

        A running job takes precedence over a waiting one. A job that cnnjob submitted takes precedence over any other
        job in which the training process runs, such as an interactive job.
        """
        if summary.state in {"finished", "damaged"}:
            return None
        if own := self.jobs_for(summary):
            return min(own, key=lambda job: job.state in job_states.WAITING)
        if summary.state != "running" or summary.other_cluster:
            return None
        enclosing = self._by_id.get(str(summary.attempt.get("job_id")))
        return enclosing if enclosing and _may_contain(enclosing, summary.attempt) else None


def _is_of(submission: dict[str, Any], job: QueuedJob) -> bool:
    """Return whether a job in the queue is the submitted job, given that both have the same id.

    Another cluster may use the same ids, so the comments are compared, although a site may change or remove a comment.
    If the submitted job was seen in the queue, its comment was recorded, and ``job`` must have exactly the recorded
    comment. Otherwise, the comment of ``job`` must be empty or contain the comment that the submission requested.
    """
    shown, requested = submission.get("shown"), submission.get("comment")
    if shown is not None:
        return bool(job.comment == shown)
    return not job.comment or bool(requested and requested in job.comment)


def _may_contain(job: QueuedJob, attempt: dict[str, Any]) -> bool:
    """Return whether an attempt may have begun in a job, that is, whether the job did not start after the attempt.

    Clock differences of up to ``CLOCKS_SECONDS`` are tolerated.
    """
    attempt_start, job_start = parse_time(attempt["started"]), parse_time(job.start)
    if attempt_start is None or job_start is None:
        return True  # the start time of the attempt or the job is not known
    return job_start <= attempt_start + CLOCKS_SECONDS


def number_of(job_id: str) -> int:
    """Return the number in a job id (17 for ``17`` and ``17_3``); 0 if there is none."""
    match = re.match(r"\d+", job_id)
    return int(match[0]) if match else 0


def newest_job_ids(jobs: Iterable[QueuedJob]) -> dict[Path, str]:
    """Return the id of each run's last job, found by its comment: ``17``, or ``17_3`` for an array task."""
    return {path: own[-1].job_id for path, own in jobs_by_run(jobs).items()}


def jobs_by_run(jobs: Iterable[QueuedJob]) -> dict[Path, list[QueuedJob]]:
    """Return the jobs of each run, by the run's path; a job is matched to its run by the job's comment."""
    # all tasks of an array have the same comment, so its file is read once
    read = lru_cache(None)(job_array.JobArray.read)
    by_run: dict[Path, list[QueuedJob]] = {}
    for job in jobs:
        if match := job_array.COMMENT.fullmatch(job.comment):
            try:
                run = read(Path(match[1])).run_of(job.job_id.partition("_")[2])
            except DataError:
                continue  # its sweep folder was removed, so the job does not belong to any run here
            by_run.setdefault(run.path, []).append(job)
    return by_run
