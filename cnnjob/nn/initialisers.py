"""The first values of the parameters, drawn by NumPy for every backend."""

from math import sqrt

import numpy as np

from cnnjob.nn.blocks import Parameter, Shape
from cnnjob.nn.memory import Array
from cnnjob.nn.random import Purpose, generator

WHITENING_IMAGES = 5000
"""Training images, at most, whose patches are looked at."""
WHITENING_EPS = 5e-4


def initial(parameter: Parameter, seed: int, place: int, whitening: Array) -> Array:
    """A parameter's first values, float64.

    ``he``: normal, of variance 2 / fan_in (He et al. 2015, eq. 10). A number: normal, of that deviation. ``dirac``:
    each of the first filters hands one channel through; the others are normal, of variance 1 / (3 fan_in)
    (Jordan 2024, §3.2). ``whitening``: what is given (ibid., §3.3).

    Args:
        parameter: its shape, and how it starts.
        seed: the job's.
        place: its number in the network.
        whitening: the filters (K, K, C, F) of the first convolution, of no size where none asks for them.

    Returns:
        Its values.
    """
    if parameter.constant is not None:
        return np.full(parameter.shape, parameter.constant)
    if parameter.init == "whitening":
        return whitening
    drawn: Array = generator(seed, Purpose.INIT, place).standard_normal(parameter.shape)
    if parameter.init == "he":
        return drawn * sqrt(2 / parameter.fan_in)
    if parameter.init != "dirac":
        return drawn * parameter.init
    drawn *= sqrt(1 / (3 * parameter.fan_in))
    kernel, _, C, F = parameter.shape
    handed = min(C, F)
    drawn[..., :handed] = 0
    drawn[kernel // 2, kernel // 2, range(handed), range(handed)] = 1
    return drawn


def whitening_filters(images: Array, shape: Shape) -> Array:
    """Filters whose outputs are uncorrelated and of variance 1 on the patches of images (Jordan 2024, §3.3).

    The patches' covariance has eigenvalues λ and eigenvectors v; the filters are v/√(λ + eps), largest λ first, and
    then their negatives.

    Args:
        images: float (N, H, W, C), as the network sees them.
        shape: (K, K, C, F), F even and at most 2·K²·C.

    Returns:
        The filters, float64 of that shape.
    """
    kernel, _, C, F = shape
    windows = np.lib.stride_tricks.sliding_window_view(images, (kernel, kernel), axis=(1, 2))  # (N, H', W', C, K, K)
    patches = np.moveaxis(windows, 3, -1).reshape(-1, kernel * kernel * C).astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(patches.T).reshape(patches.shape[1], -1))
    vectors = vectors[:, ::-1][:, : F // 2] / np.sqrt(values[::-1][: F // 2] + WHITENING_EPS)
    rows = np.abs(vectors).argmax(axis=0)
    vectors *= np.sign(vectors[rows, range(F // 2)])  # an eigenvector's sign is anybody's choice
    return np.concatenate([vectors, -vectors], axis=1).reshape(shape)
