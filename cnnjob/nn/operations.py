"""Operations that a backend computes: blocks, split where the backend does not compute them as a whole."""

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
        """Return the input's shape."""
        return shape


@dataclass(frozen=True)
class Activate:
    """Activation as an operation of its own."""

    activation: Activation

    def output_shape(self, shape: Shape) -> Shape:
        """Return the input's shape."""
        return shape


@dataclass(frozen=True)
class MaxPool:
    """Max-pooling; of equal maxima the first in row-major order receives the gradient."""

    side: int
    """P: rows and columns of a window, and its stride."""

    def output_shape(self, shape: Shape) -> Shape:
        """Return (H // P, W // P, C) for (H, W, C)."""
        return shape[0] // self.side, shape[1] // self.side, shape[2]


Operation = Conv | Dense | Dropout | GlobalPool | Norm | Activate | MaxPool
"""One operation of a backend; a :class:`Conv` here has no normalisation, and ReLU or no activation."""


def operations_of(block: Block) -> list[Operation | Residual]:
    """Split a block into operations that follow each other.

    ReLU and max-pooling commute, so a convolution followed by nothing else is one operation. A pooling that comes
    right after a convolution is always part of its operation.
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
    """Return the operations after the convolution, an activation merged with the normalisation right before it."""
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
    """Reject blocks that cannot learn from their input.

    Raises:
        ValueError: a batch normalisation has one value per channel, so that its output is its shift alone; or the
            padding of a convolution is as wide as its kernel, so that outputs at the edges see only padding. The
            message names the block.
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
    """Yield layer name, operation and output shape of every operation, including those within residual blocks."""
    for layer in layers:
        shape = layer.input_shape
        for operation in operations_of(layer.block):
            if isinstance(operation, Residual):
                yield from _operations(operation.layers(shape), f"{layer.name}.")
                continue
            shape = operation.output_shape(shape)
            yield prefix + layer.name, operation, shape


def parameters_of(operation: Operation) -> tuple[str, ...]:
    """Return the names of the parameters that an operation may have."""
    if isinstance(operation, Norm):
        return "scale", "shift", "mean", "variance"
    return ("weights", "bias") if isinstance(operation, Conv | Dense) else ()


def border_of(operation: Operation | Residual) -> int:
    """Return the width of the border of zeros that an operation needs around its input, in pixels."""
    # An evaluation leaves dropout out: even behind one, the first convolution then reads the block's input itself.
    if isinstance(operation, Residual):
        return next((block.pad for block in operation.blocks if isinstance(block, Conv)), 0)
    return operation.pad if isinstance(operation, Conv) else 0
