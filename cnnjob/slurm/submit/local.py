"""Training on this machine without SLURM: the tasks that would run on a node are started as processes by submitit."""

import os
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit

from cnnjob import files
from cnnjob.jobs import json_files
from cnnjob.runs import schemas
from cnnjob.runs.checkpoints import newest_step
from cnnjob.runs.logs import last_error, last_own_message, last_program_line
from cnnjob.runs.process import HEARTBEAT_SECONDS, process_identity
from cnnjob.runs.restart_log import cancellation_file, local_wait_file
from cnnjob.runs.run import Run
from cnnjob.slurm.node.node_task import NodeTask
from cnnjob.slurm.node.restart import RESTARTS_WITHOUT_PROGRESS
from cnnjob.slurm.submit import code_snapshot
from cnnjob.slurm.submit.executor import MARGIN_SECONDS

POLL_SECONDS = 0.1
LOG_BYTES = 65536
"""Number of bytes at the end of a log that are searched for an error message."""
NO_PROGRESS = f"{RESTARTS_WITHOUT_PROGRESS} restarts without progress"
YEAR_MINUTES = 366 * 24 * 60
"""Time limit passed to submitit, which requires one; the task enforces the actual limit."""


@dataclass(frozen=True)
class EndedRun:
    """A run whose process has ended."""

    run: Run
    error: str
    """Why another attempt would fail too: an error before the claim, or a lack of progress; otherwise empty."""


def run_here(runs: Sequence[Run], parallel: int, cores: int, minutes: int | None = None) -> Iterator[EndedRun]:
    """Train runs in processes on this machine.

    When this generator is closed, for example by Ctrl-C, it tells all training processes to save and stop, and waits
    for them to end.

    Args:
        runs: unfinished runs, created by :func:`cnnjob.runs.creation.create_run`.
        parallel: maximum number of runs at once.
        cores: number of cores per run.
        minutes: time after which each training process saves and stops; None for no limit.

    Yields:
        Each run, once its process has ended for any reason.
    """
    waiting, running, announcement = deque(runs), dict[Any, tuple[Run, int]](), _Announcement(runs)
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                run, attempts = waiting[0], len(waiting[0].attempt_files())
                if announcement.is_cancelled(run):
                    yield EndedRun(waiting.popleft(), "")
                    continue
                running[_start(run, cores, minutes)] = waiting.popleft(), attempts
            for job in [job for job in running if job.done()]:
                run, attempts = running.pop(job)
                yield EndedRun(run, "") if announcement.is_cancelled(run) else _describe_end(job, run, attempts)
            for job, (run, attempts) in running.items():
                if announcement.is_cancelled(run) and len(run.attempt_files()) == attempts:
                    # The process has not claimed the run yet. Once it has, `cnnjob cancel` signals the process itself.
                    job._process.terminate()  # noqa: SLF001 - submitit's cancel would send SIGINT
            announcement.refresh()
            time.sleep(POLL_SECONDS)
    finally:
        for job in running:
            job._process.terminate()  # noqa: SLF001 - submitit's cancel would send SIGINT, and a second one kills
        for job in running:
            job._process.wait()  # noqa: SLF001
        announcement.end()


class _Announcement:
    """Announces in each run's folder that this process is going to train the run, and detects cancelled runs."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._cancelled = {run.path: _file_version(cancellation_file(run)) for run in runs}
        self._records = [local_wait_file(run) for run in runs]
        self._refreshed = time.monotonic()
        for run in runs:
            with suppress(OSError):
                run.slurm_folder.mkdir(exist_ok=True)
                files.write_json(local_wait_file(run), {**process_identity(), **run.identity()})

    def is_cancelled(self, run: Run) -> bool:
        """Return whether a run has been cancelled since this object was created."""
        version = _file_version(cancellation_file(run))
        return version is not None and version != self._cancelled[run.path]

    def refresh(self) -> None:
        """Update this process's heartbeat, at most once every ``HEARTBEAT_SECONDS``."""
        if time.monotonic() - self._refreshed > HEARTBEAT_SECONDS:
            self._refreshed = time.monotonic()
            for record in self._records:
                with suppress(OSError):
                    os.utime(record)

    def end(self) -> None:
        """Remove the records."""
        for record in self._records:
            with suppress(OSError):
                record.unlink(missing_ok=True)


def _file_version(path: Path) -> tuple[int, int] | None:
    """Return a file's inode and modification time, which identify its version; None if the file does not exist."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns


def _describe_end(job: Any, run: Run, attempts: int) -> EndedRun:
    if len(run.attempt_files()) > attempts or run.result_file.exists():
        return EndedRun(run, NO_PROGRESS if _is_crash_loop(run) else "")
    text = files.read_tail(job.paths.stdout, LOG_BYTES)
    return EndedRun(
        run, last_own_message(text) or last_error(text) or last_program_line(text) or "its process wrote no message"
    )


def _is_crash_loop(run: Run) -> bool:
    """Return whether repeated crashes prevent progress.

    This is the case if each of the last ``RESTARTS_WITHOUT_PROGRESS + 1`` attempts died without recording an end and
    without saving a new checkpoint.
    """
    paths = run.attempt_files()[-RESTARTS_WITHOUT_PROGRESS - 1 :]
    attempts = [json_files.read_checked(path, schemas.AttemptRecord) for path in paths]
    steps = {newest_step(run.checkpoints_folder), *(attempt.get("resumed_at_step") or 0 for attempt in attempts)}
    died = all(attempt.get("ended") is None for attempt in attempts)
    return died and len(attempts) > RESTARTS_WITHOUT_PROGRESS and len(steps) == 1


def _start(run: Run, cores: int, minutes: int | None) -> Any:
    executor = submitit.LocalExecutor(run.slurm_folder)
    executor.update_parameters(timeout_min=YEAR_MINUTES, stderr_to_stdout=True)
    with _child_environment(code_snapshot.save_snapshot(run)):
        return executor.submit(NodeTask(str(run.path.resolve()), MARGIN_SECONDS, cores, minutes))


@contextmanager
def _child_environment(code: Path) -> Iterator[None]:
    """Make processes started in the ``with`` block run the code of a snapshot and ignore Ctrl-C in the terminal.

    The processes import nothing from the current folder (:func:`cnnjob.slurm.submit.code_snapshot.python_environment`).
    submitit cannot pass an environment to the processes it starts, so this process changes its own environment inside
    the block. On Ctrl-C, a terminal sends SIGINT to child processes too. Child processes inherit ignored signals, so
    this process ignores SIGINT inside the block.
    """
    variables = code_snapshot.python_environment(code)
    saved = {name: os.environ.pop(name) for name in variables if name in os.environ}
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update({name: value for name, value in variables.items() if value is not None})
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        for name in variables:
            os.environ.pop(name, None)
        os.environ.update(saved)
