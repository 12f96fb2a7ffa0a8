"""Optimiser updates of the flat parameter buffer on a device."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from cnnjob.nn.arena import Arena, Array
from cnnjob.nn.cuda.device_api import MAX_BLOCKS, MAX_PARTIAL_SUMS, THREADS, Device, in_order, scalars
from cnnjob.nn.optimisers import CLIP_EPS, Adam, Optimiser, Segment
from cnnjob.nn.tensors import StepInputs, Task

BLOCK_ELEMENTS = 1024
"""Number of elements that each thread block updates."""


def update(
    device: Device,
    arena: Arena,
    optimiser: Optimiser,
    segments: Sequence[Segment],
    buffers: tuple[Array, Array, dict[str, Array]],
    inputs: StepInputs,
) -> Task:
    """Plan the task that updates the parameters in all segments and advances to the next step.

    The formulas are given in :mod:`cnnjob.nn.optimisers`.
    """
    weights, gradients, slots = buffers
    # A single launch for all segments: the table assigns each thread block its piece, with the settings for the update.
    pieces = [(s, start) for s in segments for start in range(s.elements.start, s.elements.stop, BLOCK_ELEMENTS)]
    table: dict[str, Array] = {
        "starts": np.array([start for _, start in pieces]),
        "counts": np.array([min(BLOCK_ELEMENTS, s.elements.stop - start) for s, start in pieces], np.int32),
        "factors": np.array([s.learning_rate_factor for s, _ in pieces]),
        "decays": np.array([optimiser.weight_decay if s.decays else 0.0 for s, _ in pieces], np.float32),
    }
    common = *map(arena.constant, table.values()), inputs.learning_rates, inputs.position
    # The ticket counts thread blocks: the last block of a step's last kernel advances the position, because all other
    # blocks have read it by then.
    ticket = arena.take((1,), np.uint32)
    is_last_kernel = not optimiser.lookahead
    if isinstance(optimiser, Adam):
        name, rule_slots = "adam", [slots["first_moment"], slots["second_moment"]]
        constants: list[Any] = [np.float64(optimiser.momentum), np.float64(optimiser.beta2), optimiser.eps]
        constants.append(optimiser.decoupled)
    else:
        name, rule_slots = "sgd", [slots.get("velocity", gradients[:0])]
        constants = [optimiser.momentum, optimiser.nesterov, optimiser.decoupled]
    arguments = scalars([weights, gradients, *rule_slots, *common, ticket, is_last_kernel, *constants])
    tasks: list[Task] = [partial(device.launch, name, (len(pieces), 1), (THREADS, 1), arguments)]
    if optimiser.clip_norm:
        tasks.insert(0, _plan_clip_kernels(device, arena, optimiser.clip_norm, gradients))
    if optimiser.lookahead:
        # After steps with a reset: slow ← slow + (1 − α)(fast − slow), fast ← slow.
        grid = min(-(-weights.size // THREADS), MAX_BLOCKS), 1
        arguments = scalars([weights, slots["slow"], inputs.lookahead, inputs.position, ticket, np.int64(weights.size)])
        tasks.append(partial(device.launch, "look_ahead", grid, (THREADS, 1), arguments))
    return in_order(tasks)


def _plan_clip_kernels(device: Device, arena: Arena, clip_norm: float, gradients: Array) -> Task:
    """Plan g ← g·min(1, clip_norm / (‖g‖ + 10⁻⁶)) for the flat gradients, which are 0 where nothing is trained."""
    # One block of threads per partial sum; all blocks of the second kernel add these up in the same order.
    grid = min(-(-gradients.size // BLOCK_ELEMENTS), MAX_PARTIAL_SUMS), 1
    sums, size = arena.take(grid[:1], np.float64), np.int64(gradients.size)
    scaling = [gradients, sums, size, grid[0], np.float64(clip_norm), np.float64(CLIP_EPS)]
    return in_order(
        [
            partial(device.launch, "add_squares", grid, (THREADS, 1), scalars([gradients, sums, size])),
            partial(device.launch, "clip", grid, (THREADS, 1), scalars(scaling)),
        ]
    )
