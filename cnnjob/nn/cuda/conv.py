"""Conv block on a device: convolution, bias, activation and max-pooling, for a few images at a time.

The patch matrix (im2col) covers only a few images, so that it is still in the device's cache when the matrix product
reads it. It is not kept for the backward pass, which computes the patches again. For each pooling window, only the
position of the maximum is kept.
"""

from math import prod
from typing import Any

import numpy as np

from cnnjob.nn.arena import Arena, Array
from cnnjob.nn.blocks import Conv
from cnnjob.nn.cuda.blas import aligned_row
from cnnjob.nn.cuda.device_api import Device, bordered, column_sums, each, gemm, in_order, relu_backward, rows_per_sum
from cnnjob.nn.tensors import ForwardBackward, Task, Tensor

COLUMN_BYTES = 16 << 20
"""Maximum size of a patch matrix; two fit in the L2 cache of an A100.

It does not depend on the GPU, so that the order of every sum is fixed.
"""
MAX_BYTE = 255
GRADIENT_SCALE = 16
"""Factor for float16 gradients, to be multiplied by the number of images in the batch.

The loss is a mean over the batch, so the unscaled gradients are too small for float16.
"""

Arrays = dict[str, Array]


def conv(
    device: Device, arena: Arena, block: Conv, x: Tensor, y: Tensor, w: Arrays, dw: Arrays, column_bytes: int
) -> ForwardBackward:
    """Plan a conv block: y = maxpool(activation(x ∗ w + b)).

    Args:
        device: the device that runs the kernels.
        arena: memory for the buffers.
        block: the block's settings.
        x: input (N, H, W, C) with a border of ``block.pad``.
        y: output (N, H', W', F).
        w: ``weights`` (K, K, C, F), and ``bias`` (F,) if there is one.
        dw: gradients of the trainable parameters, overwritten by ``backward``.
        column_bytes: maximum size of the values of a patch matrix, unless a single image needs more.

    Returns:
        The forward and backward tasks.
    """
    N, H, W, F = y.value.shape
    outputs, taps, dtype = H * W * block.pool**2, block.kernel**2 * x.value.shape[3], y.value.dtype
    in_float16 = device.precision == "float16"
    factor_dtype = np.dtype(np.float16) if in_float16 else dtype
    pitch, filter_pitch = (aligned_row(count, factor_dtype) for count in (taps, F))
    n = min(N, max(1, column_bytes // (outputs * taps * factor_dtype.itemsize)))  # images at a time
    winner_dtype = np.uint8 if block.pool**2 - 1 <= MAX_BYTE else np.uint16  # position of the maximum in its window
    # For n images: patches, z, and in float16 the gradient of z. For all images: the gradients before the activation
    # and the partial sums for the bias, or for evaluation the positions of the maxima, which nothing reads.
    scratch: list[Any] = [((n * outputs, pitch), factor_dtype), ((n * outputs, F), dtype)]
    scratch.append(((n * outputs if in_float16 and y.trainable else 0, filter_pitch), factor_dtype))
    if y.trainable:
        n_partial = -(-N * H * W // rows_per_sum(N * H * W))
        scratch += [((N, H, W, F), dtype), ((n_partial, F), dtype)]
    else:
        scratch.append(((N, H, W, F), winner_dtype))
    columns, z, dz, *others = arena.scratch(0, *scratch)
    columns, dz = columns[:, :taps], dz[:, :F]
    winner = arena.take((N, H, W, F), winner_dtype) if y.trainable else others[0]
    d_pooled = others[0] if y.trainable else y.gradient
    kernel, load_kernel = w["weights"].reshape(taps, F), in_order([])
    if in_float16:
        kernel = arena.take((taps, filter_pitch), factor_dtype)[:, :F]
        load_kernel = _halve(device, w["weights"].reshape(taps, F), kernel, 1.0)
    w = {"bias": arena.take((F,), dtype), **w, "weights": kernel}  # a bias of zeros if there is none

    steps: list[ForwardBackward] = []
    for first in range(0, N, n):
        images = slice(first, min(first + n, N))
        buffers = columns, z, dz, d_pooled[images], winner[images]
        steps.append(_plan_images(device, block, (x, y), w, dw, buffers, images))
    forward = in_order([load_kernel, *(step.forward for step in steps)])
    if not y.trainable:
        return ForwardBackward(forward, forward)
    backward = [relu_backward(device, y, block.activation, d_pooled)]
    if "bias" in dw:
        backward.append(column_sums(device, d_pooled.reshape(-1, F), others[1], dw["bias"]))
    return ForwardBackward(forward, in_order([*backward, *(step.backward for step in steps)]))


def _plan_images(
    device: Device,
    block: Conv,
    tensors: tuple[Tensor, Tensor],
    w: Arrays,
    dw: Arrays,
    buffers: tuple[Array, Array, Array, Array, Array],
    images: slice,
) -> ForwardBackward:
    """Plan the block for a slice of the batch.

    The backward task adds to the weight gradient, or overwrites the gradient if the slice begins with the batch's first
    image.
    """
    x, y = tensors
    # columns (n·H'·P·W'·P, K·K·C); z and dz (n·H'·P·W'·P, F); d_pooled and winner (n, H', W', F)
    columns, z, dz, d_pooled, winner = buffers
    n, H, W, F = winner.shape
    K, S, P, C = block.kernel, block.stride, block.pool, x.value.shape[3]
    height, width, taps = H * P, W * P, K * K * C
    columns, z, kernel = columns[: n * height * width], z[: n * height * width], w["weights"]
    winner_type, relu = "byte" if winner.itemsize == 1 else "short", block.activation == "relu"
    suffix, scale = ("_half", GRADIENT_SCALE * len(y.value)) if columns.dtype == np.float16 else ("", 1)

    padded, pooled = bordered(x.padded[images]), bordered(y.value[images])
    pitch = columns.strides[0] // columns.itemsize
    patches = each(device, f"im2col{suffix}", n, height * width * pitch, *padded, columns, K, S, C, width, pitch)
    forward = [
        patches,
        gemm(device, columns, kernel, z),
        each(device, f"pool_{winner_type}", n, H * W * F, z, w["bias"], *pooled, winner, P, W, F, relu),
    ]
    if not y.trainable:
        return ForwardBackward(in_order(forward), in_order([]))
    backward = [
        each(device, f"unpool_{winner_type}", n, H * W * F, d_pooled, winner, z, P, W, F)
    ]  # z becomes its gradient
    # The scale of dz carries through both products, whose results are divided by it.
    if suffix:
        dz = dz[: len(z)]
        backward.append(_halve(device, z, dz, float(scale)))
    else:
        dz = z
    if "weights" in dw:
        # With beta 0, the first images overwrite the previous step's gradient, so it need not be cleared.
        dw_matrix, beta = dw["weights"].reshape(taps, F), 1.0 if images.start else 0.0
        backward += [patches, gemm(device, columns, dz, dw_matrix, (True, False), alpha=1 / scale, beta=beta)]
    if x.trainable:
        sizes = K, S, block.pad, C, x.value.shape[2], height, width, pitch
        source, target = (columns, 1 / scale), bordered(x.gradient[images])
        backward += [
            gemm(device, dz, kernel, columns, (False, True)),  # columns become patch gradients, after the GEMM above
            each(device, f"col2im{suffix}", n, prod(x.value.shape[1:]), *source, *target, *sizes),
        ]
    return ForwardBackward(in_order(forward), in_order(backward))


def _halve(device: Device, matrix: Array, out: Array, factor: float) -> Task:
    """Plan out = factor·matrix in float16; the rows of ``out`` may have gaps between them."""
    (rows, columns), row = matrix.shape, out.strides[0] // out.itemsize
    if row == columns:
        rows, columns, row = 1, matrix.size, matrix.size
    return each(device, "halve", rows, columns, matrix, out, row, factor)
