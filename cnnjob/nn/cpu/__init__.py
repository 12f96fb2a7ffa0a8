"""The NumPy backend: the reference, and the CPU engine.

Bits do not depend on the number of cores: work is cut into parts of fixed number and every sum has a
fixed order. BLAS must be kept at one thread by the caller; the cores are used by the workers.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cnnjob.nn.blocks import Block, Conv, Dense
from cnnjob.nn.cpu import blocks
from cnnjob.nn.cpu.conv import conv
from cnnjob.nn.memory import Arena, Array, HostMemory
from cnnjob.nn.optimisers import Segment, Sgd
from cnnjob.nn.signals import Feed, Signal, Step, Task
from cnnjob.nn.workers import Workers

UPDATE_ELEMENTS = 1 << 15
"""Elements of one piece of the update: its operands stay in a core's cache."""
MOST_PIECES = 4096
"""Of an update; beyond it the pieces grow, so that planning stays quick."""


class NumPyBackend(HostMemory):
    """Blocks on NumPy arrays of one float type."""

    name = "numpy"
    synchronous = True

    def __init__(self, workers: Workers, dtype: Any = np.float32) -> None:
        """Use these cores and this float type (float64 is for gradient checks)."""
        self.workers = workers
        self.dtype = np.dtype(dtype)

    def gather(self, arena: Arena, feed: Feed, x: Signal, scale: Array, shift: Array) -> Task:
        """Plan the batch."""
        return blocks.gather(self.workers, arena, feed, x, scale, shift)

    def block(
        self,
        arena: Arena,
        block: Block,
        x: Signal,
        y: Signal,
        parameters: tuple[dict[str, Array], dict[str, Array]],
        feed: Feed,
        place: int,
    ) -> Step:
        """Plan one block of a training (with gradients) or an evaluation (without)."""
        w, dw = parameters
        if isinstance(block, Conv):
            return conv(self.workers, arena, block, x, y, w, dw)
        if isinstance(block, Dense):
            return blocks.dense(self.workers, arena, block, x, y, w, dw)
        return blocks.dropout(self.workers, arena, block, x, y, feed, place)

    def loss(self, arena: Arena, feed: Feed, logits: Signal) -> Task:
        """Plan the loss and its gradient."""
        return blocks.cross_entropy(arena, feed, logits)

    def probabilities(self, arena: Arena, logits: Signal) -> tuple[Array, Task]:
        """Plan the softmax: its (N, K) array and the task that fills it."""
        p, _, task = blocks.softmax(arena, logits)
        return p, task

    def update(
        self,
        arena: Arena,
        optimiser: Sgd,
        segments: Sequence[Segment],
        buffers: tuple[Array, Array, Array],
        feed: Feed,
    ) -> Task:
        """Plan the update of the flat parameter buffer, piece by piece (see :class:`Sgd` for the formula)."""
        weights, gradients, velocity = buffers
        length = max(UPDATE_ELEMENTS, -(-weights.size // MOST_PIECES))

        def piece(number: int, segment: Segment, start: int) -> Task:
            part = slice(start, min(start + length, segment.place.stop))
            w, g = weights[part], gradients[part]
            v = velocity[part] if optimiser.momentum else g
            (change,) = arena.scratch(number % blocks.ELEMENT_SHARDS, (w.shape, w.dtype))
            decay = optimiser.weight_decay if segment.decays else 0.0

            def run() -> None:
                if decay:
                    np.multiply(w, decay, out=change)
                    np.add(g, change, out=g)
                if optimiser.momentum:
                    np.multiply(v, optimiser.momentum, out=v)
                    np.add(v, g, out=v)
                np.multiply(v, float(feed.learning_rates[feed.position[0]]) * segment.learning_rate_factor, out=change)
                np.subtract(w, change, out=w)

            return run

        places = [(s, start) for s in segments for start in range(s.place.start, s.place.stop, length)]
        tasks = [piece(number, segment, start) for number, (segment, start) in enumerate(places)]
        return lambda: self.workers.run(tasks)

    def advance(self, feed: Feed) -> Task:
        """Plan the move to the next step."""

        def run() -> None:
            feed.position += 1

        return run
