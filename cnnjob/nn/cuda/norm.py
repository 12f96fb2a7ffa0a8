"""Batch normalisation on a device, with the activation that follows it."""

from functools import partial
from typing import Any

import numpy as np

from cnnjob.nn.cuda.device_api import THREADS, Device, bordered, each, in_order, row_length, scalars
from cnnjob.nn.cuda.stages import ACTIVATIONS, CHANNELS, LANES
from cnnjob.nn.memory import Arena, Array
from cnnjob.nn.operations import Norm
from cnnjob.nn.tensors import ForwardBackward, Task, Tensor

PART_ROWS = 128
"""Minimum number of pixels that a thread block adds up."""
MOST_PARTS = 512
"""Maximum number of thread blocks that add up one channel."""

Arrays = dict[str, Array]


def norm(device: Device, arena: Arena, block: Norm, x: Tensor, y: Tensor, w: Arrays, dw: Arrays) -> ForwardBackward:
    """Plan a batch normalisation: y = activation(scale·(x − mean)/√(variance + eps) + shift).

    Backward, with g the gradient before the activation, M pixels of the batch and x̂ the normalised values:
    dx = scale/√(variance + eps) · (g − Σg/M − x̂·Σ(g·x̂)/M) (Ioffe & Szegedy 2015, §3). Only the mean and
    1/√(variance + eps) are stored for it; x̂ and g are computed again.

    Args:
        device: runs the kernels.
        arena: memory for the buffers.
        block: the settings, and the activation.
        x: input (N, H, W, C), without a border.
        y: output of the same shape.
        w: ``scale`` (if there is one), ``shift``, and the running ``mean`` and ``variance``, each (C,).
        dw: gradients of ``scale`` and ``shift``, overwritten by ``backward``.

    Returns:
        The two tasks; forward of a training also updates the running statistics.
    """
    N, H, W, C = x.value.shape
    rows, dtype, constants = np.int64(N * H * W), x.value.dtype, (block.settings.momentum, block.settings.eps)
    part = np.int64(max(PART_ROWS, -(-int(rows) // MOST_PARTS)))
    mean, inverse, *own = (arena.take((C,), dtype) for _ in range(4))  # own: sums that no parameter has a gradient for
    scale = w["scale"] if "scale" in w else arena.constant(np.ones(C, dtype))
    channels, running, kind = (mean, inverse, scale, w["shift"]), (w["mean"], w["variance"]), block.activation
    known = row_length(x.value.shape), ACTIVATIONS[kind]
    normalise = each(device, "normalise", N, H * W * C, x.value, *channels, *bordered(y.value), *known, C)
    if not y.trainable:
        fixed = scalars([*running, constants[1], mean, inverse, C])
        take = partial(device.launch, "running_statistics", (-(-C // THREADS), 1), (THREADS, 1), fixed)
        return ForwardBackward(in_order([take, normalise]), normalise)
    # One row of partial sums per thread block, added up in a fixed order by a second kernel: no atomics.
    parts = int(-(-rows // part))
    sums = arena.scratch(0, ((parts, C), dtype), ((parts, C), dtype))
    slopes = dw.get("shift", own[0]), dw.get("scale", own[1])

    def summed(name: str, blocks: int, *arguments: Any) -> Task:
        return partial(device.launch, name, (-(-C // CHANNELS), blocks), (CHANNELS, LANES), scalars(arguments))

    source = x.value, *channels, *bordered(y.gradient)
    forward = [
        summed("moments", parts, x.value, *sums, rows, C, part),
        summed("batch_statistics", 1, *sums, rows, part, parts, C, *running, *constants, mean, inverse),
        normalise,
    ]
    backward = [
        summed("slope_sums", parts, *source, known[1], *sums, rows, H, W, C, part),
        summed("sum_parts", 2, *sums, *slopes, parts, C),
        each(device, "normalise_back", N, H * W * C, *source, *known, *slopes, x.gradient, rows, C),
    ]
    return ForwardBackward(in_order(forward), in_order(backward))
