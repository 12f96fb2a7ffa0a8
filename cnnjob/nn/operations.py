"""Operations that a backend computes: whole blocks, or the parts of blocks that are not computed as a whole."""

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

FUSED_ACTIVATIONS: tuple[Activation, ...] = ("relu", "none")
"""Activations that a convolution or dense layer applies itself; all others are separate operations."""
LAYERS_PER_RESIDUAL = 256
"""Number of layer indices reserved for the layers inside a residual block."""


@dataclass(frozen=True)
class Norm:
    """Batch normalisation and the activation that follows it."""

    settings: BatchNorm
    activation: Activation = "none"
    fixed: bool = False
    """True if training uses the running statistics, as evaluation does, and does not update them."""

    def output_shape(self, shape: Shape) -> Shape:
        """Return the input's shape."""
        return shape


@dataclass(frozen=True)
class Activate:
    """An activation as a separate operation."""

    activation: Activation

    def output_shape(self, shape: Shape) -> Shape:
        """Return the input's shape."""
        return shape


@dataclass(frozen=True)
class MaxPool:
    """Max-pooling; among equal maxima, the first in row-major order receives the gradient."""

    side: int
    """P: side length and stride of the pooling window."""

    def output_shape(self, shape: Shape) -> Shape:
        """Return (H // P, W // P, C) for (H, W, C)."""
        return shape[0] // self.side, shape[1] // self.side, shape[2]


Operation = Conv | Dense | Dropout | GlobalPool | Norm | Activate | MaxPool
"""One operation of a backend; here, a :class:`Conv` has no normalisation, and its activation is one of
:data:`FUSED_ACTIVATIONS`."""


def split_block(block: Block) -> list[Operation | Residual]:
    """Split a block into consecutive operations.

    ReLU and max-pooling commute, so a convolution followed only by these is one operation. Pooling directly after a
    convolution is always part of the convolution's operation.
    """
    if not isinstance(block, Conv):
        if isinstance(block, Dense) and block.activation not in FUSED_ACTIVATIONS:
            return [replace(block, activation="none"), Activate(block.activation)]
        return [block]
    if block.batch_norm is None and block.activation in FUSED_ACTIVATIONS:
        return [block]
    present = {"norm": block.batch_norm is not None, "activation": block.activation != "none", "pool": block.pool > 1}
    parts = [part for part in block.order if present[part]]
    if parts[:1] == ["pool"]:
        convolution, parts = replace(block, batch_norm=None, activation="none"), parts[1:]
    else:
        convolution = replace(block, batch_norm=None, activation="none", pool=1)
    return [convolution, *_operations_after(block, parts)]


def _operations_after(block: Conv, parts: Sequence[Part]) -> list[Operation]:
    """Return the operations after the convolution, merging an activation with a normalisation directly before it."""
    operations: list[Operation] = []
    for part in parts:
        if part == "norm" and block.batch_norm:
            operations.append(Norm(block.batch_norm, fixed=block.fully_frozen))
        elif part == "pool":
            operations.append(MaxPool(block.pool))
        elif operations and isinstance(operations[-1], Norm):
            # Merged, because the normalisation already passes over every value: this saves a pass in each direction.
            operations[-1] = replace(operations[-1], activation=block.activation)
        else:
            operations.append(Activate(block.activation))
    return operations


def require_trainable(network: Network, batch_size: int) -> None:
    """Raise an error if a network cannot be trained as described.

    Raises:
        ValueError: batch normalisation has only one value per channel, so that its output is just the shift; or a
            convolution's padding is as wide as its kernel, so that outputs at the edges depend only on padding; or two
            dropout blocks would draw the same random numbers. The message names the block.
    """
    dropouts: dict[int, str] = {}
    for name, layer_index, operation, shape in _operations(network.layers):
        if isinstance(operation, Norm) and not operation.fixed and batch_size * prod(shape[:-1]) == 1:
            sides = "×".join(map(str, shape))
            raise ValueError(
                f"{name}: batch normalisation needs more than one value per channel (found one {sides} image per batch)"
            )
        if isinstance(operation, Conv) and operation.pad >= operation.kernel:
            raise ValueError(
                f"{name}: pad {operation.pad} is not less than kernel {operation.kernel}, so outputs at the edges "
                "depend only on padding"
            )
        if isinstance(operation, Dropout) and dropouts.setdefault(layer_index, name) != name:
            raise ValueError(
                f"{name}: would draw the same random numbers as {dropouts[layer_index]} (with residual blocks, "
                f"use at most {LAYERS_PER_RESIDUAL} blocks in the network itself and in each residual block)"
            )


def _operations(
    layers: Sequence[Layer], prefix: str = "", first_index: int = 0
) -> Iterator[tuple[str, int, Operation, Shape]]:
    """Yield layer name, layer index, operation and output shape for every operation.

    The operations in residual blocks are included.
    """
    for layer_index, layer in enumerate(layers, start=first_index):
        shape = layer.input_shape
        for operation in split_block(layer.block):
            if isinstance(operation, Residual):
                yield from _operations(operation.layers(shape), f"{layer.name}.", first_inner_index(layer_index))
                continue
            shape = operation.output_shape(shape)
            yield prefix + layer.name, layer_index, operation, shape


def first_inner_index(layer_index: int) -> int:
    """Return the index of the first layer inside a residual block, given the block's index."""
    # Part of the address of random numbers: a different numbering would change the bits of every run with dropout.
    return LAYERS_PER_RESIDUAL * (layer_index + 1)


def parameters_of(operation: Operation) -> tuple[str, ...]:
    """Return the names of the parameters that an operation may have."""
    if isinstance(operation, Norm):
        return "scale", "shift", "mean", "variance"
    return ("weights", "bias") if isinstance(operation, Conv | Dense) else ()


def border_of(operation: Operation | Residual) -> int:
    """Return the width in pixels of the border of zeros that an operation needs around its input."""
    # Evaluation omits dropout: the first convolution then reads the residual block's input, even after a dropout block.
    if isinstance(operation, Residual):
        return next((block.pad for block in operation.blocks if isinstance(block, Conv)), 0)
    return operation.pad if isinstance(operation, Conv) else 0
