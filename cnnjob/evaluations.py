"""The splits of a dataset that a run is evaluated on, where its backend has them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnnjob import metrics, nn
from cnnjob.datasets import Dataset
from cnnjob.jobs import Job
from cnnjob.predictions import Classifier

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Split:
    """Images that are evaluated together."""

    images: Array
    """uint8 (N, H, W, C), where the backend has them."""
    order: Array
    """int64, those of the images that belong to the split."""
    labels: Array
    """int64 (len(order),)."""

    def scores(self, classifier: Classifier) -> tuple[Array, float, float]:
        """Probabilities, loss and accuracy by the weights of the moment."""
        probabilities = classifier.probabilities(self.images, self.order)
        loss, accuracy = (score(probabilities, self.labels) for score in (metrics.cross_entropy, metrics.accuracy))
        return probabilities, loss, accuracy


def load(dataset: Dataset, name: str, backend: nn.Backend) -> tuple[Array, Array]:
    """Load a split whole.

    Args:
        dataset: has the split.
        name: ``train``, ``val`` or ``test``.
        backend: computes on it.

    Returns:
        Images uint8 (N, H, W, C), where the backend's blocks can read them, and labels int64 (N,).
    """
    images, labels = dataset.load(name)
    return backend.resident(images), labels


def whole_split(dataset: Dataset, name: str, backend: nn.Backend) -> Split:
    """All images of a split, in their order; arguments as :func:`load`."""
    images, labels = load(dataset, name, backend)
    return Split(images, np.arange(len(images)), labels)


def watched_splits(job: Job, dataset: Dataset, backend: nn.Backend, held_out: Split) -> Iterator[tuple[str, Split]]:
    """The splits that are evaluated after each epoch, by their names in the history.

    Args:
        job: says what the weights are chosen on.
        dataset: its own validation images go before those held out.
        backend: computes on them.
        held_out: of the training images; may be empty.

    Yields:
        ``validation`` where there is any, and ``test`` where it chooses.
    """
    validation = whole_split(dataset, "val", backend) if "val" in dataset.splits else held_out
    if len(validation.order):
        yield "validation", validation
    if job.train.select_on == "test":
        yield "test", whole_split(dataset, "test", backend)
