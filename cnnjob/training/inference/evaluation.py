"""Evaluation of a finished run on a split of any prepared dataset that fits its network."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cnnjob import files
from cnnjob.data.dataset import CHUNKED_FORMAT, Dataset, blocks
from cnnjob.errors import DataError, JobError, spreadsheet_cell, three_lines
from cnnjob.runs import metrics, npz
from cnnjob.runs.run import Run
from cnnjob.training.backend import make_backend, select_evaluation_backend, start_workers
from cnnjob.training.inference.classifier import TRAIN_AGAIN, load_classifier, require_finished
from cnnjob.training.inference.examples import example_arrays
from cnnjob.training.memory import EVALUATION_BATCH, memory_errors_as_job_error

Array = np.ndarray[Any, Any]


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
    class_names = tuple(run.data()["class_names"])
    positions, remarks = _match_classes(dataset, class_names)
    labels = positions[labels]
    counts = metrics.confusion(probabilities, labels)
    overall = metrics.summarise(probabilities, labels, metrics.per_class(counts))
    path = run.evaluations_folder / f"{dataset.path.stem}-{split}-{files.short_digest(dataset.digest)}.json"
    evaluation = Evaluation(path, dataset, split, name, class_names, counts, overall, remarks)
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


def _match_classes(dataset: Dataset, class_names: tuple[str, ...]) -> tuple[Array, tuple[str, ...]]:
    """Match a dataset's classes with the network's: by name if the names are the same, and by position otherwise.

    Returns:
        For each class of the dataset, int64 (K,), the network's class; and a remark for the user if the classes are not
        the same in the same order.
    """
    if dataset.class_names == class_names:
        return np.arange(len(class_names)), ()
    if {*dataset.class_names} == {*class_names}:
        remark = (
            f"{dataset.path}: the classes are in another order than the network's (found {dataset.class_names[0]!r} "
            f"first instead of {class_names[0]!r}), so they are matched by name"
        )
        return np.array([class_names.index(name) for name in dataset.class_names]), (remark,)
    differing = [(a, b) for a, b in zip(dataset.class_names, class_names, strict=True) if a != b]
    remark = (
        f"{dataset.path}: the class names differ from the network's (found {differing[0][0]!r} instead of "
        f"{differing[0][1]!r}; {len(differing)} of {len(class_names)} differ), so classes are matched by position"
    )
    return np.arange(len(class_names)), (remark,)


def _confusion_csv(class_names: tuple[str, ...], counts: Array) -> bytes:
    """Return a confusion matrix as CSV: one row per true class, one column per predicted class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [spreadsheet_cell(name) for name in class_names]
    writer.writerow(["true class", *names])
    writer.writerows([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
    return text.getvalue().encode()
