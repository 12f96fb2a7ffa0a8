"""What a finished run says of images: new ones, and the test images it got most confidently wrong."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cnnjob import nn
from cnnjob.data.dataset import SPLITS, Dataset
from cnnjob.errors import DataError, JobError
from cnnjob.files import read_bytes
from cnnjob.runs import metrics
from cnnjob.runs.creation import dataset_of_run
from cnnjob.runs.npz import array_from_bytes
from cnnjob.runs.run import Run
from cnnjob.training.build import build_network, build_optimiser, build_pixels
from cnnjob.training.memory import EVALUATION_BATCH
from cnnjob.training.split import validation_indices

_ADDRESS = re.compile(rf"({'|'.join(SPLITS)}):(.*)")
_TRAIN_AGAIN = "train again with a lower train.learning_rate or other initial weights"
_MOST_ARRAY_BYTES = 1 << 30
_NUMBER = re.compile(r"[0-9]{1,15}")


@dataclass(frozen=True)
class Classifier:
    """A trained network that tells the classes of images."""

    network: nn.Network
    state: nn.State
    plan: nn.EvaluationPlan

    def probabilities(self, images: np.ndarray, order: np.ndarray | None = None) -> np.ndarray:
        """The class probabilities of images.

        Args:
            images: uint8 (N, H, W, C).
            order: int64, which of them; all by default.

        Returns:
            (len(order), classes), each row's sum 1.
        """
        return self.plan.probabilities(images, np.arange(len(images)) if order is None else order)


@dataclass(frozen=True)
class Prediction:
    """The most probable class of one image."""

    image: str
    """The file, and the place in it where it holds several; or its address."""
    class_name: str
    probability: float
    true_class: str | None
    """None where it is not known."""
    scaled_from: tuple[int, int] | None = None
    """Height and width of an image file that was scaled to the network's size."""


def predict(run: Run, images: Sequence[str], data: Path | None = None) -> list[Prediction]:
    """Tell the classes of images.

    Args:
        run: finished.
        images: addresses in the run's own dataset, as ``test:17``; files of images of any size, which are scaled to the
            network's; or ``.npy`` of uint8 (H, W), (H, W, C) or (N, H, W, C) of exactly its size.
        data: the folder of the dataset; where it lay when the run was made by default.

    Returns:
        One guess an image.

    Raises:
        DataError: the run is not finished or damaged, or its outputs overflow; a file is no image that fits; or the
            dataset is missing, damaged or another.
        JobError: there is no such address.
    """
    classifier, class_names = load_classifier(run), run.data()["class_names"]
    read = list(_read(run, images, data))
    probabilities = classifier.probabilities(np.stack([one.pixels for one in read]))
    for one, row in zip(read, probabilities, strict=True):
        if not np.isfinite(row).all():
            raise DataError(f"{run.path}: the network's outputs for {one.name} overflow; {_TRAIN_AGAIN}")
    return [
        Prediction(one.name, class_names[row.argmax()], float(row.max()), one.true_class, one.scaled_from)
        for one, row in zip(read, probabilities, strict=True)
    ]


def load_classifier(run: Run) -> Classifier:
    """The network of a finished run with its chosen weights.

    Args:
        run: finished.

    Returns:
        The classifier.

    Raises:
        DataError: it is not finished; its weights are missing, damaged, not finite or of another network; or its
            test loss is not finite.
    """
    if not run.path.is_dir():
        below = Path("runs") / run.path
        raise DataError(f"{run.path}: no such run; name the folder of a finished one{f', as {below}' * below.is_dir()}")
    if not run.job_file.exists():
        raise DataError(f"{run.path}: no run folder, it has no job.json; name one")
    if not run.result_file.exists():
        raise DataError(f"{run.path}: not finished, no weights have been chosen yet; train it to its end")
    job, data, weights = run.job(), run.data(), run.weights()
    network = build_network(job.model, tuple(data["image_shape"]), len(data["class_names"]))
    backend = nn.NumPyBackend(nn.Workers(1))
    state = nn.State(network, build_optimiser(job.train), backend)
    if {name: array.shape for name, array in weights.items()} != state.layout.shapes:
        raise DataError(f"{run.weights_file}: not the weights of {run.job_file}")
    if any(array.dtype != np.float32 for array in weights.values()):
        raise DataError(f"{run.weights_file}: damaged, some weights are not float32. Restore it, or train again")
    if not all(np.isfinite(array).all() for array in weights.values()):
        raise DataError(f"{run.weights_file}: some weights are not finite; {_TRAIN_AGAIN}")
    loss = run.result().get("test_loss")
    if isinstance(loss, float) and not math.isfinite(loss):  # of a run from before such a training failed
        raise DataError(f"{run.result_file}: the test loss is {loss}; {_TRAIN_AGAIN}")
    state.write(weights, state.parameters)
    pixels = build_pixels(job.data, tuple(data["mean"]), tuple(data["std"]))
    views = job.train.test_time_augmentation
    return Classifier(network, state, nn.EvaluationPlan(backend, network, state, pixels, EVALUATION_BATCH, views))


class _Image(NamedTuple):
    """What is to be classified."""

    name: str
    pixels: np.ndarray[Any, Any]
    """uint8 (H, W, C)."""
    true_class: str | None = None
    scaled_from: tuple[int, int] | None = None


def _read(run: Run, images: Sequence[str], data: Path | None) -> Iterator[_Image]:
    """The images."""
    dataset, shape = None, tuple(run.data()["image_shape"])
    verified: set[str] = set()
    for image in images:
        if address := _ADDRESS.fullmatch(image):
            dataset = dataset or _dataset(run, data)
            split, index = _place(run, dataset, address[1], _number(image, address[2]))
            pixels, label = dataset.example(split, index)
            if split not in verified:
                dataset.verify(split)
                verified.add(split)
            yield _Image(image, pixels, dataset.class_names[label])
        else:
            yield from _images(Path(image), shape)


def _dataset(run: Run, folder: Path | None) -> Dataset:
    """The data that a run was made with."""
    return dataset_of_run(run, Dataset.open(folder / Path(run.data()["path"]).name) if folder else None)


def _place(run: Run, dataset: Dataset, split: str, index: int) -> tuple[str, int]:
    """The split and place of an image; ``val`` are those that the run held out where the data has no such split."""
    if split != "val" or split in dataset.splits:
        return split, index
    held_out = validation_indices(run, dataset)
    if index >= len(held_out):
        raise JobError(f"{run.path}: no image val:{index}, found {len(held_out):,} held out; name test:N or train:N")
    return "train", int(held_out[index])


def _number(address: str, said: str) -> int:
    if not _NUMBER.fullmatch(said):
        raise JobError(
            f"{address}: no image of the dataset, found {said!r} for its number; count from 0, or write ./{address} "
            "where it is a file"
        )
    return int(said)


def _images(path: Path, shape: tuple[int, int, int]) -> Iterator[_Image]:
    """The images of a file."""
    from cnnjob.data import images  # noqa: PLC0415 - Pillow, which a training does not need

    if not path.exists():
        raise DataError(f"{path}: no such file; name one, or an image of the run's data as test:0")
    if path.suffix == ".npy":
        for number, image in enumerate(array_of(path, shape)):
            yield _Image(f"{path}[{number}]", image)
        return
    pixels, header = images.pixels(path, shape)
    size = header.height, header.width
    yield _Image(str(path), pixels, scaled_from=None if size == shape[:2] else size)


def array_of(path: Path, shape: tuple[int, int, int]) -> np.ndarray[Any, Any]:
    """Read an ``.npy`` file of images.

    Args:
        path: the file.
        shape: (H, W, C) of each image.

    Returns:
        uint8 (N, H, W, C).

    Raises:
        DataError: it is damaged, or its array is another.
    """
    try:
        array = array_from_bytes(memoryview(read_bytes(path, _MOST_ARRAY_BYTES)))
    except ValueError as error:
        raise DataError(f"{path}: not readable as an array ({error}). Save uint8 images with numpy.save") from error
    ways = {(*shape[:2],) * (shape[2] == 1), shape, (len(array) if array.ndim else 0, *shape)}
    if array.dtype != np.uint8 or array.shape not in ways or not array.size:
        many = f"(N, {', '.join(map(str, shape))})"
        raise DataError(f"{path}: {array.dtype} {array.shape}, the network takes uint8 {shape} or {many}; convert it")
    return array.reshape(-1, *shape)


def record(
    probabilities: np.ndarray[Any, Any],
    images: np.ndarray[Any, Any],
    labels: np.ndarray[Any, Any],
    class_names: tuple[str, ...],
) -> dict[str, np.ndarray[Any, Any]]:
    """What ``predictions.npz`` holds.

    Args:
        probabilities: (N, K).
        images: uint8 (N, H, W, C).
        labels: int64 (N,).
        class_names: one a class.

    Returns:
        Those but the images, and of the images the 24 most confidently wrong, worst first.
    """
    worst = metrics.most_confident_errors(probabilities, labels)
    return {
        "probabilities": probabilities,
        "labels": labels,
        "class_names": np.array(class_names),
        "wrong_images": images[worst],
        "wrong_indices": worst,
    }
