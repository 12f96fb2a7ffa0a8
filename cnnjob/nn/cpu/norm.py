"""Batch normalisation in NumPy, with the activation that follows it.

A batch is split into a fixed number of shards, and a shard into cache blocks that fit in a core's cache. Every sum is
taken first over the cache blocks of a shard and then over the shards, in order.
"""

from collections import defaultdict
from functools import partial
from math import prod

import numpy as np

from cnnjob.nn.arena import Arena, Array
from cnnjob.nn.cpu.activations import CACHE_BLOCK_ELEMENTS, SCRATCH_ARRAYS, plan_activation
from cnnjob.nn.operations import Norm
from cnnjob.nn.tensors import ForwardBackward, Task, Tensor
from cnnjob.nn.workers import SHARDS, Workers, run_all, split_evenly, split_shard

Arrays = dict[str, Array]
Passes = dict[str, list[Task]]
"""Tasks for a shard's cache blocks, by pass name."""


def norm(workers: Workers, arena: Arena, block: Norm, x: Tensor, y: Tensor, w: Arrays, dw: Arrays) -> ForwardBackward:
    """Plan batch normalisation: y = activation(scale·(x − mean)/√(variance + eps) + shift).

    With g the gradient before the activation, M the number of pixels in the batch and x̂ the normalised input, the input
    gradient is dx = scale/√(variance + eps) · (g − Σg/M − x̂·Σ(g·x̂)/M) (Ioffe & Szegedy 2015, §3).

    Args:
        workers: the workers that compute the batch.
        arena: memory for the buffers.
        block: the normalisation's settings and the activation.
        x: input (N, H, W, C), without a border.
        y: output of the same shape.
        w: ``scale`` (if there is one), ``shift``, and the running ``mean`` and ``variance``, each (C,).
        dw: gradients of ``scale`` and ``shift``, overwritten by ``backward``.

    Returns:
        The forward and backward tasks. In training, the forward task also updates the running statistics, unless the
        normalisation is fixed. The input gradient of a fixed normalisation is dx = scale/√(variance + eps) · g.
    """
    channels = _Channels(arena, block, x, w, dw)
    slices = split_evenly(len(x.value), SHARDS)
    shards = [_plan_shard_passes(arena, block, x, y, channels, number, shard) for number, shard in enumerate(slices)]
    # Each pass finishes in all shards before the next one starts, since it needs the sums of the previous pass.
    passes = {
        name: workers.distribute([partial(run_all, shard[name]) for shard in shards], work=x.value.size)
        for name in shards[0]
    }

    def forward() -> None:
        if y.trainable and not block.fixed:
            passes["sum_values"]()
            channels.compute_mean()
            passes["sum_squares"]()
            channels.compute_variance()
        else:
            np.copyto(channels.mean, w["mean"])
            np.copyto(channels.inverse, w["variance"])
            channels.compute_factor()
        passes["normalise"]()

    def backward() -> None:
        if block.fixed:
            passes["scale_gradient"]()
            return
        passes["sum_gradients"]()
        channels.compute_gradients()
        passes["input_gradient"]()

    return ForwardBackward(forward, backward)


class _Channels:
    """The values per channel, (C,), and the per-shard sums from which they are computed, (shards, C)."""

    def __init__(self, arena: Arena, block: Norm, x: Tensor, w: Arrays, dw: Arrays) -> None:
        C, dtype = x.value.shape[-1], x.value.dtype
        self._settings, self._w, self._dw = block.settings, w, dw
        self._count = prod(x.value.shape[:-1])
        self.sums, self.products = (arena.take((min(SHARDS, len(x.value)), C), dtype) for _ in range(2))
        self.mean, self.inverse, self.factor, self.offset, self.deviation_factor, self._work = (
            arena.take((C,), dtype) for _ in range(6)
        )

    def compute_mean(self) -> None:
        """Compute the batch mean from the sums."""
        np.add.reduce(self.sums, axis=0, out=self.mean)
        np.divide(self.mean, self._count, out=self.mean)

    def compute_variance(self) -> None:
        """Compute the variance, factor and offset for a training step, and update the running statistics."""
        np.add.reduce(self.products, axis=0, out=self.inverse)
        np.divide(self.inverse, self._count, out=self.inverse)
        # The batch is normalised by the biased variance, while the running variance is unbiased, as in PyTorch.
        unbiased = self._count / max(1, self._count - 1)
        for name, of_batch, correction in (("mean", self.mean, 1.0), ("variance", self.inverse, unbiased)):
            running = self._w[name]
            np.multiply(of_batch, correction * self._settings.momentum, out=self._work)
            np.multiply(running, 1 - self._settings.momentum, out=running)
            np.add(running, self._work, out=running)
        self.compute_factor()

    def compute_factor(self) -> None:
        """Compute the factor and offset in y = x·factor + offset; on entry, ``inverse`` contains the variance."""
        # `inverse` becomes 1/√(variance + eps), which the backward task also needs.
        np.add(self.inverse, self._settings.eps, out=self.inverse)
        np.sqrt(self.inverse, out=self.inverse)
        np.divide(1, self.inverse, out=self.inverse)
        np.multiply(self.inverse, self._w.get("scale", 1), out=self.factor)
        np.multiply(self.mean, self.factor, out=self.offset)
        np.subtract(self._w["shift"], self.offset, out=self.offset)

    def compute_gradients(self) -> None:
        """Compute the gradients of shift and scale, and the terms of the input gradient.

        The input gradient is dx = g·factor − (x − mean)·deviation_factor − offset.
        """
        np.add.reduce(self.sums, axis=0, out=self.offset)  # Σg
        np.add.reduce(self.products, axis=0, out=self.deviation_factor)
        np.multiply(self.deviation_factor, self.inverse, out=self.deviation_factor)  # Σ(g·x̂)
        for name, sums in (("shift", self.offset), ("scale", self.deviation_factor)):
            if name in self._dw:
                np.copyto(self._dw[name], sums)
        np.multiply(self.deviation_factor, self.inverse, out=self.deviation_factor)
        for array in (self.deviation_factor, self.offset):
            np.multiply(array, self.factor, out=array)
            np.divide(array, self._count, out=array)


def _plan_shard_passes(
    arena: Arena, block: Norm, x: Tensor, y: Tensor, channels: _Channels, number: int, shard: slice
) -> Passes:
    """Plan the passes over one shard, cache block by cache block."""
    elements = x.value[shard].size
    passes: Passes = defaultdict(list)
    for images in split_shard(shard, -(-elements // CACHE_BLOCK_ELEMENTS)):
        resets = images.start == shard.start
        for name, task in _plan_cache_block_passes(arena, block, x, y, channels, number, images, resets=resets).items():
            passes[name].append(task)
    return passes


def _plan_cache_block_passes(
    arena: Arena, block: Norm, x: Tensor, y: Tensor, channels: _Channels, number: int, images: slice, *, resets: bool
) -> dict[str, Task]:
    """Plan the normalisation passes over a cache block; a shard's first cache block resets the shard's sums."""
    z, out, dy, g = x.value[images], y.value[images], y.gradient[images], x.gradient[images]
    n, H, W, C = z.shape
    shapes = [z.shape, (1, n * H * W), (1, C), *[(W, C)] * 3, *[z.shape] * SCRATCH_ARRAYS[block.activation]]
    t, ones, total, mean, factor, offset, *scratch = arena.scratch(number, *((shape, z.dtype) for shape in shapes))
    activate_forward, activate_backward = plan_activation(arena, block.activation, out, scratch, trainable=y.trainable)

    def add_to(sums: Array, values: Array) -> None:
        # A product with ones, (1, n·H·W) × (n·H·W, C): BLAS adds up the first axis faster than np.add.reduce.
        ones.fill(1)
        np.dot(ones, values.reshape(-1, C), out=total)
        if resets:
            sums[number] = 0
        np.add(sums[number], total[0], out=sums[number])

    # The mean is computed first, then the squared deviations from it: E[x²] − mean² would lose digits by cancellation.
    def sum_squares() -> None:
        # Repeated for a row of pixels, (W, C): NumPy's inner loop over only C values would be short and slow.
        np.copyto(mean, channels.mean)
        np.subtract(z, mean, out=t)
        np.multiply(t, t, out=t)
        add_to(channels.products, t)

    def normalise() -> None:
        np.copyto(factor, channels.factor)
        np.copyto(offset, channels.offset)
        np.multiply(z, factor, out=t)
        np.add(t, offset, out=t)
        activate_forward(t)

    def sum_gradients() -> None:
        activate_backward(dy, g)
        add_to(channels.sums, g)
        np.copyto(mean, channels.mean)
        np.subtract(z, mean, out=t)
        np.multiply(t, g, out=t)
        add_to(channels.products, t)

    def input_gradient() -> None:
        for row, values in ((mean, channels.mean), (factor, channels.factor), (offset, channels.offset)):
            np.copyto(row, values)
        np.subtract(z, mean, out=t)
        np.multiply(g, factor, out=g)
        np.subtract(g, offset, out=g)
        np.copyto(factor, channels.deviation_factor)
        np.multiply(t, factor, out=t)
        np.subtract(g, t, out=g)

    def scale_gradient() -> None:
        activate_backward(dy, g)
        np.copyto(factor, channels.factor)
        np.multiply(g, factor, out=g)

    return {
        "sum_values": partial(add_to, channels.sums, z),
        "sum_squares": sum_squares,
        "normalise": normalise,
        "sum_gradients": sum_gradients,
        "input_gradient": input_gradient,
        "scale_gradient": scale_gradient,
    }
