"""Run tasks in several processes, with results in order and a bounded number of them in memory.

Images are decoded in processes rather than threads, because the memory limit applies to a whole process
(:func:`cnnjob.data.images.decoding_limits`) and most of the time spent on a small image is in Python code.
"""

import ctypes
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, TypeVar

from cnnjob.errors import DataError

_PR_SET_PDEATHSIG = 1
_WAITING = 3
"""Pending and unread results per process: enough to keep every process busy while the caller uses a result."""

_STATE: list[Any] = []
"""State of a worker process, as its only element; empty in the calling process."""

T = TypeVar("T")
R = TypeVar("R")
OrderedMap = Callable[[Callable[[Any, Any], R], Iterable[Any]], Iterator[R]]
"""Function like :func:`map`, for a function that takes a state and a task."""


@contextmanager
def worker_processes(count: int, state: Any) -> Iterator[OrderedMap[Any]]:
    """Start worker processes for the duration of a ``with`` block.

    Args:
        count: number of processes; if 1, tasks run in the calling process.
        state: object that every task needs; the processes inherit it.

    Yields:
        A function like :func:`map`, for a function that takes the state and a task. Results are in task order,
        regardless of the number of processes. Errors raised by a task are re-raised; if a process dies, a
        :class:`DataError` is raised.
    """
    if count == 1:
        yield lambda function, tasks: (function(state, task) for task in tasks)
        return
    # fork, because the modules are already loaded. All processes start now, before there are any threads, such as that
    # of a progress bar.
    executor = ProcessPoolExecutor(count, get_context("fork"), _prepare_worker, (os.getpid(), state))
    try:
        executor.submit(int).result()
        yield lambda function, tasks: _ordered(executor, function, tasks, count * _WAITING)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _prepare_worker(parent: int, state: Any) -> None:
    """Store the state, leave Ctrl-C to the caller, and make this process exit with the caller even if it is killed."""
    _STATE.append(state)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the caller was killed before the call to prctl
        os._exit(1)


def _work(function: Callable[[Any, T], R], task: T) -> R:
    return function(_STATE[0], task)


def _ordered(
    executor: ProcessPoolExecutor, function: Callable[[Any, T], R], tasks: Iterable[T], most: int
) -> Iterator[R]:
    waiting: deque[Future[R]] = deque()
    try:
        for task in tasks:
            waiting.append(executor.submit(_work, function, task))
            if len(waiting) == most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            "a process that decodes images was killed, possibly for lack of memory. Free some memory and run the same "
            "command again"
        ) from error
    finally:
        for future in waiting:
            future.cancel()
