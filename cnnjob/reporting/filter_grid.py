"""Convolution filters arranged as a sheet of small images."""

import math

import numpy as np

TILES_LIMIT = 64
"""Maximum number of images per row and per column; with more, they would be too small to see."""
PICTURE_CHANNELS = {1, 3}
"""Numbers of channels for which a filter is shown as one image: 1 for greyscale, 3 for RGB."""
ENLARGED = 3
"""Width and height of one weight on the sheet, in pixels."""
_GAP = (0.70, 0.78, 0.88)  # between filters; no single-channel filter has this colour


def filter_tiles(weights: np.ndarray) -> np.ndarray:
    """Return filters as rows of images, each filter scaled to its own range.

    Filters with one channel are shown in grey and filters with three in colour, in row-major order. With any other
    number of channels, each channel is shown as a grey image: filters are along one axis and channels along the other,
    and the longer axis is horizontal. Up to ``TILES_LIMIT`` images are shown along each axis.

    Args:
        weights: (K, K, C, F) floating point: C channels, F filters of K×K pixels.

    Returns:
        R rows of Q images: (R, Q, K, K, 3) float64 in 0..1; unused positions have the gap colour.
    """
    K, _, C, F = weights.shape
    weights = weights.astype(np.float64)  # high - low may overflow in float16
    low, high = weights.min(axis=(0, 1, 2)), weights.max(axis=(0, 1, 2))  # (F,)
    scaled = np.where(high > low, (weights - low) / np.where(high > low, high - low, 1), 0.5)
    if C not in PICTURE_CHANNELS:
        across = (2, 3, 0, 1) if F >= C else (3, 2, 0, 1)  # (C, F, K, K) or (F, C, K, K)
        return np.repeat(scaled.transpose(across)[:TILES_LIMIT, :TILES_LIMIT, ..., None], 3, axis=-1)
    n_columns = min(F, max(8, math.ceil(math.sqrt(2 * F))), TILES_LIMIT)
    n_rows = min(math.ceil(F / n_columns), TILES_LIMIT)
    shown = scaled.transpose(3, 0, 1, 2)[: n_rows * n_columns]  # (F, K, K, C)
    pictures = np.full((n_rows * n_columns, K, K, 3), _GAP)
    pictures[: len(shown)] = shown  # (F, K, K, 1) broadcasts over the three colours
    return pictures.reshape(n_rows, n_columns, K, K, 3)


def join_tiles(tiles: np.ndarray) -> np.ndarray:
    """Join tiles (R, Q, K, K, 3), enlarged to S = 3 K, into a sheet (R (S+1) + 1, Q (S+1) + 1, 3) with 1-pixel gaps."""
    pictures = tiles.repeat(ENLARGED, axis=2).repeat(ENLARGED, axis=3)
    R, Q, S = pictures.shape[:3]  # (R, Q, S, S, 3)
    framed = np.full((R, S + 1, Q, S + 1, 3), _GAP)
    framed[:, 1:, :, 1:] = pictures.swapaxes(1, 2)
    sheet = framed.reshape(R * (S + 1), Q * (S + 1), 3)
    # The first row and column are gaps, so wrapping them around closes the frame at the bottom and on the right.
    return np.pad(sheet, ((0, 1), (0, 1), (0, 0)), mode="wrap")
