"""Do work in several processes, with the results in order and a bounded number of them in memory.

Pillow decodes images in processes, not threads: its limits on memory are of a whole process
(:func:`cnnjob.data.images.decoding_limits`), and most of the time per small image is Python's.
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
"""Results per process that are computed or waiting: enough that none is idle while the caller uses one."""

_STATE: list[Any] = []
"""In a worker process, its state."""

T = TypeVar("T")
R = TypeVar("R")
OrderedMap = Callable[[Callable[[Any, Any], R], Iterable[Any]], Iterator[R]]
"""Like :func:`map`, of a function that takes a state and a task."""


@contextmanager
def worker_processes(count: int, state: Any) -> Iterator[OrderedMap[Any]]:
    """Start processes that work for the time of a ``with`` block.

    Args:
        count: number of processes; with one, the work is done in the calling process.
        state: what all work needs; the processes inherit it.

    Yields:
        A function like :func:`map`, of work that takes the state and a task. Its results have the order of the tasks,
        whatever the number of processes. It raises what the work raises, and :class:`DataError` when a process dies.
    """
    if count == 1:
        yield lambda function, tasks: (function(state, task) for task in tasks)
        return
    # fork: the modules are loaded already. Started at once: later there may be threads, such as a progress bar's.
    executor = ProcessPoolExecutor(count, get_context("fork"), _prepare_worker, (os.getpid(), state))
    try:
        executor.submit(int).result()
        yield lambda function, tasks: _ordered(executor, function, tasks, count * _WAITING)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _prepare_worker(parent: int, state: Any) -> None:
    """Keep the state, leave Ctrl-C to the caller, and end with it even if it is killed."""
    _STATE.append(state)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was killed before that call
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
            "a process that decodes images was killed, perhaps for want of memory. Free some, and run the command again"
        ) from error
    finally:
        for future in waiting:
            future.cancel()
