"""Loading of a dataset's splits for training, and the check of the arrays against their digests."""

from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread
from typing import Any, TypeAlias

import numpy as np

from cnnjob import nn
from cnnjob.data.dataset import Dataset, Rows
from cnnjob.data.stored import RowReader
from cnnjob.runs import metrics
from cnnjob.training.inference.classifier import Classifier
from cnnjob.training.memory import ImagePlacement, evaluation_batch
from cnnjob.training.setup import TrainingSetup

CHECKED_AT_ONCE_BYTES = 10**9
"""Datasets of up to this many bytes are checked against their digests before the first step, in a second or two."""

Array = np.ndarray[Any, Any]
Images: TypeAlias = Array | RowReader
"""Images in a backend's memory, or in a file that is open for streaming."""


@dataclass(frozen=True)
class EvaluationSplit:
    """The images that are evaluated together."""

    images: Images
    """uint8 (N, H, W, C), in the backend's memory or streamed; may be shared with other splits."""
    order: Array
    """int64, indices of the images that belong to the split."""
    labels: Array
    """int64 (len(order),), labels of the images in ``order``."""

    def evaluate(self, classifier: Classifier) -> tuple[Array, float, float]:
        """Evaluate the images with the current weights.

        Returns:
            Probabilities (N, classes) of the N images in :attr:`order`, mean loss in nats per image, and accuracy in
            0..1.
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


class TrainingData:
    """The images used in training, in the backend's memory or streamed, and the inputs of the training steps."""

    def __init__(
        self, setup: TrainingSetup, backend: nn.Backend, placement: ImagePlacement, checked_at_once_bytes: int
    ) -> None:
        """Load all images or open the file for streaming them, and start to check them against their digests.

        Args:
            setup: the run's job, dataset, network and split.
            backend: the backend that processes the images.
            placement: the location of the images.
            checked_at_once_bytes: as in :func:`cnnjob.training.train.train`.

        Raises:
            DataError: an array that is checked at once does not match its digest.
        """
        dataset, train, streams = setup.dataset, setup.job.train, placement.streams
        self.check = DigestCheck(dataset, checked_at_once_bytes)
        self.images, labels = load_split(dataset, "train", backend, self.check, streams=streams)
        # Validation images from the training set stay in the same array, with a separate list of indices.
        validation = EvaluationSplit(self.images, setup.validation, labels[setup.validation])
        if "val" in dataset.splits:
            validation = load_evaluation_split(dataset, "val", backend, self.check, streams=streams)
        self.test = load_evaluation_split(dataset, "test", backend, self.check, streams=streams)
        self.check.start()
        # The splits to evaluate after each epoch, by their names in the history.
        self.watched = {"validation": validation} if len(validation.order) else {}
        if train.select_on == "test":
            self.watched["test"] = self.test
        self.evaluation_batch = evaluation_batch(
            [len(self.test.order), *(len(split.order) for split in self.watched.values())]
        )
        self.stream, images = None, self.images
        if isinstance(images, RowReader):
            largest, resident = max(self.evaluation_batch, train.batch_size), (images, placement.n_resident)
            self.stream = nn.ImageStream(backend, dataset.image_shape, largest, resident)
            images = self.stream.images
        self.inputs = nn.build_step_inputs(
            backend, images, labels, setup.steps_per_epoch, train.batch_size, setup.job.seed, streams=streams
        )

    def close(self) -> None:
        """Stop reading streamed images, and close their file."""
        if self.stream:
            self.stream.close()
        for images in (self.images, self.test.images, *(split.images for split in self.watched.values())):
            if isinstance(images, RowReader):
                images.close()
