"""Read the digits dataset included with scikit-learn, for machines without network access.

References:
    Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI (1998).
"""

import numpy as np

from cnnjob.data.prepare.cut import cut
from cnnjob.data.prepare.writer import Chunk, DatasetContents
from cnnjob.files import sha256_of

_N_TEST = 360  # a fifth of 1,797
_DARKEST = 16  # pixel values range from 0 to 16
_SEED = 0
_WHERE = "sklearn.datasets.load_digits"


def contents(class_names: tuple[str, ...]) -> DatasetContents:
    """Return the digits, scaled to bytes and split at random, with the same result on every machine.

    Args:
        class_names: names of the ten digits.

    Returns:
        1,437 training and 360 test images (8, 8, 1).
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = bunch.images.astype(np.uint16)  # (1797, 8, 8), 0 to 16
    labels = bunch.target.astype(np.uint8)
    digest = sha256_of(pixels.astype(np.uint8).tobytes(), labels.tobytes())
    # Scale 0..16 to 0..255, rounded to nearest, in integers, so that the digest of the result is the same everywhere.
    images = ((pixels * 255 + _DARKEST // 2) // _DARKEST).astype(np.uint8)[..., None]
    splits = cut(len(labels), _N_TEST, _SEED)
    blocks = (Chunk(_WHERE, split, 0, images[rows], labels[rows], len(rows)) for split, rows in splits.items())
    return DatasetContents(class_names, {_WHERE: digest}, blocks)
