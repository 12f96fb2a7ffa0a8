"""Batches on a device: images taken by index, augmented and normalised."""

from functools import partial
from math import prod

import numpy as np

from cnnjob.nn.cuda.device_api import THREADS, Device, bordered, each, in_order, row_length, scalars
from cnnjob.nn.memory import Arena, Array
from cnnjob.nn.pixels import Augmentation, PixelNormalisation, View
from cnnjob.nn.random import Purpose
from cnnjob.nn.tensors import ForwardBackward, StepInputs, Task, Tensor

FLIPS = {"none": 0, "random": 1, "alternating": 2}


def gather(
    device: Device,
    arena: Arena,
    feed: StepInputs,
    x: Tensor,
    pixels: PixelNormalisation,
    change: Augmentation | View | None,
) -> ForwardBackward:
    """Plan a batch: x = image·scale + shift per channel, for the images that ``feed.order`` selects."""
    N, *inner = x.value.shape
    values = [arena.constant(np.asarray(each_channel, x.value.dtype)) for each_channel in (pixels.scale, pixels.shift)]
    target = *values, *bordered(x.value), row_length(x.value.shape), inner[-1]
    # Without a change a kernel of its own copies the pixels in order, with no table of sources.
    views = [] if change is None else [_views(arena, change, N)]

    # The arguments are collected at each call: an evaluation may replace images and order.
    def run() -> None:
        if isinstance(change, Augmentation):
            _draw(device, change, feed, views[0])()
        name, source = "gather_views" if change else "gather", (feed.images, feed.rows, feed.position)
        each(device, name, N, prod(inner), *source, *views, *target)()

    return ForwardBackward(run, in_order([]))


def _views(arena: Arena, change: Augmentation | View, images: int) -> Array:
    """Return the changes of the images, int32 (N, 3): memory to draw them into, or the same constant for all."""
    if isinstance(change, Augmentation):
        return arena.take((images, 3), np.int32)
    return arena.constant(np.tile(np.array(change, np.int32), (images, 1)))


def _draw(device: Device, change: Augmentation, feed: StepInputs, views: Array) -> Task:
    """Plan the draw of the changes, with the values of :meth:`cnnjob.nn.pixels.Augmentation.draw`."""
    address = np.uint32(feed.seed), np.uint32(Purpose.AUGMENTATION)
    numbers = FLIPS[change.flip], change.translate, len(views)
    arguments = scalars([feed.order, feed.position, views, np.int64(len(feed.learning_rates)), *address, *numbers])
    return partial(device.launch, "draw_views", (-(-len(views) // THREADS), 1), (THREADS, 1), arguments)
