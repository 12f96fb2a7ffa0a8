"""What a plan's parts hand each other: signals between blocks, the feed of a step, a block's halves."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cnnjob.nn.blocks import Shape
from cnnjob.nn.memory import Arena, Array

Task = Callable[[], object]
"""Argument-free; allocates nothing, and what it returns says nothing."""


@dataclass(frozen=True)
class Tensor:
    """Values that flow one way between two blocks, and the loss's gradient that flows the other.

    The arrays lie inside larger ones whose border of zeros is the next convolution's padding.
    """

    value: Array
    """(N, …)."""
    padded: Array
    """``value`` with its border."""
    gradient: Array
    """(N, …); of no size where nobody needs it."""
    padded_gradient: Array
    """``gradient`` with its border, which holds what flows out of the image."""
    whole: Array | None = None
    """The ``value`` of another signal, where this one is a window of it."""

    @classmethod
    def take(cls, arena: Arena, shape: Shape, dtype: Any, *, border: int = 0, trainable: bool = True) -> "Tensor":
        """Take the arrays of shape (N, …) from an arena, with a border of zeros of so many pixels."""
        if border:
            around = (shape[0], *(side + 2 * border for side in shape[1:3]), *shape[3:])
            inside: tuple[slice, ...] = (slice(None), slice(border, -border), slice(border, -border))
        else:
            around, inside = shape, ()
        value = arena.take(around, dtype)
        gradient = arena.take(around if trainable else (0,) * len(around), dtype)
        return cls(value[inside], value, gradient[inside], gradient)

    @property
    def trainable(self) -> bool:
        """Whether the gradient is wanted."""
        return self.gradient.size > 0


@dataclass
class StepInputs:
    """All that varies from step to step, in the backend's memory; plans read it then and are told nothing else."""

    images: Array
    """uint8 (images, H, W, C)."""
    labels: Array
    """int64 (images,)."""
    order: Array
    """int64 (steps × N,): which images the steps take."""
    learning_rates: Array
    """float64 (steps,)."""
    lookahead: Array
    """float64 (steps,): the slow weights' share after each step, see :class:`cnnjob.nn.optimisers.Lookahead`."""
    losses: Array
    """float64 (steps,): mean loss of each step, in nats an image."""
    hits: Array
    """int64 (steps,): images of each step whose largest output is their label's."""
    probabilities: Array
    """(steps × N, classes), of an evaluation."""
    position: Array
    """int64 (2,): step within the epoch, and steps since the start of the training."""
    seed: int


@dataclass(frozen=True)
class ForwardBackward:
    """A block's two halves."""

    forward: Task
    backward: Task
