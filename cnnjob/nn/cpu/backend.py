"""NumPy backend: runs networks on the CPU, and is the reference for the CUDA backend.

Bits do not depend on the number of cores: work is split into a fixed number of shards and every sum has a fixed order.
The caller must limit BLAS to one thread; the workers use the cores.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from cnnjob.nn.blocks import Activation, Conv, Dense, Dropout, GlobalPool
from cnnjob.nn.cpu import blocks, losses, stages
from cnnjob.nn.cpu.batches import gather
from cnnjob.nn.cpu.conv import conv
from cnnjob.nn.cpu.norm import norm
from cnnjob.nn.cpu.updates import update
from cnnjob.nn.memory import Arena, Array, HostMemory
from cnnjob.nn.operations import Activate, MaxPool, Norm, Operation
from cnnjob.nn.optimisers import Optimiser, Segment
from cnnjob.nn.pixels import Augmentation, PixelNormalisation, View
from cnnjob.nn.tensors import ForwardBackward, StepInputs, Task, Tensor
from cnnjob.nn.workers import Workers, run_all


class NumPyBackend(HostMemory):
    """Backend that plans operations on NumPy arrays of one float type."""

    name = "numpy"
    synchronous = True

    def __init__(self, workers: Workers, dtype: Any = np.float32) -> None:
        """Use these workers and this float type (float64 is for gradient checks)."""
        super().__init__(workers.count)
        self.workers = workers
        self.dtype = np.dtype(dtype)

    @property
    def cpu_seconds(self) -> float:
        """Return the CPU time of all workers so far, in seconds."""
        return self.workers.cpu_seconds

    def gather(
        self, arena: Arena, feed: StepInputs, x: Tensor, pixels: PixelNormalisation, change: Augmentation | View | None
    ) -> Task:
        """Plan the loading of a batch."""
        return gather(self.workers, arena, feed, x, pixels, change)

    def block(
        self,
        arena: Arena,
        block: Operation,
        x: Tensor,
        y: Tensor,
        parameters: tuple[dict[str, Array], dict[str, Array]],
        feed: StepInputs,
        place: int,
    ) -> ForwardBackward:
        """Plan one operation of a training or an evaluation."""
        plan: Any = {Conv: conv, Dense: blocks.dense, Norm: norm}.get(type(block))
        if plan:
            step: ForwardBackward = plan(self.workers, arena, block, x, y, *parameters)
            return step
        if isinstance(block, Dropout):
            return blocks.dropout(self.workers, arena, block, x, y, feed, place)
        plan = {MaxPool: stages.max_pool, GlobalPool: stages.global_pool, Activate: stages.activate}[type(block)]
        pure: ForwardBackward = plan(self.workers, arena, block, x, y)
        return pure

    def join(self, arena: Arena, body: Tensor, shortcut: Tensor, y: Tensor, activation: Activation) -> ForwardBackward:
        """Plan the end of a residual block."""
        return stages.join(self.workers, arena, body, shortcut, y, activation)

    def accumulate(self, arena: Arena, source: Array, target: Array) -> Task:  # noqa: ARG002 - a backend's form
        """Plan the addition of one gradient to another."""
        return stages.accumulate(self.workers, source, target)

    def loss(self, arena: Arena, feed: StepInputs, logits: Tensor, label_smoothing: float) -> Task:
        """Plan the loss and its gradient."""
        return losses.cross_entropy(arena, feed, logits, label_smoothing)

    def mean_outputs(
        self, arena: Arena, feed: StepInputs, logits: Tensor, shares: Sequence[float]
    ) -> tuple[list[Task], Task]:
        """Plan the mean over views, its softmax, and the advance to the next step."""
        return losses.mean_outputs(arena, feed, logits, shares)

    def update(
        self,
        arena: Arena,
        optimiser: Optimiser,
        segments: Sequence[Segment],
        buffers: tuple[Array, Array, dict[str, Array]],
        feed: StepInputs,
    ) -> Task:
        """Plan the update of the flat parameter buffer, and the advance to the next step."""
        run = update(self.workers, arena, optimiser, segments, buffers, feed)

        def last() -> None:
            run()
            feed.position += 1

        return last

    def whole(self, arena: Arena, feed: StepInputs, tasks: Iterable[Task]) -> Task:  # noqa: ARG002 - a backend's form
        """Return one task that runs all tasks of a step in order."""
        tasks, seen = list(tasks), feed.images

        def run() -> None:
            nonlocal seen
            # Workers know the images that they were forked with; another array in the feed does not reach them.
            if feed.images is not seen:
                seen = feed.images
                self.workers.renew()
            run_all(tasks)

        return run
