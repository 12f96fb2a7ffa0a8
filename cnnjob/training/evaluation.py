"""Dataset splits for evaluation, the check of arrays against their digests, and evaluations of finished runs."""

import csv
import io
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, TypeAlias

import numpy as np

from cnnjob import files, nn
from cnnjob.data.dataset import CHUNKED_FORMAT, Dataset, Rows, blocks
from cnnjob.data.stored import RowReader
from cnnjob.errors import DataError, JobError, spreadsheet_cell, three_lines
from cnnjob.jobs.job import Job
from cnnjob.runs import metrics, npz
from cnnjob.runs.run import Run
from cnnjob.training.backend import make_backend, select_evaluation_backend, start_workers
from cnnjob.training.memory import EVALUATION_BATCH, memory_errors_as_job_error
from cnnjob.training.predict import TRAIN_AGAIN, Classifier, example_arrays, load_classifier, require_finished

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


@dataclass(frozen=True)
class Evaluation:
    """A finished run's metrics on a split of a prepared dataset."""

    path: Path
    """The JSON file with the metrics, in the run's folder; the CSV file next to it has the confusion matrix."""
    dataset: Dataset
    split: str
    backend: str
    """The backend that classified the images, ``numpy`` or ``cuda``."""
    class_names: tuple[str, ...]
    """The network's class names."""
    counts: Array
    """(K, K) int64, the confusion matrix: images of the row's class that are predicted as the column's class."""
    overall: metrics.Summary
    """The overall metrics on the split."""
    remarks: tuple[str, ...]
    """Remarks for the user on how the classes of the dataset and of the network were matched."""

    def __repr__(self) -> str:
        """Return the run, the dataset, the overall metrics and the weakest class, on three lines."""
        f1 = metrics.per_class(self.counts).f1
        weakest, (accuracy, loss, *_) = int(f1.argmin()), self.overall
        return three_lines(
            f"Evaluation of {self.path.parents[1]} on the {self.split} images of {self.dataset.name}",
            f"  accuracy {100 * accuracy:.2f} %, loss {loss:z.4f}, {self.counts.sum():,} images",
            f"  lowest F1: class {self.class_names[weakest]}, {f1[weakest]:.4f}",
        )

    def content(self) -> dict[str, Any]:
        """Return the content of the JSON file, as described by :class:`cnnjob.runs.schemas.EvaluationRecord`."""
        accuracy, loss, precision, recall, f1 = self.overall
        per_class = metrics.per_class(self.counts)._asdict()
        rows = zip(*(values.tolist() for values in per_class.values()), strict=True)
        dataset = self.dataset
        return {
            "dataset": {"name": dataset.name, "path": str(dataset.path.resolve()), "digest": dataset.digest},
            "split": self.split,
            "backend": self.backend,
            "images": int(self.counts.sum()),
            "accuracy": accuracy,
            "loss": loss,
            "precision_macro": precision,
            "recall_macro": recall,
            "f1_macro": f1,
            "classes": [
                {"class": name, **dict(zip(per_class, row, strict=True))}
                for name, row in zip(self.class_names, rows, strict=True)
            ],
            "remarks": list(self.remarks),
        }


def evaluate(
    run: Run,
    dataset: Dataset,
    split: str = "test",
    *,
    backend: str = "auto",
    on_progress: Callable[[str, int, int], object] = lambda *_: None,
) -> Evaluation:
    """Evaluate a finished run on a prepared dataset, and write the metrics to the run's folder.

    The files are ``evaluations/DATASET-SPLIT-<digest8>.json``, and ``….csv`` for the confusion matrix. ``<digest8>`` is
    the beginning of the dataset's digest, so that datasets with the same name have different files. ``result.json`` is
    not changed. On the run's own test images, ``examples.npz`` is written as well.

    Args:
        run: a finished run.
        dataset: a dataset with the image shape and the number of classes that the network requires.
        split: one of the dataset's splits.
        backend: ``numpy``, ``cuda`` or ``auto``, as for
            :func:`cnnjob.training.backend.select_evaluation_backend`.
        on_progress: called with the activity, the number of images that are done, and the number of all images.

    Returns:
        The evaluation.

    Raises:
        DataError: the run is unfinished or damaged, the dataset is damaged, or the network's outputs overflow.
        JobError: the dataset has no such split, its images or classes do not fit the network, or the backend cannot
            be used.
        CnnjobError: the files cannot be written.
    """
    require_finished(run)
    job = run.job()
    name = select_evaluation_backend(backend, job)
    with start_workers() as workers, memory_errors_as_job_error(job):
        memory = make_backend(name, workers, job)
        classifier = load_classifier(run, memory)
        _require_fit(run, dataset)
        labels = dataset.labels(split)
        on_progress("evaluating", 0, len(labels))
        dataset.verify(split)
        images = dataset.load(split)[0] if dataset.format == CHUNKED_FORMAT else dataset.stored(split)
        parts: list[Array] = []
        # Classified in blocks, since the images may not fit into memory.
        for block in blocks(images):
            resident = memory.resident(block)
            for start in range(0, len(block), EVALUATION_BATCH):
                order = np.arange(start, min(start + EVALUATION_BATCH, len(block)))
                parts.append(classifier.probabilities(resident, order))
                on_progress("evaluating", sum(map(len, parts)), len(labels))
        probabilities = np.concatenate(parts)
    if not np.isfinite(probabilities).all():
        raise DataError(f"{run.path}: the network's outputs for images of {dataset.path} overflow. {TRAIN_AGAIN}")
    class_names, remarks = tuple(run.data()["class_names"]), []
    if {*dataset.class_names} == {*class_names}:  # the same classes, perhaps in another order
        labels = np.array([class_names.index(name) for name in dataset.class_names])[labels]
        if dataset.class_names != class_names:
            remarks.append(
                f"{dataset.path}: the classes are in another order than the network's (found "
                f"{dataset.class_names[0]!r} first instead of {class_names[0]!r}), so they are matched by name"
            )
    else:
        differing = [(a, b) for a, b in zip(dataset.class_names, class_names, strict=True) if a != b]
        remarks.append(
            f"{dataset.path}: the class names differ from the network's (found {differing[0][0]!r} instead of "
            f"{differing[0][1]!r}; {len(differing)} of {len(class_names)} differ), so classes are matched by position"
        )
    counts = metrics.confusion(probabilities, labels)
    overall = metrics.summarise(probabilities, labels, metrics.per_class(counts))
    path = run.evaluations_folder / f"{dataset.path.stem}-{split}-{files.short_digest(dataset.digest)}.json"
    evaluation = Evaluation(path, dataset, split, name, class_names, counts, overall, tuple(remarks))
    run.require_no_links()
    with files.disk_errors_as_cnnjob_error(run.evaluations_folder):
        run.evaluations_folder.mkdir(exist_ok=True)
        if split == "test" and dataset.digest == run.data()["digest"]:
            # A run that an older version finished has no examples.
            pictured = images if isinstance(images, np.ndarray) else images.open()
            npz.write_arrays(run.examples_file, example_arrays(classifier, probabilities, pictured, labels))
        files.write_whole(path.with_suffix(".csv"), _confusion_csv(class_names, counts))
        # Last, so that the metrics are never without their confusion matrix.
        files.write_json(path, evaluation.content())
    return evaluation


def _require_fit(run: Run, dataset: Dataset) -> None:
    """Refuse a dataset whose images or classes do not fit a run's network.

    Raises:
        JobError: the shape of the images or the number of classes differs from what the network requires.
    """
    data = run.data()
    expected, found = tuple(data["image_shape"]), dataset.image_shape
    if found != expected:
        shapes = ["×".join(map(str, shape)) for shape in (expected, found)]
        advice = f"Choose another dataset, or prepare a folder of images with --size {expected[0]}x{expected[1]}"
        if found[2] != expected[2]:
            advice = f"Choose a dataset of {'grey' if expected[2] == 1 else 'colour'} images"
        raise JobError(f"{dataset.path}: {run.path} requires images of shape {shapes[0]} (found {shapes[1]}). {advice}")
    if len(dataset.class_names) != len(data["class_names"]):
        raise JobError(
            f"{dataset.path}: not the number of classes that {run.path} predicts (found "
            f"{len(dataset.class_names)}, expected {len(data['class_names'])}). Choose a dataset with the same classes"
        )


def _confusion_csv(class_names: tuple[str, ...], counts: Array) -> bytes:
    """Return a confusion matrix as CSV: one row per true class, one column per predicted class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [spreadsheet_cell(name) for name in class_names]
    writer.writerow(["true class", *names])
    writer.writerows([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
    return text.getvalue().encode()
