"""Operations without parameters on a device: activations, pooling, and the sum of a residual block."""

from collections.abc import Sequence
from functools import partial
from math import prod

import numpy as np

from cnnjob.nn.blocks import Activation, GlobalPool
from cnnjob.nn.cuda.blocks import softmax
from cnnjob.nn.cuda.device_api import Device, bordered, each, in_order, row_length, scalars
from cnnjob.nn.memory import Arena, Array
from cnnjob.nn.operations import Activate, MaxPool
from cnnjob.nn.tensors import ForwardBackward, StepInputs, Task, Tensor

ACTIVATIONS = {"none": 0, "relu": 1, "gelu": 2}
"""Codes of the activations in the kernels."""
CHANNELS, LANES = 32, 8
"""Channels, and lanes per channel, of a thread block that sums over pixels."""


def stage(
    device: Device, arena: Arena, block: Activate | MaxPool | GlobalPool, x: Tensor, y: Tensor
) -> ForwardBackward:
    """Plan an operation without parameters."""
    if isinstance(block, Activate):
        return _activated(device, [x.value], x.gradient, y, block.activation)
    if isinstance(block, MaxPool):
        return _max_pool(device, arena, block, x, y)
    return _global_pool(device, arena, block, x, y)


def join(device: Device, body: Tensor, shortcut: Tensor, y: Tensor, kind: Activation) -> ForwardBackward:
    """Plan the end of a residual block: y = activation(body + shortcut), all (N, H, W, C).

    Backward writes the gradient of the sum to that of the body; the shortcut's gradient is the same.
    """
    return _activated(device, [body.value, shortcut.value], body.gradient, y, kind)


def _activated(device: Device, terms: Sequence[Array], slope: Array, y: Tensor, kind: Activation) -> ForwardBackward:
    """Plan y = activation(sum of one or two terms), and the gradient of the sum."""
    N, *inner = y.value.shape
    # A single term is passed twice, and the number of terms tells the kernel to read it once.
    source = *bordered(terms[0]), *bordered(terms[-1]), len(terms)
    last = row_length(y.value.shape), ACTIVATIONS[kind]
    forward = each(device, "activate", N, prod(inner), *source, *bordered(y.value), *last)
    if not y.trainable:
        return ForwardBackward(forward, forward)
    slopes = *bordered(y.gradient), *bordered(slope)
    return ForwardBackward(forward, each(device, "activate_back", N, prod(inner), *source, *slopes, *last))


def accumulate(device: Device, source: Array, target: Array) -> Task:
    """Plan target ← target + source, both (N, …)."""
    N, *inner = target.shape
    arrays = *bordered(source), *bordered(target), row_length(target.shape)
    return each(device, "accumulate", N, prod(inner), *arrays)


def _max_pool(device: Device, arena: Arena, block: MaxPool, x: Tensor, y: Tensor) -> ForwardBackward:
    """Plan max-pooling: (N, H, W, C) → (N, H // P, W // P, C).

    Of equal maxima the first in row-major order receives the gradient. Rows and columns that do not fill a window
    receive none.
    """
    N, height, width, C = y.value.shape
    _, H, W, _ = x.value.shape
    # The place of the maximum in its window; the kernel writes it in an evaluation too, where it is scratch.
    winner = arena.take(y.value.shape, np.uint16) if y.trainable else arena.scratch(0, (y.value.shape, np.uint16))[0]
    arrays = *bordered(x.value), *bordered(y.value), winner
    forward = each(device, "max_pool", N, height * width * C, *arrays, block.side, width, C)
    if not y.trainable:
        return ForwardBackward(forward, forward)
    slopes = *bordered(y.gradient), winner, *bordered(x.gradient)
    return ForwardBackward(
        forward, each(device, "max_pool_back", N, H * W * C, *slopes, block.side, W, C, height, width)
    )


def _global_pool(device: Device, arena: Arena, block: GlobalPool, x: Tensor, y: Tensor) -> ForwardBackward:
    """Plan the mean or the maximum over all pixels: (N, H, W, C) → (N, C).

    Of equal maxima the first in row-major order receives the gradient.
    """
    N, H, W, C = x.value.shape
    first = [arena.take((N, C), np.int32)] if block.how == "max" else []
    arguments = scalars([*bordered(x.value), y.value, *first, W, C, H * W])
    grid = N, -(-C // CHANNELS)
    forward = partial(device.launch, f"global_{block.how}", grid, (CHANNELS, LANES), arguments)
    if not y.trainable:
        return ForwardBackward(forward, forward)
    slopes = y.gradient, *first, *bordered(x.gradient), W * C, C, *([] if first else [H * W])
    return ForwardBackward(forward, each(device, f"global_{block.how}_back", N, H * W * C, *slopes))


def mean_outputs(
    device: Device, arena: Arena, feed: StepInputs, logits: Tensor, shares: Sequence[float]
) -> tuple[list[Task], Task]:
    """Plan the softmax of the weighted mean of the logits (N, K) of several views.

    The last task writes it to ``feed.probabilities`` and advances to the next step.

    Returns:
        One task to run after each view, and the last task.
    """
    # A single view has weight 1: its logits are the mean.
    if len(shares) == 1:
        return [in_order([])], softmax(device, arena, feed, logits.value)
    (N, K), mean = logits.value.shape, arena.take(logits.value.shape, logits.value.dtype)
    added = [each(device, "add_share", N, K, logits.value, mean, s, place == 0) for place, s in enumerate(shares)]
    return added, softmax(device, arena, feed, mean)
