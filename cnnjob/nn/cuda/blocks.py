"""Dense and dropout blocks, softmax, and loss on a device."""

from collections.abc import Sequence
from functools import partial
from math import prod

import numpy as np

from cnnjob.nn.arena import Arena, Array
from cnnjob.nn.blocks import Dense, Dropout
from cnnjob.nn.cuda.device_api import THREADS, WARP, Device, bordered, each, gemm, in_order, row_length, scalars
from cnnjob.nn.random import Purpose
from cnnjob.nn.tensors import ForwardBackward, StepInputs, Task, Tensor

IMAGES_PER_BLOCK = 4
"""Number of images per thread block in the softmax and loss kernels, one per warp."""
ROWS_AT_A_TIME = 8
"""Number of rows that a thread block reads at a time when summing over rows."""

Arrays = dict[str, Array]


def dense(device: Device, arena: Arena, block: Dense, x: Tensor, y: Tensor, w: Arrays, dw: Arrays) -> ForwardBackward:
    """Plan a dense block: y = activation(output_scale·(x w + b)), with ReLU or no activation.

    Args:
        device: the device that runs the kernels.
        arena: memory for the buffers.
        block: the block's settings.
        x: input (N, …), without a border.
        y: output (N, U).
        w: ``weights`` (V, U), with V values per image, and ``bias`` (U,) if there is one.
        dw: gradients of the trainable parameters, overwritten by ``backward``.

    Returns:
        The forward and backward tasks.
    """
    N, U = y.value.shape
    flat, weights = x.value.reshape(N, -1), w["weights"]  # (N, V), (V, U)
    bias = w.get("bias", arena.take((U,), y.value.dtype))  # zeros if there is none: one kernel for both
    add_bias = each(device, "add_bias", N, U, y.value, bias, block.output_scale, block.activation == "relu")
    forward = in_order([gemm(device, flat, weights, y.value), add_bias])
    if not y.trainable:
        return ForwardBackward(forward, forward)
    dz, unused = arena.scratch(0, ((N, U), y.value.dtype), ((U,), y.value.dtype))
    d_bias = dw.get("bias", unused)
    arguments = [y.value, y.gradient, dz, d_bias, block.output_scale, block.activation == "relu", N, U]
    grid, threads = (-(-U // WARP), 1), (WARP, ROWS_AT_A_TIME)
    backward: list[Task] = [partial(device.launch, "dense_slope", grid, threads, scalars(arguments))]
    if "weights" in dw:
        backward.append(gemm(device, flat, dz, dw["weights"], (True, False)))
    if x.trainable:
        backward.append(gemm(device, dz, weights, x.gradient.reshape(N, -1), (False, True)))
    return ForwardBackward(forward, in_order(backward))


def dropout(
    device: Device, block: Dropout, x: Tensor, y: Tensor, inputs: StepInputs, layer_index: int
) -> ForwardBackward:
    """Plan a dropout block for training: y = x·m/(1−p), with m drawn at the address (seed, layer, step, element).

    Args:
        device: the device that runs the kernels.
        block: the block's settings, with the probability p that m = 0.
        x: input (N, …).
        y: output of the same shape.
        inputs: step inputs, with the seed and the step.
        layer_index: index of the layer in the network.

    Returns:
        The forward and backward tasks; both draw m, so it is not stored.
    """
    N, *inner = x.value.shape
    address = inputs.position, np.uint32(inputs.seed), np.uint32(Purpose.DROPOUT + layer_index)
    numbers = block.probability, 1 / (1 - block.probability)

    def plan_masking(source: Array, target: Array) -> Task:
        arrays = *bordered(source), *bordered(target), row_length(source.shape)
        return each(device, "dropout", N, prod(inner), *arrays, *address, *numbers)

    backward = plan_masking(y.gradient, x.gradient) if x.trainable else in_order([])
    return ForwardBackward(plan_masking(x.value, y.value), backward)


def softmax(device: Device, arena: Arena, inputs: StepInputs, logits: Array) -> Task:
    """Plan the softmax of (N, K) logits: its task writes to ``inputs.probabilities`` and advances to the next step."""
    N, K = logits.shape
    ticket = arena.take((1,), np.uint32)  # counts the thread blocks, the last of which advances the position

    def run() -> None:
        arguments = scalars([logits, inputs.probabilities, inputs.position, ticket, N, K])
        device.launch("softmax", *_warp_grid(N), arguments)

    return run


def mean_outputs(
    device: Device, arena: Arena, inputs: StepInputs, logits: Tensor, view_weights: Sequence[float]
) -> tuple[list[Task], Task]:
    """Plan the softmax of the weighted mean of the logits (N, K) over several views.

    The last task writes the result to ``inputs.probabilities`` and advances to the next step.

    Returns:
        One task per view, to run after the view's forward pass, and the last task.
    """
    # A single view has weight 1: its logits are the mean.
    if len(view_weights) == 1:
        return [in_order([])], softmax(device, arena, inputs, logits.value)
    (N, K), mean = logits.value.shape, arena.take(logits.value.shape, logits.value.dtype)
    add_views = [
        each(device, "add_share", N, K, logits.value, mean, weight, number == 0)  # the first overwrites the mean
        for number, weight in enumerate(view_weights)
    ]
    return add_views, softmax(device, arena, inputs, mean)


def cross_entropy(
    device: Device, arena: Arena, inputs: StepInputs, logits: Tensor, label_smoothing: float, *, mixes: bool = False
) -> ForwardBackward:
    """Plan the loss, its gradient, and the number of correct predictions.

    The loss is the batch mean of −Σ t log softmax(logits), with the targets t = (1 − ε)·onehot(label) + ε/K, where ε is
    ``label_smoothing`` (Szegedy et al. 2016, §7). Its gradient with respect to the logits is (softmax − t) / N (Bishop
    2006, eq. 4.109).

    If ``mixes``, onehot(label) is replaced by share·onehot(label) + (1 − share)·onehot(label of the previous image),
    with the share of the step in ``inputs.mixup`` (Zhang et al. 2018, eq. 2). A prediction then counts as correct if it
    is the label with the larger share.
    """
    N, K = logits.value.shape
    losses, correct = arena.take((N,), logits.value.dtype), arena.take((N,), np.int32)  # per image
    truth = inputs.labels, inputs.order, inputs.position
    written = logits.gradient, losses, correct
    image_arguments = scalars([logits.value, *truth, inputs.mixup, *written, label_smoothing, mixes, N, K])
    step_arguments = scalars([losses, correct, inputs.position, inputs.losses, inputs.n_correct, N])
    loss = partial(device.launch, "cross_entropy", *_warp_grid(N), image_arguments)
    # One thread block adds up the batch, so that the sum has a fixed order.
    tally = partial(device.launch, "tally", (1, 1), (THREADS, 1), step_arguments)
    return ForwardBackward(in_order([loss, tally]), in_order([]))


def _warp_grid(images: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the grid and block of a kernel with one warp per image."""
    return (-(-images // IMAGES_PER_BLOCK), 1), (WARP, IMAGES_PER_BLOCK)
