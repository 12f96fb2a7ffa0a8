"""Waiting until runs have ended, whatever jobs carry them."""

import time
from collections.abc import Iterator, Sequence

from cnnjob.runs import Run
from cnnjob.slurm import batches, queue

FIRST_SECONDS, LONGEST_SECONDS = 2.0, 60.0


def ended(runs: Sequence[Run]) -> Iterator[Run]:
    """Give each run as soon as no job waits or works for it; one call of SLURM's a look, fewer and fewer.

    Raises:
        SchedulerError: SLURM did not answer; the jobs go on without this.
    """
    left, pause = list(runs), FIRST_SECONDS
    while left:
        carried = batches.queued(queue.mine())  # first: a run that goes on has its next job before the last one is over
        over = [run for run in left if run.path.resolve() not in carried and run.state() != "running"]
        yield from over
        left = [run for run in left if run not in over]
        if left:
            time.sleep(pause)
        pause = FIRST_SECONDS if over else min(2 * pause, LONGEST_SECONDS)
