"""Initial values of the parameters, drawn by NumPy for every backend."""

from math import sqrt

import numpy as np

from cnnjob.nn.arena import Array
from cnnjob.nn.blocks import Parameter, Shape
from cnnjob.nn.random import Purpose, generator

WHITENING_IMAGES = 5000
"""Maximum number of training images whose patches determine the whitening filters."""
WHITENING_EPS = 5e-4
"""Constant added to every eigenvalue of the patch covariance."""


def draw_initial_values(parameter: Parameter, seed: int, parameter_index: int, whitening: Array) -> Array:
    """Return the initial values of a parameter.

    ``he``: normal with variance 2 / fan_in (He et al. 2015, eq. 10). A number: normal with that standard deviation.
    ``dirac``: each of the first min(C, F) filters passes one channel through unchanged; the others are normal with
    variance 1 / (3 fan_in) (Jordan 2024, §3.2). ``whitening``: the given filters (ibid., §3.3).

    Args:
        parameter: the parameter, with its shape and initialiser.
        seed: the job's seed.
        parameter_index: index of the parameter in the network.
        whitening: filters for the first convolution, (K, K, C, F); empty if it does not use whitening.

    Returns:
        The values, float64, in the parameter's shape.
    """
    if parameter.constant is not None:
        return np.full(parameter.shape, parameter.constant)
    if parameter.init == "whitening":
        return whitening
    values: Array = generator(seed, Purpose.INIT, parameter_index).standard_normal(parameter.shape)
    if parameter.init == "he":
        return values * sqrt(2 / parameter.fan_in)
    if parameter.init != "dirac":
        return values * parameter.init
    values *= sqrt(1 / (3 * parameter.fan_in))
    kernel, _, C, F = parameter.shape
    n_identity = min(C, F)
    values[..., :n_identity] = 0
    values[kernel // 2, kernel // 2, range(n_identity), range(n_identity)] = 1
    return values


def whitening_filters(images: Array, shape: Shape) -> Array:
    """Return filters whose outputs on image patches are uncorrelated and have variance 1 (Jordan 2024, §3.3).

    With λ and v the eigenvalues and eigenvectors of the patch covariance, the filters are v/√(λ + eps), largest λ
    first, followed by their negatives.

    Args:
        images: normalised images, float (N, H, W, C).
        shape: (K, K, C, F), with F even and at most 2·K²·C.

    Returns:
        The filters, float64 (K, K, C, F).
    """
    kernel, _, C, F = shape
    windows = np.lib.stride_tricks.sliding_window_view(images, (kernel, kernel), axis=(1, 2))  # (N, H', W', C, K, K)
    patches = np.moveaxis(windows, 3, -1).reshape(-1, kernel * kernel * C).astype(np.float64)  # (N·H'·W', K·K·C)
    # np.cov of a single variable is 0-dimensional; eigh needs a matrix.
    eigenvalues, vectors = np.linalg.eigh(np.cov(patches.T).reshape(patches.shape[1], -1))
    # eigh sorts the eigenvalues in ascending order.
    vectors = vectors[:, ::-1][:, : F // 2] / np.sqrt(eigenvalues[::-1][: F // 2] + WHITENING_EPS)  # (K·K·C, F / 2)
    rows = np.abs(vectors).argmax(axis=0)
    # The sign of an eigenvector is arbitrary, so LAPACK versions may differ: make the largest component positive.
    vectors *= np.sign(vectors[rows, range(F // 2)])
    return np.concatenate([vectors, -vectors], axis=1).reshape(shape)
