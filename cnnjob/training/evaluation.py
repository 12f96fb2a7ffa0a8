"""Dataset splits for evaluation, and the check of a dataset's arrays against their digests."""

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread
from typing import Any, TypeAlias

import numpy as np

from cnnjob import nn
from cnnjob.data.dataset import Dataset, Rows
from cnnjob.data.stored import RowReader
from cnnjob.jobs.job import Job
from cnnjob.runs import metrics
from cnnjob.training.predict import Classifier

CHECKED_AT_ONCE_BYTES = 10**9
"""Datasets of up to this many bytes are checked against their digests before the first step, in a second or two."""

Array = np.ndarray[Any, Any]
Images: TypeAlias = Array | RowReader
"""Images in a backend's memory, or in a file that is open for streaming."""


@dataclass(frozen=True)
class EvaluationSplit:
    """Images that are evaluated together."""

    images: Images
    """uint8 (N, H, W, C), in the backend's memory or streamed; may be shared with other splits."""
    order: Array
    """int64, indices of the images that belong to the split."""
    labels: Array
    """int64 (len(order),), labels of the images in ``order``."""

    def evaluate(self, classifier: Classifier) -> tuple[Array, float, float]:
        """Evaluate the images with the current weights.

        Returns:
            Probabilities (len(order), classes), mean loss in nats per image, and accuracy in 0..1.
        """
        probabilities = classifier.probabilities(self.images, self.order)
        loss = metrics.mean_cross_entropy(probabilities, self.labels)
        return probabilities, loss, metrics.accuracy(probabilities, self.labels)


class DigestCheck:
    """The check of a dataset's arrays against their digests; the images of a large dataset are checked in a thread."""

    def __init__(self, dataset: Dataset, at_once_bytes: int = CHECKED_AT_ONCE_BYTES) -> None:
        """Prepare to check a dataset; if it is larger than ``at_once_bytes``, its images are checked in a thread."""
        self._dataset, self._at_once = dataset, dataset.size_bytes <= at_once_bytes
        self._arrays: list[tuple[str, Rows]] = []
        self._end: Future[None] = Future()

    def add(self, name: str, array: Rows) -> None:
        """Check an array that was loaded or will be streamed, or queue it for :meth:`start`.

        Raises:
            DataError: the array does not match its digest.
        """
        if self._at_once or not name.endswith("images"):  # labels are small enough to be checked at once
            self._dataset.require_digest(name, array)
        else:
            self._arrays.append((name, array))

    def start(self) -> None:
        """Start a thread that checks the queued arrays; processes that are forked while it runs do not inherit it."""
        if self._arrays:
            Thread(target=self._run, daemon=True).start()
        else:
            self._end.set_result(None)

    def _run(self) -> None:
        try:
            while self._arrays:
                # Popped, so that an array's memory can be freed once it is checked.
                self._dataset.require_digest(*self._arrays.pop())
            self._end.set_result(None)
        except BaseException as error:  # noqa: BLE001 - passed() and wait() raise it
            self._end.set_exception(error)

    def passed(self) -> bool:
        """Return whether all arrays have been checked.

        Raises:
            DataError: one of them does not match its digest.
        """
        return self._end.done() and self._end.result() is None

    def wait(self) -> None:
        """Wait until all arrays have been checked.

        Raises:
            DataError: one of them does not match its digest.
        """
        self._end.result()


def load_split(
    dataset: Dataset, name: str, backend: nn.Backend, check: DigestCheck, *, streams: bool
) -> tuple[Images, Array]:
    """Load the labels of a split, and load its images or open them for streaming.

    Args:
        dataset: the dataset.
        name: ``train``, ``val`` or ``test``.
        backend: the backend that processes the images.
        check: checks the arrays against their digests.
        streams: True to read images only when they are needed.

    Returns:
        Images, uint8 (N, H, W, C), in the backend's memory or to be streamed; and labels, int64 (N,), in host memory.
    """
    if streams:
        stored = dataset.stored(name)
        check.add(stored.name, stored)
        return stored.open(), dataset.labels(name)
    images, labels = dataset.load(name, check.add)
    return backend.resident(images), labels


def load_evaluation_split(
    dataset: Dataset, name: str, backend: nn.Backend, check: DigestCheck, *, streams: bool
) -> EvaluationSplit:
    """Load all images of a split for evaluation, in stored order; the arguments are those of :func:`load_split`."""
    images, labels = load_split(dataset, name, backend, check, streams=streams)
    return EvaluationSplit(images, np.arange(len(images)), labels)


def select_watched_splits(
    job: Job, validation: EvaluationSplit, test: EvaluationSplit
) -> Iterator[tuple[str, EvaluationSplit]]:
    """Yield the splits to evaluate after each epoch, with their names in the history.

    Args:
        job: the job, whose ``train.select_on`` is the split on which the weights are chosen.
        validation: the validation images; may be empty.
        test: the test images.

    Yields:
        A name and a split: ``validation`` if there are validation images, and ``test`` if the weights are chosen on it.
    """
    if len(validation.order):
        yield "validation", validation
    if job.train.select_on == "test":
        yield "test", test
