"""The kernels of tiles: their grids, their arguments, and the tables of what their outputs depend on."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from cnnjob.nn.arena import Array
from cnnjob.nn.cuda.device_api import THREADS, Device, scalars
from cnnjob.nn.cuda.tiled.stages import CHUNK
from cnnjob.nn.tensors import Task

NULL: Any = np.uint64(0)
"""An absent array, as a kernel's argument."""
ROWS, DEPTH, NARROW, WIDE = 256, 64, 64, 128
"""Rows of a convolution's tile, terms of its sums that are added at a time, and columns of its two kinds of tile."""
NARROW_STAGES, STAGE_BYTES = 2, {(256, 64): 40960, (256, 128): 49152, (128, 64): 24576}
"""Stages of a narrow tile, and shared memory of one stage, by rows and columns."""
STATISTICS_BLOCK = (8, 128)
"""Threads per block of the kernels that combine partial sums: channels, and lanes per channel."""


class Finish(NamedTuple):
    """The operations that a kernel applies to its results, in the order of its arguments; see ``tiled_conv.cu``."""

    first: Any = NULL
    second: Any = NULL
    addend: Any = NULL
    joined: Any = NULL
    before: Any = NULL
    mean: Any = NULL
    inverse: Any = NULL
    scale: Any = NULL
    shift: Any = NULL
    kind: int = 0
    is_joined: bool = False


def source_table(image: tuple[int, ...], K: int, rows: Array, columns: Array, *, exists: Any = True) -> Array:
    """Return where the taps of each output lie in the input image.

    Args:
        image: the input image's height H, width W and channels C.
        K: kernel size.
        rows: row of each output's first tap, which may be outside the image.
        columns: column of the same, to be broadcast with ``rows``.
        exists: whether an output has taps at all.

    Returns:
        For each output, the index of the first tap's first channel, and a bit for each tap that is inside the image,
        int32 (outputs, 2).
    """
    H, W, C = image
    rows, columns, exists = np.broadcast_arrays(rows, columns, exists)
    inside = np.zeros(rows.shape, np.uint32)
    for k in range(K):
        for m in range(K):
            is_inside = exists & (rows + k >= 0) & (rows + k < H) & (columns + m >= 0) & (columns + m < W)
            inside |= is_inside.astype(np.uint32) << np.uint32(k * K + m)
    first = ((rows * W + columns) * C).astype(np.int32)
    return np.stack([first.ravel(), inside.ravel().view(np.int32)], axis=1)


def tile_columns(filters: int) -> int:
    """Return the number of columns of the tiles for a number of filters."""
    return WIDE if filters >= WIDE else NARROW


def stage_bytes(device: Device, rows: int, columns: int) -> int:
    """Return the shared memory that the stages of a tile need, in bytes."""
    return (NARROW_STAGES if columns == NARROW else device.wide_stages) * STAGE_BYTES[rows, columns]


def convolve(device: Device, name: str, rows: int, K: int, arrays: Sequence[Any], finish: Finish) -> Task:
    """Plan a convolution in tiles of ``rows`` outputs; its arrays are x, weights, sources, y and winners."""
    (N, H, W, C), (_, height, width, F) = arrays[0].shape, arrays[3].shape
    tile = tile_columns(F)
    grid = (-(-N * height * width // rows) * -(-F // tile), 1)
    shared_bytes = stage_bytes(device, ROWS, tile)
    arguments = scalars([*arrays, *finish, H * W * C, W, C, K, height * width, F, N])
    return partial(device.launch, f"{name}_{tile}", grid, (2 * tile, 1), arguments, shared_bytes)


def combine(device: Device, name: str, channels: int, blocks: int, *arguments: Any) -> Task:
    """Plan a kernel that combines partial sums of each channel."""
    grid = (-(-channels // STATISTICS_BLOCK[0]), blocks)
    return partial(device.launch, name, grid, STATISTICS_BLOCK, scalars(arguments))


def each_chunk(device: Device, name: str, values: int, *arguments: Any) -> Task:
    """Plan a kernel with one thread per chunk of halves; the number of chunks becomes its last argument."""
    grid = (-(-values // (CHUNK * THREADS)), 1)
    return partial(device.launch, name, grid, (THREADS, 1), scalars([*arguments, values // CHUNK]))
