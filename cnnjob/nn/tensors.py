"""Data passed between the parts of a plan: tensors between blocks, step inputs, and forward and backward tasks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cnnjob.nn.arena import Arena, Array
from cnnjob.nn.blocks import Shape

Task = Callable[[], object]
"""A function without arguments that allocates nothing; its return value is ignored."""


@dataclass(frozen=True)
class Tensor:
    """Activations passed from one block to the next, and the gradient of the loss with respect to them.

    Both arrays are windows into larger ones, whose border of zeros is the padding for the next convolution.
    """

    value: Array
    """The activations, (N, …)."""
    padded: Array
    """``value`` including its border."""
    gradient: Array
    """The gradient, (N, …); of size 0 if nothing needs it."""
    padded_gradient: Array
    """``gradient`` including its border, which receives the gradient of the padding."""
    window_of: Array | None = None
    """The ``value`` of the tensor that this one is a window into, if any."""
    offset: tuple[int, int] = (0, 0)
    """Row and column of the window's first pixel."""

    @classmethod
    def take(cls, arena: Arena, shape: Shape, dtype: Any, *, border: int = 0, trainable: bool = True) -> "Tensor":
        """Allocate a tensor of shape (N, …) from an arena, surrounded by ``border`` pixels of zeros."""
        if border:
            padded_shape = (shape[0], *(side + 2 * border for side in shape[1:3]), *shape[3:])
            inside: tuple[slice, ...] = (slice(None), slice(border, -border), slice(border, -border))
        else:
            padded_shape, inside = shape, ()
        value = arena.take(padded_shape, dtype)
        # An absent gradient has the same number of dimensions, since blocks slice it like any other.
        gradient = arena.take(padded_shape if trainable else (0,) * len(padded_shape), dtype)
        return cls(value[inside], value, gradient[inside], gradient)

    @property
    def trainable(self) -> bool:
        """Return whether the gradient is needed."""
        return self.gradient.size > 0


@dataclass
class StepInputs:
    """The inputs and results that vary from step to step, in the backend's memory.

    Tasks take no arguments: they read only these inputs, the parameters and the buffers of their plan.
    """

    images: Array
    """All images in the dataset, or those of an :class:`~cnnjob.nn.streaming.ImageStream`, uint8 (images, H, W, C)."""
    labels: Array
    """Labels of all images in the dataset, int64 (images,)."""
    order: Array
    """Dataset indices of each step's images, int64 (steps × N,)."""
    learning_rates: Array
    """Learning rate of each step, float64 (steps,)."""
    momentum_drop: Array
    """Amount by which the momentum of each step is less than the optimiser's, float64 (steps,)."""
    lookahead: Array
    """Weight α of the slow weights after each step, float64 (steps,); see :class:`cnnjob.nn.optimisers.Lookahead`."""
    ema: Array
    """Decay of the moving average after each step, float64 (steps,); see :class:`cnnjob.nn.optimisers.Ema`."""
    mixup: Array
    """Share that each image has in its mixture with the previous image, at each step, float64 (steps,); see
    :class:`cnnjob.nn.pixels.Augmentation`."""
    losses: Array
    """Mean loss at each step in nats per image, float64 (steps,); written by the steps."""
    n_correct: Array
    """Number of correct predictions at each step, int64 (steps,); written by the steps."""
    probabilities: Array
    """Softmax outputs in evaluation, (steps × N, classes); written by the steps."""
    position: Array
    """Step within the epoch, and steps since the start of training, int64 (2,)."""
    rows: Array
    """Index in ``images`` of each image in ``order``, int64 (steps × N,); without a stream, this is ``order``."""
    seed: int
    """The job's seed, part of the address of every random number."""

    @property
    def epoch(self) -> int:
        """Return the epoch, counted from 0; the inputs must be in host memory."""
        # Both positions advance together, so their difference is the first step of the epoch.
        return int(self.position[1] - self.position[0]) // len(self.learning_rates)


@dataclass(frozen=True)
class ForwardBackward:
    """A block's forward and backward tasks."""

    forward: Task
    """Task that computes the output from the input."""
    backward: Task
    """Task that computes the gradients of the input and of the parameters from the gradient of the output."""
