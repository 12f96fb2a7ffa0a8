"""Classification metrics computed from predictions, overall and per class.

The predicted class is the most probable one, or the first of several equally probable ones. Precision, recall and F1
are zero where their denominator is zero (a class that is never predicted, or has no images). Every class counts in
the macro means, whether or not it has images.

Shapes: N images, K classes. ``probabilities`` is (N, K), floating point, in 0..1; ``labels`` is (N,), integer, in
0..K-1; N and K are at least 1.
"""

from itertools import chain, zip_longest
from typing import NamedTuple

import numpy as np

WRONG_IMAGES = 24
"""Number of most confident errors to keep."""
SMALLEST_PROBABILITY = 2.0**-149
"""The smallest positive float32; for a probability of zero, the loss is -log of this (103.3 nats), not infinity."""


class Summary(NamedTuple):
    """A classifier's overall metrics."""

    test_accuracy: float
    """Fraction of the images that are classified correctly, in 0..1."""
    test_loss: float
    """Cross-entropy, in nats per image."""
    precision_macro: float
    """Mean of the classes' precision, in 0..1."""
    recall_macro: float
    """Mean of the classes' recall, in 0..1."""
    f1_macro: float
    """Mean of the classes' F1, in 0..1."""


class PerClass(NamedTuple):
    """A classifier's metrics per class."""

    precision: np.ndarray
    """(K,) float64 in 0..1: of the images predicted as a class, the fraction that belong to that class."""
    recall: np.ndarray
    """(K,) float64 in 0..1: of the images in a class, the fraction that are predicted as that class."""
    f1: np.ndarray
    """(K,) float64 in 0..1: harmonic mean of precision and recall."""
    support: np.ndarray
    """(K,) int64: number of images in each class."""


def predicted(probabilities: np.ndarray) -> np.ndarray:
    """Return the most probable class of each image.

    Args:
        probabilities: (N, K) floating point.

    Returns:
        (N,) int64 in 0..K-1.
    """
    return np.asarray(probabilities.argmax(axis=1), dtype=np.int64)


def most_confident_errors(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the indices of the wrong predictions with the highest probabilities.

    Args:
        probabilities: (N, K) floating point.
        labels: (N,) integer in 0..K-1.

    Returns:
        Indices in 0..N-1, most confident first: (24,) int64, or fewer if there are fewer than 24 wrong predictions.
    """
    is_right = predicted(probabilities) == labels  # (N,)
    confidence = np.where(is_right, -1.0, probabilities.max(axis=1))  # (N,); below every probability if right
    # Stable, since the default sort orders equal values differently depending on the processor's SIMD extensions.
    worst = np.argsort(-confidence, kind="stable")[:WRONG_IMAGES]
    return np.asarray(worst[~is_right[worst]])


def example_images(probabilities: np.ndarray, labels: np.ndarray, limit: int) -> np.ndarray:
    """Return the indices of a few images that show what a network can and cannot do.

    Right and wrong predictions alternate: the first right prediction of each class, in the order of the images, and the
    most confident errors. If there are too few right or wrong predictions, more of the other kind are included.

    Args:
        probabilities: (N, K) floating point.
        labels: (N,) integer in 0..K-1.
        limit: maximum number of indices, at least 1.

    Returns:
        Indices in 0..N-1, (n,) int64 with 1 ≤ n ≤ ``limit``.
    """
    is_right = np.flatnonzero(predicted(probabilities) == labels)
    right = np.sort(is_right[np.unique(labels[is_right], return_index=True)[1]])
    wrong = most_confident_errors(probabilities, labels)
    n_right = min(len(right), max(limit - limit // 2, limit - len(wrong)))
    pairs = zip_longest(right[:n_right].tolist(), wrong[: limit - n_right].tolist())
    return np.array([index for index in chain.from_iterable(pairs) if index is not None], np.int64)


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the fraction of the images that are classified correctly.

    Args:
        probabilities: (N, K) floating point.
        labels: (N,) integer in 0..K-1.

    Returns:
        A number in 0..1.
    """
    return float(np.mean(predicted(probabilities) == labels))


def mean_cross_entropy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of the negative log-probability of the true class, computed in float64.

    Args:
        probabilities: (N, K) floating point.
        labels: (N,) integer in 0..K-1.

    Returns:
        Nats per image, up to 103.3 (see ``SMALLEST_PROBABILITY``).
    """
    right = probabilities[np.arange(len(labels)), labels].astype(np.float64)  # (N,)
    return float(-np.log(np.maximum(right, SMALLEST_PROBABILITY)).mean())


def per_class(counts: np.ndarray) -> PerClass:
    """Return precision, recall, F1 and support of each class from a confusion matrix.

    Args:
        counts: (K, K) integer; one row per true class, one column per predicted class.

    Returns:
        Four arrays of shape (K,).
    """
    right, given, support = counts.diagonal(), counts.sum(axis=0), counts.sum(axis=1)  # (K,) each
    # F1 = 2PR / (P + R) = 2 right / (given + support); this form avoids an intermediate 0 / 0.
    precision, recall, f1 = _share(right, given), _share(right, support), _share(2 * right, given + support)
    return PerClass(precision, recall, f1, support)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.asarray(np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0))


def summarise(probabilities: np.ndarray, labels: np.ndarray, classes: PerClass) -> Summary:
    """Return accuracy, loss, and the macro means of precision, recall and F1.

    Args:
        probabilities: (N, K) floating point.
        labels: (N,) integer in 0..K-1.
        classes: the metrics per class, from :func:`per_class`.

    Returns:
        Accuracy and the macro means in 0..1, and the loss in nats per image.
    """
    means = (float(values.mean()) for values in (classes.precision, classes.recall, classes.f1))
    return Summary(accuracy(probabilities, labels), mean_cross_entropy(probabilities, labels), *means)


def confusion(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the confusion matrix.

    Args:
        probabilities: (N, K) floating point.
        labels: (N,) integer in 0..K-1.

    Returns:
        (K, K) int64: number of images of the row's class that are predicted as the column's class.
    """
    K = probabilities.shape[1]
    # As int64, since labels of a narrow type such as uint8 would overflow in the product.
    cells = np.asarray(labels, np.int64) * K + predicted(probabilities)  # (N,), in 0..K²-1
    return np.bincount(cells, minlength=K * K).reshape(K, K).astype(np.int64, copy=False)
