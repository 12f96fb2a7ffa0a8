"""When SLURM ends this job, asked again before anybody acts on it: limits are changed, and a suspended job's end moves.

    python -P -m cnnjob.slurm.deadlines END

This command is a child of the training and ends it where it does not react any more, while the batch script can
still restart it.
"""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from math import inf

from cnnjob.errors import SchedulerError
from cnnjob.processes import job_id
from cnnjob.slurm import scheduler

LAST_SECONDS = 10.0
"""What the batch script needs to restart a job before its end."""
ANSWER_SECONDS = 10.0
"""How long a training waits for an answer before it stops at the end that it knows."""
LOOK_SECONDS = 60.0
"""Between two looks at a clock that may be set."""
ASK_SECONDS = 2.0
"""Between two questions to a scheduler that does not answer."""


def first_end() -> float:
    """Return when this job will end, in ``time.time()``'s seconds; infinity where that is not known."""
    known = os.environ.get("SLURM_JOB_END_TIME", "")
    if known.isdecimal():
        return float(known)
    end = end_now(scheduler.ANSWER_SECONDS)
    return inf if end is None else end


def end_now(seconds: float = ANSWER_SECONDS) -> float | None:
    """Ask SLURM when this job will end, as :func:`first_end`; None where it does not answer in so many seconds."""
    own = job_id()
    try:
        answer = scheduler.job(own, seconds).get("EndTime") if own else None
    except SchedulerError:
        return None
    try:
        return None if answer is None else datetime.fromisoformat(answer).timestamp()
    except (ValueError, OverflowError):
        return inf  # Unknown: it has no limit


@contextmanager
def ended_in_time(end: float) -> Iterator[None]:
    """Have this process ended by SIGALRM shortly before its job's end, should it not have left the block by then."""
    guard = None if end == inf else _guard(end)
    try:
        yield
    finally:
        if guard:
            guard.kill()
            guard.communicate()


def _guard(end: float) -> "subprocess.Popen[bytes] | None":
    """Start :func:`main` with all signals blocked: SLURM sends them to all processes of a job."""
    command = [sys.executable, "-P", "-m", "cnnjob.slurm.deadlines", str(end)]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - {signal.SIGCHLD})
    try:
        return subprocess.Popen(command, stdin=subprocess.PIPE)  # noqa: S603
    except OSError:
        return None  # as many processes as are allowed: SLURM then ends it, and its batch script with it
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def main(end: float) -> None:
    """End the parent shortly before its job's end, which SLURM must confirm; return when the parent has ended."""
    parent, pause = os.getppid(), 0.0
    while not select.select([sys.stdin], [], [], pause)[0]:  # the parent holds its other side
        if (left := end - LAST_SECONDS - time.time()) > 0:
            pause = min(left, LOOK_SECONDS)
        elif (now := end_now()) is None:
            pause = ASK_SECONDS
        elif now - LAST_SECONDS > time.time():
            end, pause = now, 0.0
        else:
            print("cnnjob: the training did not stop before its job's end, so it is ended", flush=True)  # noqa: T201
            os.kill(parent, signal.SIGALRM)
            return


if __name__ == "__main__":
    main(float(sys.argv[1]))
