"""CUDA graphs of steps.

The kernels of a step are launched as usual the first two times. The third time, they are recorded as a graph, which is
replayed from then on.
"""

from collections.abc import Callable

from cnnjob.nn.arena import Array
from cnnjob.nn.cuda.device_api import Device
from cnnjob.nn.tensors import Task

EAGER_RUNS = 2
"""Number of runs before recording.

The first run compiles and loads kernels, which is forbidden during capture; the second is a safety margin.
"""
MAX_QUEUED_STEPS = 64
"""Maximum number of queued steps: few enough to notice a stop request soon, enough to keep the device busy."""


class Captured:
    """A task that is run or replayed; either way, the same kernels run in the same order, with the same results."""

    def __init__(self, device: Device, run: Task, reads: Callable[[], tuple[Array, ...]]) -> None:
        """Wrap a task; nothing runs yet.

        Args:
            device: the device that runs and records the task.
            run: the task, which launches kernels and GEMMs and does nothing else.
            reads: function that returns the arrays that may be replaced between calls; if one is replaced, the task is
                recorded again.
        """
        self._device, self._run, self._reads = device, run, reads
        self._recorded_arrays: tuple[Array, ...] = ()
        self._runs = 0
        self._replay: Task | None = None

    def __call__(self) -> None:
        """Run or replay the task once."""
        # A graph contains addresses. Identity is compared, not equality: a different array is at a different address.
        arrays = self._reads()
        if [*map(id, arrays)] != [*map(id, self._recorded_arrays)]:
            self._recorded_arrays, self._runs, self._replay = arrays, 0, None
        if self._runs < EAGER_RUNS:
            self._run()
        else:
            self._replay = self._replay or self._device.capture(self._run)
            self._replay()
        self._runs += 1
        if self._runs % MAX_QUEUED_STEPS == 0:
            self._device.wait()
