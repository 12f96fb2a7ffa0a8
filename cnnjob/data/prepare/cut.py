"""Cut a test split from a dataset that comes without one; the cut depends on numbers only, not on the content."""

import numpy as np


def cut(n: int, n_test: int, seed: int) -> dict[str, np.ndarray]:
    """Split ``range(n)`` in two at random, in the same way on every machine.

    The rows are ranked by Philox's raw output, which NumPy guarantees not to change; the shuffle of a ``Generator`` may
    change between versions of NumPy.

    Args:
        n: number of rows.
        n_test: number of rows in the test split.
        seed: selects the cut, from 0 to 2^64 - 1.

    Returns:
        Rows of ``train`` (n - n_test,) and of ``test`` (n_test,), int64, ascending.
    """
    # Stable, so that equal words, however rare, have one order everywhere.
    order = np.argsort(np.random.Philox(key=seed).random_raw(n), kind="stable")
    return {"train": np.sort(order[n_test:]), "test": np.sort(order[:n_test])}
