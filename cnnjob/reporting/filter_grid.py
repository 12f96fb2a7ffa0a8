"""The filters of a layer as small pictures, side by side on one sheet."""

import math

import numpy as np

TILES_LIMIT = 64
"""Pictures each way: more would be dust."""
PICTURE_CHANNELS = {1, 3}
"""Grey, and red, green and blue."""
ENLARGED = 3
"""Pixels of the sheet a weight."""
_GAP = (0.70, 0.78, 0.88)  # between filters: no filter of one channel has this colour


def filter_grids(weights: np.ndarray) -> np.ndarray:
    """Filters as pictures in rows, each filter scaled to its own range.

    Filters of one channel are grey, of three in colour, row by row. Of any other number of channels, each channel
    is a grey picture: filters one way and channels the other, the longer way across. At most ``TILES_LIMIT``
    pictures are shown each way.

    Args:
        weights: (K, K, C, F) floating: C channels, F filters of K×K pixels.

    Returns:
        R rows of Q pictures: (R, Q, K, K, 3) float64 in 0..1; missing ones have the gap's colour.
    """
    K, _, C, F = weights.shape
    weights = weights.astype(np.float64)  # the range of float16 numbers may be none
    low, high = weights.min(axis=(0, 1, 2)), weights.max(axis=(0, 1, 2))  # (F,)
    scaled = np.where(high > low, (weights - low) / np.where(high > low, high - low, 1), 0.5)
    if C not in PICTURE_CHANNELS:
        across = (2, 3, 0, 1) if F >= C else (3, 2, 0, 1)
        return np.repeat(scaled.transpose(across)[:TILES_LIMIT, :TILES_LIMIT, ..., None], 3, axis=-1)
    n_columns = min(F, max(8, math.ceil(math.sqrt(2 * F))), TILES_LIMIT)
    n_rows = min(math.ceil(F / n_columns), TILES_LIMIT)
    shown = scaled.transpose(3, 0, 1, 2)[: n_rows * n_columns]  # (F, K, K, C)
    pictures = np.full((n_rows * n_columns, K, K, 3), _GAP)
    pictures[: len(shown)] = shown  # one channel is spread over the three colours
    return pictures.reshape(n_rows, n_columns, K, K, 3)


def sheet_of(tiles: np.ndarray) -> np.ndarray:
    """Tiles (R, Q, K, K, 3), enlarged to S = 3 K, on one sheet (R (S+1) + 1, Q (S+1) + 1, 3), one pixel apart."""
    pictures = tiles.repeat(ENLARGED, axis=2).repeat(ENLARGED, axis=3)
    R, Q, S = pictures.shape[:3]
    framed = np.full((R, S + 1, Q, S + 1, 3), _GAP)
    framed[:, 1:, :, 1:] = pictures.swapaxes(1, 2)
    sheet = framed.reshape(R * (S + 1), Q * (S + 1), 3)
    return np.pad(sheet, ((0, 1), (0, 1), (0, 0)), mode="wrap")  # the first row and column are gaps
