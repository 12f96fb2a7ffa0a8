"""Batch normalisation on NumPy, with the activation that follows it.

A batch is split into a fixed number of shards, and a shard into pieces that fit into a core's cache. Every sum is
taken over the pieces of a shard and then over the shards, in order.
"""

from functools import partial
from math import prod

import numpy as np

from cnnjob.nn.cpu.activations import WORKING, activation
from cnnjob.nn.memory import Arena, Array
from cnnjob.nn.operations import Norm
from cnnjob.nn.tensors import ForwardBackward, Task, Tensor
from cnnjob.nn.workers import SHARDS, Workers, run_all, split_evenly

PIECE_ELEMENTS = 1 << 16
"""Number of elements of a piece, whose few arrays fit into a core's cache."""
MOST_PIECES = 64
"""Number of pieces per shard beyond which the pieces grow, so that planning stays quick."""

Arrays = dict[str, Array]
Passes = dict[str, list[Task]]
"""Tasks for the pieces of a shard, by the name of the pass."""


def norm(workers: Workers, arena: Arena, block: Norm, x: Tensor, y: Tensor, w: Arrays, dw: Arrays) -> ForwardBackward:
    """Plan a batch normalisation: y = activation(scale·(x − mean)/√(variance + eps) + shift).

    Backward, with g the gradient before the activation, M pixels of the batch and x̂ the normalised values:
    dx = scale/√(variance + eps) · (g − Σg/M − x̂·Σ(g·x̂)/M) (Ioffe & Szegedy 2015, §3).

    Args:
        workers: the workers that share the batch.
        arena: memory for the buffers.
        block: the settings, and the activation.
        x: input (N, H, W, C), without a border.
        y: output of the same shape.
        w: ``scale`` (if there is one), ``shift``, and the running ``mean`` and ``variance``, each (C,).
        dw: gradients of ``scale`` and ``shift``, overwritten by ``backward``.

    Returns:
        The two tasks; forward of a training also updates the running statistics.
    """
    channels = _Channels(arena, block, x, w, dw)
    shards = [_shard(arena, block, x, y, channels, *place) for place in enumerate(split_evenly(len(x.value), SHARDS))]
    # A pass ends in all shards before the next begins, since each needs the sums of the one before.
    over_all = {
        name: workers.share([partial(run_all, shard[name]) for shard in shards], work=x.value.size)
        for name in shards[0]
    }

    def forward() -> None:
        if y.trainable:
            over_all["add"]()
            channels.find_mean()
            over_all["deviate"]()
            channels.find_variance()
        else:
            channels.take_running()
        over_all["normalise"]()

    def backward() -> None:
        over_all["slope"]()
        channels.find_slopes()
        over_all["into_input"]()

    return ForwardBackward(forward, backward)


class _Channels:
    """Values per channel, (C,), and the sums of the shards that they are computed from, (shards, C)."""

    def __init__(self, arena: Arena, block: Norm, x: Tensor, w: Arrays, dw: Arrays) -> None:
        C, dtype = x.value.shape[-1], x.value.dtype
        self._settings, self._w, self._dw = block.settings, w, dw
        self._count = prod(x.value.shape[:-1])
        self.sums, self.products = (arena.take((min(SHARDS, len(x.value)), C), dtype) for _ in range(2))
        self.mean, self.inverse, self.factor, self.offset, self.pull, self._work = (
            arena.take((C,), dtype) for _ in range(6)
        )

    def find_mean(self) -> None:
        """Compute the mean of the batch from the sums."""
        np.add.reduce(self.sums, axis=0, out=self.mean)
        np.divide(self.mean, self._count, out=self.mean)

    def find_variance(self) -> None:
        """Compute factor and offset of a training step, and update the running statistics."""
        np.add.reduce(self.products, axis=0, out=self.inverse)
        np.divide(self.inverse, self._count, out=self.inverse)
        # The batch is normalised by the biased variance, while the running one is unbiased, as in PyTorch.
        unbiased = self._count / max(1, self._count - 1)
        for running, own, factor in (("mean", self.mean, 1.0), ("variance", self.inverse, unbiased)):
            np.multiply(own, factor * self._settings.momentum, out=self._work)
            np.multiply(self._w[running], 1 - self._settings.momentum, out=self._w[running])
            np.add(self._w[running], self._work, out=self._w[running])
        self._find_factor()

    def take_running(self) -> None:
        """Compute factor and offset of an evaluation from the running statistics."""
        np.copyto(self.mean, self._w["mean"])
        np.copyto(self.inverse, self._w["variance"])
        self._find_factor()

    def _find_factor(self) -> None:
        """Compute factor and offset of y = x·factor + offset, from the mean and the variance in ``inverse``."""
        # `inverse` becomes 1/√(variance + eps), which backward needs too.
        np.add(self.inverse, self._settings.eps, out=self.inverse)
        np.sqrt(self.inverse, out=self.inverse)
        np.divide(1, self.inverse, out=self.inverse)
        np.multiply(self.inverse, self._w.get("scale", 1), out=self.factor)
        np.multiply(self.mean, self.factor, out=self.offset)
        np.subtract(self._w["shift"], self.offset, out=self.offset)

    def find_slopes(self) -> None:
        """Compute the gradients of shift and scale, and the terms of dx = g·factor − (x − mean)·pull − offset."""
        np.add.reduce(self.sums, axis=0, out=self.offset)  # Σg
        np.add.reduce(self.products, axis=0, out=self.pull)
        np.multiply(self.pull, self.inverse, out=self.pull)  # Σ(g·x̂)
        for name, sums in (("shift", self.offset), ("scale", self.pull)):
            if name in self._dw:
                np.copyto(self._dw[name], sums)
        np.multiply(self.pull, self.inverse, out=self.pull)
        for array in (self.pull, self.offset):
            np.multiply(array, self.factor, out=array)
            np.divide(array, self._count, out=array)


def _shard(arena: Arena, block: Norm, x: Tensor, y: Tensor, channels: _Channels, number: int, part: slice) -> Passes:
    """Plan the passes over one shard, piece by piece."""
    count, image = part.stop - part.start, prod(x.value.shape[1:])
    pieces = split_evenly(count, min(MOST_PIECES, -(-count * image // PIECE_ELEMENTS)))
    passes: Passes = {"add": [], "deviate": [], "normalise": [], "slope": [], "into_input": []}
    for piece in pieces:
        images = slice(part.start + piece.start, part.start + piece.stop)
        for name, task in _piece(arena, block, x, y, channels, number, images, first=not piece.start).items():
            passes[name].append(task)
    return passes


def _piece(
    arena: Arena, block: Norm, x: Tensor, y: Tensor, channels: _Channels, number: int, part: slice, *, first: bool
) -> dict[str, Task]:
    """Plan the passes over a few images; the first piece of a shard resets the sums."""
    z, out, dy, g = x.value[part], y.value[part], y.gradient[part], x.gradient[part]
    n, H, W, C = z.shape
    shapes = [z.shape, (1, n * H * W), (1, C), *[(W, C)] * 3, *[z.shape] * WORKING[block.activation]]
    t, ones, total, mean, factor, offset, *working = arena.scratch(number, *((shape, z.dtype) for shape in shapes))
    act, slope_of = activation(arena, block.activation, out, working, trainable=y.trainable)

    def add_to(sums: Array, values: Array) -> None:
        # A product with ones, (1, n·H·W) × (n·H·W, C): BLAS adds up the first axis faster than np.add.reduce.
        ones.fill(1)
        np.dot(ones, values.reshape(-1, C), out=total)
        if first:
            sums[number] = 0
        np.add(sums[number], total[0], out=sums[number])

    # The mean comes first and then the squares of the deviations from it: E[x²] − mean² would cancel digits.
    def deviate() -> None:
        # Repeated for a row of pixels, (W, C): NumPy's inner loop over C values alone would be short and slow.
        np.copyto(mean, channels.mean)
        np.subtract(z, mean, out=t)
        np.multiply(t, t, out=t)
        add_to(channels.products, t)

    def normalise() -> None:
        np.copyto(factor, channels.factor)
        np.copyto(offset, channels.offset)
        np.multiply(z, factor, out=t)
        np.add(t, offset, out=t)
        act(t)

    def slope() -> None:
        slope_of(dy, g)
        add_to(channels.sums, g)
        np.copyto(mean, channels.mean)
        np.subtract(z, mean, out=t)
        np.multiply(t, g, out=t)
        add_to(channels.products, t)

    def into_input() -> None:
        for row, values in ((mean, channels.mean), (factor, channels.factor), (offset, channels.offset)):
            np.copyto(row, values)
        np.subtract(z, mean, out=t)
        np.multiply(g, factor, out=g)
        np.subtract(g, offset, out=g)
        np.copyto(factor, channels.pull)
        np.multiply(t, factor, out=t)
        np.subtract(g, t, out=g)

    add = partial(add_to, channels.sums, z)
    return {"add": add, "deviate": deviate, "normalise": normalise, "slope": slope, "into_input": into_input}
