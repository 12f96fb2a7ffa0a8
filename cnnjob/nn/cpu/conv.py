"""The conv block on NumPy: convolution, bias, activation and max-pooling at once.

The outputs that one pooling window compares are P² *phases*. Each phase is a GEMM over the patches it
sees, so the max-pooling is the maximum of P² arrays and everything after it is P² times smaller. Of it
the backward half needs P² masks: which phase takes a window's gradient. Equal maxima go to the first
phase, in row-major order.

A batch is cut into shards, which the cores share, and a shard into pieces whose arrays fit a core's
cache. So the patches are gathered anew in the backward half, which is faster than to keep them; only
those of few channels, which are small and slow to gather, are kept.
"""

from functools import partial

import numpy as np
from numpy.lib.stride_tricks import as_strided

from cnnjob.nn.blocks import Conv, Shape
from cnnjob.nn.memory import Arena, Array
from cnnjob.nn.signals import Signal, Step, Task
from cnnjob.nn.workers import SHARDS, Workers, run_all, shares

PIECE_BYTES = 1 << 20
"""Of a piece's patches and phases, which should stay in the caches; smaller ones cost more calls."""
MOST_PIECES = 64
"""Of a shard; beyond it the pieces grow, so that planning stays quick."""
FEW_CHANNELS = 8
"""Of fewer, patches lie tap by tap: the values of one tap are then the longer runs of memory."""

Arrays = dict[str, Array]


def conv(workers: Workers, arena: Arena, block: Conv, x: Signal, y: Signal, w: Arrays, dw: Arrays) -> Step:
    """Plan a conv block: y = maxpool(activation(x ∗ w + b)).

    Args:
        workers: the cores.
        arena: where buffers come from.
        block: its sizes.
        x: (N, H, W, C) with a border of ``block.pad``.
        y: (N, H', W', F).
        w: ``weights`` (K, K, C, F), and ``bias`` (F,) where it has one.
        dw: the gradients of those that learn, overwritten by ``backward``.

    Returns:
        The two halves.
    """
    parts = shares(len(y.value), SHARDS)
    sums = {name: arena.take((len(parts), *array.shape), array.dtype) for name, array in dw.items()}
    turned = w["weights"][::-1, ::-1].swapaxes(2, 3)  # (K, K, F, C)
    used = {**w, "turned": arena.take(turned.shape if x.learns else (0,), turned.dtype)}
    steps = [
        _shard(arena, block, x, y, used, {name: array[number] for name, array in sums.items()}, number, part)
        for number, part in enumerate(parts)
    ]
    forwards, backwards = [step.forward for step in steps], [step.backward for step in steps]

    def backward() -> None:
        if x.learns:
            np.copyto(used["turned"], turned)
        workers.run(backwards)
        for name, array in sums.items():
            np.add.reduce(array, axis=0, out=dw[name])

    return Step(lambda: workers.run(forwards), backward)


def _shard(arena: Arena, block: Conv, x: Signal, y: Signal, w: Arrays, dw: Arrays, number: int, part: slice) -> Step:
    """The block on the images of one shard, piece by piece; ``dw`` takes this shard's share of the gradients."""
    _, H, W, F = y.value.shape
    image_bytes = block.pool**2 * H * W * (block.kernel**2 * x.value.shape[3] + F) * y.value.itemsize
    count = part.stop - part.start
    steps = [
        _piece(arena, block, x, y, w, dw, number, slice(part.start + piece.start, part.start + piece.stop))
        for piece in shares(count, min(MOST_PIECES, -(-count * image_bytes // PIECE_BYTES)))
    ]
    backwards = [step.backward for step in steps]

    def backward() -> None:
        for array in dw.values():
            array.fill(0)
        run_all(backwards)

    return Step(partial(run_all, [step.forward for step in steps]), backward)


def _piece(arena: Arena, block: Conv, x: Signal, y: Signal, w: Arrays, dw: Arrays, number: int, part: slice) -> Step:
    """The block on a few images; ``backward`` adds their share of the gradients to ``dw``."""
    n, H, W, F = shape = y.value[part].shape
    K, P, C, dtype = block.kernel, block.pool, x.value.shape[3], y.value.dtype
    positions, taps = P * P * n * H * W, K * K * C
    turns = x.learns and block.stride == 1
    keeps = "weights" in dw and C < FEW_CHANNELS
    bare = P == 1 and block.activation == "none" and "bias" not in w and y.value.flags.c_contiguous
    needed: dict[str, Shape] = {
        "columns": (0,) if keeps else (positions, taps),
        "z": (0,) if bare else (P * P, *shape),
        "top": shape if P > 1 else (0,),
        "bias_row": (W, F),
        "zeros": (W, F),
        "ones": (1, positions),
        "weights": (taps, F) if "weights" in dw else (0,),
        "bias": (1, F),
    }
    if turns:
        needed |= _turned_sizes(block, (n, *x.value.shape[1:]), F)
    memory = dict(zip(needed, arena.scratch(number, *((size, dtype) for size in needed.values())), strict=True))
    if keeps:
        memory["columns"] = arena.take((positions, taps), dtype)
    patches = _Patches(x.padded[part], block, (H, W), memory["columns"])
    chosen = y.learns and (block.activation == "relu" or P > 1)
    masks = arena.take((P * P, *shape) if chosen else (0, *shape), bool)
    if bare:  # the product is the output
        memory["z"] = y.value[part][None]
    forward = _forward(block, patches, memory, w, y.value[part], masks)
    if not y.learns:
        return Step(forward, forward)
    if bare:
        memory = {**memory, "z": y.gradient[part][None]}
    into_weights = _into_weights(patches, memory, dw, y.gradient[part], masks, keeps=keeps)
    if not x.learns:
        return Step(forward, into_weights)
    into_input = _turned(block, x, part, memory, w) if turns else _scattered(block, x, part, patches, memory, w)

    def backward() -> None:
        into_weights()
        into_input()

    return Step(forward, backward)


def _forward(block: Conv, patches: "_Patches", memory: Arrays, w: Arrays, out: Array, masks: Array) -> Task:
    """Output and masks."""
    z, bias, zeros = (memory[name] for name in ("z", "bias_row", "zeros"))
    kernel = w["weights"].reshape(-1, out.shape[-1])
    flat_z, top = z.reshape(-1, out.shape[-1]), memory["top"] if block.pool > 1 else z[0]
    bare = np.may_share_memory(z, out)

    def forward() -> None:
        patches.gather()
        np.matmul(patches.flat, kernel, out=flat_z)
        for phase in range(1, len(z)):
            np.maximum(top if phase > 1 else z[0], z[phase], out=top)
        if "bias" in w:
            np.copyto(bias, w["bias"])  # a row of them: NumPy is slow with short ones and with scalars
            np.add(top, bias, out=out)  # the bias and ReLU keep the order, so they come after the maximum
        elif not bare:
            np.copyto(out, top)
        if block.activation == "relu":
            zeros.fill(0)
            np.maximum(out, zeros, out=out)
        if len(masks):
            mark()

    def mark() -> None:
        free = masks[-1]  # windows whose gradient no phase has taken
        if block.activation == "relu":
            np.greater(out, 0, out=free)
        else:
            free.fill(1)
        np.equal(z[:-1], top, out=masks[:-1])
        for mask in masks[:-1]:
            np.logical_and(mask, free, out=mask)
            np.logical_xor(mask, free, out=free)

    return forward


def _into_weights(patches: "_Patches", memory: Arrays, dw: Arrays, dy: Array, masks: Array, *, keeps: bool) -> Task:
    """The gradients of z, which take its place, and of weights and bias, which are added to ``dw``."""
    z, ones, weights, bias = (memory[name] for name in ("z", "ones", "weights", "bias"))
    flat_z = z.reshape(-1, z.shape[-1])
    bare = np.may_share_memory(z, dy)

    def backward() -> None:
        if len(masks):
            np.multiply(dy, masks, out=z)
        elif not bare:
            np.copyto(z[0], dy)
        if "weights" in dw:
            if not keeps:
                patches.gather()
            np.matmul(patches.flat.T, flat_z, out=weights)
            np.add(dw["weights"].reshape(weights.shape), weights, out=dw["weights"].reshape(weights.shape))
        if "bias" in dw:
            ones.fill(1)
            np.matmul(ones, flat_z, out=bias)  # a sum over an array's first axis is slow otherwise
            np.add(dw["bias"], bias[0], out=dw["bias"])

    return backward


def _turned_sizes(block: Conv, shape: Shape, F: int) -> dict[str, Shape]:
    """What :func:`_turned` needs for images (n, H, W, C)."""
    n, H, W, C = shape
    around = 2 * (block.kernel - 1)
    rows, columns = (side + around for side in block.convolved(shape[1:]))
    taps = block.kernel**2 * F
    return {"slope": (n, rows, columns, F), "slope_columns": (n * H * W, taps), "dx": (n, H, W, C)}


def _turned(block: Conv, x: Signal, part: slice, memory: Arrays, w: Arrays) -> Task:
    """The input's gradient where the stride is 1: z's gradient with a border, convolved with the turned kernel."""
    z, slope, dx, pool = memory["z"], memory["slope"], memory["dx"], block.pool
    H, W = z.shape[2:4]
    edge = block.kernel - 1
    inner = slope[:, edge:, edge:]
    phases = [inner[:, p // pool :: pool, p % pool :: pool][:, :H, :W] for p in range(pool * pool)]
    plain = Conv(kernel=block.kernel)
    slopes = _Patches(slope[:, block.pad :, block.pad :], plain, dx.shape[1:3], memory["slope_columns"])
    kernel, flat_dx = w["turned"].reshape(-1, dx.shape[-1]), dx.reshape(-1, dx.shape[-1])

    def backward() -> None:
        slope.fill(0)
        for phase, values in zip(phases, z, strict=True):
            np.copyto(phase, values)
        slopes.gather()
        np.matmul(slopes.flat, kernel, out=flat_dx)
        np.copyto(x.gradient[part], dx)

    return backward


def _scattered(block: Conv, x: Signal, part: slice, patches: "_Patches", memory: Arrays, w: Arrays) -> Task:
    """The input's gradient for any stride: the patches' gradients, which take their place, added up."""
    flat_z = memory["z"].reshape(-1, memory["z"].shape[-1])
    kernel = w["weights"].reshape(-1, flat_z.shape[-1])
    targets = _Patches(x.padded_gradient[part], block, memory["z"].shape[2:4], memory["columns"])
    places = list(np.ndindex(len(memory["z"]), block.kernel, block.kernel))

    def backward() -> None:
        np.matmul(flat_z, kernel.T, out=patches.flat)
        x.padded_gradient[part] = 0
        for phase, k, m in places:
            into = targets.phases[phase][:, :, :, k, m]
            np.add(into, patches.columns[phase, :, :, :, k, m], out=into)

    return backward


class _Patches:
    """What each output of each phase sees, as views and as the rows of a matrix."""

    def __init__(self, padded: Array, block: Conv, size: Shape, memory: Array) -> None:
        """See images (n, H + 2 pad, W + 2 pad, C) in patches for an output of size (H', W')."""
        K, P, step, C = block.kernel, block.pool, block.stride, padded.shape[3]
        image, row, column, channel = padded.strides
        shape, strides = (len(padded), *size, K, K, C), (image, step * P * row, step * P * column, row, column, channel)
        self.phases = [
            as_strided(padded[:, step * i :, step * j :], shape, strides) for i in range(P) for j in range(P)
        ]
        """(n, H', W', K, K, C) of each phase; writing to it is safe one (K, K) tap at a time."""
        if C < FEW_CHANNELS:
            taps_first = memory.reshape(K, K, C, P * P, len(padded), *size)
            self.columns = np.moveaxis(taps_first, (0, 1, 2), (-3, -2, -1))
            self.flat = taps_first.reshape(K * K * C, -1).T
        else:
            self.columns = memory.reshape(P * P, *shape)
            self.flat = self.columns.reshape(-1, K * K * C)

    def gather(self) -> None:
        """Copy the patches into the matrix."""
        for column, phase in zip(self.columns, self.phases, strict=True):
            np.copyto(column, phase)
