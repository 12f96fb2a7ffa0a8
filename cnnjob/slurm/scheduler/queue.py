"""Waiting and running SLURM jobs from ``squeue``; one call covers any number of jobs."""

import os
import re
import secrets
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from cnnjob.errors import SchedulerError
from cnnjob.slurm.scheduler.client import ask
from cnnjob.slurm.scheduler.job_states import parse_state

FIELDS = ("job_id", "state", "reason", "node", "start", "end", "comment")
FORMAT = "%i|%T|%r|%N|%S|%e|%k"
"""squeue's format for ``FIELDS``; the comment comes last, since it may contain the separator."""
NO_COMMENT = {"(null)", "N/A"}
"""Placeholders that squeue prints for a job without a comment."""
_ID = re.compile(r"([0-9]{1,18})(?:\+[0-9]+)?(?:_(?:([0-9]{1,18})|\[([0-9,:-]+)(?:%[0-9]+)?\]))?")
"""Forms of an id: ``17``, ``17_3``, ``17+0`` (heterogeneous job), ``17_[3-5,9%2]`` (pending array tasks)."""
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9})(?::([0-9]{1,9}))?)?")
_MOST_TASKS = 200_000
"""Maximum number of array tasks listed as ranges in one answer. With ``--array``, squeue normally prints no ranges."""


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """A line of ``squeue``: a job, or one task of a job array."""

    job_id: str
    """``17``, or ``17_3`` for an array task."""
    state: str
    """``PENDING``, ``RUNNING``, ``COMPLETING``, …"""
    reason: str
    node: str
    start: str
    """Actual or expected start time; ``N/A`` if unknown."""
    end: str
    comment: str


@dataclass(frozen=True)
class QueueListing:
    """The parsed output of ``squeue``."""

    jobs: list[QueuedJob]
    complete: bool
    """True if every line was parsed; only then does a job that is not listed count as ended."""

    def require_complete(self) -> None:
        """Check that every line was parsed; otherwise, a job that is not listed may still exist.

        Raises:
            SchedulerError: part of the answer could not be parsed.
        """
        if not self.complete:
            raise SchedulerError(
                "squeue: its output could not be parsed completely, so some jobs may have been missed. "
                "Check squeue's output, then run the same command again",
                silent=True,
            )


def list_own_jobs() -> list[QueuedJob]:
    """Return all of this user's jobs that squeue lists.

    Raises:
        SchedulerError: SLURM is not available, refused, or did not answer.
    """
    return list_queue([os.getuid()]).jobs


def list_queue(
    users: Iterable[int], ids: Collection[str] = (), *, ended: bool = False, seconds: float | None = None
) -> QueueListing:
    """Return the jobs that squeue lists for the given users.

    Args:
        users: user ids.
        ids: ids of jobs to look for in addition to the jobs that cnnjob submitted. The listing counts as complete even
            if lines about other jobs could not be parsed.
        ended: whether to include recently ended jobs, which SLURM lists for at least ``MinJobAge`` seconds.
        seconds: how long to wait for the answer.

    Returns:
        The jobs; lines that do not describe a job, such as a site's notices, are ignored.

    Raises:
        SchedulerError: SLURM is not available, refused, or did not answer.
    """
    # A comment may contain line breaks and text that looks like another job's line, so a random mark begins each line.
    mark = secrets.token_hex(4)
    command = ["squeue", "--noheader", "--array", f"--user={','.join(map(str, sorted(users)))}"]
    states = ["--states=all"] if ended else []
    answer = ask([*command, *states, "--format", f"{mark}|{FORMAT}"], seconds)
    rows = _parse_rows(answer, mark)
    jobs = [_jobs_in(row, row_ids) for row, row_ids in zip(rows, parse_all_ids(row[0] for row in rows), strict=True)]
    numbers = {job_id.partition("_")[0] for job_id in ids}
    missed = any(not row_jobs and _may_be_relevant(row, numbers) for row, row_jobs in zip(rows, jobs, strict=True))
    only_foreign_lines = bool(answer.strip()) and not rows
    return QueueListing([job for row_jobs in jobs for job in row_jobs], not missed and not only_foreign_lines)


def _parse_rows(answer: str, mark: str) -> list[list[str]]:
    """Return the cells of each line that begins a job's entry.

    Lines printed by a squeue wrapper and the continuation lines of comments with line breaks are skipped.
    """
    lines = answer.split("\n")  # splitlines would also split comments at other characters
    marked = [line.removeprefix(f"{mark}|") for line in lines if line.startswith(f"{mark}|")]
    rows = [[cell.strip() for cell in line.split("|", len(FIELDS) - 1)] for line in marked or lines]
    return [row for row in rows if len(row) > 1 and row[0] != "JOBID"]


def _may_be_relevant(row: list[str], numbers: Collection[str]) -> bool:
    """Return whether an unparsable line may be about a job that cnnjob submitted, or about one of the given jobs."""
    number = re.match(r"[0-9]+(?![0-9])", row[0])
    if not number or len(row) != len(FIELDS):  # no part of the line is reliable
        return True
    return number[0] in numbers or "cnnjob" in row[-1]


def _jobs_in(row: list[str], ids: Iterable[str]) -> list[QueuedJob]:
    """Return the jobs that one row of squeue's output describes; an empty list if the row is not about a job.

    A row describes a single job or several pending tasks of a job array.
    """
    if len(row) != len(FIELDS) or not re.fullmatch(r"[A-Z_]+\+?", row[1]):
        return []
    comment = "" if row[-1] in NO_COMMENT else row[-1]
    job = replace(QueuedJob(*row), state=parse_state(row[1]), comment=comment)
    return [replace(job, job_id=job_id) for job_id in ids]


def parse_all_ids(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield the ids in each string, as in :func:`parse_ids`; all ranges together yield at most ``_MOST_TASKS`` ids."""
    remaining = _MOST_TASKS
    for text in texts:
        ids = parse_ids(text, remaining)
        remaining -= len(ids) if len(ids) > 1 else 0
        yield ids


def parse_ids(text: str, most: int = _MOST_TASKS) -> list[str]:
    """Return the ids in a string such as ``17``, ``17_3``, ``17+0`` or ``17_[3-5,9%2]``; none if it is truncated.

    Args:
        text: output of squeue or sacct that identifies a job, one or more array tasks, or a component of a
            heterogeneous job.
        most: the maximum number of array tasks; if the string contains more, no ids are returned.
    """
    match = _ID.fullmatch(text)
    if not match:
        return []
    job_id, task, tasks = match.groups()
    if tasks is None:
        return [job_id if task is None else f"{job_id}_{task}"]
    matches = [_RANGE.fullmatch(part) for part in tasks.split(",")]
    if not all(matches):
        return []
    ranges = [range(int(m[1]), int(m[2] or m[1]) + 1, int(m[3] or 1) or 1) for m in matches if m]
    if sum(map(len, ranges)) > most:  # counted before any list is built: a line may contain 0-999999999
        return []
    return [f"{job_id}_{number}" for numbers in ranges for number in numbers]
