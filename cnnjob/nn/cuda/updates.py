"""Optimiser updates of the flat parameter buffer on a device."""

from collections.abc import Sequence
from functools import partial
from itertools import accumulate, chain
from math import prod, sqrt
from typing import Any

import numpy as np

from cnnjob.nn.arena import Arena, Array
from cnnjob.nn.blocks import Shape
from cnnjob.nn.cuda.device_api import MAX_BLOCKS, MAX_PARTIAL_SUMS, THREADS, Device, in_order, scalars
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
TILE_SIDE = 64
"""Rows and columns of Muon's products that each thread block computes."""


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
    """Plan Muon's update of layers' weights, with all matrices in each kernel."""
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
    sums = arena.take((len(pieces),), np.float64)
    x, y = arena.scratch(0, *[((offsets[-1],), weights.dtype)] * 2)

    def launch(name: str, *arguments: Any) -> Task:
        return partial(device.launch, name, (len(pieces), 1), (THREADS, 1), scalars(arguments))

    shapes = [segment.shape for segment in segments]
    update, iterations = _plan_newton_schulz(device, arena, shapes, x, y, optimiser.ns_steps)
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
    device: Device, arena: Arena, shapes: Sequence[Shape], x: Array, y: Array, ns_steps: int
) -> tuple[Array, list[Task]]:
    """Plan the Newton–Schulz iterations of matrices that follow each other in x; y is scratch of the same size.

    Each kernel computes one product of every matrix X: A = XXᵀ, F = aI + bA + cA², and FX. A tall matrix takes the
    place of its transpose.

    Returns:
        The one of x and y with the result, and the tasks.
    """
    (a, b, c), sides = NEWTON_SCHULZ, [min(shape) for shape in shapes]
    gram, factor = (arena.take((sum(side**2 for side in sides),), x.dtype) for _ in range(2))
    places, squares = ([0, *accumulate(sizes)] for sizes in (map(prod, shapes), (side**2 for side in sides)))
    tables: list[list[Array]] = [[], [], []]
    for (rows, columns), side, place, square in zip(shapes, sides, places, squares, strict=False):
        # Distances from row to row and from column to column of X, of its transpose, and of a square matrix.
        matrix, length, small = ((columns, 1) if rows <= columns else (1, columns)), max(rows, columns), (side, 1)
        transposed = matrix[::-1]
        tables[0].append(_tiles((place, place, square), (side, side, length), (matrix, transposed, small)))
        tables[1].append(_tiles((square, square, square), (side, side, side), (small, small, small)))
        tables[2].append(_tiles((square, place, place), (side, length, side), (small, matrix, matrix)))
    grams, factors, products = (arena.constant(np.concatenate(table)) for table in tables)

    def multiply(left: Array, right: Array, out: Array, tiles: Array, *scales: float) -> Task:
        arguments = scalars([left, right, left, out, tiles, *scales])
        return partial(device.launch, "muon_product", (len(tiles), 1), (THREADS, 1), arguments)

    tasks: list[Task] = []
    for _ in range(ns_steps):
        tasks += [
            multiply(x, x, gram, grams, 1.0, 0.0, 0.0),
            multiply(gram, gram, factor, factors, c, b, a),
            multiply(factor, x, y, products, 1.0, 0.0, 0.0),
        ]
        x, y = y, x
    return x, tasks


def _tiles(places: tuple[int, ...], sizes: tuple[int, ...], strides: tuple[tuple[int, int], ...]) -> Array:
    """Return the tiles of a product for ``muon_product``, int64 (tiles, 14).

    Args:
        places: index of the first value of both factors and of the product.
        sizes: rows, columns and depth of the product.
        strides: distances from row to row and from column to column of both factors and of the product.
    """
    corners = [(row, column) for row in range(0, sizes[0], TILE_SIDE) for column in range(0, sizes[1], TILE_SIDE)]
    return np.array([[*places, *corner, *sizes, *chain.from_iterable(strides)] for corner in corners], np.int64)
