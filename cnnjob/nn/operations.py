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


def require_trainable(network: Network, batch_size: int) -> None:
    """Refuse blocks that cannot learn from their input.

    Raises:
        ValueError: a batch normalisation would have one value per channel, which leaves nothing but its shift; or the
            padding of a convolution is as wide as its kernel, so that outputs see nothing else. The block is named.
    """
    for name, operation, shape in _operations(network.layers):
        if isinstance(operation, Norm) and batch_size * prod(shape[:-1]) == 1:
            sides = "×".join(map(str, shape))
            raise ValueError(f"{name}: a batch of 1 image, normalised at {sides}, has one value per channel")
        if isinstance(operation, Conv) and operation.pad >= operation.kernel:
            raise ValueError(
                f"{name}: pad {operation.pad} is not less than kernel {operation.kernel}, outputs at the edges see "
                "zeros alone"
            )


def _operations(layers: Sequence[Layer], prefix: str = "") -> Iterator[tuple[str, Operation, Shape]]:
    """Return the layer's name, each operation and its output's shape, those within residual blocks too."""
    for layer in layers:
        shape = layer.input_shape
        for operation in operations_of(layer.block):
            if isinstance(operation, Residual):
                yield from _operations(operation.layers(shape), f"{layer.name}.")
                continue
            shape = operation.output_shape(shape)
            yield prefix + layer.name, operation, shape


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
