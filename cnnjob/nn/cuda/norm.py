"""Batch normalisation on a device, with the activation that follows it."""

from functools import partial
from typing import Any

import numpy as np

from cnnjob.nn.arena import Arena, Array
from cnnjob.nn.cuda.activations import ACTIVATIONS
from cnnjob.nn.cuda.device_api import (
    CHANNELS,
    LANES,
    THREADS,
    Device,
    bordered,
    each,
    in_order,
    row_length,
    scalars,
)
from cnnjob.nn.operations import Norm
from cnnjob.nn.tensors import ForwardBackward, Task, Tensor

MIN_PART_ROWS = 128
"""Minimum number of pixels that each thread block adds up."""
MAX_PARTS = 512
"""Maximum number of thread blocks that add up one channel."""

Arrays = dict[str, Array]


def norm(device: Device, arena: Arena, block: Norm, x: Tensor, y: Tensor, w: Arrays, dw: Arrays) -> ForwardBackward:
    """Plan batch normalisation: y = activation(scale·(x − mean)/√(variance + eps) + shift).

    With g the gradient before the activation, M the number of pixels in the batch and x̂ the normalised input, the input
    gradient is dx = scale/√(variance + eps) · (g − Σg/M − x̂·Σ(g·x̂)/M) (Ioffe & Szegedy 2015, §3). Only the mean and
    1/√(variance + eps) are stored for the backward task, which recomputes x̂ and g.

    Args:
        device: the device that runs the kernels.
        arena: memory for the buffers.
        block: the normalisation's settings and the activation.
        x: input (N, H, W, C), without a border.
        y: output of the same shape.
        w: ``scale`` (if there is one), ``shift``, and the running ``mean`` and ``variance``, each (C,).
        dw: gradients of ``scale`` and ``shift``, overwritten by ``backward``.

    Returns:
        The forward and backward tasks. In training, the forward task also updates the running statistics, unless the
        normalisation is fixed. The input gradient of a fixed normalisation is dx = scale/√(variance + eps) · g.
    """
    N, H, W, C = x.value.shape
    rows, dtype, constants = np.int64(N * H * W), x.value.dtype, (block.settings.momentum, block.settings.eps)
    part_rows = np.int64(max(MIN_PART_ROWS, -(-int(rows) // MAX_PARTS)))
    # The last two receive the gradients of a shift or scale that the block does not have or that is not trainable. If
    # the normalisation is fixed, nothing is written to them: as zeros, they drop out of the input gradient.
    mean, inverse, unused_shift, unused_scale = (arena.take((C,), dtype) for _ in range(4))
    scale = w["scale"] if "scale" in w else arena.constant(np.ones(C, dtype))
    channels, running = (mean, inverse, scale, w["shift"]), (w["mean"], w["variance"])
    length, kind = row_length(x.value.shape), ACTIVATIONS[block.activation]
    normalise = each(device, "normalise", N, H * W * C, x.value, *channels, *bordered(y.value), length, kind, C)
    source = x.value, *channels, *bordered(y.gradient)
    if block.fixed or not y.trainable:
        arguments = scalars([*running, constants[1], mean, inverse, C])
        load_statistics = partial(device.launch, "running_statistics", (-(-C // THREADS), 1), (THREADS, 1), arguments)
        with_running = in_order([load_statistics, normalise])
        if not y.trainable:
            return ForwardBackward(with_running, normalise)
        zeros = unused_shift, unused_scale
        scaled = each(device, "normalise_back", N, H * W * C, *source, length, kind, *zeros, x.gradient, rows, C)
        return ForwardBackward(with_running, scaled)
    # One row of partial sums per thread block, added up in a fixed order by a second kernel: no atomics.
    parts = int(-(-rows // part_rows))
    sums = arena.scratch(0, ((parts, C), dtype), ((parts, C), dtype))
    gradients = dw.get("shift", unused_shift), dw.get("scale", unused_scale)

    def plan_sums(name: str, blocks: int, *arguments: Any) -> Task:
        return partial(device.launch, name, (-(-C // CHANNELS), blocks), (CHANNELS, LANES), scalars(arguments))

    forward = [
        plan_sums("moments", parts, x.value, *sums, rows, C, part_rows),
        plan_sums("batch_statistics", 1, *sums, rows, part_rows, parts, C, *running, *constants, mean, inverse),
        normalise,
    ]
    backward = [
        plan_sums("slope_sums", parts, *source, kind, *sums, rows, H, W, C, part_rows),
        plan_sums("sum_parts", 2, *sums, *gradients, parts, C, 1.0),
        each(device, "normalise_back", N, H * W * C, *source, length, kind, *gradients, x.gradient, rows, C),
    ]
    return ForwardBackward(in_order(forward), in_order(backward))
