"""Packed datasets: what one HDF5 file holds, read and verified.

The file's layout is written in CONTRIBUTING.md ("Data on disk"); `cnnjob.packing` makes
such files, and everything else only reads them. A file is opened read-only and without
locks for the time of one call, so a handle never crosses a fork.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np

from cnnjob.errors import DataError, JobError
from cnnjob.files import canonical_json, sha256_of

FORMAT = 1
SPLITS = ("train", "val", "test")
ARRAYS = ("images", "labels")
BLOCK_BYTES = 8 << 20  # what is read or written at a time
_SIGNATURE = b"\x89HDF\r\n\x1a\n"  # of every HDF5 file

_UNREADABLE = (AttributeError, KeyError, MemoryError, OSError, OverflowError, RuntimeError, TypeError, ValueError)


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
            dataset = cls(path=path, **_description(file))
        dataset._require_sound()
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

    def load(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Read one split whole.

        Args:
            split: one of :attr:`splits`.

        Returns:
            images (N, H, W, C) uint8 and labels (N,) int64.

        Raises:
            DataError: the file is damaged.
            JobError: there is no such split.
        """
        with self._arrays(split) as (images, labels):
            return images[...], labels[...].astype(np.int64)

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
        with self._arrays(split) as (images, labels):
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
        with self._arrays(split) as (_, labels):
            return tuple(np.bincount(labels[...], minlength=len(self.class_names)).tolist())

    def verify(self) -> None:
        """Compare every array with its digest, a block at a time.

        Raises:
            DataError: the file is damaged; the message names the first array that differs.
        """
        for name, expected in self.array_sha256.items():
            with _reading(self.path) as file:
                found = digest_of(file[name])
            if found != expected:
                raise DataError(f"{self.path}: damaged, {name} has sha256 {found} and should have {expected}; {_AGAIN}")

    @contextmanager
    def _arrays(self, split: str) -> Iterator[tuple[h5py.Dataset, h5py.Dataset]]:
        if split not in self.shapes:
            raise JobError(f"{self.path}: no split {split!r}, found {', '.join(self.splits)}; name one of these")
        with _reading(self.path) as file:
            yield file[split]["images"], file[split]["labels"]

    def _require_sound(self) -> None:
        channels = {shape[3] for shape in self.shapes.values()} | {len(self.mean), len(self.std)}
        if not {"train", "test"} <= self.shapes.keys() or not self.class_names or len(channels) != 1:
            raise DataError(f"{self.path}: damaged, its arrays and attributes do not fit; {_AGAIN}")


def is_damaged(path: Path) -> bool:
    """Whether a file that does not open as a dataset may have been one: an ``.h5`` of ours, or one that cannot be told.

    Args:
        path: a file that :meth:`Dataset.open` refused.

    Returns:
        False for a file of another kind, and for an HDF5 file that another program wrote.
    """
    try:
        with path.open("rb") as raw:
            if path.suffix != ".h5" or raw.read(len(_SIGNATURE)) != _SIGNATURE:
                return False
        with h5py.File(path, "r", locking=False) as file:
            return np.array_equal(file.attrs.get("format"), FORMAT)
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
    found = file.attrs.get("format")
    if not np.array_equal(found, FORMAT):
        raise DataError(f"{path}: not a dataset of format {FORMAT}, found format {found}; {_AGAIN}")
    if not np.array_equal(file.attrs.get("complete"), 1):
        raise DataError(f"{path}: incomplete, its packing did not end; {_AGAIN}")


def _description(file: h5py.File) -> dict[str, Any]:
    attributes: Mapping[str, Any] = file.attrs
    return {
        "name": attributes["name"].decode(),
        "class_names": tuple(map(str, _json(attributes["class_names"], list))),
        "mean": tuple(np.asarray(attributes["mean"], np.float64).tolist()),
        "std": tuple(np.asarray(attributes["std"], np.float64).tolist()),
        "shapes": {split: _shape(file[split]) for split in SPLITS if split in file},
        "array_sha256": _json(attributes["array_sha256"], dict),
        "source_sha256": _json(attributes["source_sha256"], dict),
        "options": _json(attributes["options"], dict),
    }


def _json(text: bytes, kind: type) -> Any:
    value = json.loads(text)
    if not isinstance(value, kind):
        raise TypeError(f"an attribute is not a {kind.__name__}")
    return value


def _shape(group: h5py.Group) -> tuple[int, int, int, int]:
    """(N, H, W, C) of a split whose two arrays fit each other."""
    images, labels = group["images"], group["labels"]
    n, height, width, channels = images.shape
    if images.dtype != np.uint8 or labels.shape != (n,) or labels.dtype.kind != "u" or not images.size:
        raise ValueError(f"{group.name} holds {images.dtype} {images.shape} and {labels.dtype} {labels.shape}")
    return n, height, width, channels
