"""Batches in NumPy: images selected by index, augmented and normalised."""

from collections.abc import Callable

import numpy as np

from cnnjob.nn.arena import Arena, Array
from cnnjob.nn.pixels import Augmentation, PixelNormalisation, View, mirrored_sources
from cnnjob.nn.random import Philox
from cnnjob.nn.tensors import StepInputs, Task, Tensor
from cnnjob.nn.workers import SHARDS, SMALL_WORK, Workers, split_evenly

LoadImages = Callable[[slice], object]
"""Function that loads the images at the given positions in the epoch's order."""


def gather(
    workers: Workers,
    arena: Arena,
    inputs: StepInputs,
    x: Tensor,
    pixels: PixelNormalisation,
    change: Augmentation | View | None,
) -> Task:
    """Plan the task that loads the images selected by ``inputs.order``: x = image·scale + shift per channel."""
    N, *inner = x.value.shape
    dtype = x.value.dtype.type
    # Per pixel instead of per channel, (H, W, C): NumPy's inner loop then runs over more than just the few channels.
    scale, shift = (
        arena.constant(np.broadcast_to(values, inner).astype(dtype)) for values in (pixels.scale, pixels.shift)
    )
    mixes = isinstance(change, Augmentation) and change.mixup > 0

    def plan_loading(images: Array, values: Array, out: Array) -> LoadImages:
        take, cut = _plan_taking(arena, inputs, change, images), _plan_cutting(arena, inputs, change, out)

        def load(positions: slice) -> None:
            take(positions)
            np.copyto(values, images)  # uint8 → float
            np.multiply(values, scale, out=values)
            np.add(values, shift, out=out)
            cut(positions)

        return load

    def plan_shard(number: int, shard: slice) -> Task:
        # To be mixed, a shard's first image needs the image before it, which another shard loads at the same time.
        shape, out = (shard.stop - shard.start + mixes, *inner), x.value[shard]
        images, values = arena.scratch(number, (shape, np.uint8), (shape, dtype))
        load_own = plan_loading(images[mixes:], values[mixes:], values[1:] if mixes else out)
        load_before = plan_loading(images[:1], values[:1], values[:1]) if mixes else load_own

        def load() -> None:
            step = inputs.position[0]
            load_own(slice(step * N + shard.start, step * N + shard.stop))
            if mixes:
                before = step * N + (shard.start - 1) % N
                load_before(slice(before, before + 1))
                share = inputs.mixup[step]
                np.multiply(values[1:], dtype(share), out=out)
                np.multiply(values[:-1], dtype(1 - share), out=values[:-1])
                np.add(out, values[:-1], out=out)

        return load

    work = x.value.size
    shards = split_evenly(N, SHARDS if work >= SMALL_WORK else 1)
    return workers.distribute([plan_shard(number, shard) for number, shard in enumerate(shards)], work)


def _plan_taking(arena: Arena, inputs: StepInputs, change: Augmentation | View | None, images: Array) -> LoadImages:
    """Return a function that loads images; with a ``change``, it flips and translates them by copying each pixel."""
    if not change:
        # Mode "clip" here and below: with the default "raise", np.take buffers its output.
        return lambda positions: np.take(inputs.images, inputs.rows[positions], 0, images, "clip")
    n, H, W, C = images.shape
    reach = change.reach if isinstance(change, Augmentation) else max(map(abs, change[1:]))
    down, right = (arena.constant(mirrored_sources(side, reach)) for side in (H, W))
    views, words = arena.take((3, n), np.int64), Philox(arena.take((6, n), np.uint64))
    # Source row and column of each pixel, then its index among the pixels of all images: (n, H), (n, W), (n, H, W).
    rows, columns, sources = (arena.take((n, *size), np.int64) for size in ((H,), (W,), (H, W)))

    def take(positions: slice) -> None:
        if isinstance(change, Augmentation):
            change.draw(words, inputs.order[positions], inputs.epoch, inputs.seed, views)
        else:
            np.copyto(views.T, change)
        flipped = views[0, :, None]
        np.add(views[1:], reach, out=views[1:])  # a shift of −reach is row 0 of the tables
        np.take(down, views[1], 0, rows, "clip")
        np.take(right, views[2], 0, columns, "clip")
        # Column c of a flipped image is W − 1 − c of the original.
        np.multiply(columns, 1 - 2 * flipped, out=columns)
        np.add(columns, (W - 1) * flipped, out=columns)
        np.add(rows, inputs.rows[positions, None] * H, out=rows)
        np.multiply(rows, W, out=rows)
        np.add(rows[:, :, None], columns[:, None], out=sources)
        np.take(inputs.images.reshape(-1, C), sources, 0, images, "clip")
        if isinstance(change, Augmentation) and change.crop:
            for image, *shifts in zip(images, *(views[1:] - reach).tolist(), strict=True):
                for along, shift in zip((image, image.swapaxes(0, 1)), shifts, strict=True):
                    along[slice(0, shift) if shift > 0 else slice(len(along) + shift, None)] = 0

    return take


def _plan_cutting(arena: Arena, inputs: StepInputs, change: Augmentation | View | None, values: Array) -> LoadImages:
    """Return a function that sets random squares of loaded images (n, H, W, C) to 0 if the augmentation has cutout."""
    if not isinstance(change, Augmentation) or not (side := change.cutout):
        return lambda _: None
    n, H, W, _ = values.shape
    corners, words = arena.take((2, n), np.int64), Philox(arena.take((6, n), np.uint64))

    def cut(positions: slice) -> None:
        change.draw_squares(words, inputs.order[positions], inputs.epoch, inputs.seed, (H, W), corners)
        for image, row, column in zip(values, *corners.tolist(), strict=True):
            image[max(row, 0) : row + side, max(column, 0) : column + side] = 0

    return cut
