"""NumPy backend: runs networks on the CPU, and serves as the reference for the CUDA backend.

Results are bit-identical for any number of cores: work is split into a fixed number of shards and every sum has a fixed
order. The caller must limit BLAS to one thread, since the workers use the cores.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from cnnjob.nn.arena import Arena, Array, HostMemory
from cnnjob.nn.blocks import Activation, Conv, Dense, Dropout
from cnnjob.nn.cpu import blocks, losses, pooling
from cnnjob.nn.cpu.activations import accumulate, activate, residual_add
from cnnjob.nn.cpu.batches import gather
from cnnjob.nn.cpu.conv import conv
from cnnjob.nn.cpu.norm import norm
from cnnjob.nn.cpu.updates import update
from cnnjob.nn.operations import Activate, Norm, Operation
from cnnjob.nn.optimisers import Optimiser, Segment
from cnnjob.nn.pixels import Augmentation, PixelNormalisation, View
from cnnjob.nn.tensors import ForwardBackward, StepInputs, Task, Tensor
from cnnjob.nn.workers import Workers, run_all


class NumPyBackend(HostMemory):
    """The backend that plans operations on NumPy arrays of one floating-point type."""

    name = "numpy"
    synchronous = True

    def __init__(self, workers: Workers, dtype: Any = np.float32) -> None:
        """Use these workers and this floating-point type (float64 is for gradient checks)."""
        super().__init__(workers.count)
        self.workers = workers
        self.dtype = np.dtype(dtype)

    @property
    def cpu_seconds(self) -> float:
        """Return the CPU time of the caller and all workers so far, in seconds."""
        return self.workers.cpu_seconds

    def gather(
        self,
        arena: Arena,
        inputs: StepInputs,
        x: Tensor,
        pixels: PixelNormalisation,
        change: Augmentation | View | None,
    ) -> Task:
        """Plan the task that loads a batch."""
        return gather(self.workers, arena, inputs, x, pixels, change)

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
        if isinstance(operation, Conv):
            return conv(self.workers, arena, operation, x, y, *parameters)
        if isinstance(operation, Dense):
            return blocks.dense(self.workers, arena, operation, x, y, *parameters)
        if isinstance(operation, Norm):
            return norm(self.workers, arena, operation, x, y, *parameters)
        if isinstance(operation, Dropout):
            return blocks.dropout(self.workers, arena, operation, x, y, inputs, layer_index)
        if isinstance(operation, Activate):
            return activate(self.workers, arena, operation, x, y)
        return pooling.pool(self.workers, arena, operation, x, y)

    def residual_add(
        self, arena: Arena, body: Tensor, shortcut: Tensor, y: Tensor, activation: Activation
    ) -> ForwardBackward:
        """Plan the end of a residual block."""
        return residual_add(self.workers, arena, body, shortcut, y, activation)

    def accumulate(self, arena: Arena, source: Array, target: Array) -> Task:  # noqa: ARG002 - the interface has it
        """Plan the task that adds one gradient to another."""
        return accumulate(self.workers, source, target)

    def loss(
        self, arena: Arena, inputs: StepInputs, logits: Tensor, label_smoothing: float, *, mixes: bool = False
    ) -> Task:
        """Plan the loss and its gradient."""
        return losses.cross_entropy(arena, inputs, logits, label_smoothing, mixes=mixes)

    def mean_outputs(
        self, arena: Arena, inputs: StepInputs, logits: Tensor, view_weights: Sequence[float]
    ) -> tuple[list[Task], Task]:
        """Plan the softmax of the weighted mean of the logits over several views.

        Returns:
            One task to run after each view, and a final task that computes the softmax and advances to the next step.
        """
        return losses.mean_outputs(arena, inputs, logits, view_weights)

    def zero_from(self, arena: Arena, inputs: StepInputs, arrays: Sequence[Array], first_step: int) -> Task:  # noqa: ARG002 - the interface has it
        """Plan the task that fills the arrays with zeros from the given step of training onwards."""

        def run() -> None:
            if inputs.position[1] >= first_step:
                for array in arrays:
                    array.fill(0)

        return run

    def update(
        self,
        arena: Arena,
        optimiser: Optimiser,
        segments: Sequence[Segment],
        buffers: tuple[Array, Array, dict[str, Array]],
        inputs: StepInputs,
    ) -> Task:
        """Plan the task that updates the flat parameter buffer and advances to the next step."""
        update_parameters = update(self.workers, arena, optimiser, segments, buffers, inputs)

        def run() -> None:
            update_parameters()
            inputs.position += 1

        return run

    def compile_step(self, arena: Arena, inputs: StepInputs, tasks: Iterable[Task]) -> Task:  # noqa: ARG002 - the interface has it
        """Return one task that runs all tasks of a step in order."""
        tasks, images = list(tasks), inputs.images

        def run() -> None:
            nonlocal images
            # Workers have the images with which they were forked; a different array in `inputs` does not reach them.
            if inputs.images is not images:
                images = inputs.images
                self.workers.stop()
            run_all(tasks)

        return run
