"""What a backend computes: the blocks, taken apart where it does not compute them at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

from cnnjob.nn.blocks import (
    Activation,
    BatchNorm,
    Block,
    Conv,
    Dense,
    Dropout,
    GlobalPool,
    Layer,
    Network,
    Part,
    Residual,
    Shape,
)


@dataclass(frozen=True)
class Norm:
    """Batch normalisation and the activation that follows it."""

    settings: BatchNorm
    activation: Activation = "none"

    def output_shape(self, shape: Shape) -> Shape:
        """The same."""
        return shape


@dataclass(frozen=True)
class Activate:
    """An activation."""

    activation: Activation

    def output_shape(self, shape: Shape) -> Shape:
        """The same."""
        return shape


@dataclass(frozen=True)
class MaxPool:
    """Max-pooling; equal maxima count as the first in row-major order."""

    side: int

    def output_shape(self, shape: Shape) -> Shape:
        """(H, W, C) → (H // P, W // P, C)."""
        return shape[0] // self.side, shape[1] // self.side, shape[2]


Operation = Conv | Dense | Dropout | GlobalPool | Norm | Activate | MaxPool
"""A :class:`Conv` among these has no normalisation, and ReLU or none."""


def operations_of(block: Block) -> list[Operation | Residual]:
    """A block as operations, one after the other.

    ReLU and max-pooling commute, so a convolution with nothing else after it is computed at once; and so is one
    with the pooling that comes first.
    """
    if not isinstance(block, Conv):
        if isinstance(block, Dense) and block.activation == "gelu":
            return [replace(block, activation="none"), Activate("gelu")]
        return [block]
    if block.norm is None and block.activation != "gelu":
        return [block]
    there = {"norm": block.norm is not None, "activation": block.activation != "none", "pool": block.pool > 1}
    parts = [part for part in block.order if there[part]]
    pools_first = parts[:1] == ["pool"]
    plain = replace(block, norm=None, activation="none", pool=block.pool if pools_first else 1)
    return [plain, *_after(block, parts[pools_first:])]


def _after(block: Conv, parts: Sequence[Part]) -> list[Operation]:
    """What follows the convolution, the activation together with a normalisation right before it."""
    found: list[Operation] = []
    for part in parts:
        if part == "norm" and block.norm:
            found.append(Norm(block.norm))
        elif part == "pool":
            found.append(MaxPool(block.pool))
        elif found and isinstance(found[-1], Norm):
            found[-1] = replace(found[-1], activation=block.activation)
        else:
            found.append(Activate(block.activation))
    return found


def require_spread(network: Network, batch_size: int) -> None:
    """Refuse to train a batch normalisation whose batches have one value per channel: it gives its shift alone.

    Raises:
        ValueError: a block has one; it is named.
    """
    for name, shape in _normalised(network.layers):
        if batch_size * prod(shape[:-1]) == 1:
            sides = "×".join(map(str, shape))
            raise ValueError(f"{name}: a batch of 1 image, normalised at {sides}, has one value per channel")


def _normalised(layers: Sequence[Layer], prefix: str = "") -> Iterator[tuple[str, Shape]]:
    """Return the name of each layer that normalises, and the shape at which it does."""
    for layer in layers:
        shape = layer.input_shape
        for operation in operations_of(layer.block):
            if isinstance(operation, Residual):
                projection = operation.projection(shape)
                yield from _normalised(
                    [*operation.body(shape), *([projection] if projection else [])], f"{layer.name}."
                )
            shape = operation.output_shape(shape)
            if isinstance(operation, Norm):
                yield prefix + layer.name, shape


def parameters_of(operation: Operation) -> tuple[str, ...]:
    """The names of the parameters that an operation may have."""
    if isinstance(operation, Norm):
        return "scale", "shift", "mean", "variance"
    return ("weights", "bias") if isinstance(operation, Conv | Dense) else ()


def border_of(operation: Operation | Residual) -> int:
    """The zeros that an operation wants around its input, in pixels."""
    if isinstance(operation, Residual):
        return next((block.pad for block in operation.blocks if isinstance(block, Conv)), 0)
    return operation.pad if isinstance(operation, Conv) else 0
