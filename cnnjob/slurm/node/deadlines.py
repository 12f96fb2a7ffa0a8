"""The time at which SLURM will end this job, and a guard in case training does not stop by then.

    python -P -m cnnjob.slurm.node.deadlines END

The end time changes if the time limit is changed or the job is suspended, so SLURM is always queried again before the
job is stopped.

The command above is the guard. It runs in a child process. If the training process no longer responds, the guard kills
it early enough for the batch script to restart the run.
"""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

from cnnjob.errors import SchedulerError
from cnnjob.runs.process import job_id
from cnnjob.slurm.scheduler import client
from cnnjob.slurm.scheduler.times import parse_time
from cnnjob.training.stopping import Deadline

LAST_SECONDS = 10.0
"""Time before the end of the job that is reserved for the batch script to restart the run."""
ANSWER_SECONDS = 10.0
"""Maximum time that training waits for an answer from SLURM; after that, it uses the end time that it already has."""
CHECK_SECONDS = 60.0
"""Maximum pause between two readings of the wall clock, which may be adjusted in the meantime."""
ASK_SECONDS = 2.0
"""Pause between two queries if the scheduler does not answer shortly before the last known end time."""
ASK_LATER_SECONDS = (60.0, 960.0)
"""First and maximum pause between queries while no end time is known; the pause doubles each time."""


def read_first_end() -> float | None:
    """Return the time at which this SLURM job will end.

    Returns:
        Seconds since the epoch, as in ``time.time()``; infinity without a SLURM job or a time limit; None if SLURM does
        not answer.
    """
    known = os.environ.get("SLURM_JOB_END_TIME", "")
    if known.isdecimal():
        return float(known)
    return query_end(client.ANSWER_SECONDS)


def make_deadline(end: float | None, margin_seconds: float) -> Deadline:
    """Return the deadline at which training saves and stops, some time before the end of the SLURM job.

    Args:
        end: the return value of :func:`read_first_end`. If None, SLURM is queried again at increasing intervals.
        margin_seconds: time between the deadline and the end of the job.
    """
    pause, longest = ASK_LATER_SECONDS

    def time_now() -> float | None:
        nonlocal end, pause
        now = query_end()
        if now is not None:
            end = now
            return now - margin_seconds
        if end is not None:
            return None  # no answer: the last known end time still applies
        pause = min(2 * pause, longest)
        return time.time() + pause

    return Deadline(time.time() + pause if end is None else end - margin_seconds, time_now)


def query_end(seconds: float = ANSWER_SECONDS) -> float | None:
    """Query SLURM for the end of this job; the return value is as in :func:`read_first_end`."""
    this_job = job_id()
    if this_job is None:
        return inf
    try:
        text = client.query_job(this_job, seconds).get("EndTime")
    except SchedulerError:
        return None
    if text is None:
        return None
    end = parse_time(text)
    return inf if end is None else end  # SLURM prints "Unknown" for a job without a limit


@contextmanager
def ended_in_time(end: float | None) -> Iterator[None]:
    """Kill this process with SIGALRM if it is still in the ``with`` block shortly before the SLURM job ends."""
    guard = None if end == inf else _guard(end)
    try:
        yield
    finally:
        if guard:
            guard.kill()
            guard.communicate()


def _guard(end: float | None) -> "subprocess.Popen[bytes] | None":
    """Start :func:`main` in a child process with all signals blocked; return None if no process can be started."""
    command = [sys.executable, "-P", "-m", "cnnjob.slurm.node.deadlines", str(end or 0)]
    # SLURM signals every process of a job step: SIGTERM or SIGUSR2 would end the guard before the training
    # process. The child process inherits the mask, so the signals are blocked from its first instruction.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - {signal.SIGCHLD})
    try:
        return subprocess.Popen(command, stdin=subprocess.PIPE)  # noqa: S603
    except OSError:
        return None  # process limit reached; if training hangs, SLURM will kill it together with the batch script
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def main(end: float) -> None:
    """Kill the parent process shortly before the SLURM job ends, after SLURM has confirmed the end time.

    Return after sending the signal, or earlier if the parent process ends by itself.

    Args:
        end: time at which the SLURM job ends, in seconds since the epoch; 0 if not yet known.
    """
    parent, pause, later = os.getppid(), 0.0, ASK_LATER_SECONDS[0]
    while not select.select([sys.stdin], [], [], pause)[0]:  # readable at EOF, once the parent has closed the pipe
        if (remaining := end - LAST_SECONDS - time.time()) > 0:
            pause = min(remaining, CHECK_SECONDS)
        elif (now := query_end()) is None:
            pause, later = (ASK_SECONDS, later) if end else (later, min(2 * later, ASK_LATER_SECONDS[1]))
        elif now - LAST_SECONDS > time.time():
            end, pause = now, 0.0
        else:
            print("cnnjob: training did not stop before the end of the job, so it will be killed", flush=True)  # noqa: T201
            # Training keeps this signal's default action, which ends even a process that executes no Python code.
            # The diagnosis recognises the cause by the exit code 128 + SIGALRM.
            os.kill(parent, signal.SIGALRM)
            return


if __name__ == "__main__":
    main(float(sys.argv[1]))
