"""Calls of ``sbatch`` that tolerate a slow scheduler without submitting a job twice.

A scheduler that did not answer may have accepted the job all the same. So before and after a second try the queue is
searched for the job's comment, which names the run and the attempt.
"""

import os
import re
import time

from cnnjob.errors import SchedulerError
from cnnjob.slurm.scheduler import queue
from cnnjob.slurm.scheduler.client import ask, is_silent

TRIES = 2
"""Number of calls of sbatch."""
MOST_LETTERS = 200
"""Number of characters of an answer that a message quotes."""
SETTLE_SECONDS = 5.0
"""Time after which a job that was on its way to the scheduler is in the queue."""
_SUBMITTED = re.compile(r"^[ \t]*Submitted batch job ([0-9]{1,18})(?: on cluster \S+)?[ \t\r]*$", re.MULTILINE)


def submit(comment: str, script: str, tries: int = TRIES) -> str:
    """Submit a script with sbatch and return the job's id.

    Args:
        comment: the comment in the script, which no other job in the queue has.
        script: path of the script.
        tries: number of calls of sbatch, for a scheduler that does not answer.

    Returns:
        The id, also of a job that SLURM accepted without answering.

    Raises:
        SchedulerError: SLURM refused, or did not answer and has no such job.
    """
    try:
        answer = ask(["sbatch", script])
    except SchedulerError as error:
        said = str(error).replace(f" {script}", "")  # a temporary file, gone by the time that a user reads of it
        if not is_silent(error):
            raise SchedulerError(said) from error
        time.sleep(SETTLE_SECONDS)
        if known := _known(comment, said):
            return known
        if tries == 1:
            raise SchedulerError(said) from error
        return submit(comment, script, tries - 1)
    # A site's wrapper may have swallowed the line with the id; the job may be in the queue all the same.
    strange = f"sbatch: gave no job's id, {answer.strip()[:MOST_LETTERS]!r}"
    if job_id := id_in(answer) or _known(comment, strange):
        return job_id
    raise SchedulerError(f"{strange}, and no such job is in the queue; submit again")


def id_in(answer: str) -> str:
    """Return the job's id in sbatch's answer, or ``""`` if it names none or several.

    Only sbatch's own line counts, as a site's wrapper may print other numbers around it.
    """
    ids = set(_SUBMITTED.findall(answer))
    return ids.pop() if len(ids) == 1 else ""


def _known(comment: str, said: str) -> str:
    """Return the id of the newest job in the queue with this comment; empty if there is none.

    Raises:
        SchedulerError: the queue could not be read, or not all of it.
    """
    try:
        listing = queue.listing([os.getuid()])
        ids = [int(job.job_id.partition("_")[0]) for job in listing.jobs if job.comment == comment]
        if not ids:
            listing.require_whole()
    except SchedulerError as error:
        text = f"{said}; whether it has the job is not known, submitting again looks first"
        raise SchedulerError(text, silent=True) from error
    return str(max(ids, default=""))
