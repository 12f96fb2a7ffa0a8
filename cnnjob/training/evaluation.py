"""The splits of a dataset that a run is evaluated on, where its backend has them."""

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread
from typing import Any

import numpy as np

from cnnjob import nn
from cnnjob.data.dataset import Dataset
from cnnjob.jobs.job import Job
from cnnjob.runs import metrics
from cnnjob.training.predict import Classifier

CHECKED_AT_ONCE_BYTES = 10**9
"""Images of so many bytes are compared with their digests before the first step: a second or two."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class EvaluationSplit:
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


class DigestCheck:
    """Compares the images of a training with their digests: at once, or in a thread where that would take long."""

    def __init__(self, dataset: Dataset, at_once_bytes: int = CHECKED_AT_ONCE_BYTES) -> None:
        """Check a dataset's images; of one with more bytes than these, in a thread."""
        self._dataset, self._at_once = dataset, dataset.size_bytes <= at_once_bytes
        self._arrays: list[tuple[str, Array]] = []
        self._end: Future[None] = Future()

    def add(self, name: str, array: Array) -> None:
        """Check an array as it was loaded, or put it down for :meth:`start`.

        Raises:
            DataError: it is another than its digest says.
        """
        if self._at_once or not name.endswith("images"):
            self._dataset.require_digest(name, array)
        else:
            self._arrays.append((name, array))

    def start(self) -> None:
        """Check in a thread what was put down; a process that is forked meanwhile has no part in it."""
        if self._arrays:
            Thread(target=self._run, daemon=True).start()
        else:
            self._end.set_result(None)

    def _run(self) -> None:
        try:
            while self._arrays:
                self._dataset.require_digest(*self._arrays.pop())
            self._end.set_result(None)
        except BaseException as error:  # noqa: BLE001 - it is raised where the end is asked for
            self._end.set_exception(error)

    def passed(self) -> bool:
        """Return whether all arrays are checked.

        Raises:
            DataError: one of them is another than its digest says.
        """
        return self._end.done() and self._end.result() is None

    def wait(self) -> None:
        """Wait until all arrays are checked.

        Raises:
            DataError: one of them is another than its digest says.
        """
        self._end.result()


def load(dataset: Dataset, name: str, backend: nn.Backend, check: DigestCheck) -> tuple[Array, Array]:
    """Load a split whole.

    Args:
        dataset: has the split.
        name: ``train``, ``val`` or ``test``.
        backend: computes on it.
        check: compares it with its digests.

    Returns:
        Images uint8 (N, H, W, C), where the backend's blocks can read them, and labels int64 (N,).
    """
    images, labels = dataset.load(name, check.add)
    return backend.resident(images), labels


def whole_split(dataset: Dataset, name: str, backend: nn.Backend, check: DigestCheck) -> EvaluationSplit:
    """All images of a split, in their order; arguments as :func:`load`."""
    images, labels = load(dataset, name, backend, check)
    return EvaluationSplit(images, np.arange(len(images)), labels)


def watched_splits(job: Job, held_out: EvaluationSplit, test: EvaluationSplit) -> Iterator[tuple[str, EvaluationSplit]]:
    """The splits that are evaluated after each epoch, by their names in the history.

    Args:
        job: says what the weights are chosen on.
        held_out: images for validation; may be empty.
        test: the test images.

    Yields:
        ``validation`` where there is any, and ``test`` where it chooses.
    """
    if len(held_out.order):
        yield "validation", held_out
    if job.train.select_on == "test":
        yield "test", test
