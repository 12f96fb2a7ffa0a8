"""Activations in NumPy, and the sums at the end of residual blocks."""

from collections.abc import Callable, Sequence
from functools import partial
from math import pi, sqrt

import numpy as np

from cnnjob.nn.arena import Arena, Array
from cnnjob.nn.blocks import Activation
from cnnjob.nn.operations import Activate
from cnnjob.nn.tensors import ForwardBackward, Task, Tensor
from cnnjob.nn.workers import SHARDS, Workers, distribute_shards, run_all, split_evenly, split_shard

CACHE_BLOCK_ELEMENTS = 1 << 16
"""Number of elements in a cache block, chosen so that the block's arrays fit in a core's cache."""
SCRATCH_ARRAYS = {"none": 0, "relu": 0, "gelu": 3, "silu": 1}
"""Number of scratch arrays that each activation needs; they have the shape of the output."""

_ERFC = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
"""Coefficients a₁ … a₅ of Abramowitz & Stegun 1964, 7.1.26."""
_ERFC_P = 0.3275911
"""Constant p in the same formula."""

_SIGN_BIT = np.int32(-(2**31))
"""The sign bit of a float32 number."""

Forward = Callable[[Array], None]
"""Function that takes the input, (n, H, W, C) or (n, U), and overwrites it."""
Backward = Callable[[Array, Array], object]
"""Function that takes the output gradient and the array that receives the input gradient."""


def activate(workers: Workers, arena: Arena, block: Activate, x: Tensor, y: Tensor) -> ForwardBackward:
    """Plan the activation of a tensor (N, …), as described in :func:`plan_activation`."""
    return _plan_sum(workers, arena, [x.value], x.gradient, y, block.activation)


def residual_add(
    workers: Workers, arena: Arena, body: Tensor, shortcut: Tensor, y: Tensor, kind: Activation
) -> ForwardBackward:
    """Plan the end of a residual block: y = activation(body + shortcut), all (N, H, W, C).

    The backward task writes the gradient of the sum to ``body.gradient``; the shortcut's gradient is the same.
    """
    return _plan_sum(workers, arena, [body.value, shortcut.value], body.gradient, y, kind)


def _plan_sum(
    workers: Workers, arena: Arena, terms: Sequence[Array], d_sum: Array, y: Tensor, kind: Activation
) -> ForwardBackward:
    """Plan y = activation(sum of one or two terms), and the gradient of the sum."""

    def plan_cache_block(number: int, images: slice) -> ForwardBackward:
        first, *others = (term[images] for term in terms)
        out, dy, dx = y.value[images], y.gradient[images], d_sum[images]
        t, *scratch = arena.scratch(number, *[(out.shape, out.dtype)] * (1 + SCRATCH_ARRAYS[kind]))
        activate_forward, activate_backward = plan_activation(arena, kind, out, scratch, trainable=y.trainable)

        def forward() -> None:
            # Write to scratch memory, since the activation overwrites its input, which other operations may read.
            if others:
                np.add(first, others[0], out=t)
            else:
                np.copyto(t, first)
            activate_forward(t)

        return ForwardBackward(forward, lambda: activate_backward(dy, dx))

    def plan_shard(number: int, shard: slice) -> ForwardBackward:
        n_blocks = -(-y.value[shard].size // CACHE_BLOCK_ELEMENTS)
        steps = [plan_cache_block(number, images) for images in split_shard(shard, n_blocks)]
        forwards, backwards = [step.forward for step in steps], [step.backward for step in steps]
        return ForwardBackward(partial(run_all, forwards), partial(run_all, backwards))

    shards = [plan_shard(number, images) for number, images in enumerate(split_evenly(len(y.value), SHARDS))]
    return distribute_shards(workers, shards, work=y.value.size)


def accumulate(workers: Workers, source: Array, target: Array) -> Task:
    """Plan target ← target + source, both (N, …)."""
    shards = [(target[images], source[images]) for images in split_evenly(len(target), SHARDS)]
    tasks = [partial(np.add, target_shard, source_shard, out=target_shard) for target_shard, source_shard in shards]
    return workers.distribute(tasks, work=target.size)


def plan_activation(
    arena: Arena, kind: Activation, out: Array, scratch: list[Array], *, trainable: bool
) -> tuple[Forward, Backward]:
    """Plan the activation of a few images, whose arrays should fit in a core's cache.

    ReLU: max(u, 0). GELU: u·Φ(u), with Φ the distribution function of the standard normal distribution (Hendrycks &
    Gimpel 2016, eq. 1). SiLU: u·s(u), with s(u) = 1/(1 + exp(−u)) (Elfwing et al. 2018, eq. 5).

    Args:
        arena: memory for the buffers.
        kind: the activation.
        out: receives the output.
        scratch: arrays of the same shape as ``out``; :data:`SCRATCH_ARRAYS` gives their number.
        trainable: True if the backward function will be used.

    Returns:
        The forward and backward functions.
    """
    if kind == "gelu":
        return _plan_gelu(arena, out, scratch, trainable=trainable)
    if kind == "silu":
        return _plan_silu(arena, out, scratch, trainable=trainable)
    if kind == "none":
        return (lambda u: np.copyto(out, u)), (lambda dy, g: np.copyto(g, dy))
    mask = arena.take(out.shape if trainable else (0,), bool)
    zeros = arena.take(out.shape[-2:] if out.ndim > 2 else out.shape[-1:], out.dtype)  # noqa: PLR2004 - rows of pixels

    def forward(u: Array) -> None:
        np.maximum(u, zeros, out=out)  # NumPy is slower with a scalar than with an array
        if trainable:
            np.greater(u, zeros, out=mask)

    return forward, lambda dy, g: np.multiply(dy, mask, out=g)


def _plan_gelu(arena: Arena, out: Array, scratch: list[Array], *, trainable: bool) -> tuple[Forward, Backward]:
    """Plan GELU; the forward function stores its derivative, Φ(u) + u·φ(u) with φ the normal density."""
    phi, density, work = scratch
    # The backward function could not compute it: the input, in scratch memory, has been overwritten by then.
    derivative = arena.take(out.shape if trainable else (0,), out.dtype)

    def forward(u: Array) -> None:
        normal_distribution(u, phi, density, work)
        np.multiply(u, phi, out=out)
        if trainable:
            np.multiply(density, u, out=density)
            np.add(phi, density, out=derivative)

    return forward, lambda dy, g: np.multiply(dy, derivative, out=g)


def _plan_silu(arena: Arena, out: Array, scratch: list[Array], *, trainable: bool) -> tuple[Forward, Backward]:
    """Plan SiLU; the forward function stores its derivative, s(u) + y·(1 − s(u)) with y = u·s(u)."""
    (s,) = scratch
    derivative = arena.take(out.shape if trainable else (0,), out.dtype)

    def forward(u: Array) -> None:
        np.negative(u, out=s)
        np.exp(s, out=s)  # infinite for large negative u, where s(u) is 0 in any case
        np.add(s, 1, out=s)
        np.divide(1, s, out=s)
        np.multiply(u, s, out=out)
        if trainable:
            np.multiply(out, s, out=derivative)
            np.subtract(out, derivative, out=derivative)
            np.add(s, derivative, out=derivative)

    return forward, lambda dy, g: np.multiply(dy, derivative, out=g)


def normal_distribution(u: Array, phi: Array, density: Array, work: Array) -> None:
    """Compute the distribution function and density of the standard normal distribution.

    Φ(u) = (1 + erf(u/√2))/2: float64 uses SciPy; float32 uses Abramowitz & Stegun 1964, 7.1.26, which is four times as
    fast; with rounding, the error of Φ is at most 4·10⁻⁷.

    Args:
        u: arguments.
        phi: receives Φ(u).
        density: receives φ(u) = exp(−u²/2)/√(2π).
        work: scratch, overwritten.
    """
    np.multiply(u, u, out=density)
    np.multiply(density, -0.5, out=density)
    np.exp(density, out=density)
    if u.dtype == np.float64:
        from scipy.special import ndtr  # noqa: PLC0415 - only gradient checks need it

        ndtr(u, out=phi)
    else:
        # For x ≥ 0, erfc(x) = (a₁t + … + a₅t⁵)·exp(−x²) with t = 1/(1 + px). Here x = |u|/√2, 1 − Φ(|u|) = erfc(x)/2,
        # `work` becomes t, and `density` holds exp(−x²). Each line is a pass over the arrays, so there should be few.
        scale, work_bits, phi_bits = sqrt(2) / _ERFC_P, work.view(np.int32), phi.view(np.int32)
        np.abs(u, out=work)
        np.add(work, scale, out=work)
        np.divide(scale, work, out=work)
        np.multiply(work, _ERFC[-1] / 2, out=phi)
        for coefficient in _ERFC[-2::-1]:
            np.add(phi, coefficient / 2, out=phi)
            np.multiply(phi, work, out=phi)
        np.multiply(phi, density, out=phi)
        np.subtract(0.5, phi, out=phi)  # Φ(|u|) − 1/2
        # Φ(u) − 1/2 is odd: set the sign bit to that of u, which takes a third of the time of np.copysign.
        np.bitwise_and(u.view(np.int32), _SIGN_BIT, out=work_bits)
        np.bitwise_or(phi_bits, work_bits, out=phi_bits)
        np.add(phi, 0.5, out=phi)
    np.multiply(density, 1 / sqrt(2 * pi), out=density)
