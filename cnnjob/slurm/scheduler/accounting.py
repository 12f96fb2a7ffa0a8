"""Outcomes of jobs from ``sacct``, where the site keeps accounting: one call for any number of jobs."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from cnnjob.slurm.scheduler import job_states
from cnnjob.slurm.scheduler.client import ask
from cnnjob.slurm.scheduler.queue import ids_of_all

FIELDS = ("JobID", "State", "ExitCode", "NodeList", "End")
MOST_JOBS = 5000
"""Number of ids that fit into one argument of a command."""


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """The state of a job, usually its last one, and the command that reported it."""

    job_id: str
    state: str
    """SLURM's full name of the state."""
    said: str
    """The state as the command printed it: ``CANCELLED by 1000``."""
    said_by: str
    """The command: ``sacct`` or ``squeue``."""
    exit_code: str = ""
    node: str = ""
    end: str = ""

    @property
    def cancelled_by(self) -> str | None:
        """User id of whoever cancelled the job, if the command printed it."""
        found = re.search(r"CANCELLED by (\d+)", self.said)
        return found[1] if found else None


def job_outcomes(job_ids: Iterable[str], seconds: float | None = None) -> dict[str, JobOutcome]:
    """Return how jobs ended.

    A step that ran out of memory counts for its job: if ``srun`` started the step, the job itself is only ``FAILED``.

    Args:
        job_ids: ``17``, or ``17_3`` for an array task.
        seconds: how long to wait for the answer.

    Returns:
        The outcome of each job that sacct knows, by id.

    Raises:
        SchedulerError: there is no sacct, no accounting, or no answer.
    """
    wanted = ",".join(list(job_ids)[-MOST_JOBS:])
    answer = ask(["sacct", "--noheader", "--parsable2", f"--jobs={wanted}", f"--format={','.join(FIELDS)}"], seconds)
    found: dict[str, JobOutcome] = {}
    steps: set[str] = set()
    # a site may print lines of its own around the answer: only those with all columns and a known state are rows
    table = [[cell.strip() for cell in line.split("|")] for line in answer.splitlines()]
    rows = [row for row in table if len(row) >= len(FIELDS) and job_states.state_of(row[1]) in job_states.STATES]
    for row, ids in zip(rows, ids_of_all(row[0].partition(".")[0] for row in rows), strict=True):
        _take(row, ids, found, steps)
    return {
        job: replace(fate, state="OUT_OF_MEMORY", said=f"{fate.said}, a step OUT_OF_MEMORY") if job in steps else fate
        for job, fate in found.items()
    }


def _take(row: list[str], ids: list[str], found: dict[str, JobOutcome], out_of_memory: set[str]) -> None:
    """Add a row to ``found`` or ``out_of_memory``: a job, several tasks of an array, or a step."""
    state = job_states.state_of(row[1])
    for job_id in ids:
        if "." not in row[0]:  # a step's id is 17.batch or 17.0
            found[job_id] = JobOutcome(job_id, state, row[1], "sacct", *row[2 : len(FIELDS)])
        elif state == "OUT_OF_MEMORY":
            out_of_memory.add(job_id)
