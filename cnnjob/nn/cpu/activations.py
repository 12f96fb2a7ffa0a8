"""Activations on NumPy, of arrays that stay in a core's cache."""

from collections.abc import Callable
from math import pi, sqrt

import numpy as np

from cnnjob.nn.blocks import Activation
from cnnjob.nn.memory import Arena, Array

WORKING = {"none": 0, "relu": 0, "gelu": 3}
"""Arrays of the output's shape that an activation works with."""

_ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
_ERF_P = 0.3275911

Forward = Callable[[Array], None]
"""Takes what it acts on, (n, H, W, C) or (n, U), and overwrites it."""
Backward = Callable[[Array, Array], object]
"""Takes the output's gradient, and where the input's is put."""


def activation(
    arena: Arena, kind: Activation, out: Array, working: list[Array], *, trainable: bool
) -> tuple[Forward, Backward]:
    """Plan an activation.

    ReLU: max(u, 0). GELU: u·Φ(u), Φ the normal distribution's function (Hendrycks & Gimpel 2016, eq. 1).

    Args:
        arena: where buffers come from.
        kind: which.
        out: where the output is put.
        working: as many scratch arrays as :data:`WORKING` says.
        trainable: whether there will be a backward.

    Returns:
        The two halves.
    """
    if kind == "gelu":
        return _gelu(arena, out, working, trainable=trainable)
    if kind == "none":
        return (lambda u: np.copyto(out, u)), (lambda dy, g: np.copyto(g, dy))
    mask = arena.take(out.shape if trainable else (0,), bool)
    zeros = arena.take(out.shape[-2:] if out.ndim > 2 else out.shape[-1:], out.dtype)  # noqa: PLR2004 - rows of pixels

    def forward(u: Array) -> None:
        np.maximum(u, zeros, out=out)  # NumPy is slow with a scalar
        if trainable:
            np.greater(u, zeros, out=mask)

    return forward, lambda dy, g: np.multiply(dy, mask, out=g)


def _gelu(arena: Arena, out: Array, working: list[Array], *, trainable: bool) -> tuple[Forward, Backward]:
    """GELU; its slope Φ(u) + u·φ(u), φ the normal density, is kept for the backward."""
    phi, density, other = working
    slope = arena.take(out.shape if trainable else (0,), out.dtype)

    def forward(u: Array) -> None:
        normal(u, phi, density, other)
        np.multiply(u, phi, out=out)
        if trainable:
            np.multiply(density, u, out=density)
            np.add(phi, density, out=slope)

    return forward, lambda dy, g: np.multiply(dy, slope, out=g)


def normal(u: Array, phi: Array, density: Array, work: Array) -> None:
    """The normal distribution's function and density.

    Φ(u) = (1 + erf(u/√2))/2; in float32 by Abramowitz & Stegun 1964, 7.1.26, whose error is below 1.5·10⁻⁷ and which
    is four times as fast, in float64 by SciPy.

    Args:
        u: where.
        phi: overwritten with Φ(u).
        density: overwritten with φ(u) = exp(−u²/2)/√(2π).
        work: overwritten.
    """
    np.multiply(u, u, out=density)
    np.multiply(density, -0.5, out=density)
    np.exp(density, out=density)
    if u.dtype == np.float64:
        from scipy.special import ndtr  # noqa: PLC0415 - only gradient checks need it

        ndtr(u, out=phi)
    else:
        np.abs(u, out=work)
        np.multiply(work, _ERF_P / sqrt(2), out=work)
        np.add(work, 1, out=work)
        np.divide(1, work, out=work)
        np.multiply(work, _ERF[0], out=phi)
        for coefficient in _ERF[1:]:
            np.add(phi, coefficient, out=phi)
            np.multiply(phi, work, out=phi)
        np.multiply(phi, density, out=phi)  # 1 − erf(|u|/√2)
        np.multiply(phi, -0.5, out=phi)
        np.add(phi, 0.5, out=phi)  # Φ(|u|) − 1/2
        np.copysign(phi, u, out=phi)
        np.add(phi, 0.5, out=phi)
    np.multiply(density, 1 / sqrt(2 * pi), out=density)
