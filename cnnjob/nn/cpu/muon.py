"""Muon's update of layers' weights in NumPy: matrices of equal shape are updated together, as stacks."""

from collections.abc import Sequence
from functools import partial
from math import prod, sqrt

import numpy as np

from cnnjob.nn.arena import Arena, Array
from cnnjob.nn.optimisers import NEWTON_SCHULZ, NEWTON_SCHULZ_EPS, Muon, Segment
from cnnjob.nn.tensors import StepInputs, Task
from cnnjob.nn.workers import SHARDS, Workers, run_all, split_evenly


def muon(
    workers: Workers,
    arena: Arena,
    optimiser: Muon,
    segments: Sequence[Segment],
    buffers: tuple[Array, Array, dict[str, Array]],
    inputs: StepInputs,
) -> Task:
    """Plan the task that updates layers' weights; the formulas are in :class:`cnnjob.nn.optimisers.Muon`."""
    # The largest come first, so that stacks of equal size go to different shards, and so to different cores.
    shapes = sorted({segment.shape for segment in segments}, key=lambda shape: (prod(shape), shape), reverse=True)
    equal = [[segment for segment in segments if segment.shape == shape] for shape in shapes]
    stacks = [same[part] for same in equal for part in split_evenly(len(same), SHARDS)]
    tasks = [
        _plan_stack(arena, optimiser, stack, buffers, inputs, number % SHARDS) for number, stack in enumerate(stacks)
    ]
    # Tasks of one shard share its scratch memory, so they run in order.
    shards = [partial(run_all, tasks[shard::SHARDS]) for shard in range(min(SHARDS, len(tasks)))]
    work = sum(optimiser.ns_steps * min(s.shape) ** 2 * (2 * max(s.shape) + min(s.shape)) for s in segments) // 8
    return workers.distribute(shards, work)


def _plan_stack(
    arena: Arena,
    optimiser: Muon,
    segments: Sequence[Segment],
    buffers: tuple[Array, Array, dict[str, Array]],
    inputs: StepInputs,
    shard: int,
) -> Task:
    """Plan the update of n matrices of equal shape."""
    flat_weights, flat_gradients, slots = buffers
    n, shape, dtype = len(segments), segments[0].shape, flat_weights.dtype
    w, g, v = (
        [flat[segment.elements].reshape(shape) for segment in segments]
        for flat in (flat_weights, flat_gradients, slots["velocity"])
    )
    small = n, min(shape), min(shape)
    x, y, gram, factor = arena.scratch(shard, *[((n, *shape), dtype)] * 2, *[(small, dtype)] * 2)
    scale, normal = optimiser.scale(shape), sqrt(shape[1])

    def run() -> None:
        for i in range(n):
            np.multiply(v[i], optimiser.momentum, out=v[i])
            np.add(v[i], g[i], out=v[i])
            np.multiply(v[i], optimiser.momentum, out=x[i])
            np.add(x[i], g[i], out=x[i])
            if not optimiser.nesterov:
                np.copyto(x[i], v[i])
        update, spare = orthogonalise(x, y, gram, factor, optimiser.ns_steps)
        for i, segment in enumerate(segments):
            eta = float(inputs.learning_rates[inputs.position[0]]) * segment.learning_rate_factor
            if optimiser.normalise_weights and (norm := _norm(w[i], spare[i])):
                np.multiply(w[i], normal / norm, out=w[i])
            if segment.decays:
                np.multiply(w[i], 1 - eta * optimiser.weight_decay, out=w[i])
            np.multiply(update[i], eta * scale, out=update[i])
            np.subtract(w[i], update[i], out=w[i])

    return run


def orthogonalise(x: Array, y: Array, gram: Array, factor: Array, ns_steps: int) -> tuple[Array, Array]:
    """Divide matrices by their norms, then move their singular values towards 1 (see :class:`~cnnjob.nn.Muon`).

    Args:
        x: the matrices, (n, rows, columns); overwritten.
        y: scratch of the same shape.
        gram: scratch (n, k, k), with k the smaller of rows and columns.
        factor: scratch (n, k, k).
        ns_steps: number of Newton–Schulz iterations.

    Returns:
        ``x`` and ``y``, in the order in which the array with the result comes first.
    """
    a, b, c = NEWTON_SCHULZ
    diagonals = np.einsum("nii->ni", factor)  # a view
    for matrix, spare in zip(x, y, strict=True):
        np.multiply(matrix, 1 / (_norm(matrix, spare) + NEWTON_SCHULZ_EPS), out=matrix)
    is_wide = x.shape[1] <= x.shape[2]
    for _ in range(ns_steps):
        transposed = x.transpose(0, 2, 1)
        np.matmul(*((x, transposed) if is_wide else (transposed, x)), out=gram)  # A = XXᵀ, or XᵀX, which is smaller
        np.matmul(gram, gram, out=factor)
        np.multiply(factor, c, out=factor)
        np.multiply(gram, b, out=gram)
        np.add(factor, gram, out=factor)
        np.add(diagonals, a, out=diagonals)
        np.matmul(*((factor, x) if is_wide else (x, factor)), out=y)  # (aI + bA + cA²)X, or X(aI + bA + cA²)
        x, y = y, x
    return x, y


def _norm(matrix: Array, scratch: Array) -> float:
    """Return the Frobenius norm of a matrix, with the squares summed in float64."""
    np.multiply(matrix, matrix, out=scratch)
    return sqrt(scratch.sum(dtype=np.float64))
