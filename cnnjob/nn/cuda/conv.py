"""The conv block on a device: convolution, bias, activation and max-pooling at once, a few images at a time.

The matrix of patches of so many images is made as stays in the device's cache until the GEMM has read it. Nothing
of it is kept: the backward pass makes it again. Of a pooling window only the winner's place is kept.
"""

from math import prod
from typing import Any

import numpy as np

from cnnjob.nn.blocks import Conv
from cnnjob.nn.cuda.device_api import Device, bordered, column_sums, each, gemm, in_order, slope, sum_parts
from cnnjob.nn.memory import Arena, Array
from cnnjob.nn.tensors import ForwardBackward, Tensor

COLUMN_BYTES = 16 << 20
"""Of one matrix of patches: it fits the L2 cache of an A100 twice. Fixed, so that the order of every sum is."""
LARGEST_BYTE = 255
SLOPE_SCALE = 16
"""Times the images of a batch, by which float16 slopes are multiplied: a mean's are too small for it."""

Arrays = dict[str, Array]


def conv(
    device: Device, arena: Arena, block: Conv, x: Tensor, y: Tensor, w: Arrays, dw: Arrays, column_bytes: int
) -> ForwardBackward:
    """Plan a conv block: y = maxpool(activation(x ∗ w + b)).

    Args:
        device: where.
        arena: where buffers come from.
        block: its sizes.
        x: (N, H, W, C) with a border of ``block.pad``.
        y: (N, H', W', F).
        w: ``weights`` (K, K, C, F), and ``bias`` (F,) where it has one.
        dw: the gradients of those that learn, overwritten by ``backward``.
        column_bytes: of one matrix of patches, unless that of a single image is larger.

    Returns:
        The two halves.
    """
    N, H, W, F = y.value.shape
    outputs, taps, dtype = H * W * block.pool**2, block.kernel**2 * x.value.shape[3], y.value.dtype
    halves = device.precision == "float16"
    factor = np.dtype(np.float16) if halves else dtype
    n = min(N, max(1, column_bytes // (outputs * taps * factor.itemsize)))  # images at a time
    code = np.uint8 if block.pool**2 - 1 <= LARGEST_BYTE else np.uint16
    working: list[Any] = [((n * outputs, taps), factor), ((n * outputs, F), dtype)]
    working.append(((n * outputs if halves and y.trainable else 0, F), factor))
    working += [((N, H, W, F), dtype), ((sum_parts(N * H * W), F), dtype)] if y.trainable else [((N, H, W, F), code)]
    columns, z, dz, *others = arena.scratch(0, *working)
    winner = arena.take((N, H, W, F), code) if y.trainable else others[0]
    slopes = others[0] if y.trainable else y.gradient
    kernel, prepare = w["weights"].reshape(taps, F), in_order([])
    if halves:
        kernel = arena.take((taps, F), factor)
        prepare = each(device, "halve", 1, taps * F, w["weights"], kernel, 1.0)
    w = {"bias": arena.take((F,), dtype), **w, "weights": kernel}  # a bias of zeroes, where it has none

    def part(first: int) -> ForwardBackward:
        images = slice(first, min(first + n, N))
        return _part(device, block, (x, y), w, dw, (columns, z, dz, slopes[images], winner[images]), images)

    steps = [part(first) for first in range(0, N, n)]
    forward = in_order([prepare, *(step.forward for step in steps)])
    if not y.trainable:
        return ForwardBackward(forward, forward)
    backward = [slope(device, y, block.activation, slopes)]
    if "bias" in dw:
        backward.append(column_sums(device, slopes.reshape(-1, F), others[1], dw["bias"]))
    return ForwardBackward(forward, in_order([*backward, *(step.backward for step in steps)]))


def _part(
    device: Device,
    block: Conv,
    signals: tuple[Tensor, Tensor],
    w: Arrays,
    dw: Arrays,
    buffers: tuple[Array, Array, Array, Array, Array],
    images: slice,
) -> ForwardBackward:
    """The block on some images, which add their share to the weights' gradient; the first set it."""
    x, y = signals
    columns, z, dz, slopes, winner = buffers  # (n·H'·P·W'·P, K·K·C), twice (the same, F), twice (n, H', W', F)
    n, H, W, F = winner.shape
    K, S, P, C = block.kernel, block.stride, block.pool, x.value.shape[3]
    height, width, taps = H * P, W * P, K * K * C
    columns, z, kernel = columns[: n * height * width], z[: n * height * width], w["weights"]
    code, relu = "byte" if winner.itemsize == 1 else "short", block.activation == "relu"
    halved, scale = ("_half", SLOPE_SCALE * len(y.value)) if columns.dtype == np.float16 else ("", 1)

    padded, pooled = bordered(x.padded[images]), bordered(y.value[images])
    patches = each(device, f"im2col{halved}", n, height * width * taps, *padded, columns, K, S, C, width)
    forward = [
        patches,
        gemm(device, columns, kernel, z),
        each(device, f"pool_{code}", n, H * W * F, z, w["bias"], *pooled, winner, P, W, F, relu),
    ]
    if not y.trainable:
        return ForwardBackward(in_order(forward), in_order([]))
    backward = [each(device, f"unpool_{code}", n, H * W * F, slopes, winner, z, P, W, F)]  # z becomes its gradient
    if halved:
        dz = dz[: len(z)]
        backward.append(each(device, "halve", n, height * width * F, z, dz, float(scale)))
    else:
        dz = z
    if "weights" in dw:
        into, beta = dw["weights"].reshape(taps, F), float(images.start > 0)
        backward += [patches, gemm(device, columns, dz, into, (True, False), alpha=1 / scale, beta=beta)]
    if x.trainable:
        sizes = K, S, block.pad, C, x.value.shape[2], height, width
        source, target = (columns, 1 / scale), bordered(x.gradient[images])
        backward += [
            gemm(device, dz, kernel, columns, (False, True)),  # columns become their gradient
            each(device, f"col2im{halved}", n, prod(x.value.shape[1:]), *source, *target, *sizes),
        ]
    return ForwardBackward(in_order(forward), in_order(backward))
