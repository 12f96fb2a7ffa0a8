"""The conv block on NumPy: convolution, bias, activation and max-pooling at once.

The outputs that one pooling window compares are P² *phases*. Each phase is a GEMM over the patches it
sees, so the max-pooling is the maximum of P² arrays and everything after it is P² times smaller. Equal
maxima go to the first phase, in row-major order.
"""

import numpy as np
from numpy.lib.stride_tricks import as_strided

from cnnjob.nn.blocks import Conv
from cnnjob.nn.memory import Arena, Array
from cnnjob.nn.signals import Signal, Step
from cnnjob.nn.workers import Workers, shares

SHARDS = 8
"""A batch is cut into so many parts, whatever the cores: the order of every sum is fixed."""

Arrays = dict[str, Array]


def conv(workers: Workers, arena: Arena, block: Conv, x: Signal, y: Signal, w: Arrays, dw: Arrays) -> Step:
    """Plan a conv block: y = maxpool(activation(x ∗ w + b)).

    Args:
        workers: the cores.
        arena: where buffers come from.
        block: its sizes.
        x: (N, H, W, C) with a border of ``block.pad``.
        y: (N, H', W', F).
        w: ``weights`` (K, K, C, F) and ``bias`` (F,).
        dw: their gradients, overwritten by ``backward``; empty when the block only evaluates.

    Returns:
        The two halves.
    """
    parts = shares(len(y.value), SHARDS)
    partial = {name: arena.take((len(parts), *array.shape), array.dtype) for name, array in dw.items()}
    steps = [
        _shard(arena, block, x, y, w, {name: array[number] for name, array in partial.items()}, number, part)
        for number, part in enumerate(parts)
    ]
    forwards, backwards = [step.forward for step in steps], [step.backward for step in steps]

    def backward() -> None:
        workers.run(backwards)
        for name, array in partial.items():
            np.sum(array, axis=0, out=dw[name])

    return Step(lambda: workers.run(forwards), backward)


def _shard(arena: Arena, block: Conv, x: Signal, y: Signal, w: Arrays, dw: Arrays, number: int, part: slice) -> Step:
    """The block on the images of one shard; ``dw`` takes this shard's share of the gradients."""
    out, dy = y.value[part], y.gradient[part]
    n, H, W, F = out.shape
    K, P, C, phases = block.kernel, block.pool, x.value.shape[3], block.pool**2
    kernel = w["weights"].reshape(K * K * C, F)
    patches = _patches(x.padded[part], block, H, W)  # (P, P, n, H', W', K, K, C)
    kept = (((phases, n, H, W, K, K, C), out.dtype), ((phases, n, H, W, F), out.dtype), ((n, H, W, F), out.dtype))
    columns, z, top = [arena.take(*a) for a in kept] if dw else arena.scratch(number, *kept)
    slope, mask = arena.scratch(number, ((n, H, W, F), out.dtype), ((n, H, W, F), bool)) if dw else (top, top)
    flat_columns, flat_z = columns.reshape(-1, K * K * C), z.reshape(-1, F)

    def forward() -> None:
        for phase in range(phases):
            columns[phase] = patches[phase // P, phase % P]
        np.matmul(flat_columns, kernel, out=flat_z)  # (P²·n·H'·W', F)
        np.copyto(top, z[0])
        for phase in range(1, phases):
            np.maximum(top, z[phase], out=top)
        np.add(top, w["bias"], out=out)  # the bias and ReLU keep the order, so they come after the maximum
        if block.activation == "relu":
            np.maximum(out, 0, out=out)

    if not dw:
        return Step(forward, forward)
    slopes = _patches(x.padded_gradient[part], block, H, W) if x.learns else None

    def backward() -> None:
        np.copyto(slope, dy)
        if block.activation == "relu":
            np.less_equal(out, 0, out=mask)
            np.copyto(slope, 0, where=mask)
        np.sum(slope, axis=(0, 1, 2), out=dw["bias"])
        for phase in range(phases - 1):  # z turns into its own gradient
            np.equal(z[phase], top, out=mask)
            np.multiply(slope, mask, out=z[phase])
            np.subtract(slope, z[phase], out=slope)  # the first of equal maxima has taken it
        np.copyto(z[phases - 1], slope)
        np.matmul(flat_columns.T, flat_z, out=dw["weights"].reshape(K * K * C, F))
        if slopes is not None:
            np.matmul(flat_z, kernel.T, out=flat_columns)  # columns turn into their own gradient
            x.padded_gradient[part] = 0
            for phase, k, m in np.ndindex(phases, K, K):
                into = slopes[phase // P, phase % P, :, :, :, k, m]
                np.add(into, columns[phase, :, :, :, k, m], out=into)

    return Step(forward, backward)


def _patches(padded: Array, block: Conv, H: int, W: int) -> Array:
    """What each output of each phase sees, as a view.

    Args:
        padded: (N, H + 2 pad, W + 2 pad, C).
        block: kernel, stride and pooling.
        H: height after the pooling.
        W: width after the pooling.

    Returns:
        (P, P, N, H', W', K, K, C); writing to it is safe one (K, K) tap at a time.
    """
    K, P, step = block.kernel, block.pool, block.stride
    image, row, column, channel = padded.strides
    shape = (P, P, len(padded), H, W, K, K, padded.shape[3])
    strides = (step * row, step * column, image, step * P * row, step * P * column, row, column, channel)
    return as_strided(padded, shape, strides)
