"""Dense and dropout blocks, softmax and loss on a device."""

from functools import partial
from math import prod

import numpy as np

from cnnjob.nn.blocks import Dense, Dropout
from cnnjob.nn.cuda.device_api import THREADS, Device, bordered, each, gemm, in_order, row_length, scalars
from cnnjob.nn.memory import Arena, Array
from cnnjob.nn.random import Purpose
from cnnjob.nn.tensors import ForwardBackward, StepInputs, Task, Tensor

WARP = 32
WARPS = 4
"""Images per thread block of softmax and loss, one per warp."""
ROWS = 8
"""Rows that a thread block of a sum over rows reads at a time."""

Arrays = dict[str, Array]


def dense(device: Device, arena: Arena, block: Dense, x: Tensor, y: Tensor, w: Arrays, dw: Arrays) -> ForwardBackward:
    """Plan a dense block: y = activation(output_scale·(x w + b)), with ReLU or no activation.

    Args:
        device: runs the kernels.
        arena: memory for the buffers.
        block: the block's settings.
        x: input (N, …), without a border.
        y: output (N, U).
        w: ``weights`` (V, U), with V values per image, and ``bias`` (U,) if there is one.
        dw: gradients of the trainable ones, overwritten by ``backward``.

    Returns:
        The two tasks.
    """
    N, U = y.value.shape
    flat, weights = x.value.reshape(N, -1), w["weights"]  # (N, V), (V, U)
    bias = w.get("bias", arena.take((U,), y.value.dtype))  # zeros if there is none: one kernel for both
    add = each(device, "add_bias", N, U, y.value, bias, block.output_scale, block.activation == "relu")
    forward = in_order([gemm(device, flat, weights, y.value), add])
    if not y.trainable:
        return ForwardBackward(forward, forward)
    slopes, unused = arena.scratch(0, ((N, U), y.value.dtype), ((U,), y.value.dtype))
    sums = dw.get("bias", unused)
    arguments = [y.value, y.gradient, slopes, sums, block.output_scale, block.activation == "relu", N, U]
    grid, threads = (-(-U // WARP), 1), (WARP, ROWS)
    backward: list[Task] = [partial(device.launch, "dense_slope", grid, threads, scalars(arguments))]
    if "weights" in dw:
        backward.append(gemm(device, flat, slopes, dw["weights"], (True, False)))
    if x.trainable:
        backward.append(gemm(device, slopes, weights, x.gradient.reshape(N, -1), (False, True)))
    return ForwardBackward(forward, in_order(backward))


def dropout(device: Device, block: Dropout, x: Tensor, y: Tensor, feed: StepInputs, place: int) -> ForwardBackward:
    """Plan a dropout block of a training: y = x·m/(1−p), with m addressed by (seed, place, step, element).

    Args:
        device: runs the kernels.
        block: the probability p of m = 0.
        x: input (N, …).
        y: output of the same shape.
        feed: seed and step.
        place: place of the layer in the network.

    Returns:
        The two tasks; both draw m, so that it is not stored.
    """
    N, *inner = x.value.shape
    address = feed.position, np.uint32(feed.seed), np.uint32(Purpose.DROPOUT + place)
    numbers = block.probability, 1 / (1 - block.probability)

    def masked(source: Array, target: Array) -> Task:
        arrays = *bordered(source), *bordered(target), row_length(source.shape)
        return each(device, "dropout", N, prod(inner), *arrays, *address, *numbers)

    backward = masked(y.gradient, x.gradient) if x.trainable else in_order([])
    return ForwardBackward(masked(x.value, y.value), backward)


def softmax(device: Device, arena: Arena, feed: StepInputs, logits: Array) -> Task:
    """Plan the softmax of (N, K) logits, which goes to ``feed.probabilities``, and the advance to the next step."""
    N, K = logits.shape
    ticket = arena.take((1,), np.uint32)  # counts the thread blocks, of which the last one advances the position

    def run() -> None:
        arguments = scalars([logits, feed.probabilities, feed.position, ticket, N, K])
        device.launch("softmax", *_warps(N), arguments)

    return run


def cross_entropy(
    device: Device, arena: Arena, feed: StepInputs, logits: Tensor, label_smoothing: float
) -> ForwardBackward:
    """Plan the loss, its gradient, and the number of right predictions.

    The loss is the mean over the batch of −Σ t log softmax(logits), with the targets t = (1 − ε)·onehot(label) + ε/K,
    ε ``label_smoothing`` (Szegedy et al. 2016, §7). Its gradient with respect to the logits is (softmax − t) / N
    (Bishop 2006, eq. 4.109).
    """
    N, K = logits.value.shape
    losses, hits = arena.take((N,), logits.value.dtype), arena.take((N,), np.int32)
    truth = feed.labels, feed.order, feed.position
    of_images = scalars([logits.value, *truth, logits.gradient, losses, hits, label_smoothing, N, K])
    of_step = scalars([losses, hits, feed.position, feed.losses, feed.hits, N])
    loss = partial(device.launch, "cross_entropy", *_warps(N), of_images)
    # One thread block adds up the batch, so that the sum has a fixed order.
    tally = partial(device.launch, "tally", (1, 1), (THREADS, 1), of_step)
    return ForwardBackward(in_order([loss, tally]), in_order([]))


def _warps(images: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return grid and block of a kernel with one warp per image."""
    return (-(-images // WARPS), 1), (WARP, WARPS)
