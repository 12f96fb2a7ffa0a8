"""CUDA backend: operations as CUDA C kernels and cuBLAS GEMMs, recorded as a graph and replayed.

The same input gives the same bits on the same GPU model with the same driver and cuBLAS, since every sum has a fixed
order. A step returns before its results are complete; copying results to the host waits for them.
"""

import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from cnnjob.nn.arena import Arena, Array
from cnnjob.nn.blocks import Activation, Conv, Dense, Dropout, Shape
from cnnjob.nn.cuda import blocks
from cnnjob.nn.cuda.activations import accumulate, activate, residual_add
from cnnjob.nn.cuda.batches import gather
from cnnjob.nn.cuda.conv import COLUMN_BYTES, conv
from cnnjob.nn.cuda.deferred import (
    DeferredAccumulation,
    DeferredBatch,
    DeferredJoin,
    DeferredLoss,
    DeferredOperation,
    DeferredPart,
    parts_of,
    resolve_tasks,
)
from cnnjob.nn.cuda.device_api import Device, ShapeOnlyDevice, each, in_order
from cnnjob.nn.cuda.fused import fuse
from cnnjob.nn.cuda.graphs import Captured
from cnnjob.nn.cuda.norm import norm
from cnnjob.nn.cuda.pooling import pool
from cnnjob.nn.cuda.tiled.plan import TiledPlan
from cnnjob.nn.cuda.updates import update
from cnnjob.nn.operations import Activate, Norm, Operation
from cnnjob.nn.optimisers import Optimiser, Segment
from cnnjob.nn.pixels import Augmentation, PixelNormalisation, View
from cnnjob.nn.tensors import ForwardBackward, StepInputs, Task, Tensor


class CudaBackend:
    """The backend that plans operations for a device, with arrays in float32."""

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
        """Use a device; if no device is given, only count memory.

        Args:
            device: the device that holds the arrays and runs the kernels.
            column_bytes: maximum size of a convolution's patch matrix (see :mod:`cnnjob.nn.cuda.conv`).
            fuses: True to compute some consecutive operations in one kernel (see :mod:`cnnjob.nn.cuda.fused`); False to
                compute each operation separately, as a reference.
            captures: True to record a step once and replay the recording; False to launch the step's kernels each time,
                with the same results.
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
        """Copy between arrays of equal shape and dtype, on the device or the host; the copy is complete on return."""
        if source.shape != target.shape or source.dtype != target.dtype:
            raise ValueError(f"cannot copy {source.dtype} {source.shape} into {target.dtype} {target.shape}")
        if source.nbytes:
            # The device copies contiguous bytes, while a host array may be a view with gaps.
            self.device.copy(np.ascontiguousarray(source) if _is_host(source) else source, target)

    def resident(self, array: Array) -> Array:
        """Return the array itself if it is on the device, or else a copy on the device."""
        if not _is_host(array):
            return array
        on_device = self.zeros(array.shape, array.dtype)
        self.copy(array, on_device)
        return on_device

    def host(self, array: Array) -> Array:
        """Return a copy of the array as a NumPy array."""
        on_host: Array = np.empty(array.shape, array.dtype)
        self.copy(array, on_host)
        return on_host

    def staging(self, target: Array) -> Array:
        """Return page-locked host memory, from which the device copies while the host continues."""
        return self.device.pinned(target.shape, target.dtype)

    def upload(self, source: Array, target: Array) -> Task:
        """Start copying page-locked memory to the device; return a function that waits until the copy is complete."""
        return self.device.upload(source, target) if source.nbytes else in_order([])

    def gather(
        self,
        arena: Arena,
        inputs: StepInputs,
        x: Tensor,
        pixels: PixelNormalisation,
        change: Augmentation | View | None,
    ) -> Task:
        """Plan the task that loads a batch."""
        plan_alone = partial(gather, self.device, arena, inputs, x, pixels, change)
        return DeferredBatch((x,), plan_alone, inputs, pixels, changes=change is not None).tasks.forward

    def plan_operation(
        self,
        arena: Arena,
        operation: Operation,
        x: Tensor,
        y: Tensor,
        parameters: tuple[dict[str, Array], dict[str, Array]],
        inputs: StepInputs,
        layer_index: int,
    ) -> ForwardBackward:
        """Plan one operation for training or evaluation."""
        plan_alone = partial(self._plan_alone, arena, operation, x, y, parameters, inputs, layer_index)
        return DeferredOperation((x,), plan_alone, operation, x, y, *parameters).tasks

    def _plan_alone(
        self,
        arena: Arena,
        operation: Operation,
        x: Tensor,
        y: Tensor,
        parameters: tuple[dict[str, Array], dict[str, Array]],
        inputs: StepInputs,
        layer_index: int,
    ) -> ForwardBackward:
        """Plan an operation that is not fused with a neighbour."""
        if isinstance(operation, Conv):
            return conv(self.device, arena, operation, x, y, *parameters, self._column_bytes)
        if isinstance(operation, Dense):
            return blocks.dense(self.device, arena, operation, x, y, *parameters)
        if isinstance(operation, Norm):
            return norm(self.device, arena, operation, x, y, *parameters)
        if isinstance(operation, Dropout):
            return blocks.dropout(self.device, operation, x, y, inputs, layer_index)
        if isinstance(operation, Activate):
            return activate(self.device, operation, x, y)
        return pool(self.device, arena, operation, x, y)

    def residual_add(
        self,
        arena: Arena,  # noqa: ARG002 - the interface has it
        body: Tensor,
        shortcut: Tensor,
        y: Tensor,
        activation: Activation,
    ) -> ForwardBackward:
        """Plan the end of a residual block."""
        plan_alone = partial(residual_add, self.device, body, shortcut, y, activation)
        return DeferredJoin((body, shortcut), plan_alone, y, activation).tasks

    def accumulate(self, arena: Arena, source: Array, target: Array) -> Task:  # noqa: ARG002 - the interface has it
        """Plan the task that adds one gradient to another."""
        task = accumulate(self.device, source, target)
        return DeferredAccumulation((), lambda: ForwardBackward(task, task), target).tasks.forward

    def loss(
        self, arena: Arena, inputs: StepInputs, logits: Tensor, label_smoothing: float, *, mixes: bool = False
    ) -> Task:
        """Plan the loss and its gradient."""
        plan_alone = partial(blocks.cross_entropy, self.device, arena, inputs, logits, label_smoothing, mixes=mixes)
        return DeferredLoss((logits,), plan_alone, inputs, label_smoothing, mixes).tasks.forward

    def mean_outputs(
        self, arena: Arena, inputs: StepInputs, logits: Tensor, view_weights: Sequence[float]
    ) -> tuple[list[Task], Task]:
        """Plan the softmax of the weighted mean of the logits over several views.

        Returns:
            One task to run after each view, and a final task that computes the softmax and advances to the next step.
        """
        return blocks.mean_outputs(self.device, arena, inputs, logits, view_weights)

    def zero_from(self, arena: Arena, inputs: StepInputs, arrays: Sequence[Array], first_step: int) -> Task:  # noqa: ARG002 - the interface has it
        """Plan the task that fills the arrays with zeros from the given step of training onwards."""
        return in_order(
            [each(self.device, "zero_from", 1, len(a), a, inputs.position, np.int64(first_step)) for a in arrays]
        )

    def update(
        self,
        arena: Arena,
        optimiser: Optimiser,
        segments: Sequence[Segment],
        buffers: tuple[Array, Array, dict[str, Array]],
        inputs: StepInputs,
    ) -> Task:
        """Plan the task that updates the flat parameter buffer and advances to the next step."""
        return update(self.device, arena, optimiser, segments, buffers, inputs)

    def compile_step(self, arena: Arena, inputs: StepInputs, tasks: Iterable[Task]) -> Task:
        """Plan the deferred parts to which the tasks belong, and return one task that runs all tasks in order."""
        tasks = list(tasks)
        # Only now are all parts of a step known, and with them the neighbours that can share a kernel.
        parts = parts_of(tasks)
        planned: dict[DeferredPart, ForwardBackward] = {}
        prologue: list[Task] = []
        if self.device.precision == "float16" and self.device.wide_stages:
            tiled = TiledPlan(self.device, arena, parts, inputs)
            planned, prologue = tiled.tasks(parts), tiled.prologue
        if self._fuses:
            planned |= fuse(self.device, arena, [part for part in parts if part not in planned])
        run = in_order([*prologue, *resolve_tasks(tasks, planned)])
        if not self._captures:
            return run
        return Captured(self.device, run, lambda: (inputs.images, inputs.order, inputs.probabilities))


def _is_host(array: Any) -> bool:
    return isinstance(array, np.ndarray)
