"""Interface between plans and array libraries: a backend provides memory and plans a task for each part of a step."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from cnnjob.nn.arena import Arena, Array, ArrayStore
from cnnjob.nn.blocks import Activation
from cnnjob.nn.operations import Operation
from cnnjob.nn.optimisers import Optimiser, Segment
from cnnjob.nn.pixels import Augmentation, PixelNormalisation, View
from cnnjob.nn.tensors import ForwardBackward, StepInputs, Task, Tensor


class Backend(ArrayStore, Protocol):
    """A backend that plans the parts of a step: with NumPy on the CPU, or with CUDA on a device."""

    name: str
    """Short name, as used in run folders and reports."""
    dtype: np.dtype[np.floating]
    """Type of activations, parameters and gradients."""
    synchronous: bool
    """True if a task's results are complete when the task returns."""

    @property
    def cpu_seconds(self) -> float:
        """Return the CPU time used so far, in seconds."""

    def gather(
        self,
        arena: Arena,
        inputs: StepInputs,
        x: Tensor,
        pixels: PixelNormalisation,
        change: Augmentation | View | None,
    ) -> Task:
        """Plan the task that loads a batch of images into x, applies ``change`` if specified, and normalises them."""

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
        """Plan one operation from x to y, for training if y is trainable and for evaluation otherwise.

        Args:
            arena: memory for the buffers.
            operation: the operation.
            x: input.
            y: output.
            parameters: the operation's parameters by short name, and the gradients of the trainable parameters.
            inputs: step inputs.
            layer_index: index of the layer in the network, part of the address of the layer's random numbers.

        Returns:
            The forward and backward tasks.
        """

    def residual_add(
        self, arena: Arena, body: Tensor, shortcut: Tensor, y: Tensor, activation: Activation
    ) -> ForwardBackward:
        """Plan y = activation(body + shortcut); the backward task writes the sum's gradient to ``body.gradient``."""

    def accumulate(self, arena: Arena, source: Array, target: Array) -> Task:
        """Plan target ← target + source, both (N, H, W, C)."""

    def loss(
        self, arena: Arena, inputs: StepInputs, logits: Tensor, label_smoothing: float, *, mixes: bool = False
    ) -> Task:
        """Plan the loss, its gradient with respect to the logits, and the number of correct predictions.

        If ``mixes``, each label is mixed with the label of the previous image, in the shares of ``inputs.mixup``.
        """

    def mean_outputs(
        self, arena: Arena, inputs: StepInputs, logits: Tensor, view_weights: Sequence[float]
    ) -> tuple[list[Task], Task]:
        """Plan the softmax of the weighted mean of the logits over several views.

        The last task writes the result to ``inputs.probabilities``, in the rows of the current step, and advances to
        the next step.

        Args:
            arena: memory for the buffers.
            inputs: step inputs.
            logits: network outputs for the current view, (N, classes).
            view_weights: weight of each view in the mean.

        Returns:
            One task per view, to run after the view's forward pass, and the last task.
        """

    def zero_from(self, arena: Arena, inputs: StepInputs, arrays: Sequence[Array], first_step: int) -> Task:
        """Plan the task that fills the arrays (n,) with zeros in step ``first_step`` of training and all later ones."""

    def update(
        self,
        arena: Arena,
        optimiser: Optimiser,
        segments: Sequence[Segment],
        buffers: tuple[Array, Array, dict[str, Array]],
        inputs: StepInputs,
    ) -> Task:
        """Plan the task that updates the parameters and advances ``inputs.position`` by one step.

        Args:
            arena: memory for the buffers.
            optimiser: the update rule.
            segments: trainable segments of the flat buffers.
            buffers: flat parameters, flat gradients, and the optimiser's slots by name.
            inputs: step inputs.

        Returns:
            The task.
        """

    def compile_step(self, arena: Arena, inputs: StepInputs, tasks: Iterable[Task]) -> Task:
        """Return one task that runs all tasks of a step in order.

        A backend may defer planning until this call, when all tasks of the step are known.
        """
