"""How jobs ended, of ``sacct``, where the site keeps accounts: one call, whatever their number."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from cnnjob.slurm.scheduler import job_states
from cnnjob.slurm.scheduler.client import ask
from cnnjob.slurm.scheduler.queue import ids_of_all

FIELDS = ("JobID", "State", "ExitCode", "NodeList", "End")
MOST_JOBS = 5000
"""So many ids fit into one argument of a command."""


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """How a job stands or ended, and which command said so."""

    job_id: str
    state: str
    """SLURM's, in full."""
    said: str
    """The same as it was said, ``CANCELLED by 1000``."""
    said_by: str
    """``sacct`` or ``squeue``."""
    exit_code: str = ""
    node: str = ""
    end: str = ""

    @property
    def cancelled_by(self) -> str | None:
        """The number of the user who cancelled it, where that was said."""
        found = re.search(r"CANCELLED by (\d+)", self.said)
        return found[1] if found else None


def job_outcomes(job_ids: Iterable[str], seconds: float | None = None) -> dict[str, JobOutcome]:
    """How jobs ended.

    A step that was out of memory counts for its job: where it is started by ``srun``, the job itself
    only ``FAILED``.

    Args:
        job_ids: ``17``, or ``17_3`` of an array.
        seconds: how long to wait for the answer.

    Returns:
        Of those that sacct knows, by id.

    Raises:
        SchedulerError: there is no sacct, no accounting, or no answer.
    """
    wanted = ",".join(list(job_ids)[-MOST_JOBS:])
    answer = ask(["sacct", "--noheader", "--parsable2", f"--jobs={wanted}", f"--format={','.join(FIELDS)}"], seconds)
    found: dict[str, JobOutcome] = {}
    steps: set[str] = set()
    table = [[cell.strip() for cell in line.split("|")] for line in answer.splitlines()]
    rows = [row for row in table if len(row) >= len(FIELDS) and job_states.state_of(row[1]) in job_states.STATES]
    for row, ids in zip(rows, ids_of_all(row[0].partition(".")[0] for row in rows), strict=True):
        _take(row, ids, found, steps)
    return {
        job: replace(fate, state="OUT_OF_MEMORY", said=f"{fate.said}, a step OUT_OF_MEMORY") if job in steps else fate
        for job, fate in found.items()
    }


def _take(row: list[str], ids: list[str], found: dict[str, JobOutcome], out_of_memory: set[str]) -> None:
    """Take up a row: a job, several elements of an array, or a step."""
    state = job_states.state_of(row[1])
    for job_id in ids:
        if "." not in row[0]:
            found[job_id] = JobOutcome(job_id, state, row[1], "sacct", *row[2 : len(FIELDS)])
        elif state == "OUT_OF_MEMORY":
            out_of_memory.add(job_id)
