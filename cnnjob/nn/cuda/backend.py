"""CUDA backend: operations as CUDA C kernels and cuBLAS GEMMs, recorded as a graph and replayed.

The same input gives the same bits on the same model of GPU with the same driver and cuBLAS, since every sum has a fixed
order. A step returns before its results are complete; copying them to the host waits for them.
"""

import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from cnnjob.nn.blocks import Activation, Conv, Dense, Dropout, Shape
from cnnjob.nn.cuda import blocks, stages
from cnnjob.nn.cuda.batches import gather
from cnnjob.nn.cuda.conv import COLUMN_BYTES, conv
from cnnjob.nn.cuda.deferred import GatherPart, LayerPart, Loss, Part, in_place, parts_of
from cnnjob.nn.cuda.device_api import Device, ShapeOnlyDevice, in_order
from cnnjob.nn.cuda.fused import fused
from cnnjob.nn.cuda.graphs import Captured
from cnnjob.nn.cuda.norm import norm
from cnnjob.nn.cuda.updates import update
from cnnjob.nn.memory import Arena, Array
from cnnjob.nn.operations import Norm, Operation
from cnnjob.nn.optimisers import Optimiser, Segment
from cnnjob.nn.pixels import Augmentation, PixelNormalisation, View
from cnnjob.nn.tensors import ForwardBackward, StepInputs, Task, Tensor


class CudaBackend:
    """Backend that plans operations on float32 arrays of a device."""

    name = "cuda"
    synchronous = False
    lanes = 1
    dtype = np.dtype(np.float32)

    def __init__(
        self,
        device: Device | None = None,
        column_bytes: int = COLUMN_BYTES,
        *,
        fuses: bool = True,
        captures: bool = True,
    ) -> None:
        """Use a device; without one, only count memory.

        Args:
            device: holds the arrays and runs the kernels.
            column_bytes: size of a convolution's matrix of patches, see :mod:`cnnjob.nn.cuda.conv`.
            fuses: True to compute some neighbouring parts in one kernel, see :mod:`cnnjob.nn.cuda.fused`; False for
                part by part, the reference.
            captures: True to record a step and replay it; False to launch its kernels each time, with the same bits.
        """
        self.device: Device = device or ShapeOnlyDevice()
        self._column_bytes, self._fuses, self._captures = column_bytes, fuses, captures

    @property
    def cpu_seconds(self) -> float:
        """Return the CPU time of this process so far, in seconds."""
        return time.process_time()

    def zeros(self, shape: Shape, dtype: Any) -> Array:
        """Return a new array of zeros on the device."""
        return self.device.zeros(shape, dtype)

    def copy(self, source: Array, target: Array) -> None:
        """Copy between arrays of equal shape and dtype, on the device or the host; complete on return."""
        if source.shape != target.shape or source.dtype != target.dtype:
            raise ValueError(f"{source.dtype} {source.shape} into {target.dtype} {target.shape}")
        if source.nbytes:
            self.device.copy(_packed(source), target)

    def resident(self, array: Array) -> Array:
        """Return the array on the device: itself, or a copy."""
        if not _is_host(array):
            return array
        there = self.zeros(array.shape, array.dtype)
        self.copy(array, there)
        return there

    def host(self, array: Array) -> Array:
        """Return a copy of the array as a NumPy array."""
        here: Array = np.empty(array.shape, array.dtype)
        self.copy(array, here)
        return here

    def staging(self, target: Array) -> Array:
        """Return page-locked memory of the host, which the device copies from while the host continues."""
        return self.device.pinned(target.shape, target.dtype)

    def upload(self, source: Array, target: Array) -> Task:
        """Begin to copy page-locked memory to the device; return a function that waits for the end of the copy."""
        return self.device.upload(source, target) if source.nbytes else in_order([])

    def gather(
        self, arena: Arena, feed: StepInputs, x: Tensor, pixels: PixelNormalisation, change: Augmentation | View | None
    ) -> Task:
        """Plan the loading of a batch."""
        alone = partial(gather, self.device, arena, feed, x, pixels, change)
        return GatherPart((x,), alone, feed, pixels, changes=change is not None).step.forward

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
        alone = partial(self._alone, arena, block, x, y, parameters, feed, place)
        return LayerPart((x,), alone, block, x, y, *parameters).step

    def _alone(
        self,
        arena: Arena,
        block: Operation,
        x: Tensor,
        y: Tensor,
        parameters: tuple[dict[str, Array], dict[str, Array]],
        feed: StepInputs,
        place: int,
    ) -> ForwardBackward:
        """Plan an operation that is not fused with a neighbour."""
        if isinstance(block, Conv):
            return conv(self.device, arena, block, x, y, *parameters, self._column_bytes)
        if isinstance(block, Dense):
            return blocks.dense(self.device, arena, block, x, y, *parameters)
        if isinstance(block, Norm):
            return norm(self.device, arena, block, x, y, *parameters)
        if isinstance(block, Dropout):
            return blocks.dropout(self.device, block, x, y, feed, place)
        return stages.stage(self.device, arena, block, x, y)

    def join(self, arena: Arena, body: Tensor, shortcut: Tensor, y: Tensor, activation: Activation) -> ForwardBackward:  # noqa: ARG002 - a backend's form
        """Plan the end of a residual block."""
        return Part((body, shortcut), partial(stages.join, self.device, body, shortcut, y, activation)).step

    def accumulate(self, arena: Arena, source: Array, target: Array) -> Task:  # noqa: ARG002 - a backend's form
        """Plan the addition of one gradient to another."""
        return stages.accumulate(self.device, source, target)

    def loss(self, arena: Arena, feed: StepInputs, logits: Tensor, label_smoothing: float) -> Task:
        """Plan the loss and its gradient."""
        alone = partial(blocks.cross_entropy, self.device, arena, feed, logits, label_smoothing)
        return Loss((logits,), alone, feed, label_smoothing).step.forward

    def mean_outputs(
        self, arena: Arena, feed: StepInputs, logits: Tensor, shares: Sequence[float]
    ) -> tuple[list[Task], Task]:
        """Plan the mean over views, its softmax, and the advance to the next step."""
        return stages.mean_outputs(self.device, arena, feed, logits, shares)

    def update(
        self,
        arena: Arena,
        optimiser: Optimiser,
        segments: Sequence[Segment],
        buffers: tuple[Array, Array, dict[str, Array]],
        feed: StepInputs,
    ) -> Task:
        """Plan the update of the flat parameter buffer, and the advance to the next step."""
        return update(self.device, arena, optimiser, segments, buffers, feed)

    def whole(self, arena: Arena, feed: StepInputs, tasks: Iterable[Task]) -> Task:
        """Plan the parts that the tasks describe, and return one task that runs them all."""
        tasks = list(tasks)
        # Only now are all parts of a step known, and with them which neighbours share a kernel.
        planned = fused(self.device, arena, parts_of(tasks)) if self._fuses else {}
        run = in_order(in_place(tasks, planned))
        reads = lambda: (feed.images, feed.order, feed.probabilities)  # noqa: E731 - an evaluation may replace them
        return Captured(self.device, run, reads) if self._captures else run


def _is_host(array: Any) -> bool:
    return isinstance(array, np.ndarray)


def _packed(array: Array) -> Array:
    """Return an array of the device as it is, one of the host without gaps: the device copies contiguous bytes."""
    return np.ascontiguousarray(array) if _is_host(array) else array
