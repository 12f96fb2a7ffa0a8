"""When SLURM ends this job, asked again before anybody acts on it: limits are changed, and a suspended job's end moves.

    python -P -m cnnjob.slurm.node.deadlines END

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
from cnnjob.runs.process import job_id
from cnnjob.slurm.scheduler import client
from cnnjob.training.stopping import Deadline

LAST_SECONDS = 10.0
"""What the batch script needs to restart a job before its end."""
ANSWER_SECONDS = 10.0
"""How long a training waits for an answer before it stops at the end that it knows."""
LOOK_SECONDS = 60.0
"""Between two looks at a clock that may be set."""
ASK_SECONDS = 2.0
"""Between two questions to a scheduler that does not answer, when the end that is known is near."""
ASK_LATER_SECONDS = (60.0, 960.0)
"""The same, while no end is known: the first pause, which then doubles, and the longest."""


def first_end() -> float | None:
    """Return when this job will end, in ``time.time()``'s seconds.

    Returns:
        Infinity where there is no job or no limit, None where SLURM does not answer.
    """
    known = os.environ.get("SLURM_JOB_END_TIME", "")
    if known.isdecimal():
        return float(known)
    return end_now(client.ANSWER_SECONDS)


def deadline(end: float | None, margin_seconds: float) -> Deadline:
    """Return when a training saves and stops: a margin before its job's end, as far as SLURM tells it by then.

    Args:
        end: what :func:`first_end` said. Where it is not known SLURM is asked again, less and less often.
        margin_seconds: how long before the end.
    """
    pause, longest = ASK_LATER_SECONDS

    def time_now() -> float | None:
        nonlocal end, pause
        now = end_now()
        if now is not None:
            end = now
            return now - margin_seconds
        if end is not None:
            return None
        pause = min(2 * pause, longest)
        return time.time() + pause

    return Deadline(time.time() + pause if end is None else end - margin_seconds, time_now)


def end_now(seconds: float = ANSWER_SECONDS) -> float | None:
    """Ask SLURM when this job will end, as :func:`first_end`; None where it does not answer in so many seconds."""
    own = job_id()
    if own is None:
        return inf
    try:
        answer = client.job_facts(own, seconds).get("EndTime")
    except SchedulerError:
        return None
    try:
        return None if answer is None else datetime.fromisoformat(answer).timestamp()
    except (ValueError, OverflowError):
        return inf  # Unknown: it has no limit


@contextmanager
def ended_in_time(end: float | None) -> Iterator[None]:
    """Have this process ended by SIGALRM shortly before its job's end, should it not have left the block by then."""
    guard = None if end == inf else _guard(end)
    try:
        yield
    finally:
        if guard:
            guard.kill()
            guard.communicate()


def _guard(end: float | None) -> "subprocess.Popen[bytes] | None":
    """Start :func:`main` with all signals blocked: SLURM sends them to all processes of a job."""
    command = [sys.executable, "-P", "-m", "cnnjob.slurm.node.deadlines", str(end or 0)]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - {signal.SIGCHLD})
    try:
        return subprocess.Popen(command, stdin=subprocess.PIPE)  # noqa: S603
    except OSError:
        return None  # as many processes as are allowed: SLURM then ends it, and its batch script with it
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def main(end: float) -> None:
    """End the parent shortly before its job's end, which SLURM must confirm; return when the parent has ended.

    Args:
        end: when the job ends; 0 where that is not known yet.
    """
    parent, pause, later = os.getppid(), 0.0, ASK_LATER_SECONDS[0]
    while not select.select([sys.stdin], [], [], pause)[0]:  # the parent holds its other side
        if (left := end - LAST_SECONDS - time.time()) > 0:
            pause = min(left, LOOK_SECONDS)
        elif (now := end_now()) is None:
            pause, later = (ASK_SECONDS, later) if end else (later, min(2 * later, ASK_LATER_SECONDS[1]))
        elif now - LAST_SECONDS > time.time():
            end, pause = now, 0.0
        else:
            print("cnnjob: the training did not stop before its job's end, so it is ended", flush=True)  # noqa: T201
            os.kill(parent, signal.SIGALRM)
            return


if __name__ == "__main__":
    main(float(sys.argv[1]))
