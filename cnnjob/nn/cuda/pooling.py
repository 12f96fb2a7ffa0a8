"""Pooling on a device."""

from functools import partial

import numpy as np

from cnnjob.nn.arena import Arena
from cnnjob.nn.blocks import GlobalPool
from cnnjob.nn.cuda.device_api import CHANNELS, LANES, Device, bordered, each, scalars
from cnnjob.nn.operations import MaxPool
from cnnjob.nn.tensors import ForwardBackward, Tensor


def pool(device: Device, arena: Arena, block: MaxPool | GlobalPool, x: Tensor, y: Tensor) -> ForwardBackward:
    """Plan max-pooling or global pooling."""
    if isinstance(block, MaxPool):
        return _max_pool(device, arena, block, x, y)
    return _global_pool(device, arena, block, x, y)


def _max_pool(device: Device, arena: Arena, block: MaxPool, x: Tensor, y: Tensor) -> ForwardBackward:
    """Plan max-pooling: (N, H, W, C) → (N, H // P, W // P, C).

    Among equal maxima, the first in row-major order receives the gradient. Rows and columns that do not fill a window
    receive none.
    """
    N, height, width, C = y.value.shape
    _, H, W, _ = x.value.shape
    # Position of the maximum in its window; for evaluation, the kernel writes it to scratch memory.
    winner = arena.take(y.value.shape, np.uint16) if y.trainable else arena.scratch(0, (y.value.shape, np.uint16))[0]
    arrays = *bordered(x.value), *bordered(y.value), winner
    forward = each(device, "max_pool", N, height * width * C, *arrays, block.side, width, C)
    if not y.trainable:
        return ForwardBackward(forward, forward)
    gradients = *bordered(y.gradient), winner, *bordered(x.gradient)
    return ForwardBackward(
        forward, each(device, "max_pool_back", N, H * W * C, *gradients, block.side, W, C, height, width)
    )


def _global_pool(device: Device, arena: Arena, block: GlobalPool, x: Tensor, y: Tensor) -> ForwardBackward:
    """Plan the mean or the maximum over all pixels: (N, H, W, C) → (N, C).

    Among equal maxima, the first in row-major order receives the gradient.
    """
    N, H, W, C = x.value.shape
    first_maxima = [arena.take((N, C), np.int32)] if block.how == "max" else []
    arguments = scalars([*bordered(x.value), y.value, *first_maxima, W, C, H * W])
    grid = N, -(-C // CHANNELS)
    forward = partial(device.launch, f"global_{block.how}", grid, (CHANNELS, LANES), arguments)
    if not y.trainable:
        return ForwardBackward(forward, forward)
    if block.how == "mean":
        backward_arguments = [y.gradient, *bordered(x.gradient), W * C, C, H * W]
    else:
        backward_arguments = [y.gradient, *first_maxima, *bordered(x.gradient), W * C, C]
    backward = each(device, f"global_{block.how}_back", N, H * W * C, *backward_arguments)
    return ForwardBackward(forward, backward)
