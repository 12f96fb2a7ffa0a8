"""Which jobs carry which runs, whoever submitted them: found by their comments, and by the ids in the runs' folders.

A job is cnnjob's own where its comment says so. A run may also be trained inside a job that somebody else made, as
``cnnjob train`` in an ``salloc`` is; that one is the user's, and is only looked at.

Nobody's jobs are listed but those of users who have to do with the runs. Each who submits into a folder of runs leaves
a file there beforehand, ``.submitter-UID``, by which others know whose jobs to ask for.
"""

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

from cnnjob import files
from cnnjob.runs.process import now
from cnnjob.runs.summary import RunSummary
from cnnjob.slurm import job_array
from cnnjob.slurm.scheduler import job_states
from cnnjob.slurm.scheduler.client import CLOCKS_SECONDS
from cnnjob.slurm.scheduler.queue import QueuedJob

_SUBMITTER = re.compile(r"\.submitter-([0-9]{1,10})", re.ASCII)


def users_of(looks: Sequence[RunSummary]) -> set[int]:
    """Return whose jobs may carry some runs, by number: who owns, submitted or trained one, or submitted next to it."""
    folders = {one.run.path.resolve().parent for one in looks}
    known = {user for one in looks for user in (one.owner, one.submitter, one.trainer)}
    return {os.getuid(), *(user for user in known if user is not None), *chain.from_iterable(map(_submitters, folders))}


def add_submitter(runs: Path) -> None:
    """Let others know that this user submits into a folder of runs, as far as it may be written to.

    The file is made anew each time: after a change of a folder also NFS reads all of it again.
    """
    with suppress(OSError):
        files.write_json(runs / f".submitter-{os.getuid()}", {"since": now()})


def _submitters(runs: Path) -> list[int]:
    try:
        names = [path.name for path in runs.iterdir()]
    except OSError:
        return []
    return [int(found[1]) for name in names if (found := _SUBMITTER.fullmatch(name))]


class JobIndex:
    """Finds the jobs that carry runs, among those that have not ended."""

    def __init__(self, jobs: Iterable[QueuedJob]) -> None:
        """Sort the jobs."""
        jobs = list(jobs)
        live = [job for job in jobs if job.state not in job_states.ENDED]
        self._ended = {job.job_id: job for job in jobs if job.state in job_states.ENDED}
        self._by_id = {job.job_id: job for job in live}
        self._by_run = job_array.carried(live)

    def own(self, seen: RunSummary) -> list[QueuedJob]:
        """Return every job that cnnjob submitted for a run, the oldest first."""
        found = {job.job_id: job for job in self.for_folder(seen.run.path.resolve())}
        recorded = self._by_id.get(str(seen.submission.get("job_id")))
        if recorded and not seen.elsewhere and _is_of(seen.submission, recorded):
            found[recorded.job_id] = recorded
        return sorted(found.values(), key=lambda job: number_of(job.job_id))

    def ended(self, seen: RunSummary) -> QueuedJob | None:
        """Return the newest job of a run where it ended a while ago, and is not another job with its number."""
        job = self._ended.get(str(seen.job_id))
        is_submitted = str(seen.submission.get("job_id")) == seen.job_id
        return job if job and (not is_submitted or _is_of(seen.submission, job)) else None

    def for_folder(self, path: Path) -> list[QueuedJob]:
        """Return the jobs that were submitted for the run in a folder, by their comments."""
        return self._by_run.get(path, [])

    def of(self, seen: RunSummary) -> QueuedJob | None:
        """Return the job that carries a run, the one that runs before one that waits, its own before an allocation."""
        if seen.state in {"finished", "damaged"}:
            return None
        if own := self.own(seen):
            return min(own, key=lambda job: job.state in job_states.WAITING)
        if seen.state != "running" or seen.elsewhere:
            return None
        inside = self._by_id.get(str(seen.attempt.get("job_id")))
        return inside if inside and _may_hold(inside, seen.attempt) else None


def _is_of(submission: dict[str, Any], job: QueuedJob) -> bool:
    """Return whether a job with the right id is the one that was submitted: on another cluster it may be another's.

    Where the job was seen in the queue after its submission, its comment is known, be it that the site took it away.
    """
    known, asked = submission.get("shown"), submission.get("comment")
    return job.comment == known or (known is None and (not job.comment or bool(asked and asked in job.comment)))


def _may_hold(job: QueuedJob, attempt: dict[str, Any]) -> bool:
    """Return whether an attempt may have begun in a job with its number, which did not start long after it."""
    with suppress(ValueError, OverflowError):
        started = datetime.fromisoformat(attempt["started"]).timestamp()
        return datetime.fromisoformat(job.start).timestamp() <= started + CLOCKS_SECONDS
    return True


def number_of(job_id: str) -> int:
    """Return the number of a job, of ``17`` or ``17_3``."""
    found = re.match(r"\d+", job_id)
    return int(found[0]) if found else 0
