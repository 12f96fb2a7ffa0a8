"""Outcomes of SLURM jobs from ``sacct``, if the site uses SLURM accounting; one call covers many jobs."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from cnnjob.slurm.scheduler import job_states
from cnnjob.slurm.scheduler.client import ask
from cnnjob.slurm.scheduler.queue import parse_all_ids

FIELDS = ("JobID", "State", "ExitCode", "NodeList", "End")
MOST_JOBS = 5000
"""Maximum number of ids that fit in one command argument."""


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """The state of a SLURM job, usually its final one, and the command that reported it."""

    job_id: str
    state: str
    """The full name of the state, such as ``CANCELLED``."""
    printed: str
    """The state as the command printed it, such as ``CANCELLED by 1000``."""
    source: str
    """The command: ``sacct`` or ``squeue``."""
    exit_code: str = ""
    node: str = ""
    end: str = ""

    @property
    def cancelled_by(self) -> str | None:
        """Id of the user who cancelled the job; None if :attr:`source` printed no such id."""
        match = re.search(r"CANCELLED by (\d+)", self.printed)
        return match[1] if match else None


def query_outcomes(job_ids: Iterable[str], seconds: float | None = None) -> dict[str, JobOutcome]:
    """Return how SLURM jobs ended.

    If a job step ran out of memory, the outcome of its job is ``OUT_OF_MEMORY``, although SLURM reports the job as
    ``FAILED`` if ``srun`` started the step.

    Args:
        job_ids: ids such as ``17``, or ``17_3`` for an array task.
        seconds: how long to wait for the answer.

    Returns:
        The outcome of each job that sacct lists, by id.

    Raises:
        SchedulerError: sacct is missing, the site does not use SLURM accounting, or SLURM did not answer.
    """
    wanted = ",".join(list(job_ids)[-MOST_JOBS:])
    answer = ask(["sacct", "--noheader", "--parsable2", f"--jobs={wanted}", f"--format={','.join(FIELDS)}"], seconds)
    outcomes: dict[str, JobOutcome] = {}
    out_of_memory: set[str] = set()
    # a site may print extra lines around the answer: only lines with all columns and a known state are rows
    table = [[cell.strip() for cell in line.split("|")] for line in answer.splitlines()]
    rows = [row for row in table if len(row) >= len(FIELDS) and job_states.parse_state(row[1]) in job_states.STATES]
    for row, ids in zip(rows, parse_all_ids(row[0].partition(".")[0] for row in rows), strict=True):
        state = job_states.parse_state(row[1])
        if "." not in row[0]:  # the id of a job step is 17.batch or 17.0
            outcomes |= {job_id: JobOutcome(job_id, state, row[1], "sacct", *row[2 : len(FIELDS)]) for job_id in ids}
        elif state == "OUT_OF_MEMORY":
            out_of_memory.update(ids)
    for job_id in out_of_memory & outcomes.keys():
        outcome = outcomes[job_id]
        outcomes[job_id] = replace(outcome, state="OUT_OF_MEMORY", printed=f"{outcome.printed}, a step OUT_OF_MEMORY")
    return outcomes
