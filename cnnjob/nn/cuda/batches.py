"""Batches on a device: images selected by index, augmented and normalised."""

from functools import partial
from math import prod

import numpy as np

from cnnjob.nn.arena import Arena, Array
from cnnjob.nn.cuda.device_api import THREADS, Device, bordered, each, in_order, row_length, scalars
from cnnjob.nn.pixels import Augmentation, PixelNormalisation, View
from cnnjob.nn.random import Purpose
from cnnjob.nn.tensors import ForwardBackward, StepInputs, Task, Tensor

FLIPS = {"none": 0, "random": 1, "alternating": 2}


def gather(
    device: Device,
    arena: Arena,
    inputs: StepInputs,
    x: Tensor,
    pixels: PixelNormalisation,
    change: Augmentation | View | None,
) -> ForwardBackward:
    """Plan the task that loads the images selected by ``inputs.order``: x = image·scale + shift per channel."""
    N, *inner = x.value.shape
    channels = [arena.constant(np.asarray(values, x.value.dtype)) for values in (pixels.scale, pixels.shift)]
    target = *channels, *bordered(x.value), row_length(x.value.shape), inner[-1]
    views: list[Array] = []  # the change of each image, int32 (N, 5); empty if a simpler kernel copies the pixels
    settings: tuple[int, ...] = ()
    if isinstance(change, Augmentation):
        views, settings = [arena.take((N, 5), np.int32)], (change.crop, change.cutout, change.mixup > 0)
    elif change:
        views, settings = [arena.constant(np.tile(np.array((*change, 0, 0), np.int32), (N, 1)))], (0, 0, 0)
    if views:
        views.append(inputs.mixup)

    # The arguments are collected on each call, since evaluation may replace images and order.
    def run() -> None:
        if isinstance(change, Augmentation):
            _plan_draw(device, change, inputs, views[0], *inner[:2])()
        name, source = "gather_views" if change else "gather", (inputs.images, inputs.rows, inputs.position)
        each(device, name, N, prod(inner), *source, *views, *target, *settings)()

    return ForwardBackward(run, in_order([]))


def _plan_draw(device: Device, change: Augmentation, inputs: StepInputs, views: Array, height: int, width: int) -> Task:
    """Plan the task that draws a random flip, translation and square for each image.

    The values equal those drawn by :meth:`cnnjob.nn.pixels.Augmentation.draw` and
    :meth:`~cnnjob.nn.pixels.Augmentation.draw_squares`.
    """
    address = np.uint32(inputs.seed), np.uint32(Purpose.AUGMENTATION)
    numbers = FLIPS[change.flip], change.reach, change.cutout, height, width, len(views)
    arguments = scalars(
        [inputs.order, inputs.position, views, np.int64(len(inputs.learning_rates)), *address, *numbers]
    )
    return partial(device.launch, "draw_views", (-(-len(views) // THREADS), 1), (THREADS, 1), arguments)
