"""Prediction of image classes with a finished run's network, and the arrays of ``predictions.npz``."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cnnjob import nn
from cnnjob.data.dataset import SPLITS, Dataset
from cnnjob.data.stored import RowReader
from cnnjob.errors import DataError, JobError
from cnnjob.files import read_bytes
from cnnjob.runs import metrics
from cnnjob.runs.creation import open_run_dataset
from cnnjob.runs.npz import array_from_bytes
from cnnjob.runs.run import Run
from cnnjob.training.build import build_network, build_optimiser, build_pixels
from cnnjob.training.memory import EVALUATION_BATCH
from cnnjob.training.split import validation_indices

_ADDRESS = re.compile(rf"({'|'.join(SPLITS)}):(.*)")
TRAIN_AGAIN = "Train again with a lower train.learning_rate or different initial weights"
_MOST_ARRAY_BYTES = 1 << 30
_NUMBER = re.compile(r"[0-9]{1,15}")


@dataclass(frozen=True)
class Classifier:
    """A network with weights, ready to classify images."""

    network: nn.Network
    state: nn.State
    plan: nn.EvaluationPlan

    def probabilities(self, images: np.ndarray | RowReader, order: np.ndarray | None = None) -> np.ndarray:
        """Compute the class probabilities of images.

        Args:
            images: uint8 (N, H, W, C), in memory; or a reader, if the plan has a stream.
            order: int64, indices of the images to classify; all by default.

        Returns:
            (len(order), classes); each row sums to 1.
        """
        return self.plan.probabilities(images, np.arange(len(images)) if order is None else order)


@dataclass(frozen=True)
class Prediction:
    """The most probable class of one image."""

    image: str
    """The image's file (for an array file, with the image's index), or the image's address in the dataset."""
    class_name: str
    probability: float
    """In 0..1."""
    true_class: str | None
    """None if unknown."""
    scaled_from: tuple[int, int] | None = None
    """Original height and width of an image file that was scaled to the network's input size."""
    remarks: tuple[str, ...] = ()
    """Other changes made to an image file, such as filling transparent pixels with the background."""


def predict(run: Run, images: Sequence[str], data: Path | None = None) -> list[Prediction]:
    """Predict the classes of images.

    Args:
        run: a finished run.
        images: addresses in the run's dataset, such as ``test:17``; image files of any size, which are scaled to the
            network's input size; or ``.npy`` files of uint8 (H, W), (H, W, C) or (N, H, W, C) of exactly that size.
        data: the folder that contains the dataset; by default, the folder recorded in the run.

    Returns:
        One prediction per image.

    Raises:
        DataError: the run is unfinished or damaged; the network's outputs overflow; a file is not a usable image; or
            the dataset is missing, damaged or not the run's dataset.
        JobError: an address does not refer to an image.
    """
    classifier, class_names = load_classifier(run), run.data()["class_names"]
    read_images = list(_load_images(run, images, data))
    # (N, H, W, C) → (N, classes)
    probabilities = classifier.probabilities(np.stack([image.pixels for image in read_images]))
    for image, row in zip(read_images, probabilities, strict=True):
        if not np.isfinite(row).all():
            raise DataError(f"{run.path}: the network's outputs for {image.name} overflow. {TRAIN_AGAIN}")
    return [
        Prediction(
            image.name, class_names[row.argmax()], float(row.max()), image.true_class, image.scaled_from, image.remarks
        )
        for image, row in zip(read_images, probabilities, strict=True)
    ]


def load_classifier(run: Run, workers: nn.Workers | None = None) -> Classifier:
    """Load the network of a finished run with its chosen weights, on the NumPy backend.

    Args:
        run: a finished run.
        workers: the workers of the backend; a single one by default.

    Returns:
        The classifier.

    Raises:
        DataError: the run is not finished; its weights are missing, damaged, not finite or from another network; or
            its test loss is not finite.
    """
    if not run.path.is_dir():
        in_runs = Path("runs") / run.path
        example = f", such as {in_runs}" if in_runs.is_dir() else ""
        raise DataError(f"{run.path}: no such run. Pass the folder of a finished run{example}")
    if not run.job_file.exists():
        raise DataError(f"{run.path}: not a run folder, since it has no job.json. Pass the folder of a finished run")
    if not run.result_file.exists():
        raise DataError(f"{run.path}: not finished, so no weights have been chosen yet. Train it to the end")
    job, data, weights = run.job(), run.data(), run.weights()
    network = build_network(job.model, tuple(data["image_shape"]), len(data["class_names"]))
    backend = nn.NumPyBackend(workers or nn.Workers(1))
    state = nn.State(network, build_optimiser(job.train), backend)
    if {name: array.shape for name, array in weights.items()} != state.layout.shapes:
        raise DataError(f"{run.weights_file}: does not match {run.job_file}. Restore the file, or train again")
    if any(array.dtype != np.float32 for array in weights.values()):
        raise DataError(f"{run.weights_file}: damaged (some weights are not float32). Restore the file, or train again")
    if not all(np.isfinite(array).all() for array in weights.values()):
        raise DataError(f"{run.weights_file}: some weights are not finite. {TRAIN_AGAIN}")
    loss = run.result().get("test_loss")
    if isinstance(loss, float) and not math.isfinite(loss):  # older versions let such a run finish
        raise DataError(f"{run.result_file}: the test loss is {loss}. {TRAIN_AGAIN}")
    state.write(weights, state.parameters)
    pixels = build_pixels(job.data, tuple(data["mean"]), tuple(data["std"]))
    views = job.train.test_time_augmentation
    return Classifier(network, state, nn.EvaluationPlan(backend, network, state, pixels, EVALUATION_BATCH, views))


class _Image(NamedTuple):
    """An image to classify."""

    name: str
    pixels: np.ndarray[Any, Any]
    """uint8 (H, W, C)."""
    true_class: str | None = None
    scaled_from: tuple[int, int] | None = None
    remarks: tuple[str, ...] = ()


def _load_images(run: Run, images: Sequence[str], data: Path | None) -> Iterator[_Image]:
    """Yield the images at the given paths or dataset addresses (such as ``test:0``), in order."""
    dataset, shape = None, tuple(run.data()["image_shape"])
    verified: set[str] = set()  # checking a split against its digest reads all of it, so it is done once
    for image in images:
        if address := _ADDRESS.fullmatch(image):
            if dataset is None:
                moved = Dataset.open(data / Path(run.data()["path"]).name) if data else None
                dataset = open_run_dataset(run, moved)
            split, index = _locate(run, dataset, address[1], _parse_index(image, address[2]))
            pixels, label = dataset.example(split, index)
            if split not in verified:
                dataset.verify(split)
                verified.add(split)
            yield _Image(image, pixels, dataset.class_names[label])
        else:
            yield from _read_file(Path(image), shape, run.data())


def _locate(run: Run, dataset: Dataset, split: str, index: int) -> tuple[str, int]:
    """Return the split and index of an image in the dataset file.

    If the dataset has no ``val`` split, ``val`` stands for the training images that the run set aside for validation.

    Raises:
        JobError: the run has too few validation images for the index.
    """
    if split != "val" or split in dataset.splits:
        return split, index
    validation = validation_indices(run, dataset)
    if index >= len(validation):
        raise JobError(
            f"{run.path}: no image val:{index} (found {len(validation):,} validation images). "
            "Choose a lower index, or use test:N or train:N"
        )
    return "train", int(validation[index])


def _parse_index(address: str, text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise JobError(
            f"{address}: not an image in the dataset (found index {text!r}). Indices start at 0; for a file, write "
            f"./{address}"
        )
    return int(text)


def _read_file(path: Path, shape: tuple[int, int, int], prepared: dict[str, Any]) -> Iterator[_Image]:
    """Yield the image in an image file, or all images in an array file."""
    from cnnjob.data import images  # noqa: PLC0415 - Pillow, which training does not need

    if not path.exists():
        raise DataError(
            f"{path}: no such file. Pass an image file, or the address of an image in the run's dataset, such as test:0"
        )
    if path.suffix == ".npy":
        for number, image in enumerate(read_image_array(path, shape)):
            yield _Image(f"{path}[{number}]", image)
        return
    background = prepared.get("background", images.WHITE)
    picture = images.read_picture(path, shape, fit=prepared.get("fit", images.FITS[0]), background=tuple(background))
    size = picture.header.height, picture.header.width
    scaled_from = None if size == shape[:2] else size
    yield _Image(str(path), picture.pixels, scaled_from=scaled_from, remarks=tuple(picture.remarks()))


def read_image_array(path: Path, shape: tuple[int, int, int]) -> np.ndarray[Any, Any]:
    """Read an ``.npy`` file of images.

    Args:
        path: the file, of at most 1 GiB.
        shape: (H, W, C) of each image.

    Returns:
        uint8 (N, H, W, C).

    Raises:
        DataError: the file is damaged, or its array has a different type or shape.
    """
    try:
        array = array_from_bytes(memoryview(read_bytes(path, _MOST_ARRAY_BYTES)))
    except ValueError as error:
        raise DataError(f"{path}: not readable as an array ({error}). Save uint8 images with numpy.save") from error
    accepted = [shape, (len(array) if array.ndim else 0, *shape)]
    if shape[2] == 1:
        accepted.append(shape[:2])
    if array.dtype != np.uint8 or array.shape not in accepted or not array.size:
        raise DataError(
            f"{path}: the network requires uint8 {shape} or (N, {', '.join(map(str, shape))}) (found {array.dtype} "
            f"{array.shape}). Convert the array"
        )
    return array.reshape(-1, *shape)


def prediction_arrays(
    probabilities: np.ndarray[Any, Any],
    images: np.ndarray[Any, Any] | RowReader,
    labels: np.ndarray[Any, Any],
    class_names: tuple[str, ...],
) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of ``predictions.npz``.

    Args:
        probabilities: (N, K).
        images: uint8 (N, H, W, C), in memory or streamed; only a few of them are read.
        labels: int64 (N,).
        class_names: one name per class.

    Returns:
        ``probabilities``, ``labels`` and ``class_names``; and ``wrong_images`` and ``wrong_indices``, which contain up
        to 24 misclassified images and their indices, starting with the most confident error.
    """
    worst = metrics.most_confident_errors(probabilities, labels)
    return {
        "probabilities": probabilities,
        "labels": labels,
        "class_names": np.array(class_names),
        "wrong_images": images[worst],
        "wrong_indices": worst,
    }
