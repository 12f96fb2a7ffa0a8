"""Predictions to numbers: how good a classifier is, overall and class by class.

The predicted class is the most probable one, the first of equals. A precision, recall or F1 whose
denominator is zero (a class never predicted, a class without images) is zero, and every class has
its row and its part in a macro mean, whether or not it has images.

Shapes: N images, K classes. ``probabilities`` is (N, K), floating, in 0..1; ``labels`` is (N,),
integer, in 0..K-1; N and K are at least 1.
"""

from typing import NamedTuple

import numpy as np

WRONG_IMAGES = 24
SMALLEST_PROBABILITY = 2.0**-149
"""The smallest positive float32; a probability of zero costs its logarithm, 103.3 nats, not infinity."""


class Summary(NamedTuple):
    """A classifier in five numbers."""

    test_accuracy: float
    """Share of the images whose most probable class is the right one, in 0..1."""
    test_loss: float
    """Cross-entropy, in nats per image."""
    precision_macro: float
    """Mean over the classes, in 0..1."""
    recall_macro: float
    """Mean over the classes, in 0..1."""
    f1_macro: float
    """Mean over the classes, in 0..1."""


class PerClass(NamedTuple):
    """A classifier's quality class by class."""

    precision: np.ndarray
    """(K,) float64 in 0..1: share of the images given this class that are of it."""
    recall: np.ndarray
    """(K,) float64 in 0..1: share of the images of this class that are given it."""
    f1: np.ndarray
    """(K,) float64 in 0..1: harmonic mean of the two."""
    support: np.ndarray
    """(K,) int64: images of this class."""


def predicted(probabilities: np.ndarray) -> np.ndarray:
    """The most probable class of each image.

    Args:
        probabilities: (N, K) floating.

    Returns:
        (N,) int64 in 0..K-1.
    """
    return np.asarray(probabilities.argmax(axis=1), dtype=np.int64)


def most_confident_errors(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the images that are most confidently wrong.

    Args:
        probabilities: (N, K) floating.
        labels: (N,) integer in 0..K-1.

    Returns:
        int64 (24,) or fewer, places in 0..N-1, the most confident first.
    """
    is_right = predicted(probabilities) == labels
    confidence = np.where(is_right, -1.0, probabilities.max(axis=1))
    worst = np.argsort(-confidence, kind="stable")[:WRONG_IMAGES]
    return np.asarray(worst[~is_right[worst]])


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The share of the images whose most probable class is the right one.

    Args:
        probabilities: (N, K) floating.
        labels: (N,) integer in 0..K-1.

    Returns:
        A number in 0..1.
    """
    return float(np.mean(predicted(probabilities) == labels))


def cross_entropy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The mean of -log of the right class's probability, summed in float64.

    Args:
        probabilities: (N, K) floating.
        labels: (N,) integer in 0..K-1.

    Returns:
        Nats per image, at most 103.3 (see ``SMALLEST_PROBABILITY``).
    """
    right = probabilities[np.arange(len(labels)), labels].astype(np.float64)  # (N,)
    return float(-np.log(np.maximum(right, SMALLEST_PROBABILITY)).mean())


def per_class(probabilities: np.ndarray, labels: np.ndarray) -> PerClass:
    """Precision, recall, F1 and support of each class.

    Args:
        probabilities: (N, K) floating.
        labels: (N,) integer in 0..K-1.

    Returns:
        Four arrays (K,).
    """
    return per_class_of(confusion(probabilities, labels))


def per_class_of(counts: np.ndarray) -> PerClass:
    """The same of a confusion matrix.

    Args:
        counts: (K, K) integer; a row is a true class.

    Returns:
        Four arrays (K,).
    """
    right, given, support = counts.diagonal(), counts.sum(axis=0), counts.sum(axis=1)
    precision, recall, f1 = _share(right, given), _share(right, support), _share(2 * right, given + support)
    return PerClass(precision, recall, f1, support)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.asarray(np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0))


def summary(probabilities: np.ndarray, labels: np.ndarray) -> Summary:
    """Accuracy, loss, and the macro means of precision, recall and F1.

    Args:
        probabilities: (N, K) floating.
        labels: (N,) integer in 0..K-1.

    Returns:
        Five numbers.
    """
    return summary_of(probabilities, labels, per_class(probabilities, labels))


def summary_of(probabilities: np.ndarray, labels: np.ndarray, classes: PerClass) -> Summary:
    """The same where the classes are known already."""
    means = (float(values.mean()) for values in (classes.precision, classes.recall, classes.f1))
    return Summary(accuracy(probabilities, labels), cross_entropy(probabilities, labels), *means)


def confusion(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How often each class was taken for each.

    Args:
        probabilities: (N, K) floating.
        labels: (N,) integer in 0..K-1.

    Returns:
        (K, K) int64: images of the row's class that were given the column's.
    """
    K = probabilities.shape[1]
    cells = np.asarray(labels, np.int64) * K + predicted(probabilities)  # (N,)
    return np.bincount(cells, minlength=K * K).reshape(K, K).astype(np.int64, copy=False)
