"""Initial values of the parameters, drawn by NumPy for every backend."""

from collections.abc import Iterator
from math import sqrt

import numpy as np

from cnnjob.nn.arena import Array
from cnnjob.nn.blocks import Parameter, Shape
from cnnjob.nn.pixels import PixelNormalisation
from cnnjob.nn.random import Purpose, generator

_WHITENING_IMAGES = 5000
"""Maximum number of training images whose patches determine the whitening filters."""
_WHITENING_PIXELS = 1 << 24
"""Maximum total number of pixels in these images."""
_BLOCK_BYTES = 32 << 20
"""Maximum size of the patches in memory at a time, in bytes."""
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


def count_whitening_images(image_shape: Shape) -> int:
    """Return how many images (H, W, C) determine the whitening filters: 5,000, or fewer if the images are large."""
    height, width, _ = image_shape
    return max(1, min(_WHITENING_IMAGES, _WHITENING_PIXELS // (height * width)))


def whitening_filters(images: Array, shape: Shape, pixels: PixelNormalisation) -> Array:
    """Return filters whose outputs on image patches are uncorrelated and have variance 1 (Jordan 2024, §3.3).

    Let λ be the eigenvalues and v the eigenvectors of the covariance of the patches. The first half of the filters is
    v/√(λ + eps), in descending order of λ; the second half is the negative of the first.

    Args:
        images: images, uint8 (N, H, W, C).
        shape: (K, K, C, F), with F even and at most 2·K²·C.
        pixels: normalisation of the images.

    Returns:
        The filters, float64 (K, K, C, F).
    """
    kernel, _, C, F = shape
    count, total, products = 0, np.zeros(kernel * kernel * C), np.zeros((kernel * kernel * C, kernel * kernel * C))
    for patches in _patches(images, kernel, pixels):
        count += len(patches)
        total += patches.sum(axis=0)
        products += patches.T @ patches
    # The values are normalised, so subtracting the product of the means loses no accuracy.
    eigenvalues, vectors = np.linalg.eigh((products - np.outer(total, total) / count) / (count - 1))
    # eigh sorts the eigenvalues in ascending order.
    vectors = vectors[:, ::-1][:, : F // 2] / np.sqrt(eigenvalues[::-1][: F // 2] + WHITENING_EPS)  # (K·K·C, F / 2)
    rows = np.abs(vectors).argmax(axis=0)
    # The sign of an eigenvector is arbitrary, so LAPACK versions may differ: make the largest component positive.
    vectors *= np.sign(vectors[rows, range(F // 2)])
    return np.concatenate([vectors, -vectors], axis=1).reshape(shape)


def _patches(images: Array, kernel: int, pixels: PixelNormalisation) -> Iterator[Array]:
    """Yield the normalised patches of a few images at a time, float64 (N, K·K·C), to limit the memory needed."""
    _, height, width, channels = images.shape
    patch_bytes = 8 * kernel * kernel * channels
    step = max(1, _BLOCK_BYTES // (height * width * patch_bytes))
    for start in range(0, len(images), step):
        normalised = images[start : start + step] * pixels.scale + pixels.shift
        windows = np.lib.stride_tricks.sliding_window_view(normalised, (kernel, kernel), axis=(1, 2))
        # (N, H', W', C, K, K) to (N·H'·W', K·K·C)
        yield np.moveaxis(windows, 3, -1).reshape(-1, kernel * kernel * channels).astype(np.float64)
