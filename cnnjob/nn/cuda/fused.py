"""Fused parts of a step: the first conv block reads the images' bytes, and the classifier computes the loss.

:meth:`First.of` and :meth:`Head.of` decide which parts are fused; all others are planned part by part.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, Self, TypeGuard

import numpy as np

from cnnjob.nn.blocks import Activation, Conv, Dense
from cnnjob.nn.cuda.deferred import GatherPart, LayerPart, Loss, Part
from cnnjob.nn.cuda.device_api import Device, bordered, gemm, in_order, scalars
from cnnjob.nn.memory import Arena, Array
from cnnjob.nn.tensors import ForwardBackward, Task

LANES, WARPS, TILE = 32, 8, 6144
"""Lanes and warps of a thread block of ``fused.cu``, and floats of its shared memory."""
FIRST_BLOCKS = [(kernel, pool, channels) for kernel, channels in ((3, 1), (3, 3), (5, 1)) for pool in (1, 2)]
"""Kernel side, pooling side and channels for which ``fused.cu`` has kernels."""
MOST_GROUPS = 128
"""Maximum number of thread blocks that sum the gradients of the first conv block, about one per multiprocessor.

It does not depend on the GPU, so that the order of every sum is fixed.
"""
MOST_VALUES, MOST_CLASSES, HEAD_THREADS = 1024, 32, 128
"""Maximum inputs and classes of a classifier that is fused with its loss, and threads per block of that kernel."""
BATCH_SUMS = (LANES, 8)
"""Threads of a block of the kernel ``batch_sums``."""

NOTHING = ForwardBackward(in_order([]), in_order([]))
"""Tasks of a part that another part computes."""


def fused(device: Device, arena: Arena, parts: Sequence[Part]) -> dict[Part, ForwardBackward]:
    """Plan the parts that are computed together with a neighbour.

    Args:
        device: runs the kernels.
        arena: memory for the buffers.
        parts: parts of a training step or an evaluation, in order.

    Returns:
        The two tasks of each of those parts; all other parts are to be planned alone.
    """
    first, head = First.of(parts), Head.of(parts)
    planned: dict[Part, ForwardBackward] = {}
    sums = _Sums(device, arena)
    if first:
        planned |= first.planned(device, arena, sums)
    if head:
        planned |= head.planned(device, arena, sums)
    # The part whose backward runs last: by then all gradients to be summed over the batch have been computed.
    last = first.layer if first else head and (head.hidden or head.classifier)
    if last and last.gradients:
        planned[last] = ForwardBackward(planned[last].forward, in_order([planned[last].backward, sums.task()]))
    return planned


@dataclass(frozen=True)
class First:
    """Batch and the conv block that reads it, computed in one kernel."""

    batch: GatherPart
    layer: LayerPart
    block: Conv

    @classmethod
    def of(cls, parts: Sequence[Part]) -> Self | None:
        """Return the first conv block of a step if there is a kernel for its sizes, or None."""
        batch = next((part for part in parts if isinstance(part, GatherPart)), None)
        if not batch or batch.changes:
            return None
        # Fused, the batch is never stored: nothing else may read it, not even a window of it, as a shortcut does. The
        # batch of another view counts as a reader too, so a block that several views share is not fused with the first.
        readers = [
            part for part in parts
            if part is not batch and any(batch.x.value is read for one in part.reads for read in (one.value, one.whole))
        ]  # fmt: skip
        if len(readers) != 1 or not isinstance(layer := readers[0], LayerPart):
            return None
        block, C = layer.block, batch.x.value.shape[-1]
        if not (isinstance(block, Conv) and block == _known(block) and _learns_all(layer)):
            return None
        found = cls(batch, layer, block)
        sizes = (block.kernel, block.pool, C) in FIRST_BLOCKS and block.stride == 1
        return found if sizes and C * found.rows * found.pitch <= TILE else None

    @property
    def rows(self) -> int:
        """Return the number of rows of pixels that a thread block reads."""
        return WARPS * self.block.pool + self.block.kernel - 1

    @property
    def pitch(self) -> int:
        """Return the number of floats from one of these rows to the next in shared memory.

        It is even, for loads of two floats, and places the pixels of a window in different banks.
        """
        width = self.layer.y.value.shape[2] * self.block.pool + self.block.kernel - 1
        even = int(width + width % 2)
        return even + 2 * (even % 32 == 0)

    def planned(self, device: Device, arena: Arena, sums: "_Sums") -> dict[Part, ForwardBackward]:
        """Plan both parts; the batch itself needs no task."""
        layer, block, x, y = self.layer, self.block, self.batch.x, self.layer.y
        (N, height, width, F), (H, W, C) = y.value.shape, x.value.shape[1:]
        training, bands = y.trainable, -(-height // WARPS)
        name = f"{block.kernel}_{block.pool}_{C}"
        winner = arena.take((N, height, width, F) if training else (1,), np.uint8)
        pixels = [arena.constant(np.asarray(v, np.float32)) for v in (self.batch.pixels.scale, self.batch.pixels.shift)]
        filters = -(-F // LANES)
        sizes = H, W, block.pad, self.pitch, height, width, F
        w, flags = layer.weights, (block.activation == "relu", training)
        feed = self.batch.feed

        # The arguments are collected at each call: an evaluation may replace images and order.
        def forward() -> None:
            source = feed.images, feed.rows, feed.position
            arrays = *source, *pixels, w["weights"], w["bias"], *bordered(y.value), winner
            arguments = scalars([*arrays, *sizes, *flags, N])
            device.launch(f"first_forward_{name}", (N * bands, filters), (LANES, WARPS), arguments)

        if not training:
            return {self.batch: NOTHING, layer: ForwardBackward(forward, forward)}
        groups, taps = min(N * bands, MOST_GROUPS), block.kernel**2 * C
        parts = arena.take((groups, (taps + 1) * F), np.float32)
        source = feed.images, feed.rows, feed.position
        arguments = scalars([*source, *pixels, *bordered(y.gradient), winner, parts, *sizes, N])
        backward = partial(device.launch, f"first_backward_{name}", (groups, filters), (LANES, WARPS), arguments)
        sums.add_filters(parts, taps * F, layer.gradients)
        return {self.batch: NOTHING, layer: ForwardBackward(forward, backward)}


@dataclass(frozen=True)
class Head:
    """Classifier and loss, with the dense block before them if there is one."""

    hidden: LayerPart | None
    """The dense block before the classifier."""
    relu: bool
    """True if that block has a ReLU."""
    classifier: LayerPart
    loss: Loss

    @classmethod
    def of(cls, parts: Sequence[Part]) -> Self | None:
        """Return the head of a training step if one thread block can compute an image, or None."""
        loss = next((part for part in parts if isinstance(part, Loss)), None)
        if not loss or len(parts) < 3:  # noqa: PLR2004 - batch, classifier, loss
            return None
        before, classifier = parts[-3:-1]
        if not (_is_dense(classifier, "none") and classifier.y is loss.reads[0]):
            return None
        values, classes = prod(classifier.x.value.shape[1:]), classifier.y.value.shape[1]
        if values > MOST_VALUES or classes > MOST_CLASSES:
            return None
        if (relu := _is_dense(before, "relu")) or _is_dense(before, "none"):
            return cls(before, relu, classifier, loss)
        return cls(None, False, classifier, loss)  # noqa: FBT003 - no activation

    def planned(self, device: Device, arena: Arena, sums: "_Sums") -> dict[Part, ForwardBackward]:
        """Plan all parts: the products of the dense block as GEMMs, and the rest in one kernel and in the sums."""
        classifier, hidden = self.classifier, self.hidden
        (N, classes), x, feed = classifier.y.value.shape, classifier.x, self.loss.feed
        flat, values = x.value.reshape(N, -1), prod(x.value.shape[1:])
        losses, hits, ticket = arena.take((N,), np.float32), arena.take((N,), np.int32), arena.take((1,), np.uint32)
        w, dz, dx = classifier.weights, classifier.y.gradient, x.gradient if x.trainable else losses
        truth = feed.labels, feed.order, feed.position
        # The kernel takes an array for every argument; the flags tell it which of them are placeholders.
        before = hidden.weights["bias"] if hidden else w["bias"]
        arrays = flat, before, w["weights"], w["bias"], *truth, dz, dx, losses, hits, feed.losses, feed.hits, ticket
        flags = self.loss.label_smoothing, bool(hidden), self.relu, x.trainable
        head = partial(device.launch, "head", (N, 1), (HEAD_THREADS, 1), scalars([*arrays, *flags, values, classes, N]))
        sums.add_head(flat, dz, classifier.gradients)
        planned: dict[Part, ForwardBackward] = {self.loss: ForwardBackward(head, in_order([])), classifier: NOTHING}
        if hidden:
            sums.add_hidden(dx, hidden.gradients)
            planned[hidden] = _products(device, hidden)
        return planned


def _products(device: Device, layer: LayerPart) -> ForwardBackward:
    """Plan a dense block without bias and activation: z = x w, and both gradients from that of z."""
    x, w, dw, z, dz = layer.x, layer.weights["weights"], layer.gradients["weights"], layer.y.value, layer.y.gradient
    flat = x.value.reshape(len(z), -1)
    backward = [gemm(device, flat, dz, dw, (True, False))]
    if x.trainable:
        backward.append(gemm(device, dz, w, x.gradient.reshape(flat.shape), (False, True)))
    return ForwardBackward(gemm(device, flat, w, z), in_order(backward))


class _Sums:
    """Sums over the batch that remain when all gradients of activations are computed: one kernel for all of them."""

    def __init__(self, device: Device, arena: Arena) -> None:
        self._device = device
        nothing = arena.take((1,), np.float32)  # placeholder for absent terms, which have 0 columns
        self._filters: tuple[Any, ...] = (nothing, nothing, nothing, 0, 0, 0)
        self._hidden: tuple[Any, ...] = (nothing, nothing, 0)
        self._classifier: tuple[Any, ...] = (nothing, nothing, 0, nothing, nothing, 0, 0)
        self._columns = 0

    def add_filters(self, parts: Array, taps: int, gradients: dict[str, Array]) -> None:
        """Add the gradients of a first conv block, given the partial sums ``parts``, (groups, (K·K·C + 1)·F).

        ``taps`` is the number of weights, K·K·C·F; the last F columns are the bias.
        """
        groups, columns = parts.shape
        self._filters = parts, gradients["weights"], gradients["bias"], groups, taps, columns
        self._columns += columns

    def add_hidden(self, slopes: Array, gradients: dict[str, Array]) -> None:
        """Add the gradient of a dense block's bias, given the gradients (N, U) before its activation."""
        self._hidden = slopes, gradients["bias"], slopes.shape[1]
        self._columns += slopes.shape[1]

    def add_head(self, x: Array, slopes: Array, gradients: dict[str, Array]) -> None:
        """Add the gradients of the classifier, given its inputs (N, V) and its outputs' gradients (N, classes)."""
        (N, values), classes = x.shape, slopes.shape[1]
        products = values * classes
        self._classifier = slopes, gradients["bias"], classes, x, gradients["weights"], products, N
        self._columns += classes + products

    def task(self) -> Task:
        """Return the task that computes all sums."""
        arguments = scalars([*self._filters, *self._hidden, *self._classifier])
        grid = (-(-self._columns // LANES), 1)
        return partial(self._device.launch, "batch_sums", grid, BATCH_SUMS, arguments)


def _known(block: Conv) -> Conv:
    """Return a block with only those settings that the fused kernels support; other settings make it unequal."""
    names = "init", "bias_init", "learning_rate_factor", "activation", "filters", "kernel", "stride", "pad", "pool"
    return Conv(**{name: getattr(block, name) for name in names})


def _is_dense(part: Part, activation: Activation) -> TypeGuard[LayerPart]:
    """Return whether a part is a fully trainable dense block with this activation and no other settings."""
    if not (isinstance(part, LayerPart) and isinstance(block := part.block, Dense) and _learns_all(part)):
        return False
    names = "init", "bias_init", "learning_rate_factor", "units"
    return block == Dense(activation=activation, **{name: getattr(block, name) for name in names})


def _learns_all(layer: LayerPart) -> bool:
    """Return whether a layer has weights and bias, both of them trainable unless it is an evaluation."""
    names = {"weights", "bias"}
    return layer.weights.keys() >= names and (not layer.gradients or layer.gradients.keys() >= names)
