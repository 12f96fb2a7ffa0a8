"""Conv block in NumPy by Winograd's method: 3×3 kernels of stride 1, with fewer multiplications than with patches.

The output of the convolution is split into tiles of m×m pixels, each of which is computed from α×α pixels of the input,
with α = m + 2. With g the kernel, d the input of a tile, and ⊙ the elementwise product, summed over the channels
(Lavin & Gray 2016, §4):

    y = Aᵀ·[U ⊙ V]·A,  U = G·g·Gᵀ,  V = Bᵀ·d·B

The adjoint, dd = B·[U ⊙ (A·dy·Aᵀ)]·Bᵀ, is the product of two polynomials in two variables, whose coefficients are g and
dy: G and A evaluate them at α×α points, and B interpolates the product (Cook 1966). The transpose of this algorithm is
the convolution (Winograd 1980).

Per channel, an output pixel needs α²/m² multiplications instead of 9: 2.25 with m = 4. All steps are matrix products:
Bᵀ·d·B is one along the height and one along the width, with the matrices Bᵀ of all tiles in one banded matrix; U ⊙ V is
one per point, with the channels as its inner dimension; and Aᵀ·[…]·A is one with the Kronecker product Aᵀ ⊗ Aᵀ. Each
function below that plans a step also plans its adjoint for the backward pass.

Between the products, the values of all tiles at the same point or pixel are adjacent in memory. ReLU and max-pooling
are applied in this layout, whose rows are long, before the pixels are copied to the image. As in
:mod:`cnnjob.nn.cpu.conv`, a batch is split into shards, and a shard into cache blocks.

The transforms lose accuracy (see :data:`POINTS`). In float64, which gradient checks use, patches are therefore kept.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from cnnjob.nn.arena import Arena, Array
from cnnjob.nn.blocks import Conv, Shape
from cnnjob.nn.tensors import ForwardBackward, Task, Tensor
from cnnjob.nn.workers import SHARDS, Workers, distribute_shards, run_all, split_evenly, split_shard

POINTS = {
    2: (0.0, 1.0, -1.0),
    3: (0.0, 1.0, -1.0, -2.0),
    4: (0.0, 0.75, -0.75, 1.5, -1.5),
    6: (0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0),
}
"""Finite points by tile side m; infinity is the last point.

The rounding errors depend on the points, which were chosen by measurement. In float32, with normally distributed values
and at most 512 channels, the errors of outputs and gradients are at most 5·10⁻⁶ of the largest value, and 1.2·10⁻⁵ with
m = 6. They are larger with more channels and, with m = 6, if all output gradients have the same sign (2·10⁻⁵).
"""
MAX_CHANNELS_OF_LARGE_TILES = 32
"""Maximum number of channels and of filters with m = 6, since the rounding error grows with the number of channels."""
MIN_CHANNELS = 12
"""Minimum number of channels and of filters; with fewer, the transforms take longer than the products save."""
LOADING_TILES = 16
"""Number of tiles whose products take as long as reading the transformed kernel from memory."""
CACHE_BLOCK_BYTES = 2_000_000
"""Target size of a cache block's values at the points of its tiles, in bytes."""
MIN_TILES = 64
"""Minimum number of tiles of a cache block, if the shard has as many; with fewer, the products would be inefficient."""
TRANSFORMED_PIXELS = 12
"""Target number of rows of a banded matrix per product: more rows make longer products, but with more zeros."""
MAX_PRODUCT = 300_000
"""Maximum number of multiplications per product of the output transform, to keep its rows in the cache."""
ROW_GAP = 16
"""Number of unused values after each row of a matrix.

If the distance between rows were a power of two, the values of a column would compete for the same places in the cache.
"""

Arrays = dict[str, Array]


def tile_side(block: Conv, channels: int, output_shape: Shape, dtype: Any) -> int | None:
    """Return the side m of the tiles in pixels, or None if patches are faster or more accurate.

    The choice is the same on all machines, since the bits of the results depend on it.

    Args:
        block: the block's settings.
        channels: number of channels of the input.
        output_shape: (N, H', W', F), after pooling.
        dtype: type of the values.
    """
    (N, H, W, F), C = output_shape, channels
    if block.kernel != 3 or block.stride != 1 or min(C, F) < MIN_CHANNELS or dtype != np.float32:  # noqa: PLR2004
        return None
    images = -(-N // SHARDS)
    # Multiplications of a shard, per channel and filter.
    costs: dict[int | None, int] = {None: 9 * images * H * W * block.pool**2}
    for m in POINTS:
        # Windows must not extend over several tiles.
        if m % block.pool == 0 and (m <= 4 or max(C, F) <= MAX_CHANNELS_OF_LARGE_TILES):  # noqa: PLR2004
            tiles = images * -(-H * block.pool // m) * -(-W * block.pool // m)
            costs[m] = (m + 2) ** 2 * (tiles + LOADING_TILES)
    return min(costs, key=costs.__getitem__)


def winograd(
    workers: Workers, arena: Arena, block: Conv, x: Tensor, y: Tensor, w: Arrays, dw: Arrays, m: int
) -> ForwardBackward:
    """Plan a conv block like :func:`cnnjob.nn.cpu.conv.conv`, with tiles of m×m outputs of the convolution."""
    H, W = (side * block.pool for side in y.value.shape[1:3])
    tiling = _Tiling(m, (H, W), x.padded.shape[1:3], y.value.dtype)
    shards = split_evenly(len(y.value), SHARDS)
    kernel = _TransformedKernel(workers, arena, tiling, w, dw, len(shards), with_transposed=x.trainable)
    steps = [_plan_shard(arena, block, x, y, kernel, number, shard) for number, shard in enumerate(shards)]
    tasks = distribute_shards(workers, steps, work=block.pool**2 * y.value.size * x.value.shape[-1])

    def forward() -> None:
        kernel.load_parameters()
        tasks.forward()

    def backward() -> None:
        tasks.backward()
        kernel.sum_shards()

    return ForwardBackward(forward, backward)


class _Tiling:
    """Tiles of an image, and the matrices of the transforms.

    In shapes, m is the side of an output tile in pixels, α = m + 2 that of an input tile and the number of points per
    axis, n the number of images of a cache block, (rows, columns) the number of tiles of an image, and T the number of
    tiles of the cache block, n·rows·columns.
    """

    def __init__(self, m: int, size: tuple[int, int], padded_size: tuple[int, ...], dtype: Any) -> None:
        """Tile an output of ``size`` pixels before pooling, computed from an input of ``padded_size`` pixels."""
        self.m, self.alpha, self.size = m, m + 2, size
        self.rows, self.columns = (-(-side // m) for side in size)
        # Powers of the points, as many as the kernel or the output of a tile has coefficients; the row of infinity
        # selects the coefficient of the highest power.
        powers = {n: np.vander((*POINTS[m], 0.0), n, increasing=True) for n in (3, m)}
        for n, matrix in powers.items():
            matrix[-1] = np.arange(n) == n - 1
        self.kernel_transform: Array = np.kron(powers[3], powers[3]).astype(dtype)
        """G ⊗ G, (α², 9)."""
        to_pixels = np.kron(powers[m].T, powers[m].T)
        self.output_transform: Array = np.hstack([to_pixels, np.ones((m * m, 1))]).astype(dtype)
        """Aᵀ ⊗ Aᵀ, with a last column for the bias, (m², α² + 1)."""
        self.height_transform, self.width_transform = (
            self._input_transform(tiles, side).astype(dtype)
            for tiles, side in zip((self.rows, self.columns), padded_size, strict=True)
        )
        """Bᵀ of all tiles along the height, (rows·α, padded height), and along the width."""

    def _input_transform(self, tiles: int, side: int) -> Array:
        """Return Bᵀ of all tiles of an axis, (tiles·α, side).

        Row i of Bᵀ holds the coefficients of the polynomial that is 1 at point i and 0 at all others; the row of
        infinity holds those of the product of all x − point.
        """
        points = np.array(POINTS[self.m])
        Bt = np.zeros((self.alpha, self.alpha))
        for i, point in enumerate(points):
            others = np.delete(points, i)
            Bt[i, :-1] = np.poly(others)[::-1] / np.prod(point - others)
        Bt[-1] = np.poly(points)[::-1]
        # The last tile may extend beyond the image, where pixels count as zero. Conversely, the last pixels of the
        # image may be needed by no output.
        banded = np.zeros((tiles * self.alpha, max(tiles * self.m + 2, side)))
        for tile in range(tiles):
            banded[tile * self.alpha :, tile * self.m :][: self.alpha, : self.alpha] = Bt
        return banded[:, :side]


class _TransformedKernel:
    """Bias and transformed weights, with their gradients summed over each shard."""

    def __init__(
        self,
        workers: Workers,
        arena: Arena,
        tiling: _Tiling,
        w: Arrays,
        dw: Arrays,
        shards: int,
        *,
        with_transposed: bool,
    ) -> None:
        """Allocate buffers for ``shards`` shards, and for the transposed kernel if the input gradient is needed."""
        _, _, C, F = w["weights"].shape
        dtype, points = w["weights"].dtype, tiling.alpha**2
        self.tiling, self._weights, self._dw = tiling, w["weights"].reshape(9, C, F), dw
        self.bias, self.trainable, self.bias_trainable = w.get("bias"), "weights" in dw, "bias" in dw
        self.at_points = arena.take((points, C, F), dtype)
        """G·g·Gᵀ, (α², C, F)."""
        self.transposed_at_points = arena.take((points if with_transposed else 0, F, C), dtype)
        """The same with channels and filters swapped, (α², F, C)."""
        self.sums = arena.take((shards if self.trainable else 0, 9, C * F), dtype)
        """Gradient of the weights, summed over each shard, (shards, 9, C·F)."""
        self.bias_sums = arena.take((shards if self.bias_trainable else 0, F), dtype)
        """Gradient of the bias, summed over each shard, (shards, F)."""
        # If the weights are not trained: a copy of the weights from which `at_points` was computed, and a mask
        # of the weights that are still equal to this copy.
        self._source = arena.take((0 if self.trainable else 9, C, F), dtype)
        self._is_same = arena.take(self._source.shape, bool)
        transposed = arena.take((9 if with_transposed else 0, F, C), dtype)

        def transform(taps: Array, at_points: Array, part: slice) -> Task:
            values = slice(part.start * taps.shape[-1], part.stop * taps.shape[-1])
            source, target = taps.reshape(9, -1)[:, values], at_points.reshape(points, -1)[:, values]
            return partial(np.matmul, tiling.kernel_transform, source, out=target)

        def transform_transposed(filters: slice) -> Task:
            transform_filters = transform(transposed, self.transposed_at_points, filters)

            def run() -> None:
                np.copyto(transposed[:, filters], self._weights[..., filters].swapaxes(1, 2))
                transform_filters()

            return run

        tasks = [transform(self._weights, self.at_points, channels) for channels in split_evenly(C, SHARDS)]
        tasks += [transform_transposed(filters) for filters in split_evenly(F, SHARDS) if with_transposed]
        self._transform_weights = workers.distribute(tasks, work=self.at_points.size + self.transposed_at_points.size)
        sum_tasks = [
            partial(np.add.reduce, self.sums[..., part], axis=0, out=dw["weights"].reshape(9, -1)[:, part])
            for part in split_evenly(C * F, SHARDS)
            if self.trainable
        ]
        self._sum_weights = workers.distribute(sum_tasks, work=self.sums.size)

    def load_parameters(self) -> None:
        """Transform the current weights, unless they are not trained and have not changed since the last call."""
        if self.trainable:
            self._transform_weights()
            return
        np.equal(self._source, self._weights, out=self._is_same)
        if not self._is_same.all():
            self._source.fill(np.nan)  # equal to no weights, in case the transform is interrupted
            self._transform_weights()
            np.copyto(self._source, self._weights)

    def sum_shards(self) -> None:
        """Sum the gradients of all shards into the gradients of the weights and bias."""
        self._sum_weights()
        if self.bias_trainable:
            np.add.reduce(self.bias_sums, axis=0, out=self._dw["bias"])


@dataclass(frozen=True)
class _Buffers:
    """Buffers of a cache block, in scratch memory except for the masks."""

    images: slice
    gradient: Array
    """Gradient of the transformed kernel, summed over the shard's cache blocks so far, (α, α, C, F)."""
    product: Array
    """Contribution of this cache block, (α, α, C, F); empty in a shard's first cache block."""
    lines: Array
    """Input, or its gradient, transformed along the height, (n, rows·α, padded width, C)."""
    inputs: Array
    """Transformed input, (α, n, rows, columns·α, C)."""
    d_inputs: Array
    """Its gradient, of the same shape."""
    at_points: Array
    """Products at the points, or their gradients, and a last row for the bias, (α² + 1, T·F)."""
    pixels: Array
    """Pixels of the tiles, or their gradients, (m², T·F)."""
    pooled: Array
    """The pixels after pooling with P×P windows, or their gradients, (m/P, m/P, T·F)."""
    bias_gradient: Array
    """Contribution of this cache block to the gradient of the bias, (F,)."""
    masks: Array
    """For each position in a window, the windows in which it receives the gradient, (P², m/P, m/P, T·F); empty if not
    needed."""

    @classmethod
    def take(
        cls,
        arena: Arena,
        block: Conv,
        x: Tensor,
        y: Tensor,
        kernel: _TransformedKernel,
        shard: int,
        images: slice,
        *,
        is_first: bool,
    ) -> "_Buffers":
        """Allocate the buffers of a cache block; ``is_first`` is true for the first one of its shard."""
        tiling, n, C, F = kernel.tiling, images.stop - images.start, x.value.shape[-1], block.filters
        m, alpha, P = tiling.m, tiling.alpha, block.pool
        row = n * tiling.rows * tiling.columns * F
        gradient_shape = (alpha, alpha, C, F) if y.trainable and kernel.trainable else (0,)
        inputs_shape = (alpha, n, tiling.rows, tiling.columns * alpha, C)
        shapes = [
            gradient_shape,  # first, so that all cache blocks of a shard have it at the same address
            (0,) if is_first else gradient_shape,
            (n, tiling.rows * alpha, x.padded.shape[2], C),
            inputs_shape,
            inputs_shape if x.trainable else (0,),
            (alpha**2 + 1, row + ROW_GAP),
            (m * m, row + ROW_GAP),
            (m // P, m // P, row) if P > 1 else (0,),
            (F,),
        ]
        gradient, product, lines, inputs, d_inputs, at_points, pixels, pooled, bias_gradient = arena.scratch(
            shard, *((shape, y.value.dtype) for shape in shapes)
        )
        at_points, pixels = at_points[:, :row], pixels[:, :row]
        pooled = pooled if P > 1 else pixels.reshape(m, m, row)
        has_masks = y.trainable and (P > 1 or block.activation == "relu")
        masks = arena.take((P * P, *pooled.shape) if has_masks else (0,), bool)
        return cls(images, gradient, product, lines, inputs, d_inputs, at_points, pixels, pooled, bias_gradient, masks)


def _plan_shard(
    arena: Arena, block: Conv, x: Tensor, y: Tensor, kernel: _TransformedKernel, number: int, shard: slice
) -> ForwardBackward:
    """Plan the block for one shard's images, cache block by cache block."""
    tiling = kernel.tiling
    tile_bytes = tiling.alpha**2 * (x.value.shape[-1] + block.filters) * y.value.itemsize
    images_per_block = max(1, max(MIN_TILES, CACHE_BLOCK_BYTES // tile_bytes) // (tiling.rows * tiling.columns))
    steps = []
    for images in split_shard(shard, -(-(shard.stop - shard.start) // images_per_block)):
        is_first = images.start == shard.start
        buffers = _Buffers.take(arena, block, x, y, kernel, number, images, is_first=is_first)
        steps.append(_plan_cache_block(block, buffers, x, y, kernel, number, is_first=is_first))
    gradient = buffers.gradient.reshape(tiling.alpha**2, -1)  # at the same address in all cache blocks
    backwards = [step.backward for step in steps]

    def backward() -> None:
        run_all(backwards)
        if kernel.trainable:
            np.matmul(tiling.kernel_transform.T, gradient, out=kernel.sums[number])

    return ForwardBackward(partial(run_all, [step.forward for step in steps]), backward)


def _plan_cache_block(
    block: Conv, buffers: _Buffers, x: Tensor, y: Tensor, kernel: _TransformedKernel, number: int, *, is_first: bool
) -> ForwardBackward:
    """Plan the images of a cache block; the first cache block of a shard resets the kernel's gradients."""
    input_transform = _plan_input_transform(buffers, x, kernel.tiling)
    products = _plan_point_products(buffers, kernel, with_input=x.trainable, is_first=is_first)
    steps = [
        input_transform,
        products,
        _plan_output_transform(buffers, kernel, number, is_first=is_first),
        _plan_pooling(buffers, block, kernel.tiling.m),
        _plan_placement(buffers, y, kernel.tiling),
    ]
    forward = partial(run_all, [step.forward for step in steps])
    if not y.trainable:
        return ForwardBackward(forward, forward)
    backwards = [step.backward for step in reversed(steps)]
    if kernel.trainable:
        # The input is transformed again, which is as fast as reading a stored copy of the whole batch.
        backwards.insert(backwards.index(products.backward), input_transform.forward)
    return ForwardBackward(forward, partial(run_all, backwards))


def _plan_input_transform(buffers: _Buffers, x: Tensor, tiling: _Tiling) -> ForwardBackward:
    """Plan V = Bᵀ·d·B for all tiles, and for the backward pass dd = B·dV·Bᵀ, in which tiles overlap and add up."""
    n, _, W, C = buffers.lines.shape
    flat = buffers.lines.reshape(n, -1, W * C)
    by_line = buffers.lines.reshape(n, tiling.rows, tiling.alpha, W, C).transpose(2, 0, 1, 3, 4)  # (α, n, rows, W, C)

    def plan_axis(matrix: Array, source: Array, target: Array, rows: int) -> list[Task]:
        # target[…, r, :] = Σₛ matrix[r, s]·source[…, s, :], some rows at a time, without the zeros around the band.
        tasks: list[Task] = []
        for start in range(0, len(matrix), rows):
            part = matrix[start : start + rows]
            used = np.flatnonzero(part.any(axis=0))
            # Pixels that no output needs still get a gradient, of 0.
            window = slice(used[0], used[-1] + 1) if len(used) else slice(1)
            out = target[..., start : start + rows, :]
            tasks.append(partial(np.matmul, part[:, window].copy(), source[..., window, :], out=out))
        return tasks

    rows = tiling.alpha * max(1, TRANSFORMED_PIXELS // tiling.alpha)
    image = x.padded[buffers.images].reshape(n, -1, W * C)
    forward = plan_axis(tiling.height_transform, image, flat, rows)
    forward += plan_axis(tiling.width_transform, by_line, buffers.inputs, rows)
    backward = []
    if x.trainable:
        rows = tiling.m * max(1, TRANSFORMED_PIXELS // tiling.alpha)
        d_image = x.padded_gradient[buffers.images].reshape(n, -1, W * C)
        backward += plan_axis(tiling.width_transform.T, buffers.d_inputs, by_line, rows)
        backward += plan_axis(tiling.height_transform.T, flat, d_image, rows)
    return ForwardBackward(partial(run_all, forward), partial(run_all, backward))


def _plan_point_products(
    buffers: _Buffers, kernel: _TransformedKernel, *, with_input: bool, is_first: bool
) -> ForwardBackward:
    """Plan M = V·U at each point, and for the backward pass dU += Vᵀ·dM, and dV = dM·Uᵀ for the input gradient."""
    alpha, (*_, C, F) = kernel.tiling.alpha, kernel.at_points.shape
    V, dV = (  # (α, α, T, C)
        array.reshape(alpha, -1, alpha, C).swapaxes(1, 2) for array in (buffers.inputs, buffers.d_inputs)
    )
    M = buffers.at_points[:-1].reshape(alpha, alpha, -1, F)
    U, Ut = kernel.at_points.reshape(alpha, alpha, C, F), kernel.transposed_at_points.reshape(-1, alpha, F, C)

    def backward() -> None:
        if kernel.trainable:
            np.matmul(V.swapaxes(2, 3), M, out=buffers.gradient if is_first else buffers.product)
            if not is_first:
                np.add(buffers.gradient, buffers.product, out=buffers.gradient)
        if with_input:
            np.matmul(M, Ut, out=dV)

    return ForwardBackward(partial(np.matmul, V, U, out=M), backward)


def _plan_output_transform(
    buffers: _Buffers, kernel: _TransformedKernel, number: int, *, is_first: bool
) -> ForwardBackward:
    """Plan y = Aᵀ·M·A + b for all tiles, and for the backward pass dM = A·dy·Aᵀ and the sum of dy."""
    matrix, F = kernel.tiling.output_transform, kernel.at_points.shape[-1]
    tiles = buffers.pixels.shape[1] // F
    limit = max(1, MAX_PRODUCT // (matrix.size * F))
    tiles_per_product = max(count for count in range(1, min(limit, tiles) + 1) if tiles % count == 0)

    def plan_products(part: Array, source: Array, target: Array) -> Task:
        # (rows, T·F) as (products, rows, columns of a product)
        sources, out = (
            array.reshape(len(array), -1, tiles_per_product * F).swapaxes(0, 1) for array in (source, target)
        )
        return partial(np.matmul, part, sources, out=out)

    bias = buffers.at_points[-1].reshape(tiles, F)
    # The row of the bias is left out if there is none, or if it has no gradient.
    rows, gradient_rows = (
        len(buffers.at_points) - (not has_bias) for has_bias in (kernel.bias is not None, kernel.bias_trainable)
    )
    transform = plan_products(matrix[:, :rows].copy(), buffers.at_points[:rows], buffers.pixels)
    transform_gradient = plan_products(
        matrix.T[:gradient_rows].copy(), buffers.pixels, buffers.at_points[:gradient_rows]
    )

    def forward() -> None:
        if kernel.bias is not None:
            np.copyto(bias, kernel.bias)
        transform()

    def backward() -> None:
        transform_gradient()
        if kernel.bias_trainable:
            np.add.reduce(bias, axis=0, out=buffers.bias_gradient)
            if is_first:
                kernel.bias_sums[number] = 0
            np.add(kernel.bias_sums[number], buffers.bias_gradient, out=kernel.bias_sums[number])

    return ForwardBackward(forward, backward)


def _plan_pooling(buffers: _Buffers, block: Conv, m: int) -> ForwardBackward:
    """Plan ReLU and max-pooling of the pixels.

    Among equal maxima, the first in row-major order receives the gradient. In an area of equal non-zero pixels,
    rounding may make outputs differ that are equal with patches.
    """
    P, relu, out, masks = block.pool, block.activation == "relu", buffers.pooled, buffers.masks
    windows = buffers.pixels.reshape(m // P, P, m // P, P, -1)
    phases = [windows[:, i, :, j] for i in range(P) for j in range(P)]  # each (m/P, m/P, T·F)

    def forward() -> None:
        if P > 1:
            np.maximum(phases[0], phases[1], out=out)
            for phase in phases[2:]:
                np.maximum(out, phase, out=out)
        if relu:
            np.maximum(out, 0, out=out)
        if len(masks):
            mark_maxima()

    def mark_maxima() -> None:
        # The last mask starts as all windows that have a gradient. Each phase removes its own windows, and what remains
        # is the last phase's mask.
        unassigned = masks[-1]
        if relu:
            np.greater(out, 0, out=unassigned)
        else:
            unassigned.fill(1)
        for phase, mask in zip(phases[:-1], masks[:-1], strict=True):
            np.equal(phase, out, out=mask)
            np.logical_and(mask, unassigned, out=mask)
            np.logical_xor(mask, unassigned, out=unassigned)

    def backward() -> None:
        for phase, mask in zip(phases, masks, strict=False):
            np.multiply(out, mask, out=phase)

    return ForwardBackward(forward, backward)


def _plan_placement(buffers: _Buffers, y: Tensor, tiling: _Tiling) -> ForwardBackward:
    """Plan the copy of all pixels from the tiles to the images, and of their gradients from the images to the tiles."""
    side, F = len(buffers.pooled), y.value.shape[-1]
    tiles = buffers.pooled.reshape(side, side, -1, tiling.rows, tiling.columns, F)
    positions = list(np.ndindex(side, side))
    # Pixel (i, j) of all tiles, (n, rows, columns, F); the last row or column of tiles may have it outside the image.
    values, gradients = (
        [array[buffers.images, i::side, j::side] for i, j in positions] for array in (y.value, y.gradient)
    )
    pixels = [tiles[i, j, :, : v.shape[1], : v.shape[2]] for (i, j), v in zip(positions, values, strict=True)]
    exact = y.value.shape[1:3] == (tiling.rows * side, tiling.columns * side)

    def forward() -> None:
        for value, pixel in zip(values, pixels, strict=True):
            np.copyto(value, pixel)

    def backward() -> None:
        if not exact:
            buffers.pooled.fill(0)
        for pixel, gradient in zip(pixels, gradients, strict=True):
            np.copyto(pixel, gradient)

    return ForwardBackward(forward, backward)
