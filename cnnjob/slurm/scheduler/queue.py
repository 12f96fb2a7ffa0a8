"""Jobs that wait or run, from ``squeue``: one call for any number of jobs."""

import os
import re
import secrets
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from cnnjob.errors import SchedulerError
from cnnjob.slurm.scheduler.client import ask
from cnnjob.slurm.scheduler.job_states import state_of

FIELDS = ("job_id", "state", "reason", "node", "start", "end", "comment")
FORMAT = "%i|%T|%r|%N|%S|%e|%k"
"""The columns of ``FIELDS``; the comment comes last, as it may contain the separator."""
NO_COMMENT = {"(null)", "N/A"}
"""Comments that squeue prints for a job without one."""
_ID = re.compile(r"([0-9]{1,18})(?:\+[0-9]+)?(?:_(?:([0-9]{1,18})|\[([0-9,:-]+)(?:%[0-9]+)?\]))?")
"""Forms of an id: ``17``, ``17_3``, ``17+0`` (heterogeneous job), ``17_[3-5,9%2]`` (pending array tasks)."""
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9})(?::([0-9]{1,9}))?)?")
_MOST_ELEMENTS = 200_000
"""Limit on the ids that ranges of one answer stand for: with ``--array`` squeue lists array tasks one by one."""


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
    """Time of the start, past or expected; ``N/A`` if not known."""
    end: str
    comment: str


@dataclass(frozen=True)
class QueueListing:
    """The answer of squeue."""

    jobs: list[QueuedJob]
    whole: bool
    """True if every line was understood: only then does a job that is not listed count as gone."""

    def require_whole(self) -> None:
        """Require that every line was understood, so that a job that is not listed is gone.

        Raises:
            SchedulerError: some of the answer was not understood.
        """
        if not self.whole:
            raise SchedulerError(
                "squeue: its answer was not understood, or not all, so whether a job is in the queue is not known. "
                "Look at what squeue prints, and run the same command again",
                silent=True,
            )


def mine() -> list[QueuedJob]:
    """Return all jobs that squeue shows of this user.

    Raises:
        SchedulerError: SLURM is not there, refused, or did not answer.
    """
    return listing([os.getuid()]).jobs


def listing(
    users: Iterable[int], ids: Collection[str] = (), *, ended: bool = False, seconds: float | None = None
) -> QueueListing:
    """Return the jobs that squeue shows of some users.

    Args:
        users: user ids.
        ids: jobs that are looked for besides those of cnnjob. The answer counts as whole even if lines of any other
            jobs were not understood.
        ended: also show jobs that ended in the last minutes, until SLURM forgets them (``MinJobAge``).
        seconds: how long to wait for the answer.

    Returns:
        The jobs, without lines that the site prints around them.

    Raises:
        SchedulerError: SLURM is not there, refused, or did not answer.
    """
    # A comment may contain line ends, and text that looks like another job's line. It cannot contain a random mark.
    mark = secrets.token_hex(4)
    command = ["squeue", "--noheader", "--array", f"--user={','.join(map(str, sorted(users)))}"]
    answer = ask([*command, *["--states=all"] * ended, "--format", f"{mark}|{FORMAT}"], seconds)
    rows = _rows(answer, mark)
    jobs = [list(_jobs(row, row_ids)) for row, row_ids in zip(rows, ids_of_all(row[0] for row in rows), strict=True)]
    numbers = {job_id.partition("_")[0] for job_id in ids}
    strange = [row for row, found in zip(rows, jobs, strict=True) if not found and _may_be_sought(row, numbers)]
    said_nothing = bool(answer.strip()) and not rows
    return QueueListing([job for found in jobs for job in found], not strange and not said_nothing)


def _rows(answer: str, mark: str) -> list[list[str]]:
    """Return the cells of each line that belongs to a job, not to a site's wrapper or the middle of a comment."""
    lines = answer.split("\n")  # splitlines would also split a comment at other characters
    marked = [line.removeprefix(f"{mark}|") for line in lines if line.startswith(f"{mark}|")]
    rows = [[cell.strip() for cell in line.split("|", len(FIELDS) - 1)] for line in marked or lines]
    return [row for row in rows if len(row) > 1 and row[0] != "JOBID"]


def _may_be_sought(row: list[str], numbers: Collection[str]) -> bool:
    """Return whether a line that was not understood may belong to a job of cnnjob or to one of some numbers."""
    number = re.match(r"[0-9]+(?![0-9])", row[0])
    if not number or len(row) != len(FIELDS):  # nothing in it can be relied on
        return True
    return number[0] in numbers or "cnnjob" in row[-1]


def _jobs(row: list[str], ids: Iterable[str]) -> Iterator[QueuedJob]:
    """Yield the job of a row, or the pending tasks of an array that share a row; nothing if it is not a job."""
    if len(row) != len(FIELDS) or not re.fullmatch(r"[A-Z_]+\+?", row[1]):
        return
    comment = "" if row[-1] in NO_COMMENT else row[-1]
    job = replace(QueuedJob(*row), state=state_of(row[1]), comment=comment)
    yield from (replace(job, job_id=job_id) for job_id in ids)


def ids_of_all(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield the ids that each text stands for, as :func:`ids_in`; ranges give at most ``_MOST_ELEMENTS`` in all."""
    left = _MOST_ELEMENTS
    for text in texts:
        ids = ids_in(text, left)
        left -= len(ids) if len(ids) > 1 else 0
        yield ids


def ids_in(text: str, most: int = _MOST_ELEMENTS) -> list[str]:
    """Return the ids that ``17``, ``17_3``, ``17+0`` or ``17_[3-5,9%2]`` stand for; none if the text was cut short.

    Args:
        text: squeue's or sacct's id of a job, an array task, a component of a heterogeneous job, or several tasks.
        most: the largest number of array tasks; none are returned if there are more.
    """
    found = _ID.fullmatch(text)
    if not found:
        return []
    job, element, elements = found.groups()
    if elements is None:
        return [job if element is None else f"{job}_{element}"]
    ranges = [_RANGE.fullmatch(part) for part in elements.split(",")]
    if not all(ranges):
        return []
    numbers = [range(int(r[1]), int(r[2] or r[1]) + 1, int(r[3] or 1) or 1) for r in ranges if r]
    if sum(map(len, numbers)) > most:  # counted before any list is built: a line may say 0-999999999
        return []
    return [f"{job}_{number}" for some in numbers for number in some]
