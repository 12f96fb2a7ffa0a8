"""Run tasks in several processes; results are in task order, and only a limited number are in memory at a time.

Images are decoded in processes rather than threads, because the memory limit applies to a whole process
(:func:`cnnjob.data.image_limits.decoding_limits`) and most of the time for a small image is spent in Python code.
"""

import ctypes
import math
import mmap
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from cnnjob.errors import DataError

if TYPE_CHECKING:
    from types import FrameType

_PR_SET_PDEATHSIG = 1
_WAITING = 3
"""Pending or unread results per process; enough to keep every process busy while the caller uses a result."""

_POLL_SECONDS = 0.1
"""Maximum time for which a signal is deferred while the caller waits for a result, in seconds."""
_SIGNALS = signal.valid_signals()  # listing them takes longer than replacing their handlers
_STATE: list[Any] = []
"""In a worker process, a list whose only element is the state; in the calling process, an empty list."""

T = TypeVar("T")
R = TypeVar("R")
OrderedMap = Callable[[Callable[[Any, Any], R], Iterable[Any]], Iterator[R]]
"""Type of a function like :func:`map`, whose first argument is a function of a state and a task."""


class SharedMemory:
    """Memory for arrays that worker processes return; reading small images would take 1.5 times as long with pipes."""

    def __init__(self, n_bytes: int) -> None:
        """Reserve memory; it takes up space only as it is filled.

        Args:
            n_bytes: size of the memory, in bytes.
        """
        self._bytes = np.frombuffer(mmap.mmap(-1, max(1, n_bytes)), np.uint8)
        self._n_used = get_context("fork").Value(ctypes.c_size_t)

    def store(self, arrays: Sequence[np.ndarray]) -> int | None:
        """Store uint8 arrays of the same shape one after another.

        Returns:
            Their position, in bytes; None if there is not enough memory left.
        """
        n_bytes = len(arrays) * arrays[0].nbytes
        with self._n_used.get_lock():
            start = self._n_used.value
            if start + n_bytes > len(self._bytes):
                return None
            self._n_used.value += n_bytes
        np.stack(arrays, out=self.at(start, (len(arrays), *arrays[0].shape)))
        return start

    def at(self, start: int, shape: tuple[int, ...]) -> np.ndarray:
        """Return the uint8 array at a position, without copying it."""
        return self._bytes[start : start + math.prod(shape)].reshape(shape)


@contextmanager
def worker_processes(count: int, state: Any) -> Iterator[OrderedMap[Any]]:
    """Start worker processes for the duration of a ``with`` block.

    Args:
        count: number of processes; if 1, tasks run in the calling process.
        state: object that every task needs; the processes inherit it.

    Yields:
        A function like :func:`map`, whose first argument is a function of the state and a task. Results are in task
        order, regardless of the number of processes. Errors raised by a task are re-raised; if a process dies, a
        :class:`DataError` is raised.
    """
    if count == 1:
        yield lambda function, tasks: (function(state, task) for task in tasks)
        return
    # Use fork, because the modules are already loaded. The first task starts all processes.
    executor = ProcessPoolExecutor(count, get_context("fork"), _prepare_worker, (os.getpid(), state))
    # Looked up once: doing so for every task would take longer than the tasks.
    numbers = [number for number in _SIGNALS if callable(signal.getsignal(number))]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # only the main thread runs handlers
    try:
        with _deferred(numbers):  # the workers inherit the deferring handlers, so no signal ends them
            started = executor.submit(int)
        _await_result(started, numbers)
        yield lambda function, tasks: _ordered(executor, function, tasks, count * _WAITING, numbers)
    finally:
        with _deferred(numbers):
            executor.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _deferred(numbers: Iterable[int]) -> Iterator[None]:
    """Defer signals that arrive during a ``with`` block: call their handlers after the block.

    A handler that raises an exception within the executor can leave one of the executor's locks held; in a worker, it
    can leave part of a result in the pipe. In both cases, the processes would wait for each other forever.

    Args:
        numbers: the signals, each of which must have a handler written in Python.
    """
    received: list[tuple[int, FrameType | None]] = []
    handlers: dict[int, Any] = {}
    try:
        for number in numbers:
            handlers[number] = signal.signal(number, lambda number, frame: received.append((number, frame)))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number, frame in received:
            handlers[number](number, frame)


def _await_result(future: Future[R], numbers: Iterable[int]) -> R:
    while True:
        with _deferred(numbers):
            if wait([future], timeout=_POLL_SECONDS).done:
                return future.result()


def _prepare_worker(parent: int, state: Any) -> None:
    """Store the state that the tasks share, and make this worker exit when the parent process exits or is killed."""
    _STATE.append(state)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the caller was killed before the call to prctl
        os._exit(1)


def _work(function: Callable[[Any, T], R], task: T) -> R:
    return function(_STATE[0], task)


def _ordered(
    executor: ProcessPoolExecutor,
    function: Callable[[Any, T], R],
    tasks: Iterable[T],
    most: int,
    numbers: Iterable[int],
) -> Iterator[R]:
    waiting: deque[Future[R]] = deque()
    try:
        for task in tasks:
            with _deferred(numbers):
                waiting.append(executor.submit(_work, function, task))
            if len(waiting) == most:
                yield _await_result(waiting.popleft(), numbers)
        while waiting:
            yield _await_result(waiting.popleft(), numbers)
    except BrokenProcessPool as error:
        raise DataError(
            "a process that decodes images was killed, possibly because memory ran out. Free some memory and run the "
            "same command again"
        ) from error
    finally:
        for future in waiting:
            future.cancel()
