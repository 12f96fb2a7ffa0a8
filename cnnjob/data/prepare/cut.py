"""Select test images for a dataset that has none; the selection does not depend on the images' content."""

import numpy as np


def cut(n: int, n_test: int, seed: int) -> dict[str, np.ndarray]:
    """Split ``range(n)`` at random into two parts, with the same result on every machine.

    The indices are sorted by random numbers from Philox. NumPy guarantees that the raw output of Philox never changes,
    whereas the shuffle of a ``Generator`` may differ between NumPy versions.

    Args:
        n: number of images.
        n_test: number of images in the test split.
        seed: seed of the random split, from 0 to 2^64 - 1.

    Returns:
        Image indices of ``train`` (n - n_test,) and ``test`` (n_test,), int64, ascending.
    """
    # Stable, so that equal random numbers, however rare, are ordered in the same way everywhere.
    order = np.argsort(np.random.Philox(key=seed).random_raw(n), kind="stable")
    return {"train": np.sort(order[n_test:]), "test": np.sort(order[:n_test])}
