"""Read arrays that a user passes from Python, and determine their shapes, splits and checksums."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from cnnjob.data.dataset import SPLITS
from cnnjob.data.prepare.arrays.stream import ArraySet, LabelledStream, rows_per_block
from cnnjob.errors import DataError
from cnnjob.files import sha256_of

_CHANNELS = (1, 3)

Arrange = Callable[[np.ndarray], np.ndarray]


def image_layout(where: str, shape: tuple[int, ...], dtype: np.dtype) -> tuple[tuple[int, int, int, int], Arrange]:
    """Return the shape (N, H, W, C) of the images in an array, and a function that rearranges their axes.

    The function takes any number of consecutive images from the array, and returns them in the order (N, H, W, C).

    Raises:
        DataError: the array does not contain uint8 images.
    """
    if dtype != np.uint8:
        raise DataError(f"{where}: the images are not uint8 (found {dtype}). Scale them to 0..255 and convert to uint8")
    match shape:
        case (count, height, width):
            return (count, height, width, 1), lambda block: block[..., None]
        case (count, height, width, channels) if channels in _CHANNELS:
            return (count, height, width, channels), lambda block: block
        case (count, channels, height, width) if channels in _CHANNELS:
            return (count, height, width, channels), lambda block: block.transpose(0, 2, 3, 1)
    raise DataError(
        f"{where}: not an array of images (found shape {shape}). Pass an array of shape (N, H, W), (N, H, W, C) or "
        "(N, C, H, W), with 1 or 3 channels"
    )


def as_labels(where: str, labels: np.ndarray) -> np.ndarray:
    """Return labels as int64 (N,).

    Args:
        where: name of the array, for messages.
        labels: whole numbers of any type, (N,) or (N, 1); or one-hot rows (N, K), each with a single 1 among zeros.

    Raises:
        DataError: the labels are not one whole number per image.
    """
    is_numeric = np.issubdtype(labels.dtype, np.number) or labels.dtype == bool
    if labels.ndim == 2 and is_numeric:  # noqa: PLR2004 - a table
        is_one_hot = labels.shape[1] > 1 and ((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all()
        labels = labels.argmax(axis=1) if is_one_hot else labels[:, 0] if labels.shape[1] == 1 else labels
    is_whole = not np.issubdtype(labels.dtype, np.inexact)
    if np.issubdtype(labels.dtype, np.floating):
        is_whole = bool(np.isfinite(labels).all() and (labels == np.floor(labels)).all())
    if is_whole and is_numeric and labels.size:
        is_whole = int(labels.min()) >= -(2**63) and int(labels.max()) < 2**63
    if labels.ndim != 1 or not is_numeric or not is_whole:
        raise DataError(
            f"{where}: the labels are not one whole number per image (found {labels.dtype} of shape "
            f"{labels.shape}). Pass integers of shape (N,), or one-hot rows"
        )
    return labels.astype(np.int64)


def stream_of_arrays(where: str, images: np.ndarray, labels: np.ndarray) -> LabelledStream:
    """Return images and labels in memory as a stream.

    Args:
        where: name of the arrays, for messages.
        images: uint8 (N, H, W), (N, H, W, C) or (N, C, H, W).
        labels: see :func:`as_labels`.

    Raises:
        DataError: the arrays are not valid images and labels.
    """
    shape, arrange = image_layout(where, images.shape, images.dtype)
    step = rows_per_block(math.prod(shape[1:]))

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, shape[0], step):
            yield arrange(images[start : start + step])

    return LabelledStream(where, shape, blocks, as_labels(where, labels))


def arrays_of(name: str, images: object, labels: object, class_names: Sequence[str] | None = None) -> ArraySet:
    """Return images and labels in memory as a source.

    Args:
        name: the dataset's name, for messages.
        images: an array of training images, or one array per split: ``{"train": …, "val": …, "test": …}``.
        labels: the labels, in the same form.
        class_names: one name per class, for labels that start at 0.

    Raises:
        DataError: the arrays are not valid images and labels.
    """
    by_split = images if isinstance(images, Mapping) else {"train": images}
    labels_by_split = labels if isinstance(labels, Mapping) else {"train": labels}
    if not by_split or by_split.keys() != labels_by_split.keys() or not by_split.keys() <= set(SPLITS):
        raise DataError(
            f"{name}: images and labels have different splits (found {', '.join(map(str, by_split))} and "
            f"{', '.join(map(str, labels_by_split))}). Pass both as arrays, or as dicts with the keys train, val, test"
        )
    arrays = {split: (np.asarray(by_split[split]), np.asarray(labels_by_split[split])) for split in by_split}
    digests = {
        f"{split} {kind}": sha256_of(np.ascontiguousarray(array).data)
        for split, pair in arrays.items()
        for kind, array in zip(("images", "labels"), pair, strict=True)
    }
    splits = {split: stream_of_arrays(f"{name}: {split}", *pair) for split, pair in arrays.items()}
    names = None if class_names is None else dict(enumerate(class_names))
    return ArraySet(f"arrays for {', '.join(arrays)}", splits, class_names=names, sha256=digests)
