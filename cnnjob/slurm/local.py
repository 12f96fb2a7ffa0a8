"""The same jobs on this machine, through submitit, without SLURM."""

import os
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit

from cnnjob import schemas
from cnnjob.checkpoints import newest_step
from cnnjob.files import read_tail
from cnnjob.runs import Run
from cnnjob.slurm import frozen
from cnnjob.slurm.executors import MARGIN_SECONDS
from cnnjob.slurm.life import Life
from cnnjob.slurm.logs import last_error, last_words, own_message
from cnnjob.slurm.restart import RESTARTS_WITHOUT_PROGRESS

POLL_SECONDS = 0.1
LOG_BYTES = 65536
NO_PROGRESS = f"{RESTARTS_WITHOUT_PROGRESS} restarts without progress"
YEAR_MINUTES = 366 * 24 * 60
"""submitit wants a time limit; the job has its own."""


@dataclass(frozen=True)
class Ended:
    """A run whose process has ended."""

    run: Run
    error: str
    """Why the same again would end the same: an error before the run was claimed, or no progress; else empty."""


def run_here(runs: Sequence[Run], parallel: int, cores: int, minutes: int | None = None) -> Iterator[Ended]:
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
    waiting, going = deque(runs), dict[Any, tuple[Run, int]]()
    try:
        while waiting or going:
            while waiting and len(going) < parallel:
                run, attempts = waiting[0], len(waiting[0].attempt_files())
                going[_start(run, cores, minutes)] = waiting.popleft(), attempts
            for job in [job for job in going if job.done()]:
                yield _ended(job, *going.pop(job))
            time.sleep(POLL_SECONDS)
    finally:
        for job in going:
            job._process.terminate()  # noqa: SLF001 - submitit's cancel would be a Ctrl-C, which a second one kills
        for job in going:
            job._process.wait()  # noqa: SLF001


def _ended(job: Any, run: Run, attempts: int) -> Ended:
    if len(run.attempt_files()) > attempts or run.result_file.exists():
        return Ended(run, NO_PROGRESS if _is_crash_loop(run) else "")
    text = read_tail(job.paths.stdout, LOG_BYTES)
    return Ended(run, own_message(text) or last_error(text) or last_words(text) or "its process left no message")


def _is_crash_loop(run: Run) -> bool:
    """Return whether the last attempts died one after the other without a new checkpoint."""
    last = [schemas.read(path, schemas.Attempt) for path in run.attempt_files()[-RESTARTS_WITHOUT_PROGRESS - 1 :]]
    steps = {newest_step(run.checkpoints_folder), *(one.get("resumed_at_step") or 0 for one in last)}
    died = all(one.get("ended") is None for one in last)
    return died and len(last) > RESTARTS_WITHOUT_PROGRESS and len(steps) == 1


def _start(run: Run, cores: int, minutes: int | None) -> Any:
    executor = submitit.LocalExecutor(run.slurm_folder)
    executor.update_parameters(timeout_min=YEAR_MINUTES, stderr_to_stdout=True)
    with _for_children(frozen.freeze(run)):
        return executor.submit(Life(str(run.path.resolve()), MARGIN_SECONDS, cores, minutes))


@contextmanager
def _for_children(code: Path) -> Iterator[None]:
    """Let what is started now run this code, import nothing from its folder, and survive the terminal's Ctrl-C."""
    ours = frozen.environment(code)
    known = {name: os.environ.pop(name) for name in ours if name in os.environ}
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update({name: value for name, value in ours.items() if value is not None})
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        for name in ours:
            os.environ.pop(name, None)
        os.environ.update(known)
