"""CUDA graphs of steps.

The kernels of a step are launched as usual the first two times. The third time, they are recorded as a graph, which is
replayed from then on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from weakref import ReferenceType, ref

from cnnjob.nn.arena import Array
from cnnjob.nn.cuda.device_api import Device
from cnnjob.nn.tensors import Task

EAGER_RUNS = 2
"""Number of runs before recording.

The first run compiles and loads kernels, which is forbidden during capture; the second is a safety margin.
"""
MAX_RECORDINGS = 4
"""Maximum number of graphs of a step, one per set of arrays: for example, one per split that is evaluated."""
MAX_QUEUED_STEPS = 64
"""Maximum number of queued steps: few enough to notice a stop request soon, enough to keep the device busy."""


@dataclass
class _Recording:
    """The runs of a task on one set of arrays, and their graph once it is recorded."""

    arrays: list[ReferenceType[Array]]
    """Weak, since a graph must not keep the images of a split in memory that nothing else uses."""
    runs: int = 0
    replay: Task | None = None


class Captured:
    """A task that is run or replayed; either way, the same kernels run in the same order, with the same results."""

    def __init__(self, device: Device, run: Task, reads: Callable[[], tuple[Array, ...]]) -> None:
        """Wrap a task; nothing runs yet.

        Args:
            device: the device that runs and records the task.
            run: the task, which launches kernels and GEMMs and does nothing else.
            reads: function that returns the arrays that may be replaced between calls; the task is recorded once for
                each set of arrays.
        """
        self._device, self._run, self._reads = device, run, reads
        self._recordings: list[_Recording] = []
        self._runs = 0

    def __call__(self) -> None:
        """Run or replay the task once."""
        recording = self._recording(self._reads())
        if recording.runs < EAGER_RUNS:
            self._run()
        else:
            recording.replay = recording.replay or self._device.capture(self._run)
            recording.replay()
        recording.runs += 1
        self._runs += 1
        if self._runs % MAX_QUEUED_STEPS == 0:
            self._device.wait()

    def _recording(self, arrays: tuple[Array, ...]) -> _Recording:
        """Return the recording for a set of arrays: a new one, in place of the oldest, if there is none."""
        # A graph contains addresses. Identity is compared, not equality: a different array is at a different address.
        for recording in self._recordings:
            if [*map(id, arrays)] == [id(array()) for array in recording.arrays]:
                return recording
        usable = [one for one in self._recordings if all(array() is not None for array in one.arrays)]
        recording = _Recording([ref(array) for array in arrays])
        self._recordings = [*usable, recording][-MAX_RECORDINGS:]
        return recording
