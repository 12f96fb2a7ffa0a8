"""Fused parts of a step: the first conv block reads the images' bytes, and the classifier computes the loss.

:meth:`FirstConv.find` and :meth:`Head.find` determine which parts are fused; all others are planned separately.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, Self, TypeGuard

import numpy as np

from cnnjob.nn.arena import Arena
from cnnjob.nn.blocks import Activation, Conv, Dense
from cnnjob.nn.cuda.deferred import NO_TASKS, DeferredBatch, DeferredLoss, DeferredOperation, DeferredPart
from cnnjob.nn.cuda.device_api import WARP, Device, bordered, gemm, in_order, scalars
from cnnjob.nn.tensors import ForwardBackward, Task

WARPS, TILE = 8, 6144
"""Warps per thread block and floats of shared memory in the first conv block's kernels, as in ``fused.cu``."""
FIRST_BLOCKS = [(kernel, pool, channels) for kernel, channels in ((3, 1), (3, 3), (5, 1)) for pool in (1, 2)]
"""Kernel size, pooling size and number of channels for which ``fused.cu`` has kernels."""
MAX_GROUPS = 128
"""Maximum number of thread blocks that sum the gradients of the first conv block, about one per multiprocessor.

It does not depend on the GPU, so that the order of every sum is fixed.
"""
MAX_VALUES, MAX_CLASSES, HEAD_THREADS = 1024, 32, 128
"""Maximum numbers of inputs and classes of a classifier fused with its loss, and threads per block of that kernel."""
BATCH_SUMS = (WARP, 8)
"""Threads per block of the ``batch_sums`` kernel."""


def fuse(device: Device, arena: Arena, parts: Sequence[DeferredPart]) -> dict[DeferredPart, ForwardBackward]:
    """Plan the parts that are computed together with a neighbour.

    Args:
        device: the device that runs the kernels.
        arena: memory for the buffers.
        parts: parts of a training or evaluation step, in order.

    Returns:
        The forward and backward tasks of each fused part; all other parts must be planned alone.
    """
    first, head = FirstConv.find(parts), Head.find(parts)
    planned: dict[DeferredPart, ForwardBackward] = {}
    sums = _Sums(device, arena)
    if first:
        planned |= first.plan(device, arena, sums)
    if head:
        planned |= head.plan(device, arena, sums)
    # The part whose backward task runs last: by then all gradients to be summed over the batch have been computed.
    last = first.layer if first else head and (head.hidden or head.classifier)
    if last and last.gradients:
        planned[last] = ForwardBackward(planned[last].forward, in_order([planned[last].backward, sums.plan()]))
    return planned


@dataclass(frozen=True)
class FirstConv:
    """A batch and the conv block that reads it, computed in one kernel."""

    batch: DeferredBatch
    layer: DeferredOperation
    block: Conv
    """The layer's operation."""

    @classmethod
    def find(cls, parts: Sequence[DeferredPart]) -> Self | None:
        """Return a step's first conv block, or None if no fused kernel supports it."""
        batch = next((part for part in parts if isinstance(part, DeferredBatch)), None)
        if not batch or batch.changes:
            return None
        # A fused batch is never stored: nothing else may read it or a window of it, as a shortcut does. The batch of
        # another view also counts as a reader, so a block that several views share is not fused with the first.
        readers = [
            part for part in parts
            if part is not batch and any(batch.x.value is array for x in part.reads for array in (x.value, x.window_of))
        ]  # fmt: skip
        if len(readers) != 1 or not isinstance(layer := readers[0], DeferredOperation):
            return None
        block, C = layer.operation, batch.x.value.shape[-1]
        if not (isinstance(block, Conv) and block == _with_supported_settings(block) and _is_fully_trainable(layer)):
            return None
        if (block.kernel, block.pool, C) not in FIRST_BLOCKS or block.stride != 1:
            return None
        first = cls(batch, layer, block)
        return first if C * first.rows * first.pitch <= TILE else None

    @property
    def rows(self) -> int:
        """Return the number of rows of pixels that a thread block reads."""
        return WARPS * self.block.pool + self.block.kernel - 1

    @property
    def pitch(self) -> int:
        """Return the number of floats from one row to the next in shared memory.

        The number is even, so that two floats can be loaded at once. It is not a multiple of 32, the number of memory
        banks, so that two pixels directly above one another are in different banks.
        """
        width = self.layer.y.value.shape[2] * self.block.pool + self.block.kernel - 1
        even = int(width + width % 2)
        return even + 2 if even % 32 == 0 else even

    def plan(self, device: Device, arena: Arena, sums: "_Sums") -> dict[DeferredPart, ForwardBackward]:
        """Plan the batch and the conv block; the block's tasks also load the images, so the batch has no tasks."""
        layer, block, x, y = self.layer, self.block, self.batch.x, self.layer.y
        (N, height, width, F), (H, W, C) = y.value.shape, x.value.shape[1:]
        training, bands = y.trainable, -(-height // WARPS)
        name = f"{block.kernel}_{block.pool}_{C}"
        winner = arena.take((N, height, width, F) if training else (1,), np.uint8)
        normalisation = self.batch.pixels.scale, self.batch.pixels.shift
        pixels = [arena.constant(np.asarray(values, np.float32)) for values in normalisation]
        filters = -(-F // WARP)
        sizes = H, W, block.pad, self.pitch, height, width, F
        w, flags = layer.weights, (block.activation == "relu", training)
        inputs = self.batch.inputs

        # The arguments are collected on each call, since evaluation may replace images and order.
        def forward() -> None:
            source = inputs.images, inputs.rows, inputs.position
            arrays = *source, *pixels, w["weights"], w["bias"], *bordered(y.value), winner
            arguments = scalars([*arrays, *sizes, *flags, N])
            device.launch(f"first_forward_{name}", (N * bands, filters), (WARP, WARPS), arguments)

        if not training:
            return {self.batch: NO_TASKS, layer: ForwardBackward(forward, forward)}
        groups, taps = min(N * bands, MAX_GROUPS), block.kernel**2 * C
        parts = arena.take((groups, (taps + 1) * F), np.float32)  # of the weights, then of the bias
        source = inputs.images, inputs.rows, inputs.position
        arguments = scalars([*source, *pixels, *bordered(y.gradient), winner, parts, *sizes, N])
        backward = partial(device.launch, f"first_backward_{name}", (groups, filters), (WARP, WARPS), arguments)
        sums.filters = parts, layer.gradients["weights"], layer.gradients["bias"], groups, taps * F, (taps + 1) * F
        return {self.batch: NO_TASKS, layer: ForwardBackward(forward, backward)}


@dataclass(frozen=True)
class Head:
    """The classifier and loss, with the dense block before them if there is one."""

    hidden: DeferredOperation | None
    """The dense block before the classifier."""
    relu: bool
    """True if the dense block before the classifier has a ReLU."""
    classifier: DeferredOperation
    loss: DeferredLoss

    @classmethod
    def find(cls, parts: Sequence[DeferredPart]) -> Self | None:
        """Return the head of a training step, or None if the fused kernel does not support it.

        The kernel processes each image in one thread block, which limits the size of the head.
        """
        loss = next((part for part in parts if isinstance(part, DeferredLoss)), None)
        if not loss or loss.mixes or (end := parts.index(loss)) < 2:  # noqa: PLR2004 - batch, classifier, loss
            return None
        before, classifier = parts[end - 2 : end]
        if not (_is_dense(classifier, "none") and classifier.y is loss.reads[0]):
            return None
        values, classes = prod(classifier.x.value.shape[1:]), classifier.y.value.shape[1]
        if values > MAX_VALUES or classes > MAX_CLASSES:
            return None
        if (relu := _is_dense(before, "relu")) or _is_dense(before, "none"):
            return cls(before, relu, classifier, loss)
        return cls(None, False, classifier, loss)  # noqa: FBT003 - no activation

    def plan(self, device: Device, arena: Arena, sums: "_Sums") -> dict[DeferredPart, ForwardBackward]:
        """Plan all parts of the head.

        The hidden block's products are GEMMs, ``sums`` computes the sums over the batch, and one kernel computes the
        rest.
        """
        classifier, hidden = self.classifier, self.hidden
        (N, classes), x, inputs = classifier.y.value.shape, classifier.x, self.loss.inputs
        flat, values = x.value.reshape(N, -1), prod(x.value.shape[1:])
        losses, correct = arena.take((N,), np.float32), arena.take((N,), np.int32)  # per image
        ticket = arena.take((1,), np.uint32)
        w, dz, dx = classifier.weights, classifier.y.gradient, x.gradient if x.trainable else losses
        truth = inputs.labels, inputs.order, inputs.position
        # The kernel takes an array for every argument; the flags specify which of them are placeholders.
        hidden_bias = hidden.weights["bias"] if hidden else w["bias"]
        written = dz, dx, losses, correct, inputs.losses, inputs.n_correct, ticket
        arrays = flat, hidden_bias, w["weights"], w["bias"], *truth, *written
        flags = self.loss.label_smoothing, bool(hidden), self.relu, x.trainable
        head = partial(device.launch, "head", (N, 1), (HEAD_THREADS, 1), scalars([*arrays, *flags, values, classes, N]))
        gradients = classifier.gradients
        sums.classifier = dz, gradients["bias"], classes, flat, gradients["weights"], values * classes, N
        loss_tasks = ForwardBackward(head, in_order([]))
        planned: dict[DeferredPart, ForwardBackward] = {self.loss: loss_tasks, classifier: NO_TASKS}
        if hidden:
            sums.hidden = dx, hidden.gradients["bias"], values
            planned[hidden] = _plan_products(device, hidden)
        return planned


def _plan_products(device: Device, layer: DeferredOperation) -> ForwardBackward:
    """Plan z = x w, a dense block without bias or activation, and the gradients of x and w from the gradient of z."""
    x, w, dw, z, dz = layer.x, layer.weights["weights"], layer.gradients["weights"], layer.y.value, layer.y.gradient
    flat = x.value.reshape(len(z), -1)
    backward = [gemm(device, flat, dz, dw, (True, False))]
    if x.trainable:
        backward.append(gemm(device, dz, w, x.gradient.reshape(flat.shape), (False, True)))
    return ForwardBackward(gemm(device, flat, w, z), in_order(backward))


class _Sums:
    """The sums over the batch, all computed by one kernel once all activation gradients are known."""

    def __init__(self, device: Device, arena: Arena) -> None:
        self._device = device
        nothing = arena.take((1,), np.float32)  # placeholder for absent terms, which have 0 columns
        self.filters: tuple[Any, ...] = nothing, nothing, nothing, 0, 0, 0
        """First conv block: partial sums (groups, (K·K·C + 1)·F), gradients of weights and bias; number of groups, of
        weights, and of columns in the partial sums."""
        self.hidden: tuple[Any, ...] = nothing, nothing, 0
        """Dense block before the classifier: gradients (N, U) before its activation, bias gradient; U."""
        self.classifier: tuple[Any, ...] = nothing, nothing, 0, nothing, nothing, 0, 0
        """Classifier: gradients of its outputs (N, classes), bias gradient, classes; its inputs (N, V), weight
        gradient, number of weights; N."""

    def plan(self) -> Task:
        """Plan the kernel that computes all sums."""
        columns = self.filters[5] + self.hidden[2] + self.classifier[2] + self.classifier[5]
        arguments = scalars([*self.filters, *self.hidden, *self.classifier])
        return partial(self._device.launch, "batch_sums", (-(-columns // WARP), 1), BATCH_SUMS, arguments)


def _with_supported_settings(block: Conv) -> Conv:
    """Return a copy of a block with only the settings that fused kernels support, and defaults for all others."""
    names = (
        "init",
        "bias_init",
        "bias_epochs",
        "learning_rate_factor",
        "activation",
        "filters",
        "kernel",
        "stride",
        "pad",
        "pool",
    )
    return Conv(**{name: getattr(block, name) for name in names})


def _is_dense(part: DeferredPart, activation: Activation) -> TypeGuard[DeferredOperation]:
    """Return whether a part is a fully trainable dense block with this activation and no other settings."""
    if not (
        isinstance(part, DeferredOperation) and isinstance(block := part.operation, Dense) and _is_fully_trainable(part)
    ):
        return False
    names = "init", "bias_init", "bias_epochs", "learning_rate_factor", "units"
    return block == Dense(activation=activation, **{name: getattr(block, name) for name in names})


def _is_fully_trainable(layer: DeferredOperation) -> bool:
    """Return whether a layer has weights and a bias and, unless it is planned for evaluation, both are trainable."""
    names = {"weights", "bias"}
    return layer.weights.keys() >= names and (not layer.gradients or layer.gradients.keys() >= names)
