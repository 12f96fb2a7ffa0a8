"""Predictions to numbers, against numbers worked out by hand and a slow loop."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cnnjob.runs import metrics

# Five images, four classes. Class 2 is never predicted, class 3 has no images (and is predicted once).
PROBABILITIES = np.array(
    [
        [0.75, 0.25, 0.0, 0.0],
        [0.25, 0.75, 0.0, 0.0],
        [0.0, 0.5, 0.25, 0.25],
        [0.5, 0.0, 0.5, 0.0],  # a tie goes to the first
        [0.125, 0.125, 0.25, 0.5],
    ],
    np.float32,
)
LABELS = np.array([0, 0, 1, 2, 2])


@st.composite
def predictions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    N, K = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    scores = draw(hnp.arrays(np.float32, (N, K), elements=st.floats(0, 1, width=32)))
    labels = draw(hnp.arrays(np.int64, (N,), elements=st.integers(0, K - 1)))
    return (scores + 1e-3) / (scores + 1e-3).sum(axis=1, keepdims=True), labels


def test_examples_are_right_and_wrong_in_turn() -> None:
    # Image 0 is the first right one of class 0, image 2 of class 1; the most certain errors are 1, then 3 and 4.
    assert metrics.example_images(PROBABILITIES, LABELS, 4).tolist() == [0, 1, 2, 3]
    assert metrics.example_images(PROBABILITIES, LABELS, 9).tolist() == [0, 1, 2, 3, 4]
    assert metrics.example_images(PROBABILITIES, LABELS, 1).tolist() == [0]
    assert metrics.example_images(PROBABILITIES[1:2], LABELS[1:2], 4).tolist() == [0]


@given(predictions(), st.integers(1, 8))
def test_examples_are_different_images_and_as_many_as_there_are(
    drawn: tuple[np.ndarray, np.ndarray], limit: int
) -> None:
    probabilities, labels = drawn
    found = metrics.example_images(probabilities, labels, limit)
    right = len(np.unique(labels[probabilities.argmax(axis=1) == labels]))
    wrong = np.count_nonzero(probabilities.argmax(axis=1) != labels)
    assert len(set(found.tolist())) == len(found) == min(limit, right + wrong)


def test_accuracy_is_the_share_of_right_images() -> None:
    assert metrics.accuracy(PROBABILITIES, LABELS) == 2 / 5


def test_cross_entropy_is_the_mean_surprise() -> None:
    expected = -(math.log(0.75) + math.log(0.25) + math.log(0.5) + math.log(0.5) + math.log(0.25)) / 5
    assert metrics.mean_cross_entropy(PROBABILITIES, LABELS) == pytest.approx(expected, rel=1e-15)


def test_cross_entropy_of_the_impossible_is_finite() -> None:
    certain_and_wrong = np.array([[1.0, 0.0]], np.float32)
    assert metrics.mean_cross_entropy(certain_and_wrong, np.array([1])) == pytest.approx(149 * math.log(2))


def test_the_smallest_probability_is_the_smallest_positive_float32() -> None:
    assert np.nextafter(np.float32(0), np.float32(1)) == metrics.SMALLEST_PROBABILITY


def test_per_class_by_hand() -> None:
    """Class 0: given to images 0 and 3. Class 1: to 1 and 2. Class 2: to none. Class 3: to image 4."""
    classes = metrics.per_class(metrics.confusion(PROBABILITIES, LABELS))
    assert classes.precision.tolist() == [1 / 2, 1 / 2, 0, 0]
    assert classes.recall.tolist() == [1 / 2, 1, 0, 0]
    assert classes.f1 == pytest.approx([1 / 2, 2 / 3, 0, 0])
    assert classes.support.tolist() == [2, 1, 2, 0]


def test_summary_by_hand() -> None:
    classes = metrics.per_class(metrics.confusion(PROBABILITIES, LABELS))
    summary = metrics.summarise(PROBABILITIES, LABELS, classes)
    assert summary.test_accuracy == 0.4
    assert summary.test_loss == metrics.mean_cross_entropy(PROBABILITIES, LABELS)
    assert summary.precision_macro == pytest.approx(1 / 4)
    assert summary.recall_macro == pytest.approx(3 / 8)
    assert summary.f1_macro == pytest.approx((1 / 2 + 2 / 3) / 4)
    assert all(type(number) is float for number in summary)


def test_confusion_by_hand() -> None:
    expected = [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0]]
    confusion = metrics.confusion(PROBABILITIES, LABELS)
    assert confusion.tolist() == expected
    assert confusion.dtype == np.int64


@settings(max_examples=40)
@given(predictions())
def test_confusion_counts_every_image_once(case: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, labels = case
    slow = np.zeros((probabilities.shape[1],) * 2, np.int64)
    for row, label in zip(probabilities, labels, strict=True):
        slow[label, list(row).index(max(row))] += 1
    assert (metrics.confusion(probabilities, labels) == slow).all()


@settings(max_examples=40)
@given(predictions())
def test_the_numbers_agree_with_the_confusion_matrix(case: tuple[np.ndarray, np.ndarray]) -> None:
    counts = metrics.confusion(*case)
    hits = counts.diagonal()
    classes = metrics.per_class(metrics.confusion(*case))
    summary = metrics.summarise(*case, classes)
    assert classes.support.tolist() == counts.sum(axis=1).tolist()
    assert classes.recall == pytest.approx(hits / np.maximum(counts.sum(axis=1), 1))
    assert classes.precision == pytest.approx(hits / np.maximum(counts.sum(axis=0), 1))
    assert summary.test_accuracy == pytest.approx(hits.sum() / counts.sum())
    assert summary.f1_macro == pytest.approx(np.mean(2 * hits / np.maximum(counts.sum(axis=0) + counts.sum(axis=1), 1)))


@settings(max_examples=40, deadline=None)  # the first import of scikit-learn takes long
@given(predictions())
def test_the_numbers_are_those_of_scikit_learn(case: tuple[np.ndarray, np.ndarray]) -> None:
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    probabilities, labels = case
    classes, guesses = np.arange(max(probabilities.shape[1], 2)), probabilities.argmax(axis=1)
    judged = precision_recall_fscore_support(labels, guesses, labels=classes, zero_division=0)
    K = probabilities.shape[1]
    assert (metrics.confusion(*case) == confusion_matrix(labels, guesses, labels=classes)[:K, :K]).all()
    for mine, theirs in zip(metrics.per_class(metrics.confusion(*case)), judged, strict=True):
        assert mine == pytest.approx(theirs[:K])
