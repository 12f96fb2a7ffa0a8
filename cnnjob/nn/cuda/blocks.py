"""The other blocks on a device: dense, dropout and the loss."""

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
"""Images of one block of the loss."""
ROWS = 8
"""Of which one block sums as many at a time."""

Arrays = dict[str, Array]


def dense(device: Device, arena: Arena, block: Dense, x: Tensor, y: Tensor, w: Arrays, dw: Arrays) -> ForwardBackward:
    """Plan a dense block: y = activation(output_scale·(x w + b)), the activation ReLU or none.

    Args:
        device: where.
        arena: where buffers come from.
        block: its activation.
        x: (N, …), without a border.
        y: (N, U).
        w: ``weights`` (values of an image, U), and ``bias`` (U,) where it has one.
        dw: the gradients of those that learn, overwritten by ``backward``.

    Returns:
        The two halves.
    """
    N, U = y.value.shape
    flat, weights = x.value.reshape(N, -1), w["weights"]  # (N, V), (V, U)
    bias = w.get("bias", arena.take((U,), y.value.dtype))  # of zeroes, where it has none
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
    """Plan a dropout block for training: y = x·m/(1−p), with m by address (seed, place, step, element).

    Args:
        device: where.
        block: the probability p of m = 0.
        x: (N, …).
        y: the same shape.
        feed: seed and step.
        place: the layer's number in the network.

    Returns:
        The two halves; both draw m anew, so that it is not kept.
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
    """Plan the softmax of (N, K) logits, into the step's rows of the feed's, and the move to the next step."""
    N, K = logits.shape
    ticket = arena.take((1,), np.uint32)

    def run() -> None:  # it is another array when more images are evaluated
        arguments = scalars([logits, feed.probabilities, feed.position, ticket, N, K])
        device.launch("softmax", *_warps(N), arguments)

    return run


def cross_entropy(
    device: Device, arena: Arena, feed: StepInputs, logits: Tensor, label_smoothing: float
) -> ForwardBackward:
    """Plan the loss: mean over the batch of −Σ t log softmax(logits), its gradient, and the hits.

    The targets are t = (1 − ε)·onehot(label) + ε/K, ε ``label_smoothing`` (Szegedy et al. 2016, §7). The gradient with
    respect to the logits is (softmax − t) / N (Bishop 2006, eq. 4.109).
    """
    N, K = logits.value.shape
    losses, hits = arena.take((N,), logits.value.dtype), arena.take((N,), np.int32)
    truth = feed.labels, feed.order, feed.position
    of_images = scalars([logits.value, *truth, logits.gradient, losses, hits, label_smoothing, N, K])
    of_step = scalars([losses, hits, feed.position, feed.losses, feed.hits, N])
    loss = partial(device.launch, "cross_entropy", *_warps(N), of_images)
    tally = partial(device.launch, "tally", (1, 1), (THREADS, 1), of_step)
    return ForwardBackward(in_order([loss, tally]), in_order([]))


def _warps(images: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Grid and block of a kernel that gives each image a warp."""
    return (-(-images // WARPS), 1), (WARP, WARPS)
