"""``sbatch``, with patience for a slow scheduler, and never twice for one job.

A scheduler that did not answer may have taken the job all the same. So before a second try, and after
it, the queue is searched for the comment, which names run and attempt.
"""

import os
import re
import time

from cnnjob.errors import SchedulerError
from cnnjob.slurm.scheduler import queue
from cnnjob.slurm.scheduler.client import ask, is_silent

TRIES = 2
MOST_LETTERS = 200
"""Of an answer in a message."""
SETTLE_SECONDS = 5.0
"""What was on its way to the scheduler is in its queue by then."""
_SUBMITTED = re.compile(r"^[ \t]*Submitted batch job ([0-9]{1,18})(?: on cluster \S+)?[ \t\r]*$", re.MULTILINE)


def submit(comment: str, script: str, tries: int = TRIES) -> str:
    """Submit a script with sbatch and return the job's id.

    Raises:
        SchedulerError: SLURM refused, or did not answer and has no such job.
    """
    try:
        answer = ask(["sbatch", script])
    except SchedulerError as error:
        said = str(error).replace(f" {script}", "")
        if not is_silent(error):
            raise SchedulerError(said) from error
        time.sleep(SETTLE_SECONDS)
        if known := _known(comment, said):
            return known
        if tries == 1:
            raise SchedulerError(said) from error
        return submit(comment, script, tries - 1)
    strange = f"sbatch: gave no job's id, {answer.strip()[:MOST_LETTERS]!r}"
    if job_id := id_in(answer) or _known(comment, strange):
        return job_id
    raise SchedulerError(f"{strange}, and no such job is in the queue; submit again")


def id_in(answer: str) -> str:
    """Return the job's id that sbatch printed, or "" where its answer names none or several.

    Only sbatch's own line counts: a site's wrapper may print other numbers around it.
    """
    ids = set(_SUBMITTED.findall(answer))
    return ids.pop() if len(ids) == 1 else ""


def _known(comment: str, said: str) -> str:
    """Return the id of the newest job in the queue with this comment; empty where there is none.

    Raises:
        SchedulerError: the queue is not to be seen.
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
