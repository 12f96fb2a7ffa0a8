"""Prediction of the classes of images with a run's network."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cnnjob.data.background import SAMPLED, Difference, UsualBackground
from cnnjob.data.dataset import SPLITS, Dataset
from cnnjob.errors import DataError, JobError, plural, printable
from cnnjob.files import read_bytes
from cnnjob.runs.creation import open_run_dataset
from cnnjob.runs.npz import array_from_bytes
from cnnjob.runs.run import Run
from cnnjob.training.inference.classifier import TRAIN_AGAIN, load_best_so_far, load_classifier, require_run
from cnnjob.training.memory import EVALUATION_BATCH
from cnnjob.training.split import validation_indices

_ADDRESS = re.compile(rf"({'|'.join(SPLITS)}):(.*)")
_MOST_ARRAY_BYTES = 1 << 30
_NUMBER = re.compile(r"[0-9]{1,15}")


@dataclass(frozen=True)
class Prediction:
    """The class probabilities of one image."""

    image: str
    """The image's file (for an array file, with the image's index), its address in the dataset, or ``array[0]``, …."""
    probabilities: dict[str, float]
    """The probability of each class, in 0..1, most probable first."""
    true_class: str | None
    """None if unknown."""
    scaled_from: tuple[int, int] | None = None
    """Original height and width of an image file that was scaled to the network's input size."""
    remarks: tuple[str, ...] = ()
    """Other changes made to an image file, such as filling transparent pixels with the background, and warnings."""

    def __repr__(self) -> str:
        """Return a line with the image, the most probable class and its probability, and the true class if known."""
        truth = "" if self.true_class is None else f", true class {printable(self.true_class)}"
        return f"Prediction of {printable(self.image)}: {printable(self.class_name)} {self.probability:.3f}{truth}"

    @property
    def class_name(self) -> str:
        """The most probable class."""
        return next(iter(self.probabilities))

    @property
    def probability(self) -> float:
        """The probability of the most probable class, in 0..1."""
        return self.probabilities[self.class_name]


def predict(
    run: Run,
    images: Sequence[str | np.ndarray[Any, Any]],
    data: Path | None = None,
    *,
    invert: bool = False,
    say: Callable[[str], object] = lambda _: None,
) -> list[Prediction]:
    """Predict the classes of images.

    Args:
        run: a finished run, or an unfinished one with a checkpoint after its first epoch, whose best weights so far are
            used.
        images: addresses in the run's dataset, such as ``test:17``; image files of any size, which are scaled to the
            network's input size; folders of image files, including their subfolders; or ``.npy`` files or arrays, uint8
            (H, W, C) or (N, H, W, C) of exactly that size, where C may be left out if the images are grey.
        data: the folder that contains the dataset; by default, the folder recorded in the run.
        invert: True to invert all pixels (255 − x) first.
        say: receives messages for the user, for example if the run is unfinished.

    Returns:
        One prediction per image. If the run's dataset is available, the remarks on an image from a file include a
        warning if the image's background or contrast is unlike that of the training images.

    Raises:
        DataError: the run has no weights yet or is damaged; the network's outputs overflow; a file or an array is not a
            usable image; a folder has no images; or the dataset is missing, damaged or not the run's dataset.
        JobError: an address does not refer to an image.
    """
    require_run(run)
    classifier = load_classifier(run) if run.result_file.exists() else load_best_so_far(run, say)
    class_names, usual = run.data()["class_names"], _usual_background(run, images, data)
    unread, predictions = _load_images(run, images, data, say), []
    while read := list(islice(unread, EVALUATION_BATCH)):
        pixels = np.stack([image.pixels for image in read])
        pixels = 255 - pixels if invert else pixels
        probabilities = classifier.probabilities(pixels)  # (N, H, W, C) → (N, classes)
        differences = usual.compare(pixels) if usual else [None] * len(read)
        for image, row, difference in zip(read, probabilities, differences, strict=True):
            if not np.isfinite(row).all():
                raise DataError(f"{run.path}: the network's outputs for {image.name} overflow. {TRAIN_AGAIN}")
            order = np.argsort(-row, kind="stable")
            ranked = {class_names[label]: float(row[label]) for label in order}
            remarks = [*image.remarks]
            if difference and image.true_class is None:  # no warning about the dataset's own images
                remarks.append(_describe_difference(difference, inverted=invert))
            predictions.append(Prediction(image.name, ranked, image.true_class, image.scaled_from, tuple(remarks)))
    return predictions


def _usual_background(
    run: Run, images: Sequence[str | np.ndarray[Any, Any]], data: Path | None
) -> UsualBackground | None:
    """Return the usual backgrounds and contrasts of the training images, measured in a sample.

    None if all images are from the run's own dataset, or if the dataset is not available.
    """
    if all(isinstance(image, str) and _ADDRESS.fullmatch(image) for image in images):
        return None
    with suppress(DataError, OSError):  # prediction works without the dataset
        stored = _open_dataset(run, data).stored("train")
        with stored.open() as reader:
            # Spread over the whole split, which may be sorted by class.
            return UsualBackground.of(reader[np.linspace(0, len(reader) - 1, SAMPLED).astype(np.int64)])
    return None


def _describe_difference(difference: Difference, *, inverted: bool) -> str:
    advice = "The prediction may be wrong"
    if difference.is_inverted:
        advice = "Predict it without --invert" if inverted else "Predict it with --invert"
    return f"warning: {difference.description} than in the training images. {advice}"


class _Image(NamedTuple):
    """An image to classify."""

    name: str
    pixels: np.ndarray[Any, Any]
    """uint8 (H, W, C)."""
    true_class: str | None = None
    scaled_from: tuple[int, int] | None = None
    remarks: tuple[str, ...] = ()


def _load_images(
    run: Run, images: Sequence[str | np.ndarray[Any, Any]], data: Path | None, say: Callable[[str], object]
) -> Iterator[_Image]:
    """Yield the images that are given as arrays, files, folders or addresses in the dataset, in the given order."""
    dataset, shape = None, tuple(run.data()["image_shape"])
    verified: set[str] = set()  # checking a split against its digest reads all of it, so it is done once
    numbers = count()
    for image in images:
        if isinstance(image, np.ndarray):
            for pixels in _require_shape(image, shape, "images"):
                yield _Image(f"array[{next(numbers)}]", pixels)
            continue
        if address := _ADDRESS.fullmatch(image):
            if dataset is None:
                dataset = _open_dataset(run, data)
            split, index = _locate(run, dataset, address[1], _parse_index(image, address[2]))
            pixels, label = dataset.example(split, index)
            if split not in verified:
                dataset.verify(split)
                verified.add(split)
            yield _Image(image, pixels, dataset.class_names[label])
            continue
        path = Path(image)
        for file in _images_in_folder(path, say) if path.is_dir() else [path]:
            yield from _read_file(file, shape, run.data())


def _open_dataset(run: Run, data: Path | None) -> Dataset:
    """Open the run's dataset, in the folder ``data`` if one is given."""
    return open_run_dataset(run, Dataset.open(data / Path(run.data()["path"]).name) if data else None)


def _images_in_folder(folder: Path, say: Callable[[str], object]) -> list[Path]:
    """Return the image files in a folder and its subfolders, by the rules of ``prepare``; 2.png comes before 10.png."""
    from cnnjob.data.prepare.folders.tree import FolderTree  # noqa: PLC0415 - only needed for folders

    listing = FolderTree(folder).list()
    if not listing.files:
        raise DataError(
            f"{folder}: no image files (found {plural(len(listing.left_out), 'other file')}). Pass a folder of images"
        )
    if listing.left_out:
        say(f"{folder}: {plural(len(listing.left_out), 'file')} left out (hidden, or not images)")
    # Parts at odd positions are numbers, so that parts of the same kind are compared.
    parts = {name: re.split(r"([0-9]+)", name) for name in listing.files}
    keys = {
        name: [(int(part), part) if at % 2 else part for at, part in enumerate(each)] for name, each in parts.items()
    }
    return [folder / name for name in sorted(keys, key=lambda name: keys[name])]


def _locate(run: Run, dataset: Dataset, split: str, index: int) -> tuple[str, int]:
    """Return the split and index of an image in the dataset file.

    If the dataset has no ``val`` split, ``val`` stands for the training images that the run set aside for validation.

    Raises:
        DataError: the run has too few validation images for the index.
    """
    if split != "val" or split in dataset.splits:
        return split, index
    validation = validation_indices(run, dataset)
    if index >= len(validation):
        raise DataError(
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
    return _require_shape(array, shape, str(path))


def _require_shape(array: np.ndarray[Any, Any], shape: tuple[int, int, int], where: str) -> np.ndarray[Any, Any]:
    """Return one or more images as (N, H, W, C); refuse an array of a different type or shape."""
    accepted = [shape, shape[:2]] if shape[2] == 1 else [shape]
    if array.dtype != np.uint8 or not array.size or not {array.shape, array.shape[1:]} & {*accepted}:
        raise DataError(
            f"{where}: the network requires uint8 {shape} or (N, {', '.join(map(str, shape))}) (found {array.dtype} "
            f"{array.shape}). Convert the array"
        )
    return array.reshape(-1, *shape)
