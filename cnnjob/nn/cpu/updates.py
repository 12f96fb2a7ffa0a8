"""Optimiser updates of the flat parameter buffer in NumPy, split into cache blocks."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from cnnjob.nn.arena import Arena, Array
from cnnjob.nn.cpu.muon import muon
from cnnjob.nn.optimisers import CLIP_EPS, Adam, Muon, Optimiser, Segment, Sgd, split_segments
from cnnjob.nn.tensors import StepInputs, Task
from cnnjob.nn.workers import SHARDS, Workers, run_all

CACHE_BLOCK_ELEMENTS = 1 << 16
"""Number of elements in a cache block, chosen so that its operands fit in a core's cache."""
MAX_CACHE_BLOCKS = 4096
"""Maximum number of cache blocks per update, which keeps planning fast; with more parameters, blocks are larger."""

OfStep = Callable[[], float]
"""Function that returns the learning rate or the momentum of the current step."""


def update(
    workers: Workers,
    arena: Arena,
    optimiser: Optimiser,
    segments: Sequence[Segment],
    buffers: tuple[Array, Array, dict[str, Array]],
    inputs: StepInputs,
) -> Task:
    """Plan the task that updates all segments; the formulas are in :mod:`cnnjob.nn.optimisers`."""
    weights, gradients, slots = buffers
    matrices, others = split_segments(optimiser, segments)
    rule = optimiser.others if isinstance(optimiser, Muon) else optimiser
    # Several NumPy calls pass over the same operands; those of a small block are still in the cache at the next call.
    length = max(CACHE_BLOCK_ELEMENTS, -(-weights.size // MAX_CACHE_BLOCKS))

    def plan_cache_block(number: int, segment: Segment, start: int) -> Task:
        part = slice(start, min(start + length, segment.elements.stop))
        w, g, block_slots = weights[part], gradients[part], {name: flat[part] for name, flat in slots.items()}
        scratch = arena.scratch(number % SHARDS, (w.shape, w.dtype), (w.shape, w.dtype))
        decay = rule.weight_decay if segment.decays else 0.0

        def rate() -> float:
            return float(inputs.learning_rates[inputs.position[0]]) * segment.learning_rate_factor

        def momentum() -> float:
            return rule.momentum - float(inputs.momentum_drop[inputs.position[0]])

        if isinstance(rule, Adam):
            return _plan_adam(rule, w, g, block_slots, scratch, decay, (rate, momentum), inputs)
        return _plan_sgd(rule, w, g, block_slots, scratch, decay, (rate, momentum))

    starts = [(s, start) for s in others for start in range(s.elements.start, s.elements.stop, length)]
    cache_blocks = [plan_cache_block(number, segment, start) for number, (segment, start) in enumerate(starts)]
    tasks = [workers.distribute(_by_shard(cache_blocks), work=weights.size)]
    if isinstance(optimiser, Muon):
        tasks.insert(0, muon(workers, arena, optimiser, matrices, buffers, inputs))
    if optimiser.clip_norm:
        tasks.insert(0, _plan_clipping(workers, arena, optimiser.clip_norm, gradients, length))
    if optimiser.lookahead:
        # A separate list: its cache blocks span several segments, all of which must already be updated.
        tasks.append(_plan_average(workers, arena, (weights, slots["slow"]), length, inputs.lookahead, inputs))
    if optimiser.ema:
        tasks.append(_plan_average(workers, arena, (weights, slots["ema"]), length, inputs.ema, inputs, resets=False))
    return partial(run_all, tasks)


def _by_shard(cache_blocks: list[Task]) -> list[Task]:
    """Return one task per shard, which runs the shard's cache blocks in order since they share scratch memory."""
    return [partial(run_all, cache_blocks[shard::SHARDS]) for shard in range(min(SHARDS, len(cache_blocks)))]


def _plan_sgd(
    optimiser: Sgd,
    w: Array,
    g: Array,
    slots: dict[str, Array],
    scratch: list[Array],
    decay: float,
    of_step: tuple[OfStep, OfStep],
) -> Task:
    """Plan the SGD update of one cache block (see :class:`cnnjob.nn.optimisers.Sgd`)."""
    (change, decayed), (rate, momentum) = scratch, of_step
    # The decayed gradient has a separate buffer, so that the state's gradients remain those of the loss.
    coupled = decay != 0 and not optimiser.decoupled
    gradient = decayed if coupled else g  # g + λw, or g
    v = slots["velocity"] if optimiser.momentum else gradient  # without momentum, v = g

    def run() -> None:
        eta, mu = rate(), momentum()
        if coupled:
            np.multiply(w, decay, out=decayed)
            np.add(g, decayed, out=decayed)
        elif decay:
            np.multiply(w, 1 - eta * decay, out=w)
        if optimiser.momentum:
            np.multiply(v, mu, out=v)
            np.add(v, gradient, out=v)
        if optimiser.momentum and optimiser.nesterov:
            np.multiply(v, mu, out=change)
            np.add(change, gradient, out=change)
            np.multiply(change, eta, out=change)
        else:
            np.multiply(v, eta, out=change)
        np.subtract(w, change, out=w)

    return run


def _plan_clipping(workers: Workers, arena: Arena, clip_norm: float, gradients: Array, length: int) -> Task:
    """Plan g ← g·min(1, clip_norm / (‖g‖ + 10⁻⁶)) for the flat gradients, which are 0 where nothing is trained."""
    parts = [gradients[start : start + length] for start in range(0, gradients.size, length)]
    # One sum per cache block, added up in a fixed order. In float64, no square of a float32 number overflows.
    sums = arena.take((len(parts),), np.float64)

    def factor() -> float:
        return clip_norm / (math.sqrt(sums.sum()) + CLIP_EPS)

    def plan_sum(number: int, g: Array) -> Task:
        (squares,) = arena.scratch(number % SHARDS, (g.shape, np.float64))

        def run() -> None:
            np.multiply(g, g, out=squares, dtype=np.float64)
            sums[number] = squares.sum()

        return run

    add_squares = workers.distribute(
        _by_shard([plan_sum(number, g) for number, g in enumerate(parts)]), work=gradients.size
    )
    scalings: list[Task] = [lambda g=g: np.multiply(g, factor(), out=g) for g in parts]  # type: ignore[misc]
    scale = workers.distribute(_by_shard(scalings), work=gradients.size)

    def run() -> None:
        add_squares()
        if factor() < 1:  # False if the norm is NaN, which the next loss then shows
            scale()

    return run


def _plan_adam(
    optimiser: Adam,
    w: Array,
    g: Array,
    slots: dict[str, Array],
    scratch: list[Array],
    decay: float,
    of_step: tuple[OfStep, OfStep],
    inputs: StepInputs,
) -> Task:
    """Plan the update of one cache block by Adam or AdamW (see :class:`cnnjob.nn.optimisers.Adam`)."""
    (change, root), (rate, momentum) = scratch, of_step
    m, v = slots["first_moment"], slots["second_moment"]
    coupled = decay != 0 and not optimiser.decoupled
    gradient = root if coupled else g  # g + λw, or g; the root is computed later

    def run() -> None:
        eta, beta1, t = rate(), momentum(), int(inputs.position[1]) + 1  # the position advances after the update
        if coupled:
            np.multiply(w, decay, out=gradient)
            np.add(g, gradient, out=gradient)
        elif decay:
            np.multiply(w, 1 - eta * decay, out=w)
        for moment, beta in ((m, beta1), (v, optimiser.beta2)):
            np.multiply(gradient, gradient if moment is v else 1, out=change)
            np.multiply(change, 1 - beta, out=change)
            np.multiply(moment, beta, out=moment)
            np.add(moment, change, out=moment)
        # √v̂ = √v / √(1 − β₂ᵗ): v itself is stored without the correction, which changes with t.
        np.sqrt(v, out=root)
        np.multiply(root, 1 / (1 - optimiser.beta2**t) ** 0.5, out=root)
        np.add(root, optimiser.eps, out=root)
        np.multiply(m, eta / (1 - beta1**t), out=change)
        np.divide(change, root, out=change)
        np.subtract(w, change, out=w)

    return run


def _plan_average(
    workers: Workers,
    arena: Arena,
    buffers: tuple[Array, Array],
    length: int,
    alphas: Array,
    inputs: StepInputs,
    *,
    resets: bool = True,
) -> Task:
    """Plan slow ← slow + (1 − α)(fast − slow), then fast ← slow if ``resets`` is true.

    The task does nothing after a step for which α is negative.

    Args:
        workers: the workers.
        arena: memory for the scratch arrays.
        buffers: flat arrays with the fast and the slow weights.
        length: number of elements in a cache block.
        alphas: α after each step.
        inputs: step inputs.
        resets: True if the fast weights continue from the slow ones, as with Lookahead.
    """
    fast, slow = buffers

    def plan_cache_block(number: int, start: int) -> Task:
        f, s = fast[start : start + length], slow[start : start + length]
        (change,) = arena.scratch(number % SHARDS, (f.shape, f.dtype))

        def run() -> None:
            alpha = float(alphas[inputs.position[0]])
            np.subtract(f, s, out=change)
            np.multiply(change, 1 - alpha, out=change)
            np.add(s, change, out=s)
            if alpha == 0:  # an exact copy
                np.copyto(s, f)
            if resets:
                np.copyto(f, s)

        return run

    cache_blocks = [plan_cache_block(number, start) for number, start in enumerate(range(0, fast.size, length))]
    average = workers.distribute(_by_shard(cache_blocks), work=fast.size)

    def run() -> None:
        if alphas[inputs.position[0]] >= 0:  # −1 after steps in which Lookahead does not act
            average()

    return run
