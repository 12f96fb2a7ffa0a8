"""Prediction of image classes with a run's network, and the arrays of ``predictions.npz``."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cnnjob import nn
from cnnjob.data.background import SAMPLED, Difference, UsualBackground
from cnnjob.data.dataset import SPLITS, Dataset
from cnnjob.data.stored import RowReader
from cnnjob.errors import DataError, JobError, plural
from cnnjob.files import read_bytes
from cnnjob.nn.random import Purpose, generator
from cnnjob.runs import checkpoints, metrics
from cnnjob.runs.creation import open_run_dataset
from cnnjob.runs.npz import array_from_bytes
from cnnjob.runs.run import Run
from cnnjob.training.build import build_network, build_optimiser, build_pixels
from cnnjob.training.memory import EVALUATION_BATCH
from cnnjob.training.split import validation_indices

_ADDRESS = re.compile(rf"({'|'.join(SPLITS)}):(.*)")
TRAIN_AGAIN = "Train again with a lower train.learning_rate or different initial weights"
_MOST_ARRAY_BYTES = 1 << 30
MAX_EXAMPLES = 6
"""Maximum number of images in ``examples.npz``."""
NOISY_COPIES = 8
"""Number of noisy copies of an image from which its saliency is computed."""
NOISE = 0.2 * 255
"""Standard deviation of the noise, in pixel values."""
_PICTURE_SIDE = 48
"""Maximum height and width of an image or saliency map in ``examples.npz``; larger ones are averaged over blocks."""
_PICTURE_BYTES = 32_000
"""Approximate maximum total size of the images and saliency maps in ``examples.npz``."""
_MAP_CHOICES = ((4, 16, 32), (4, 8, 32), (3, 8, 16), (2, 8, 16), (2, 4, 16), (2, 4, 8))
"""Numbers of images, of maps per layer and image, and of pixels per side; the first choice that fits is used."""
_MAPS_BYTES = 32_000
"""Maximum total size of the feature maps in ``examples.npz``, in bytes; only the last of the choices may exceed it."""
_LEVELS = 16
"""Number of grey levels of a feature map, so that two pixels fit into a byte."""
_NUMBER = re.compile(r"[0-9]{1,15}")


@dataclass(frozen=True)
class Classifier:
    """A network with weights, ready to classify images."""

    network: nn.Network
    state: nn.State
    plan: nn.EvaluationPlan
    pixels: nn.PixelNormalisation

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
    """The class probabilities of one image."""

    image: str
    """The image's file (for an array file, with the image's index), or the image's address in the dataset."""
    probabilities: dict[str, float]
    """The probability of each class, in 0..1, most probable first."""
    true_class: str | None
    """None if unknown."""
    scaled_from: tuple[int, int] | None = None
    """Original height and width of an image file that was scaled to the network's input size."""
    remarks: tuple[str, ...] = ()
    """Other changes made to an image file, such as filling transparent pixels with the background, and warnings."""

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
    images: Sequence[str],
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
            network's input size; folders of image files, including their subfolders; or ``.npy`` files of uint8 (H, W),
            (H, W, C) or (N, H, W, C) of exactly that size.
        data: the folder that contains the dataset; by default, the folder recorded in the run.
        invert: True to invert all pixels (255 − x) first.
        say: receives messages for the user, for example if the run is unfinished.

    Returns:
        One prediction per image. If the run's dataset is available, the remarks on an image from a file include a
        warning if the image's background or contrast is unlike that of the training images.

    Raises:
        DataError: the run has no weights yet or is damaged; the network's outputs overflow; a file is not a usable
            image; a folder has no images; or the dataset is missing, damaged or not the run's dataset.
        JobError: an address does not refer to an image.
    """
    _require_run(run)
    classifier = load_classifier(run) if run.result_file.exists() else _load_best_so_far(run, say)
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
            if difference and image.true_class is None:  # the dataset's own images are not questioned
                remarks.append(_describe_difference(difference, inverted=invert))
            predictions.append(Prediction(image.name, ranked, image.true_class, image.scaled_from, tuple(remarks)))
    return predictions


def load_classifier(run: Run, backend: nn.Backend | None = None) -> Classifier:
    """Load the network of a finished run with its chosen weights.

    Args:
        run: a finished run.
        backend: the backend; NumPy in this process by default.

    Returns:
        The classifier.

    Raises:
        DataError: the run is not finished; its weights are missing, damaged, not finite or from another network; or
            its test loss is not finite.
    """
    require_finished(run)
    return _build_classifier(run, run.weights(), run.weights_file, backend)


def require_finished(run: Run) -> None:
    """Check that a folder is a run that is finished, and that its loss is finite.

    Raises:
        DataError: the folder is not a run, or the run is not finished, or its test loss is not finite.
    """
    _require_run(run)
    if not run.result_file.exists():
        raise DataError(f"{run.path}: not finished, so no weights have been chosen yet. Finish training it first")
    loss = run.result().get("test_loss")
    if isinstance(loss, float) and not math.isfinite(loss):  # older versions let such a run finish
        raise DataError(f"{run.result_file}: the test loss is {loss}. {TRAIN_AGAIN}")


def _require_run(run: Run) -> None:
    if not run.path.is_dir():
        in_runs = Path("runs") / run.path
        example = f", such as {in_runs}" if in_runs.is_dir() else ""
        raise DataError(f"{run.path}: no such run. Pass the folder of a run{example}")
    if not run.job_file.exists():
        raise DataError(f"{run.path}: not a run folder, since it has no job.json. Pass the folder of a run")


def _load_best_so_far(run: Run, say: Callable[[str], object]) -> Classifier:
    """Load the network of an unfinished run with the best weights in its newest checkpoint."""
    checkpoint, damaged = checkpoints.find_newest(run.checkpoints_folder, run.manifest()["digest"])
    for warning in damaged.values():
        say(f"warning: {warning}. Using the previous checkpoint")
    if not checkpoint or not checkpoint.progress.best_epoch:
        raise DataError(
            f"{run.path}: not finished, and its first epoch has not been saved yet, so there are no weights. "
            "Train it further"
        )
    progress, prefix = checkpoint.progress, "best/"
    say(
        f"{run.path}: not finished; using its best weights so far, those of epoch {progress.best_epoch} (from the "
        f"checkpoint at step {progress.step})"
    )
    weights = {name.removeprefix(prefix): array for name, array in checkpoint.arrays.items() if name.startswith(prefix)}
    return _build_classifier(run, weights, run.checkpoints_folder)


def _build_classifier(
    run: Run, weights: dict[str, np.ndarray], source: Path, backend: nn.Backend | None = None
) -> Classifier:
    """Build a run's network with weights read from the file ``source``; refuse weights that do not fit the network."""
    job, data = run.job(), run.data()
    network = build_network(job.model, tuple(data["image_shape"]), len(data["class_names"]))
    backend = backend or nn.NumPyBackend(nn.Workers(1))
    state = nn.State(network, build_optimiser(job.train), backend)
    if {name: array.shape for name, array in weights.items()} != state.layout.shapes:
        raise DataError(f"{source}: does not match {run.job_file}. Restore the file that was changed, or train again")
    if any(array.dtype != np.float32 for array in weights.values()):
        raise DataError(f"{source}: damaged (some weights are not float32). Restore it, or train again")
    if not all(np.isfinite(array).all() for array in weights.values()):
        raise DataError(f"{source}: some weights are not finite. {TRAIN_AGAIN}")
    state.write(weights, state.parameters)
    pixels = build_pixels(job.data, tuple(data["mean"]), tuple(data["std"]))
    views = job.train.test_time_augmentation
    plan = nn.EvaluationPlan(backend, network, state, pixels, EVALUATION_BATCH, views)
    return Classifier(network, state, plan, pixels)


def _usual_background(run: Run, images: Sequence[str], data: Path | None) -> UsualBackground | None:
    """Return the usual backgrounds and contrasts of the training images, measured in a sample.

    None if all images are from the run's own dataset, or if the dataset is not available.
    """
    if all(_ADDRESS.fullmatch(image) for image in images):
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


def _load_images(run: Run, images: Sequence[str], data: Path | None, say: Callable[[str], object]) -> Iterator[_Image]:
    """Yield the images that ``images`` specifies by files, folders or addresses in the dataset, in the given order."""
    dataset, shape = None, tuple(run.data()["image_shape"])
    verified: set[str] = set()  # checking a split against its digest reads all of it, so it is done once
    for image in images:
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


def example_arrays(
    classifier: Classifier,
    probabilities: np.ndarray[Any, Any],
    images: np.ndarray[Any, Any] | RowReader,
    labels: np.ndarray[Any, Any],
) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of ``examples.npz``: a few test images, their saliency and the feature maps of convolutions.

    The saliency of a pixel is the largest absolute derivative, over its channels, of the predicted class's logit
    (Simonyan et al. 2013, §3.1). The derivative is averaged over copies of the image with Gaussian noise, and
    saliencies above an image's 99th percentile are reduced to it (SmoothGrad: Smilkov et al. 2017, §3). A feature map
    is one channel of the output of a whole conv block, scaled so that its minimum is 0 and its maximum is 15.
    Everything is computed by NumPy, one image at a time, so that it takes little memory.

    Args:
        classifier: the network with its chosen weights, on any backend.
        probabilities: (N, K), computed by the classifier.
        images: uint8 (N, H, W, C), in memory or streamed; only a few of them are read.
        labels: int64 (N,).

    Returns:
        For E ≤ ``MAX_EXAMPLES`` images, chosen by :func:`cnnjob.runs.metrics.example_images`: ``indices``, int64 (E,);
        ``images``, uint8 (E, h, w, C); and ``saliency``, uint8 (E, h, w). For each conv layer of F filters,
        ``maps/LAYER``, uint8 (n, ⌈M / 2⌉, h', w'): feature maps of the first n ≤ E images and of the M ≤ F filters
        whose maps vary most, in the order of the filters. Each byte contains one pixel of two feature maps, with the
        first map in the four high bits. For the L layers in this order, ``filters``, int64 (L, m), has the indices of
        these filters, followed by -1 if M < m; and ``constant``, int64 (L,), the number of filters whose maps are
        constant for all n images.
    """
    network, state = classifier.network, classifier.state
    H, W, C = network.image_shape
    side = -(-max(H, W) // _PICTURE_SIDE)
    limit = _PICTURE_BYTES // (-(-H // side) * -(-W // side) * (C + 1))
    indices = metrics.example_images(probabilities, labels, min(max(limit, 2), MAX_EXAMPLES))
    chosen, plan = images[indices], nn.InspectionPlan(network, state.read(state.parameters), classifier.pixels, 1)
    classes = metrics.predicted(probabilities[indices])
    inspected = [_inspect(plan, chosen[at : at + 1], classes[at : at + 1]) for at in range(len(indices))]
    saliency = _reduce(np.concatenate([steepest for _, steepest in inspected]), _PICTURE_SIDE)[..., 0]  # (E, h, w)
    white = np.percentile(saliency, 99, axis=(1, 2), keepdims=True)
    white = np.where(white > 0, white, saliency.max(axis=(1, 2), keepdims=True))
    shown = np.divide(saliency, white, out=np.zeros_like(saliency), where=white > 0)
    return {
        "indices": indices,
        "images": _reduce(chosen, _PICTURE_SIDE).round().astype(np.uint8),
        "saliency": (255 * np.minimum(shown, 1)).round().astype(np.uint8),
        **_packed_maps([maps for maps, _ in inspected]),
    }


def _inspect(
    plan: nn.InspectionPlan, image: np.ndarray[Any, Any], label: np.ndarray[Any, Any]
) -> tuple[dict[str, np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """Return the feature maps by layer, (1, H', W', F), and the saliency of an image, (1, H, W, 1)."""
    maps, _ = plan.run(image, label)
    noise = generator(0, Purpose.SALIENCY).normal(0, NOISE, (NOISY_COPIES, *image.shape))
    copies = np.clip(image + noise, 0, 255).round().astype(np.uint8)
    gradients = [np.nan_to_num(plan.run(each, label)[1]) for each in copies]
    return maps, np.abs(np.mean(gradients, axis=0, dtype=np.float64)).max(axis=-1, keepdims=True)


def _packed_maps(inspected: list[dict[str, np.ndarray[Any, Any]]]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the feature maps for ``examples.npz``, given the maps of each image by layer, each (1, H, W, F)."""
    for n, limit, side in _MAP_CHOICES:
        filters, constant, packed = [], [], {}
        for layer in inspected[0]:
            maps = np.nan_to_num(np.concatenate([maps[layer] for maps in inspected[:n]])).astype(np.float64)
            variation = np.ptp(maps, axis=(1, 2)).max(axis=0)  # (F,)
            chosen = np.sort(np.argsort(-variation, kind="stable")[:limit])
            filters.append(np.pad(chosen, (0, limit - len(chosen)), constant_values=-1))
            constant.append(np.count_nonzero(variation == 0))
            maps = _reduce(maps[..., chosen], side).transpose(0, 3, 1, 2)  # (n, M, h, w)
            low, high = (bound(axis=(2, 3), keepdims=True) for bound in (maps.min, maps.max))
            levels = np.divide(maps - low, high - low, out=np.zeros_like(maps), where=high > low) * (_LEVELS - 1)
            levels = np.pad(levels.round().astype(np.uint8), ((0, 0), (0, maps.shape[1] % 2), (0, 0), (0, 0)))
            packed[f"maps/{layer}"] = levels[:, ::2] * _LEVELS + levels[:, 1::2]
        if sum(array.nbytes for array in packed.values()) <= _MAPS_BYTES:
            break
    rows = np.array(filters, np.int64).reshape(len(filters), limit)
    return {"filters": rows, "constant": np.array(constant, np.int64), **packed}


def _reduce(images: np.ndarray[Any, Any], side: int) -> np.ndarray[Any, Any]:
    """Return images (N, H, W, C) of at most ``side`` × ``side`` pixels, each the mean of a block of pixels, float64."""
    N, H, W, C = images.shape
    factor = -(-max(H, W) // side)
    padded = np.pad(images.astype(np.float64), ((0, 0), (0, -H % factor), (0, -W % factor), (0, 0)), "edge")
    blocks = padded.reshape(N, padded.shape[1] // factor, factor, padded.shape[2] // factor, factor, C)
    reduced: np.ndarray[Any, Any] = blocks.mean(axis=(2, 4))
    return reduced
