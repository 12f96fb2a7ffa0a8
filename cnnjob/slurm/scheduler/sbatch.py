"""Calls to ``sbatch`` that tolerate a slow scheduler without submitting a job twice.

A scheduler that did not answer may still have accepted the job. Therefore, the queue is searched for the job's comment,
which identifies the run and the attempt, before and after a second call.
"""

import os
import re
import time

from cnnjob.errors import SchedulerError
from cnnjob.slurm.scheduler import queue
from cnnjob.slurm.scheduler.client import ask, is_silent

TRIES = 2
"""Maximum number of calls to sbatch."""
MOST_LETTERS = 200
"""Maximum number of characters of sbatch's output that a message quotes."""
SETTLE_SECONDS = 5.0
"""Time to wait for a job to appear in the queue after a call to sbatch that received no answer."""
_SUBMITTED = re.compile(r"^[ \t]*Submitted batch job ([0-9]{1,18})(?: on cluster \S+)?[ \t\r]*$", re.MULTILINE)


def submit_script(comment: str, script: str, tries: int = TRIES) -> str:
    """Submit a script with sbatch and return the job's id.

    Args:
        comment: the comment in the script; no other job in the queue has the same comment.
        script: path of the script.
        tries: maximum number of calls to sbatch if the scheduler does not answer.

    Returns:
        The id, even if SLURM accepted the job without answering.

    Raises:
        SchedulerError: SLURM refused the job, or it did not answer and the job is not in the queue.
    """
    try:
        answer = ask(["sbatch", script])
    except SchedulerError as error:
        message = str(error).replace(f" {script}", "")  # a temporary file, removed before the user reads the message
        if not is_silent(error):
            raise SchedulerError(message) from error
        # sbatch's message may still be on its way to slurmctld
        time.sleep(SETTLE_SECONDS)
        if job_id := _find_in_queue(comment, message):
            return job_id
        if tries == 1:
            raise SchedulerError(message) from error
        return submit_script(comment, script, tries - 1)
    # Only sbatch's own line is parsed, since a site's wrapper script may print other numbers around it. If the wrapper
    # omits the line, the job may still be in the queue.
    ids = set(_SUBMITTED.findall(answer))
    if len(ids) == 1:
        return str(ids.pop())
    no_id = f"sbatch: its output contains no job id (found {answer.strip()[:MOST_LETTERS]!r})"
    if job_id := _find_in_queue(comment, no_id):
        return job_id
    raise SchedulerError(f"{no_id}, and no such job is in the queue. Submit again")


def _find_in_queue(comment: str, message: str) -> str:
    """Return the id of the newest job in the queue with this comment; empty if there is none.

    Raises:
        SchedulerError: the queue could not be read completely.
    """
    try:
        listing = queue.list_queue([os.getuid()])
        ids = [int(job.job_id.partition("_")[0]) for job in listing.jobs if job.comment == comment]
        if not ids:
            listing.require_complete()
    except SchedulerError as error:
        text = f"{message}. SLURM may have accepted the job. Run the same command again; it looks for that job first"
        raise SchedulerError(text, silent=True) from error
    return str(max(ids, default=""))
