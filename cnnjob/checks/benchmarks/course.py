"""The training step as taught in a course: a simple float64 implementation in NumPy.

Patches are gathered by fancy indexing, and every result is a new array. Images have the shape (N, C, H, W). The
implementation is the baseline for the speed-up and is not used for training.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from cnnjob import nn
from cnnjob.checks.benchmarks.engines import Action
from cnnjob.checks.benchmarks.workloads import Array, Workload
from cnnjob.nn.operations import split_block

NAME = "course float64"

Backward = Callable[[Array], Array]
"""Maps the output gradient to the input gradient, and updates the parameters in place (SGD)."""


def supports(work: Workload) -> bool:
    """Return whether a workload has only blocks that the algorithm supports: conv (ReLU, pooling), dense, dropout."""
    return all(
        isinstance(block, nn.Dropout)
        or (isinstance(block, nn.Conv | nn.Dense) and block.bias and split_block(block) == [block])
        for block in (layer.block for layer in work.layers)
    )


def build_step(work: Workload) -> Action:
    """Return a workload's training step, or, for a single block, the forward and backward pass."""
    random = np.random.default_rng(0)
    layers = [_build_layer(layer.block, layer.input_shape, work.learning_rate, random) for layer in work.layers]
    images = work.images.transpose(0, 3, 1, 2)
    output_gradient = random.standard_normal((work.batch_size, *np.roll(work.layers[-1].output_shape, 1)))

    def step() -> None:
        x, backwards = images / 255, []
        for layer in layers:
            x, backward = layer(x)
            backwards.append(backward)
        gradient = _cross_entropy_gradient(x, work.labels) if work.steps else output_gradient
        for backward in reversed(backwards):
            gradient = backward(gradient)

    return step


def _build_layer(
    block: Any, shape: tuple[int, ...], rate: float, random: np.random.Generator
) -> Callable[[Array], Any]:
    if isinstance(block, nn.Dropout):
        return lambda x: _dropout(x, block.probability, random)
    size = block.parameters(shape)["weights"].shape
    w, b = random.normal(0, np.sqrt(2 / np.prod(size[:-1])), size), np.zeros(size[-1])
    if isinstance(block, nn.Dense):
        return lambda x: dense(x, w, b, rate, relu=block.activation == "relu")
    w = w.transpose(3, 2, 0, 1).reshape(len(b), -1)  # (F, C·K·K)
    return lambda x: conv(x, w, b, block, rate)


def _patch_indices(shape: tuple[int, ...], kernel: int, stride: int) -> tuple[Array, Array, Array, int, int]:
    """Return the channel, row and column indices of the values in all patches, and the output height and width.

    The channel indices have the shape (C·K·K, 1); the others have the shape (C·K·K, positions).
    """
    C, H, W = shape
    out_h, out_w = (H - kernel) // stride + 1, (W - kernel) // stride + 1
    channel, k, m = (index.reshape(-1, 1) for index in np.indices((C, kernel, kernel)))
    i, j = (stride * index.reshape(1, -1) for index in np.indices((out_h, out_w)))
    return channel, k + i, m + j, out_h, out_w


def conv(x: Array, w: Array, b: Array, block: nn.Conv, rate: float) -> tuple[Array, Backward]:
    """Convolve images (N, C, H, W), apply the activation and max-pool.

    The backward pass updates the weights (F, C·K·K) and the bias.
    """
    pad = block.pad
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    channel, row, column, out_h, out_w = _patch_indices(padded.shape[1:], block.kernel, block.stride)
    columns = padded[:, channel, row, column]  # (N, C·K·K, positions)
    z = (w @ columns + b[:, None]).reshape(len(x), -1, out_h, out_w)  # (N, F, out_h, out_w)
    active = np.maximum(z, 0) if block.activation == "relu" else z
    y, unpool = max_pool(active, block.pool)

    def backward(dy: Array) -> Array:
        dz = unpool(dy) * (z > 0) if block.activation == "relu" else unpool(dy)
        dz = dz.reshape(len(x), len(b), -1)  # (N, F, positions)
        dcolumns = w.T @ dz  # (N, C·K·K, positions); computed before w is updated below
        dpadded = np.zeros(padded.shape)
        # Patches overlap: np.add.at adds every value, whereas dpadded[...] += dcolumns would add only one per pixel.
        np.add.at(dpadded, np.s_[:, channel, row, column], dcolumns)  # type: ignore[arg-type]
        w[...] -= rate * (dz @ columns.transpose(0, 2, 1)).sum(axis=0)
        b[...] -= rate * dz.sum(axis=(0, 2))
        return dpadded[:, :, pad : pad + x.shape[2], pad : pad + x.shape[3]]

    return y, backward


def max_pool(x: Array, side: int) -> tuple[Array, Backward]:
    """Return the maximum of each window in (N, C, H, W); rows and columns that do not fill a window are ignored."""
    N, C, H, W = x.shape
    inside = x[:, :, : H - H % side, : W - W % side]
    windows = inside.reshape(N, C, H // side, side, W // side, side).transpose(0, 1, 2, 4, 3, 5)
    windows = windows.reshape(N, C, H // side, W // side, side * side)
    first = windows.argmax(axis=-1)[..., None]  # (N, C, H // side, W // side, 1); the first of equal maxima

    def backward(dy: Array) -> Array:
        dwindows = np.zeros(windows.shape)
        np.put_along_axis(dwindows, first, dy[..., None], axis=-1)
        dinside = dwindows.reshape(N, C, H // side, W // side, side, side).transpose(0, 1, 2, 4, 3, 5)
        dx = np.zeros(x.shape)
        dx[:, :, : H - H % side, : W - W % side] = dinside.reshape(inside.shape)
        return dx

    return windows.max(axis=-1), backward


def dense(x: Array, w: Array, b: Array, rate: float, *, relu: bool) -> tuple[Array, Backward]:
    """Connect all V values of each image to U units; the backward pass updates the weights (V, U) and the bias."""
    flat = x.reshape(len(x), -1)
    z = flat @ w + b

    def backward(dy: Array) -> Array:
        dz = dy * (z > 0) if relu else dy
        dx = dz @ w.T
        w[...] -= rate * flat.T @ dz
        b[...] -= rate * dz.sum(axis=0)
        return dx.reshape(x.shape)

    return np.maximum(z, 0) if relu else z, backward


def _dropout(x: Array, probability: float, random: np.random.Generator) -> tuple[Array, Backward]:
    mask = (random.random(x.shape) >= probability) / (1 - probability)
    return x * mask, lambda dy: dy * mask


def _cross_entropy_gradient(logits: Array, labels: Array) -> Array:
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Array = exponents / exponents.sum(axis=1, keepdims=True)
    probabilities[np.arange(len(labels)), labels] -= 1
    return probabilities / len(labels)
