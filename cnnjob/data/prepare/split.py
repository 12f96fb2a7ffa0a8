"""The cut of a dataset that comes without a test split: fixed by numbers alone, not by content."""

import numpy as np


def cut(n: int, n_test: int, seed: int) -> dict[str, np.ndarray]:
    """Cut ``range(n)`` in two, at random, in the same way on every machine.

    It ranks Philox's raw output, which NumPy promises never to change; the shuffle of a
    ``Generator`` may change from version to version.

    Args:
        n: how many there are.
        n_test: how many of them are for testing.
        seed: which of the cuts, 0 to 2^64 - 1.

    Returns:
        The rows of ``train`` (n - n_test,) and of ``test`` (n_test,), int64, ascending.
    """
    order = np.argsort(np.random.Philox(key=seed).random_raw(n), kind="stable")
    return {"train": np.sort(order[n_test:]), "test": np.sort(order[:n_test])}
