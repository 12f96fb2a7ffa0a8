"""Stages: convolutions that are computed in tiles of halves, each with the parts that follow it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cnnjob.nn.arena import Array
from cnnjob.nn.blocks import Conv
from cnnjob.nn.cuda.activations import ACTIVATIONS
from cnnjob.nn.cuda.deferred import DeferredJoin, DeferredOperation, DeferredPart
from cnnjob.nn.operations import Activate, Norm
from cnnjob.nn.tensors import Tensor

CHUNK = 8
"""Number of halves that are copied at once; numbers of channels are multiples of it."""
MAX_KERNEL, MAX_POOL = 5, 2
"""Maximum kernel size, since a word has a bit for each tap, and maximum pooling size."""
MAX_VALUES = 1 << 31
"""Limit on the number of values of an array, whose indices have 32 bits."""


@dataclass(eq=False)
class Stage:
    """A convolution, the parts that are computed together with it, and its buffers."""

    conv: DeferredOperation
    block: Conv
    after: DeferredOperation | None
    """The normalisation or activation that follows, if any."""
    join: DeferredJoin | None
    """The residual sum that follows, if any."""
    source: "Stage | None" = field(init=False)
    """The stage that computes the input in halves, if any."""
    input: Array = field(init=False)
    """The input, with channels of zeros up to a multiple of 8, (N, H, W, C); of a window, the whole image."""
    ahead: Array = field(init=False)
    """The packed weights, (depth, F)."""
    back: Any = field(init=False)
    """The packed weights for the gradient of the input, (depth, C)."""
    sums: Array = field(init=False)
    """The convolution's output after pooling, (N, H, W, F)."""
    winners: Any = field(init=False)
    """Index of the maximum in each pooling window, uint8 (N, H, W, F)."""
    channels: list[Array] = field(init=False)
    """Mean, 1/√(variance + eps), scale and shift of each channel, (F,); 0, 1, 1 and the bias without normalisation."""
    out: Array = field(init=False)
    """The stage's output, (N, H, W, F)."""
    gradient: Array = field(init=False)
    """Gradient before the normalisation's activation or, if there is a join, before the join's sum, (N, H, W, F)."""
    partial_sums: tuple[Array, Array] = field(init=False)
    """Partial sums of the gradient before the activation, and of its product with the normalised values, (parts, F)."""

    @property
    def parts(self) -> list[DeferredPart]:
        """Return the stage's parts."""
        return [part for part in (self.conv, self.after, self.join) if part]

    @property
    def y(self) -> Tensor:
        """Return the stage's output in float32, which is written only if other parts read it."""
        return self.join.y if self.join else self.after.y if self.after else self.conv.y

    @property
    def norm(self) -> Norm | None:
        """Return the normalisation, if any."""
        return self.after.operation if self.after and isinstance(self.after.operation, Norm) else None

    @property
    def kind(self) -> int:
        """Return the code of the activation."""
        return ACTIVATIONS[getattr(self.after.operation if self.after else self.block, "activation")]  # noqa: B009

    @property
    def is_one_kernel(self) -> bool:
        """Return whether the convolution's kernel computes the stage's output even in training.

        The slopes are then determined by the output itself.
        """
        return not self.norm and not self.join and self.kind <= ACTIVATIONS["relu"]


class Stages:
    """The stages of a step, in order, and which tensors are stored only in halves."""

    stages: list[Stage]

    def __init__(self, parts: Sequence[DeferredPart]) -> None:
        """Find the stages among a step's parts, in order.

        A join, and a convolution that reads a window, are included only if all tensors that they need are in halves.
        Whether these are depends on the other stages, so what does not fit is removed until all fits.
        """
        self._readers: dict[int, list[DeferredPart]] = {}
        for part in parts:
            for x in part.reads:
                for value in {id(x.value), source_of(x)}:
                    self._readers.setdefault(value, []).append(part)
        self.stages = [
            Stage(part, part.operation, *self._following(part, part.operation))
            for part in parts
            if isinstance(part, DeferredOperation) and isinstance(part.operation, Conv) and _is_supported(part)
        ]
        while misfits := [
            stage
            for stage in self.stages
            if (stage.join and not self.producer(id(stage.join.reads[1].value)))
            or (stage.conv.x.window_of is not None and not self.producer(source_of(stage.conv.x)))
        ]:
            if misfits[0].join:
                misfits[0].join = None
            else:
                self.stages.remove(misfits[0])

    def producer(self, value: int) -> Stage | None:
        """Return the stage that computes a tensor, given by :func:`source_of`, if the tensor is stored only in halves.

        That is the case if only stages read it.
        """
        tiled = {part for stage in self.stages for part in stage.parts}
        producer = next((stage for stage in self.stages if id(stage.y.value) == value), None)
        readers = self._readers.get(value)
        return producer if readers and all(part in tiled for part in readers) else None

    def _following(self, conv: DeferredOperation, block: Conv) -> tuple[DeferredOperation | None, DeferredJoin | None]:
        """Return the normalisation or activation after a convolution, and the residual sum after both."""
        after, y = None, conv.y
        part = self._only_reader(y)
        if isinstance(part, DeferredOperation) and block.activation == "none":
            operation = part.operation
            is_trained = isinstance(operation, Norm) and not (operation.fixed and part.y.trainable)
            if isinstance(operation, Activate) or (is_trained and "bias" not in conv.weights):
                after, y = part, part.y
        join = self._only_reader(y)
        is_body = isinstance(join, DeferredJoin) and id(join.reads[0].value) == id(y.value)
        if isinstance(join, DeferredJoin) and is_body and ACTIVATIONS[join.activation] <= ACTIVATIONS["relu"]:
            return after, join
        return after, None

    def _only_reader(self, tensor: Tensor) -> DeferredPart | None:
        """Return the part that reads a tensor, or None if there are several."""
        readers = self._readers.get(id(tensor.value), [])
        return readers[0] if len(readers) == 1 else None


def source_of(x: Tensor) -> int:
    """Return the identity of a tensor's values or, of a window, of the whole image's."""
    return id(x.value) if x.window_of is None else id(x.window_of)


def _is_supported(part: DeferredOperation) -> bool:
    """Return whether a convolution's sizes and settings fit the kernels."""
    block, (N, H, W, C), (_, height, width, F) = part.operation, part.x.value.shape, part.y.value.shape
    assert isinstance(block, Conv)  # noqa: S101 - only convolutions are passed
    values = N * max(H * W * (C + CHUNK), height * width * block.pool**2 * F)
    return (
        block.kernel <= MAX_KERNEL
        and (block.stride == 1 or block.kernel == 1)
        and block.pool <= MAX_POOL
        and F % CHUNK == 0
        and (C % CHUNK == 0 or not part.x.trainable)
        and values < MAX_VALUES
    )
