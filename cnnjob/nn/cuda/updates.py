"""Optimiser updates of the flat parameter buffer on a device."""

from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from math import prod, sqrt
from typing import Any

import numpy as np

from cnnjob.nn.arena import Arena, Array
from cnnjob.nn.blocks import Shape
from cnnjob.nn.cuda.device_api import MAX_BLOCKS, MAX_PARTIAL_SUMS, THREADS, Device, gemm, in_order, scalars
from cnnjob.nn.optimisers import (
    CLIP_EPS,
    NEWTON_SCHULZ,
    NEWTON_SCHULZ_EPS,
    Adam,
    Muon,
    Optimiser,
    Segment,
    split_segments,
)
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
    matrices, others = split_segments(optimiser, segments)
    rule = optimiser.others if isinstance(optimiser, Muon) else optimiser
    # A single launch for all segments: the table assigns each thread block its piece, with the settings for the update.
    pieces = _cut(others) or [(Segment(slice(0, 0), 0.0, decays=False), 0)]  # a grid has at least one block
    table: dict[str, Array] = {
        "starts": np.array([start for _, start in pieces]),
        "counts": np.array([min(BLOCK_ELEMENTS, s.elements.stop - start) for s, start in pieces], np.int32),
        "factors": np.array([s.learning_rate_factor for s, _ in pieces]),
        "decays": np.array([rule.weight_decay if s.decays else 0.0 for s, _ in pieces], np.float32),
    }
    common = *map(arena.constant, table.values()), inputs.learning_rates, inputs.momentum_drop, inputs.position
    # The ticket counts thread blocks: the last block of a step's last kernel advances the position, because all other
    # blocks have read it by then.
    ticket = arena.take((1,), np.uint32)
    is_last_kernel = not optimiser.lookahead and not optimiser.ema
    if isinstance(rule, Adam):
        name, rule_slots = "adam", [slots["first_moment"], slots["second_moment"]]
        constants: list[Any] = [np.float64(rule.momentum), np.float64(rule.beta2), rule.eps, rule.decoupled]
    else:
        name, rule_slots = "sgd", [slots.get("velocity", gradients[:0])]
        constants = [np.float64(rule.momentum), rule.nesterov, rule.decoupled]
    arguments = scalars([weights, gradients, *rule_slots, *common, ticket, is_last_kernel, *constants])
    tasks: list[Task] = [partial(device.launch, name, (len(pieces), 1), (THREADS, 1), arguments)]
    if isinstance(optimiser, Muon) and matrices:
        tasks.insert(0, _plan_muon(device, arena, optimiser, matrices, buffers, inputs))
    if optimiser.clip_norm:
        tasks.insert(0, _plan_clip_kernels(device, arena, optimiser.clip_norm, gradients))
    grid = min(-(-weights.size // THREADS), MAX_BLOCKS), 1
    for slot, alphas in (("slow", inputs.lookahead), ("ema", inputs.ema)):
        if slot in slots:
            settings = ticket, slot == "ema" or not optimiser.ema, slot == "slow", np.int64(weights.size)
            arguments = scalars([weights, slots[slot], alphas, inputs.position, *settings])
            tasks.append(partial(device.launch, "average", grid, (THREADS, 1), arguments))
    return in_order(tasks)


def _cut(segments: Sequence[Segment]) -> list[tuple[Segment, int]]:
    """Return the pieces of segments, each with its first element in the flat buffers."""
    return [(s, start) for s in segments for start in range(s.elements.start, s.elements.stop, BLOCK_ELEMENTS)]


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


def _plan_muon(
    device: Device,
    arena: Arena,
    optimiser: Muon,
    segments: Sequence[Segment],
    buffers: tuple[Array, Array, dict[str, Array]],
    inputs: StepInputs,
) -> Task:
    """Plan Muon's update of layers' weights: all matrices in each kernel, one matrix in each product."""
    weights, gradients, slots = buffers
    pieces, offsets = _cut(segments), [0, *accumulate(prod(segment.shape) for segment in segments)]
    owners = [segments.index(segment) for segment, _ in pieces]
    starts, places, counts, owner, firsts = (
        arena.constant(np.array(values, dtype))
        for values, dtype in (
            ([start for _, start in pieces], np.int64),
            ([offsets[m] + start - s.elements.start for m, (s, start) in zip(owners, pieces, strict=True)], np.int64),
            ([min(BLOCK_ELEMENTS, s.elements.stop - start) for s, start in pieces], np.int32),
            (owners, np.int32),
            ([*map(owners.index, range(len(segments))), len(pieces)], np.int32),
        )
    )
    norms, factors, decays, scales = (
        arena.constant(np.array(values, np.float64))
        for values in (
            [sqrt(segment.shape[1]) for segment in segments],
            [segment.learning_rate_factor for segment in segments],
            [optimiser.weight_decay if segment.decays else 0.0 for segment in segments],
            [optimiser.scale(segment.shape) for segment in segments],
        )
    )
    sums, largest = arena.take((len(pieces),), np.float64), max(min(segment.shape) for segment in segments) ** 2
    sizes = offsets[-1], offsets[-1], largest, largest
    x, y, gram, factor = arena.scratch(0, *(((size,), weights.dtype) for size in sizes))

    def launch(name: str, *arguments: Any) -> Task:
        return partial(device.launch, name, (len(pieces), 1), (THREADS, 1), scalars(arguments))

    shapes = [segment.shape for segment in segments]
    update, iterations = _plan_newton_schulz(device, shapes, (x, y, gram, factor), optimiser.ns_steps)
    tasks = [
        launch(
            "muon_momentum",
            *(gradients, slots["velocity"], x, sums, starts, places, counts, optimiser.momentum, optimiser.nesterov),
        ),
        launch("muon_normalise", x, sums, places, counts, owner, firsts, np.float64(NEWTON_SCHULZ_EPS)),
        *iterations,
    ]
    if optimiser.normalise_weights:
        tasks.append(launch("muon_squares", weights, sums, starts, counts))
    settings = norms, factors, decays, scales, inputs.learning_rates, inputs.position, optimiser.normalise_weights
    tasks.append(launch("muon_step", weights, update, sums, starts, places, counts, owner, firsts, *settings))
    return in_order(tasks)


def _plan_newton_schulz(
    device: Device, shapes: Sequence[Shape], scratch: tuple[Array, ...], ns_steps: int
) -> tuple[Array, list[Task]]:
    """Plan the Newton–Schulz iterations of matrices that follow each other in the first scratch array.

    Returns:
        The scratch array with the result, and the tasks.
    """
    (a, b, c), tasks = NEWTON_SCHULZ, list[Task]()
    x, y, gram, factor = scratch
    for _ in range(ns_steps):
        offset = 0
        for shape in shapes:
            side, is_wide, part = min(shape), shape[0] <= shape[1], slice(offset, offset + prod(shape))
            source, target = x[part].reshape(shape), y[part].reshape(shape)
            A, B = (flat[: side**2].reshape(side, side) for flat in (gram, factor))
            grid = min(-(-(side**2) // THREADS), MAX_BLOCKS), 1
            tasks += [
                gemm(device, source, source, A, (not is_wide, is_wide)),  # A = XXᵀ, or XᵀX, which is smaller
                gemm(device, A, A, B, alpha=c),
                partial(device.launch, "muon_factor", grid, (THREADS, 1), scalars([B, A, a, b, side])),
                gemm(device, B, source, target) if is_wide else gemm(device, source, B, target),
            ]
            offset = part.stop
        x, y = y, x
    return x, tasks
