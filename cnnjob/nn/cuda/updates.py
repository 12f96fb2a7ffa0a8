"""Optimiser updates of the flat parameter buffer on a device."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from cnnjob.nn.cuda.device_api import MOST_BLOCKS, THREADS, Device, in_order, scalars
from cnnjob.nn.memory import Arena, Array
from cnnjob.nn.optimisers import AdamW, Optimiser, Segment
from cnnjob.nn.tensors import StepInputs, Task

PIECE_ELEMENTS = 1024
"""Number of elements that one thread block updates."""


def update(
    device: Device,
    arena: Arena,
    optimiser: Optimiser,
    segments: Sequence[Segment],
    buffers: tuple[Array, Array, dict[str, Array]],
    feed: StepInputs,
) -> Task:
    """Plan the update of all segments, see :mod:`cnnjob.nn.optimisers`, and the advance to the next step."""
    weights, gradients, slots = buffers
    # A single launch for all segments: the table tells each thread block its piece and how that piece is updated.
    pieces = [(s, start) for s in segments for start in range(s.place.start, s.place.stop, PIECE_ELEMENTS)]
    table: dict[str, Array] = {
        "starts": np.array([start for _, start in pieces]),
        "counts": np.array([min(PIECE_ELEMENTS, s.place.stop - start) for s, start in pieces], np.int32),
        "factors": np.array([s.learning_rate_factor for s, _ in pieces]),
        "decays": np.array([optimiser.weight_decay * s.decays for s, _ in pieces], np.float32),
    }
    shared = *map(arena.constant, table.values()), feed.learning_rates, feed.position
    # The ticket counts thread blocks: the last block of a step's last kernel advances the position, since all others
    # have read it by then.
    ends = arena.take((1,), np.uint32), not optimiser.lookahead
    if isinstance(optimiser, AdamW):
        name, own = "adamw", [slots["first_moment"], slots["second_moment"]]
        constants: list[Any] = [np.float64(optimiser.momentum), np.float64(optimiser.beta2), optimiser.eps]
    else:
        name, own = "sgd", [slots.get("velocity", gradients[:0])]
        constants = [optimiser.momentum, optimiser.nesterov, optimiser.decoupled]
    arguments = scalars([weights, gradients, *own, *shared, *ends, *constants])
    task = partial(device.launch, name, (len(pieces), 1), (THREADS, 1), arguments)
    return in_order([task, _look_ahead(device, weights, slots["slow"], feed, ends[0])]) if optimiser.lookahead else task


def _look_ahead(device: Device, fast: Array, slow: Array, feed: StepInputs, ticket: Array) -> Task:
    """Plan slow ← slow + (1 − share)(fast − slow), fast ← slow, after steps with a share; then advance the position."""
    grid = min(-(-fast.size // THREADS), MOST_BLOCKS), 1
    arguments = scalars([fast, slow, feed.lookahead, feed.position, ticket, np.int64(fast.size)])
    return partial(device.launch, "look_ahead", grid, (THREADS, 1), arguments)
