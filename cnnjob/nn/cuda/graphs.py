"""A step recorded as a CUDA graph: two runs as they are, one recorded, and from then on replayed."""

from collections.abc import Callable

from cnnjob.nn.cuda.device_api import Device
from cnnjob.nn.memory import Array
from cnnjob.nn.tensors import Task

EAGER_RUNS = 2
"""The first compiles and loads kernels, which must not happen while one records; the second is to be sure."""
MOST_AHEAD = 64
"""Steps that may be asked for and not done: a stop is heeded soon, and the device never waits for the next."""


class Captured:
    """A task that runs, or is replayed; both give the same bits, being the same kernels in the same order."""

    def __init__(self, device: Device, run: Task, reads: Callable[[], tuple[Array, ...]]) -> None:
        """Nothing runs yet.

        Args:
            device: where.
            run: launches kernels and products of matrices, and nothing else.
            reads: the arrays that may be other ones from call to call; then it is recorded anew.
        """
        self._device, self._run, self._reads = device, run, reads
        self._seen: tuple[Array, ...] = ()
        self._runs = 0
        self._replay: Task | None = None

    def __call__(self) -> None:
        """Run once."""
        seen = self._reads()
        if len(seen) != len(self._seen) or any(now is not before for now, before in zip(seen, self._seen, strict=True)):
            self._seen, self._runs, self._replay = seen, 0, None
        if self._runs < EAGER_RUNS:
            self._run()
        else:
            self._replay = self._replay or self._device.capture(self._run)
            self._replay()
        self._runs += 1
        if self._runs % MOST_AHEAD == 0:
            self._device.wait()
