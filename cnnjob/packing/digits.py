"""The digits that come with scikit-learn: a dataset for a machine without a network.

References:
    Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI (1998).
"""

from collections.abc import Iterator

import numpy as np

from cnnjob.files import sha256_of
from cnnjob.packing.writer import Block, Contents

_N_TEST = 360  # a fifth of 1,797
_DARKEST = 16  # its pixels are 0 to 16
_SEED = 0
_WHERE = "sklearn.datasets.load_digits"


def contents(class_names: tuple[str, ...]) -> Contents:
    """The digits, scaled to bytes and split in a fixed order.

    Args:
        class_names: the names of the ten digits.

    Returns:
        1,437 training and 360 test images (8, 8, 1).
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = bunch.images.astype(np.uint16)  # (1797, 8, 8), 0 to 16
    labels = bunch.target.astype(np.uint8)
    digest = sha256_of(pixels.astype(np.uint8).tobytes(), labels.tobytes())
    images = ((pixels * 255 + _DARKEST // 2) // _DARKEST).astype(np.uint8)[..., None]
    return Contents(class_names, {_WHERE: digest}, _split(images, labels))


def _split(images: np.ndarray, labels: np.ndarray) -> Iterator[Block]:
    order = shuffled(len(labels), _SEED)
    for split, rows in (("train", np.sort(order[_N_TEST:])), ("test", np.sort(order[:_N_TEST]))):
        yield Block(_WHERE, split, 0, images[rows], labels[rows])


def shuffled(n: int, seed: int) -> np.ndarray:
    """A permutation of ``range(n)`` that depends on nothing but its arguments.

    It ranks Philox's raw output, which NumPy promises never to change; the shuffle of a
    ``Generator`` may change from version to version.

    Args:
        n: how many.
        seed: which of the permutations, 0 to 2^64 - 1.

    Returns:
        (n,) int64.
    """
    return np.argsort(np.random.Philox(key=seed).random_raw(n), kind="stable")
