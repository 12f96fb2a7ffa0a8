"""Conv block in NumPy: convolution, bias, activation and max-pooling in one operation.

A pooling window contains P² outputs of the convolution. The outputs at the same position in all windows form a
*phase*, which a GEMM computes as one array. Max-pooling is then the maximum of P² arrays, and everything after it is P²
times smaller. For the backward pass, each phase has a mask that marks the windows in which this phase receives the
gradient. If several outputs of a window equal the maximum, the first in row-major order receives the gradient.

A batch is split into shards, which run on all cores. Each shard is split into cache blocks, which are small enough that
the arrays of a block fit in a core's cache. The backward pass gathers the patches of each block again, which is faster
than storing the patches of the whole batch. Only patches with few channels are stored, since they are small, and slow
to gather.

In float32, most 3×3 convolutions of stride 1 with at least 12 channels and 12 filters are computed by
:mod:`cnnjob.nn.cpu.winograd` instead.
"""

from functools import partial
from math import prod

import numpy as np
from numpy.lib.stride_tricks import as_strided

from cnnjob.nn.arena import Arena, Array
from cnnjob.nn.blocks import Conv, Shape
from cnnjob.nn.cpu.winograd import tile_side, winograd
from cnnjob.nn.tensors import ForwardBackward, Task, Tensor
from cnnjob.nn.workers import SHARDS, Workers, distribute_shards, run_all, split_evenly, split_shard

CACHE_BLOCK_BYTES = 1_200_000
"""Target size of a cache block's patches and phases, to keep them in the caches; smaller blocks need more calls."""
FEW_CHANNELS = 8
"""Number of channels below which patches are stored tap by tap, since each tap's values then form longer runs."""
SMALL_PRODUCT = 1_000_000
"""Maximum number of multiplications for OpenBLAS's small-matrix kernels.

They are fast even if the inner dimension is short.
"""

Arrays = dict[str, Array]


def conv(workers: Workers, arena: Arena, block: Conv, x: Tensor, y: Tensor, w: Arrays, dw: Arrays) -> ForwardBackward:
    """Plan a conv block: y = maxpool(activation(x ∗ w + b)), by Winograd's method or with patches.

    Args:
        workers: the workers that compute the batch.
        arena: memory for the buffers.
        block: the block's settings.
        x: input (N, H, W, C) with a border of ``block.pad``.
        y: output (N, H', W', F).
        w: ``weights`` (K, K, C, F), and ``bias`` (F,) if there is one.
        dw: gradients of the trainable parameters, overwritten by ``backward``.

    Returns:
        The forward and backward tasks.
    """
    if m := tile_side(block, x.value.shape[-1], y.value.shape, y.value.dtype):
        return winograd(workers, arena, block, x, y, w, dw, m)
    shards = split_evenly(len(y.value), SHARDS)
    kernel = _Kernel(arena, w, dw, len(shards), with_turned=x.trainable)
    steps = [_plan_shard(arena, block, x, y, kernel, number, shard) for number, shard in enumerate(shards)]
    tasks = distribute_shards(workers, steps, work=block.pool**2 * y.value.size * len(kernel.matrix) // 8)

    # The caller alone does the work that is common to all shards, before or after they run.
    def forward() -> None:
        kernel.load_parameters()
        tasks.forward()

    def backward() -> None:
        tasks.backward()
        kernel.sum_shards()

    return ForwardBackward(forward, backward)


class _Kernel:
    """The weights and bias as one matrix, with the matrix's gradient summed over each shard.

    The bias is the last row of the matrix, matched by a column of ones in the patches.
    """

    def __init__(self, arena: Arena, w: Arrays, dw: Arrays, shards: int, *, with_turned: bool) -> None:
        """Allocate buffers for ``shards`` shards, and for the rotated kernel if the input gradient is needed."""
        self._w, self._dw, self._with_turned = w, dw, with_turned
        K, _, C, F = w["weights"].shape
        dtype, self.taps = w["weights"].dtype, K * K * C
        first = 0 if "weights" in dw else self.taps
        self.rows = slice(first, self.taps + 1 if "bias" in dw else self.taps)
        """Trainable rows of the matrix."""
        self.matrix = w["weights"].reshape(self.taps, F)
        """The matrix, (K·K·C, F), or (K·K·C + 1, F) with a bias."""
        # Without a bias the matrix is a view of the parameters; with one it is a copy, made by load_parameters().
        if "bias" in w:
            self.matrix = arena.take((self.taps + 1, F), dtype)
        self.sums = arena.take((shards, self.rows.stop - self.rows.start, F), dtype)
        """Gradient of the trainable rows, summed over each shard, (shards, rows, F)."""
        self.turned = arena.take((K, K, F, C) if with_turned else (0,), dtype)

    def load_parameters(self) -> None:
        """Update the matrix, and the rotated kernel if it is needed, from the current parameters."""
        weights = self._w["weights"]
        if "bias" in self._w:
            np.copyto(self.matrix[:-1], weights.reshape(self.matrix[:-1].shape))
            np.copyto(self.matrix[-1], self._w["bias"])
        if self._with_turned:
            np.copyto(self.turned, weights[::-1, ::-1].swapaxes(2, 3))

    def sum_shards(self) -> None:
        """Sum the gradients of all shards into the gradients of the weights and bias."""
        if "weights" in self._dw:
            flat = self._dw["weights"].reshape(self.taps, -1)
            np.add.reduce(self.sums[:, : self.taps], axis=0, out=flat)
        if "bias" in self._dw:
            np.add.reduce(self.sums[:, -1], axis=0, out=self._dw["bias"])


def _plan_shard(
    arena: Arena, block: Conv, x: Tensor, y: Tensor, kernel: _Kernel, number: int, shard: slice
) -> ForwardBackward:
    """Plan the block for one shard's images, cache block by cache block."""
    _, H, W, F = y.value.shape
    image_bytes = block.pool**2 * H * W * (len(kernel.matrix) + F) * y.value.itemsize
    n_blocks = -((shard.start - shard.stop) * image_bytes // CACHE_BLOCK_BYTES)
    steps = [_plan_cache_block(arena, block, x, y, kernel, number, images) for images in split_shard(shard, n_blocks)]
    backwards = [step.backward for step in steps]

    def backward() -> None:
        kernel.sums[number] = 0
        run_all(backwards)

    return ForwardBackward(partial(run_all, [step.forward for step in steps]), backward)


def _plan_cache_block(
    arena: Arena, block: Conv, x: Tensor, y: Tensor, kernel: _Kernel, number: int, images: slice
) -> ForwardBackward:
    """Plan the block for a few images; the backward task adds the kernel gradient to the sum of shard ``number``."""
    n, H, W, F = shape = y.value[images].shape
    P, C, dtype = block.pool, x.value.shape[3], y.value.dtype
    columns, total = (P * P * n * H * W, len(kernel.matrix)), kernel.sums[number]
    with_turned = x.trainable and block.stride == 1
    stores_patches = len(total) > 0 and C < FEW_CHANNELS
    # The product itself is the output: no pooling, no activation, and no border that would leave gaps in the output.
    in_output = P == 1 and block.activation == "none" and y.value.flags.c_contiguous
    scratch_shapes: dict[str, Shape] = {
        "columns": (0,) if stores_patches else columns,
        "z": (0,) if in_output else (P * P, *shape),
        "product": total.shape,
    }
    if with_turned:
        scratch_shapes |= _turned_shapes(block, (n, *x.value.shape[1:]), F)
    scratch = arena.scratch(number, *((size, dtype) for size in scratch_shapes.values()))
    memory = dict(zip(scratch_shapes, scratch, strict=True))
    if stores_patches:
        memory["columns"] = arena.take(columns, dtype)
    by_phase = C < FEW_CHANNELS and n * H * W * kernel.matrix.size <= SMALL_PRODUCT
    patches = _Patches(x.padded[images], block, (H, W), memory["columns"], by_phase=by_phase)
    needs_masks = y.trainable and (block.activation == "relu" or P > 1)
    masks = arena.take((P * P, *shape) if needs_masks else (0, *shape), bool)
    if in_output:
        memory["z"] = y.value[images][None]  # (1, n, H', W', F)
    forward = _plan_forward(block, patches, memory, kernel.matrix, y.value[images], masks)
    if not y.trainable:
        return ForwardBackward(forward, forward)
    # dz overwrites z, which nothing reads once the masks have been computed.
    memory["dz"] = y.gradient[images][None] if in_output else memory["z"]
    kernel_backward = _plan_kernel_backward(
        patches, memory, kernel, total, y.gradient[images], masks, gathers=not stores_patches
    )
    if not x.trainable:
        return ForwardBackward(forward, kernel_backward)
    plan_input_backward = _plan_turned_backward if with_turned else _plan_scattered_backward
    input_backward = plan_input_backward(block, x, images, memory, kernel)

    def backward() -> None:
        kernel_backward()
        input_backward()

    return ForwardBackward(forward, backward)


def _plan_forward(block: Conv, patches: "_Patches", memory: Arrays, matrix: Array, out: Array, masks: Array) -> Task:
    """Plan a cache block's output and the masks that its backward task needs."""
    z = memory["z"]  # (P·P, n, H', W', F)
    values = z.reshape(len(patches.groups), -1, out.shape[-1])
    in_output = np.may_share_memory(z, out)

    def forward() -> None:
        patches.gather()
        np.matmul(patches.groups, matrix, out=values)
        if block.activation == "relu":
            np.maximum.reduce(z, axis=0, out=out, initial=0)  # pooling and ReLU in one pass
        elif len(z) > 1:
            np.maximum.reduce(z, axis=0, out=out)
        elif not in_output:
            np.copyto(out, z[0])
        if len(masks):
            fill_masks()

    def fill_masks() -> None:
        # The last mask starts as all windows that have a gradient: with ReLU, those with positive outputs. Each phase
        # removes its own windows, and what remains is the last phase's mask.
        unassigned = masks[-1]
        if block.activation == "relu":
            np.greater(out, 0, out=unassigned)
        else:
            unassigned.fill(1)
        np.equal(z[:-1], out, out=masks[:-1])
        for mask in masks[:-1]:
            np.logical_and(mask, unassigned, out=mask)
            np.logical_xor(mask, unassigned, out=unassigned)

    return forward


def _plan_kernel_backward(
    patches: "_Patches", memory: Arrays, kernel: _Kernel, total: Array, dy: Array, masks: Array, *, gathers: bool
) -> Task:
    """Plan a task that computes the gradient of z and adds the gradient of the kernel's trainable rows to ``total``."""
    dz, product = memory["dz"], memory["product"]  # (P·P, n, H', W', F), (trainable rows, F)
    dz_groups = dz.reshape(len(patches.groups), -1, dz.shape[-1])
    products = [(rows.T[kernel.rows], dz_rows) for rows, dz_rows in zip(patches.groups, dz_groups, strict=True)]
    in_output = np.may_share_memory(dz, dy)

    def backward() -> None:
        if len(masks):
            np.multiply(dy, masks, out=dz)
        elif not in_output:
            np.copyto(dz[0], dy)
        if len(total):
            if gathers:
                patches.gather()
            for rows, dz_rows in products:
                np.dot(rows, dz_rows, out=product)
                np.add(total, product, out=total)

    return backward


def _turned_shapes(block: Conv, shape: Shape, F: int) -> dict[str, Shape]:
    """Return the shapes of the buffers that :func:`_plan_turned_backward` needs for images (n, H, W, C)."""
    n, H, W, C = shape
    borders = 2 * (block.kernel - 1)
    rows, columns = (side + borders for side in block.convolved(shape[1:]))
    taps = block.kernel**2 * F
    return {"padded_dz": (n, rows, columns, F), "dz_columns": (n * H * W, taps), "dx": (n, H, W, C)}


def _plan_turned_backward(block: Conv, x: Tensor, images: slice, memory: Arrays, kernel: _Kernel) -> Task:
    """Plan the input gradient for stride 1: the padded gradient of z, convolved with the rotated kernel."""
    dz, padded_dz, dx, pool = memory["dz"], memory["padded_dz"], memory["dx"], block.pool
    border = block.kernel - 1
    inner = padded_dz[:, border:, border:]
    image, row, column, channel = inner.strides
    # (P, P, n, H', W', F): phase (i, j) of a window is i rows and j columns from the window's first output.
    dz_phases = dz.reshape(pool, pool, *dz.shape[1:])
    inner_phases = as_strided(inner, dz_phases.shape, (row, column, image, pool * row, pool * column, channel))
    stride_1 = Conv(block.filters, kernel=block.kernel)
    # The forward convolution's padding needs no gradient, so a border of K − 1 − pad zeros remains.
    dz_patches = _Patches(padded_dz[:, block.pad :, block.pad :], stride_1, dx.shape[1:3], memory["dz_columns"])
    turned, flat_dx = kernel.turned.reshape(-1, dx.shape[-1]), dx.reshape(-1, dx.shape[-1])

    def backward() -> None:
        # This is scratch memory: zero the border, and the outputs that no pooling window covers.
        padded_dz.fill(0)
        np.copyto(inner_phases, dz_phases)
        dz_patches.gather()
        np.matmul(dz_patches.groups[0], turned, out=flat_dx)
        np.copyto(x.gradient[images], dx)

    return backward


def _plan_scattered_backward(block: Conv, x: Tensor, images: slice, memory: Arrays, kernel: _Kernel) -> Task:
    """Plan the input gradient for any stride.

    The gradients of the patches are written over the patches, and then added to the gradients of the input's pixels.
    """
    dz = memory["dz"]
    flat_dz = dz.reshape(-1, dz.shape[-1])
    weights = kernel.matrix[: kernel.taps]
    patches = _Patches(x.padded_gradient[images], block, dz.shape[2:4], memory["columns"])
    d_patches = patches.groups[..., : kernel.taps]

    def backward() -> None:
        np.matmul(flat_dz.reshape(*d_patches.shape[:2], -1), weights.T, out=d_patches)
        x.padded_gradient[images] = 0
        # Tap by tap: patches overlap in memory, but the values of one tap do not, so no addition overwrites another.
        for k, m in np.ndindex(block.kernel, block.kernel):
            target = patches.view[..., k, m, :]
            np.add(target, patches.columns[..., k, m, :], out=target)

    return backward


class _Patches:
    """Patches of the input, one for each output in each phase, both as a view of the images and as rows of matrices.

    If the kernel has a bias, the last column of each matrix is filled with ones.
    """

    def __init__(self, padded: Array, block: Conv, size: Shape, memory: Array, *, by_phase: bool = False) -> None:
        """View images (n, H + 2 pad, W + 2 pad, C) as patches, for an output of size (H', W').

        ``memory`` is (positions, taps), with an extra column if the kernel has a bias. The patches form one matrix per
        phase if ``by_phase`` is true and the images have few channels; otherwise, they form a single matrix.
        """
        K, P, S, C = block.kernel, block.pool, block.stride, padded.shape[3]
        image, row, column, channel = padded.strides
        shape = (P, P, len(padded), *size, K, K, C)
        strides = (S * row, S * column, image, S * P * row, S * P * column, row, column, channel)
        taps = K * K * C
        self.groups: Array
        """The patches as matrices, (groups, positions, taps)."""
        self.view = as_strided(padded, shape, strides)
        """The patches as a view of the images, (P, P, n, H', W', K, K, C); they overlap, so write one tap at a time."""
        # `columns` is the memory of the matrices in the shape of `view`. With few channels, the taps come first in
        # memory: gather() then copies runs of positions, and matmul takes the transposed matrix without a copy.
        if C < FEW_CHANNELS:
            groups = (P, P) if by_phase else ()
            taps_first = memory.reshape(prod(groups), memory.shape[1], -1)
            columns = taps_first[:, :taps].reshape(*groups, K, K, C, *shape[len(groups) : 5])
            self.columns = np.moveaxis(columns, range(len(groups), len(groups) + 3), (-3, -2, -1))
            self.groups = taps_first.swapaxes(1, 2)
        else:
            self.columns, self.groups = memory[:, :taps].reshape(shape), memory[None]
        self._ones = self.groups[..., taps:]

    def gather(self) -> None:
        """Copy the patches into the matrices."""
        np.copyto(self.columns, self.view)
        self._ones.fill(1)
