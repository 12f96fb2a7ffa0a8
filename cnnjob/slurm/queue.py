"""This user's jobs that wait or run: one call, whatever their number."""

import os
from dataclasses import dataclass

from cnnjob.slurm.scheduler import ask

FIELDS = ("job_id", "state", "reason", "node", "start", "end", "comment")
FORMAT = "%i|%T|%r|%N|%S|%e|%k"
"""The comment is last: it may hold the separator."""


@dataclass(frozen=True)
class QueuedJob:
    """A line of ``squeue``; each element of a job array is one."""

    job_id: str
    """``17``, or ``17_3`` of an array."""
    state: str
    """``PENDING``, ``RUNNING``, ``COMPLETING``, …"""
    reason: str
    node: str
    start: str
    """When it started, or is expected to; ``N/A`` where nobody knows."""
    end: str
    comment: str


def mine() -> list[QueuedJob]:
    """All that squeue shows of this user.

    Raises:
        SchedulerError: SLURM is not there, refused, or did not answer.
    """
    command = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format", FORMAT]
    rows = (line.strip().split("|", len(FIELDS) - 1) for line in ask(command).splitlines())
    return [QueuedJob(*map(str.strip, row)) for row in rows if len(row) == len(FIELDS)]
