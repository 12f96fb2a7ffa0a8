"""Batch normalisation on NumPy, with the activation that follows it.

A batch is cut into shards of fixed number and a shard into pieces that stay in a core's cache; every sum is over
pieces, then shards, in order.
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
"""Of a piece: its few arrays stay in a core's cache."""
MOST_PIECES = 64
"""Of a shard; beyond it the pieces grow, so that planning stays quick."""

Arrays = dict[str, Array]
Passes = dict[str, list[Task]]
"""Over the pieces of a shard, by what they are for."""


def norm(workers: Workers, arena: Arena, block: Norm, x: Tensor, y: Tensor, w: Arrays, dw: Arrays) -> ForwardBackward:
    """Plan a batch normalisation: y = activation(scale·(x − mean)/√(variance + eps) + shift).

    Backward, with g the gradient before the activation, M pixels of the batch and x̂ the normalised values:
    dx = scale/√(variance + eps) · (g − Σg/M − x̂·Σ(g·x̂)/M) (Ioffe & Szegedy 2015, §3).

    Args:
        workers: the cores.
        arena: where buffers come from.
        block: its settings, and the activation.
        x: (N, H, W, C), without a border.
        y: the same shape.
        w: ``scale`` (unless it has none), ``shift``, and the running ``mean`` and ``variance``, each (C,).
        dw: the gradients of ``scale`` and ``shift``, overwritten by ``backward``.

    Returns:
        The two halves; a training's forward also moves the running statistics on.
    """
    channels = _Channels(arena, block, x, w, dw)
    shards = [_shard(arena, block, x, y, channels, *place) for place in enumerate(split_evenly(len(x.value), SHARDS))]
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
    """What holds for each channel, (C,), and the shards' sums that it comes from, (shards, C)."""

    def __init__(self, arena: Arena, block: Norm, x: Tensor, w: Arrays, dw: Arrays) -> None:
        C, dtype = x.value.shape[-1], x.value.dtype
        self._settings, self._w, self._dw = block.settings, w, dw
        self._count = prod(x.value.shape[:-1])
        self.sums, self.products = (arena.take((min(SHARDS, len(x.value)), C), dtype) for _ in range(2))
        self.mean, self.inverse, self.factor, self.offset, self.pull, self._work = (
            arena.take((C,), dtype) for _ in range(6)
        )

    def find_mean(self) -> None:
        np.add.reduce(self.sums, axis=0, out=self.mean)
        np.divide(self.mean, self._count, out=self.mean)

    def find_variance(self) -> None:
        """What the batch is normalised by; the running statistics move on."""
        np.add.reduce(self.products, axis=0, out=self.inverse)
        np.divide(self.inverse, self._count, out=self.inverse)
        unbiased = self._count / max(1, self._count - 1)
        for running, own, factor in (("mean", self.mean, 1.0), ("variance", self.inverse, unbiased)):
            np.multiply(own, factor * self._settings.momentum, out=self._work)
            np.multiply(self._w[running], 1 - self._settings.momentum, out=self._w[running])
            np.add(self._w[running], self._work, out=self._w[running])
        self._find_factor()

    def take_running(self) -> None:
        """What an evaluation is normalised by."""
        np.copyto(self.mean, self._w["mean"])
        np.copyto(self.inverse, self._w["variance"])
        self._find_factor()

    def _find_factor(self) -> None:
        """Of y = x·factor + offset; the inverse is of √(variance + eps)."""
        np.add(self.inverse, self._settings.eps, out=self.inverse)
        np.sqrt(self.inverse, out=self.inverse)
        np.divide(1, self.inverse, out=self.inverse)
        np.multiply(self.inverse, self._w.get("scale", 1), out=self.factor)
        np.multiply(self.mean, self.factor, out=self.offset)
        np.subtract(self._w["shift"], self.offset, out=self.offset)

    def find_slopes(self) -> None:
        """The gradients of shift and scale; and dx = g·factor − (x − mean)·pull − offset."""
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
    """The passes over a few images; sums start anew at the first piece of a shard."""
    z, out, dy, g = x.value[part], y.value[part], y.gradient[part], x.gradient[part]
    n, H, W, C = z.shape
    shapes = [z.shape, (1, n * H * W), (1, C), *[(W, C)] * 3, *[z.shape] * WORKING[block.activation]]
    t, ones, total, mean, factor, offset, *working = arena.scratch(number, *((shape, z.dtype) for shape in shapes))
    act, slope_of = activation(arena, block.activation, out, working, trainable=y.trainable)

    def add_to(sums: Array, values: Array) -> None:
        ones.fill(1)
        np.dot(ones, values.reshape(-1, C), out=total)  # a sum over an array's first axis is slow
        if first:
            sums[number] = 0
        np.add(sums[number], total[0], out=sums[number])

    def deviate() -> None:
        np.copyto(mean, channels.mean)  # a row of them: NumPy is slow with short ones
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
