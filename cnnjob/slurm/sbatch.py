"""``sbatch`` for submitit, with patience for a slow scheduler, and never twice for one job.

    python -m cnnjob.slurm.sbatch COMMENT SCRIPT

A scheduler that did not answer may have taken the job all the same. So before a second try, and after
it, the queue is searched for the comment, which names run and attempt.
"""

import re
import sys
import time

from cnnjob.errors import SchedulerError
from cnnjob.slurm import queue
from cnnjob.slurm.scheduler import ask, is_silent

TRIES = 2
SETTLE_SECONDS = 5.0
"""What was on its way to the scheduler is in its queue by then."""


def submit(comment: str, script: str, tries: int = TRIES) -> str:
    """Give a script to sbatch; the job's id.

    Raises:
        SchedulerError: SLURM refused, or did not answer and has no such job.
    """
    try:
        answer = ask(["sbatch", script])
    except SchedulerError as error:
        if not is_silent(error):
            raise
        time.sleep(SETTLE_SECONDS)
        if known := _known(comment, str(error)):
            return known
        if tries == 1:
            raise
        return submit(comment, script, tries - 1)
    strange = f"sbatch: gave no job's id, {answer.strip()!r}"
    found = re.search(r"\bjob (\d+)", answer)
    if job_id := found[1] if found else _known(comment, strange):
        return job_id
    raise SchedulerError(f"{strange}, and no such job is in the queue; submit again")


def _known(comment: str, said: str) -> str:
    """The id of the job with this comment, if it is in the queue.

    Raises:
        SchedulerError: the queue is not to be seen.
    """
    try:
        jobs = queue.mine()
    except SchedulerError as error:
        raise SchedulerError(f"{said}; whether it has the job is not known, submitting again looks first") from error
    return next((job.job_id.partition("_")[0] for job in jobs if job.comment == comment), "")


def main(comment: str, script: str) -> None:
    """Print the job's id as sbatch does, or what it said."""
    try:
        print(f"Submitted batch job {submit(comment, script)}")  # noqa: T201 - submitit reads it
    except SchedulerError as error:
        sys.exit(str(error).replace(f" {script}", ""))


if __name__ == "__main__":
    main(*sys.argv[1:3])
