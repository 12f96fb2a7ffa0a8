"""The same jobs on this machine, through submitit, without SLURM."""

import os
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import submitit

from cnnjob.runs import Run
from cnnjob.slurm import frozen
from cnnjob.slurm.life import Life

POLL_SECONDS = 0.1
YEAR_MINUTES = 366 * 24 * 60
"""submitit wants a time limit; the job has its own."""


def run_here(runs: Sequence[Run], parallel: int, cores: int, minutes: int | None = None) -> Iterator[Run]:
    """Train runs in processes of this machine.

    When this generator is closed, as Ctrl-C does, the trainings save and stop, and it waits for them.

    Args:
        runs: made by :func:`cnnjob.bindings.run_of`, not finished.
        parallel: so many at once.
        cores: of each.
        minutes: after so long each saves and stops; None is never.

    Yields:
        Each run when its process has ended, however it ended.
    """
    waiting, going = deque(runs), dict[Any, Run]()
    try:
        while waiting or going:
            while waiting and len(going) < parallel:
                run = waiting.popleft()
                going[_start(run, cores, minutes)] = run
            for job in [job for job in going if job.done()]:
                yield going.pop(job)
            time.sleep(POLL_SECONDS)
    finally:
        for job in going:
            job._process.terminate()  # noqa: SLF001 - submitit's cancel would be a Ctrl-C, which a second one kills
        for job in going:
            job._process.wait()  # noqa: SLF001


def _start(run: Run, cores: int, minutes: int | None) -> Any:
    executor = submitit.LocalExecutor(run.slurm_folder)
    executor.update_parameters(timeout_min=YEAR_MINUTES, stderr_to_stdout=True)
    with _for_children(frozen.freeze(run)):
        return executor.submit(Life(str(run.path.resolve()), 0.0, cores, minutes))


@contextmanager
def _for_children(code: Path) -> Iterator[None]:
    """What is started now runs this code, and does not die of the terminal's Ctrl-C, which reaches all processes."""
    before, known = signal.signal(signal.SIGINT, signal.SIG_IGN), os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(code)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        del os.environ["PYTHONPATH"]
        os.environ.update({"PYTHONPATH": known} if known is not None else {})
