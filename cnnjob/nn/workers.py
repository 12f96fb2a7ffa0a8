"""The cores: tasks of fixed number and content, shared over however many threads there are.

What is computed never depends on the number of threads, only when: so a run gives the same bits
on one core as on many.
"""

import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from queue import SimpleQueue
from threading import Thread
from typing import Self

import numpy as np

from cnnjob.nn.signals import Task

SHARDS = 8
"""Work over a batch is cut into so many parts, whatever the cores: the order of every sum is fixed."""
SWITCH_SECONDS = 50e-6
"""After so long a thread that waits for the interpreter looks again: sooner than a virtual machine wakes its core."""


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def shares(count: int, parts: int) -> list[slice]:
    """Cut ``count`` things into at most ``parts`` runs of nearly equal length, none empty."""
    parts = min(count, parts)
    bounds = [count * part // parts for part in range(parts + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


class Workers:
    """Threads that run lists of independent tasks; NumPy lets go of the interpreter meanwhile.

    What interrupts a list, as Ctrl-C does, leaves tasks of it running: the workers are not to be used after it.
    """

    def __init__(self, count: int) -> None:
        """Start ``count`` − 1 threads; the caller is the other one."""
        self.count, self._interval = count, sys.getswitchinterval()
        self._inboxes: list[SimpleQueue[Sequence[Task] | None]] = [SimpleQueue() for _ in range(count - 1)]
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()
        for inbox in self._inboxes:
            Thread(target=self._serve, args=(inbox,), daemon=True).start()

    def __enter__(self) -> Self:
        """The workers, until they are no longer needed."""
        sys.setswitchinterval(SWITCH_SECONDS)
        return self

    def __exit__(self, *error: object) -> None:
        """End the threads."""
        sys.setswitchinterval(self._interval)
        for inbox in self._inboxes:
            inbox.put(None)

    def run(self, tasks: Sequence[Task]) -> None:
        """Run all tasks and wait for them.

        Raises:
            BaseException: what a task raised.
        """
        if len(tasks) == 1:  # to wake the others would take longer than a small task
            run_all(tasks)
            return
        called = self._inboxes[: max(0, len(tasks) - 1)]  # the others would find nothing to do
        for number, inbox in enumerate(called, start=1):
            inbox.put(tasks[number :: self.count])
        try:
            run_all(tasks[:: self.count])
        finally:
            failures = [self._done.get() for _ in called]
        for failure in failures:
            if failure is not None:
                raise failure

    def _serve(self, inbox: "SimpleQueue[Sequence[Task] | None]") -> None:
        while (tasks := inbox.get()) is not None:
            try:
                run_all(tasks)
            except BaseException as error:  # noqa: BLE001 - it is raised again where the tasks came from
                self._done.put(error)
            else:
                self._done.put(None)


def run_all(tasks: Sequence[Task]) -> None:
    """Run tasks one after the other; an overflow shows in the loss, which is looked at, so it is not warned of."""
    with np.errstate(all="ignore"):
        for task in tasks:
            task()
