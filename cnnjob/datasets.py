"""Packed datasets: what one HDF5 file holds, read and verified.

The file's layout is written in CONTRIBUTING.md ("Data on disk"); `cnnjob.packing` makes
such files, and everything else only reads them. A file is opened read-only and without
locks for the time of one call, so a handle never crosses a fork.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np

from cnnjob import hdf5
from cnnjob.errors import DataError, JobError
from cnnjob.files import canonical_json, open_regular, parse_json, sha256_of

FORMAT = 1
SPLITS = ("train", "val", "test")
ARRAYS = ("images", "labels")
BLOCK_BYTES = 8 << 20  # what is read or written at a time
_IMAGES_NDIM = 4
_SIGNATURE = b"\x89HDF\r\n\x1a\n"  # of every HDF5 file

_SHA256 = re.compile(r"[0-9a-f]{64}")

_UNREADABLE = (AttributeError, KeyError, MemoryError, OSError, OverflowError, RuntimeError, TypeError, ValueError)
"""What HDF5 and the checks of what it gives raise; RuntimeError includes RecursionError."""


@dataclass(frozen=True)
class Dataset:
    """What a packed file says about itself; the pixels stay in the file until :meth:`load`.

    Attributes:
        path: the file.
        name: what the dataset is called.
        class_names: one name a class; a label is an index into it.
        mean: per channel, of the training images, in [0, 1].
        std: likewise the standard deviation; 0 for a channel of one value.
        shapes: for every split (N, H, W, C).
        array_sha256: for every array, as ``train/images``, the SHA-256 of its bytes.
        source_sha256: for every source file the SHA-256 of its bytes.
        options: how the source was packed: size, test_fraction.
    """

    path: Path
    name: str
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shapes: dict[str, tuple[int, int, int, int]]
    array_sha256: dict[str, str]
    source_sha256: dict[str, str]
    options: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read what a packed file says about itself.

        Args:
            path: a file that ``cnnjob prepare`` wrote.

        Returns:
            The dataset.

        Raises:
            DataError: the file is missing, incomplete, cut short, or no packed dataset.
        """
        with _reading(path) as file:
            _require_complete(path, file)
            arrays = _arrays(file)
            dataset = cls(path=path, **_description(file, arrays))
            dataset._require_sound()
            for name in dataset.splits:
                _require_labels(f"{name}/labels", arrays[f"{name}/labels"], len(dataset.class_names))
        return dataset

    @property
    def digest(self) -> str:
        """SHA-256 of the arrays, their shapes and the class names: the same on every machine."""
        return sha256_of(canonical_json([self.array_sha256, self.class_names, self.shapes]).encode())

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        return self.shapes["train"][1:]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits, in the order train, val, test."""
        return tuple(split for split in SPLITS if split in self.shapes)

    @property
    def size_bytes(self) -> int:
        """Bytes of all images."""
        return sum(prod(shape) for shape in self.shapes.values())

    def load(self, split: str, check: Callable[[str, np.ndarray], None] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Read one split whole.

        Args:
            split: one of :attr:`splits`.
            check: called with the name of each array, as ``train/images``, and the array as it is in the file;
                :meth:`require_digest` by default.

        Returns:
            images (N, H, W, C) uint8 and labels (N,) int64.

        Raises:
            DataError: the file is damaged.
            JobError: there is no such split.
        """
        with self._arrays_of(split) as arrays:
            images, labels = (array[...] for array in arrays)
        for name, array in zip(ARRAYS, (images, labels), strict=True):
            (check or self.require_digest)(f"{split}/{name}", array)
        return images, labels.astype(np.int64)

    def require_digest(self, name: str, array: np.ndarray) -> None:
        """Compare an array with its digest.

        Args:
            name: of the array, as ``train/images``.
            array: as it is in the file.

        Raises:
            DataError: it is another.
        """
        self._compare(name, sha256_of(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data))

    def labels(self, split: str) -> np.ndarray:
        """Read the labels of one split.

        Args:
            split: one of :attr:`splits`.

        Returns:
            (N,) int64.

        Raises:
            DataError: the file is damaged.
            JobError: there is no such split.
        """
        with self._arrays_of(split) as (_, stored):
            labels = stored[...]
        self.require_digest(f"{split}/labels", labels)
        return np.asarray(labels, np.int64)

    def example(self, split: str, index: int) -> tuple[np.ndarray, int]:
        """Read one image and its label.

        Args:
            split: one of :attr:`splits`.
            index: of the image, from 0.

        Returns:
            (H, W, C) uint8 and the label.

        Raises:
            DataError: the file is damaged.
            JobError: there is no such split, or no such image in it.
        """
        with self._arrays_of(split) as (images, labels):
            if not 0 <= index < len(labels):
                raise JobError(
                    f"{self.path}: no image {split}:{index}, found {len(labels):,}; "
                    f"name one from {split}:0 to {split}:{len(labels) - 1}"
                )
            return images[index], int(labels[index])

    def counts(self, split: str) -> tuple[int, ...]:
        """The number of images of each class in one split.

        Args:
            split: one of :attr:`splits`.

        Returns:
            One count a class.

        Raises:
            DataError: the file is damaged.
            JobError: there is no such split.
        """
        with self._arrays_of(split) as (_, labels):
            return tuple(np.bincount(labels[...], minlength=len(self.class_names)).tolist())

    def verify(self, *splits: str) -> None:
        """Compare arrays with their digests, a block at a time.

        Args:
            *splits: whose arrays; those of all splits by default.

        Raises:
            DataError: the file is damaged; the message names the first array that differs.
            JobError: there is no such split.
        """
        for split in splits or self.splits:
            with self._arrays_of(split) as arrays:
                for name, array in zip(ARRAYS, arrays, strict=True):
                    self._compare(f"{split}/{name}", digest_of(array))

    def _compare(self, name: str, digest: str) -> None:
        if digest != self.array_sha256[name]:
            raise DataError(
                f"{self.path}: damaged, {name} has sha256 {digest} and should have {self.array_sha256[name]}; {_AGAIN}"
            )

    @contextmanager
    def _arrays_of(self, split: str) -> Iterator[tuple[h5py.Dataset, h5py.Dataset]]:
        if split not in self.shapes:
            raise JobError(f"{self.path}: no split {split!r}, found {', '.join(self.splits)}; name one of these")
        with _reading(self.path) as file:
            arrays = _arrays(file)
            if _shapes(arrays) != self.shapes:
                raise ValueError("the file was replaced while it was read")
            yield arrays[f"{split}/images"], arrays[f"{split}/labels"]

    def _require_sound(self) -> None:
        """Refuse attributes that do not fit the arrays or each other."""
        channels = {shape[3] for shape in self.shapes.values()} | {len(self.mean), len(self.std)}
        sizes = {shape[1:] for shape in self.shapes.values()}
        digests = {f"{split}/{array}" for split in self.shapes for array in ARRAYS}
        sound = (
            {"train", "test"} <= self.shapes.keys()
            and len(channels) == len(sizes) == 1
            and all(0 <= value <= 1 for value in (*self.mean, *self.std))
            and self.array_sha256.keys() == digests
            and all(map(_SHA256.fullmatch, self.array_sha256.values()))
            and bool(self.class_names)
            and all(map(_is_unicode, (self.name, *self.class_names)))
        )
        if not sound:
            raise DataError(f"{self.path}: damaged, its arrays and attributes do not fit; {_AGAIN}")


def _is_unicode(text: str) -> bool:
    """Return whether a text can be written: half a surrogate pair, which JSON allows, cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def is_damaged(path: Path) -> bool:
    """Whether a file that does not open as a dataset may have been one: an ``.h5`` of ours, or one that cannot be told.

    Args:
        path: a file that :meth:`Dataset.open` refused.

    Returns:
        False for a file of another kind, and for an HDF5 file that another program wrote.
    """
    try:
        with open_regular(path) as raw:
            if path.suffix != ".h5" or raw.read(len(_SIGNATURE)) != _SIGNATURE:
                return False
        with h5py.File(path, "r", locking=False) as file:
            return "format" in file.attrs and np.array_equal(hdf5.number(file, "format"), FORMAT)
    except _UNREADABLE:
        return True


def blocks(array: h5py.Dataset) -> Iterator[np.ndarray]:
    """The rows of an array in the file, in order, a few MiB at a time."""
    row_bytes = max(1, array.dtype.itemsize * int(np.prod(array.shape[1:])))
    step = max(1, BLOCK_BYTES // row_bytes // array.chunks[0]) * array.chunks[0]
    for start in range(0, len(array), step):
        yield array[start : start + step]


def digest_of(array: h5py.Dataset) -> str:
    """SHA-256 of an array's bytes, in C order and little-endian."""
    digest = hashlib.sha256()
    for block in blocks(array):
        digest.update(np.ascontiguousarray(block, block.dtype.newbyteorder("<")).data)
    return digest.hexdigest()


_AGAIN = "pack it again with `cnnjob prepare --force`"


@contextmanager
def _reading(path: Path) -> Iterator[h5py.File]:
    """The file opened for reading; whatever HDF5 finds wrong in it is a DataError."""
    if not path.is_file():
        elsewhere = f" --out {path}" if path.absolute() != Path("data", path.name).absolute() else ""
        raise DataError(f"{path}: no such dataset; pack it with `cnnjob prepare {path.stem}{elsewhere}`")
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except _UNREADABLE as error:
        raise DataError(f"{path}: not readable as a packed dataset, {error}; {_AGAIN}") from error


def _require_complete(path: Path, file: h5py.File) -> None:
    found = hdf5.number(file, "format") if "format" in file.attrs else None
    if found is None or not np.array_equal(found, FORMAT):
        raise DataError(f"{path}: not a dataset of format {FORMAT}, found format {found}; {_AGAIN}")
    if "complete" not in file.attrs or not np.array_equal(hdf5.number(file, "complete"), 1):
        raise DataError(f"{path}: incomplete, its packing did not end; {_AGAIN}")


def _arrays(file: h5py.File) -> dict[str, h5py.Dataset]:
    """The arrays by name, as ``train/images``, checked but not read."""
    arrays: dict[str, h5py.Dataset] = {}
    for split in hdf5.members(file, SPLITS):
        group = hdf5.subgroup(file, split)
        hdf5.members(group, ARRAYS)
        images = hdf5.array(group, "images", (np.uint8,))
        labels = hdf5.array(group, "labels", (np.uint8, np.dtype("<u2")))
        if images.ndim != _IMAGES_NDIM or labels.shape != images.shape[:1]:
            raise ValueError(f"images and labels that do not fit (found {images.shape} and {labels.shape} in {split})")
        arrays |= {f"{split}/images": images, f"{split}/labels": labels}
    return arrays


def _shapes(arrays: Mapping[str, h5py.Dataset]) -> dict[str, tuple[int, int, int, int]]:
    return {split: arrays[f"{split}/images"].shape for split in SPLITS if f"{split}/images" in arrays}


def _description(file: h5py.File, arrays: Mapping[str, h5py.Dataset]) -> dict[str, Any]:
    return {
        "name": hdf5.text(file, "name"),
        "class_names": tuple(_json(file, "class_names", list, str)),
        "mean": tuple(hdf5.number(file, "mean").astype(np.float64).tolist()),
        "std": tuple(hdf5.number(file, "std").astype(np.float64).tolist()),
        "shapes": _shapes(arrays),
        "array_sha256": _json(file, "array_sha256", dict, str),
        "source_sha256": _json(file, "source_sha256", dict, str),
        "options": _json(file, "options", dict, object),
    }


def _json(file: h5py.File, name: str, kind: type[Any], items: type) -> Any:
    """A list of such items, or a dict of them."""
    value = parse_json(hdf5.text(file, name))
    values = value.values() if isinstance(value, dict) else value
    if not isinstance(value, kind) or not all(isinstance(item, items) for item in values):
        raise TypeError(f"the attribute {name} is not a {kind.__name__} of {items.__name__}")
    return value


def _require_labels(name: str, labels: h5py.Dataset, classes: int) -> None:
    """Refuse a label that is no index of a class."""
    for block in blocks(labels):
        if block.max() >= classes:
            raise ValueError(f"a label without a class (found {block.max()} of {classes} classes in {name})")
