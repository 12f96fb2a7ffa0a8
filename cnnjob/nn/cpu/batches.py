"""Batches in NumPy: images selected by index, augmented and normalised."""

from collections.abc import Callable

import numpy as np

from cnnjob.nn.arena import Arena, Array
from cnnjob.nn.pixels import Augmentation, PixelNormalisation, View, mirrored_sources
from cnnjob.nn.random import Philox
from cnnjob.nn.tensors import StepInputs, Task, Tensor
from cnnjob.nn.workers import SHARDS, SMALL_WORK, Workers, split_evenly

TakeImages = Callable[[slice], object]
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
    dtype = x.value.dtype
    # Per pixel instead of per channel, (H, W, C): NumPy's inner loop then runs over more than just the few channels.
    scale, shift = (
        arena.constant(np.broadcast_to(values, inner).astype(dtype)) for values in (pixels.scale, pixels.shift)
    )

    def plan_shard(number: int, shard: slice) -> Task:
        shape = shard.stop - shard.start, *inner
        images, values = arena.scratch(number, (shape, np.uint8), (shape, dtype))
        if change:
            take_images = _plan_changed(arena, inputs, change, images)
        else:
            # Mode "clip" here and below: with the default "raise", np.take buffers its output.
            take_images = lambda positions: np.take(inputs.images, inputs.rows[positions], 0, images, "clip")  # noqa: E731

        def load() -> None:
            first = inputs.position[0] * N
            take_images(slice(first + shard.start, first + shard.stop))
            np.copyto(values, images)  # uint8 → float
            np.multiply(values, scale, out=values)
            np.add(values, shift, out=x.value[shard])

        return load

    work = x.value.size
    shards = split_evenly(N, SHARDS if work >= SMALL_WORK else 1)
    return workers.distribute([plan_shard(number, shard) for number, shard in enumerate(shards)], work)


def _plan_changed(arena: Arena, inputs: StepInputs, change: Augmentation | View, images: Array) -> TakeImages:
    """Return a function that loads flipped and shifted images by copying each pixel from its source."""
    n, H, W, C = images.shape
    reach = change.translate if isinstance(change, Augmentation) else max(map(abs, change[1:]))
    down, right = (arena.constant(mirrored_sources(side, reach)) for side in (H, W))
    views, words = arena.take((3, n), np.int64), Philox(arena.take((6, n), np.uint64))
    # Source row and column of each pixel, then its index among the pixels of all images: (n, H), (n, W), (n, H, W).
    rows, columns, sources = (arena.take((n, *size), np.int64) for size in ((H,), (W,), (H, W)))

    def take(positions: slice) -> None:
        if isinstance(change, Augmentation):
            # Both positions advance together, so their difference is the first step of the epoch.
            epoch = int(inputs.position[1] - inputs.position[0]) // len(inputs.learning_rates)
            change.draw(words, inputs.order[positions], epoch, inputs.seed, views)
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

    return take
