"""Read and verify prepared datasets, each stored in one HDF5 file.

docs/architecture.md describes the layout ("Data on disk"); :mod:`cnnjob.data.prepare.writer` writes these files, and
all other code only reads them. HDF5 opens a file read-only, without locks, and only for the duration of one call, so no
handle is carried across a fork. The arrays are read directly at their offsets (:mod:`cnnjob.data.stored`).
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from math import prod
from pathlib import Path
from typing import Any, Self, TypeAlias

import h5py
import numpy as np

from cnnjob.data import hdf5
from cnnjob.data.stored import FileVersion, StoredArray
from cnnjob.errors import DataError, closest_name, three_lines
from cnnjob.files import canonical_json, open_regular, parse_json, sha256_of, short_digest

SHOWN_CLASSES = 10
"""Number of class names in the ``repr`` of a dataset."""
FORMAT = 2
"""Version of the file layout used for new files, in which each array is stored contiguously."""
CHUNKED_FORMAT = 1
"""Older version of the file layout, which can still be read; arrays are stored in chunks, each with a checksum."""
SPLITS = ("train", "val", "test")
_OWN_ATTRIBUTE = b"array_sha256"
_SEARCHED_BYTES = 4 << 20
"""Number of bytes at the start and at the end of a damaged file in which that attribute's name is looked for."""
SUFFIXES = (".h5", ".hdf5")
"""Suffixes of a prepared file; a name without one of them is that of a dataset in the data folder."""
ARRAYS = ("images", "labels")
TRAINING_IMAGES = "train/images"
SEAL = "sha256"
"""Name of the attribute with the SHA-256 of all other attributes and the array shapes; older files do not have it."""
ATTRIBUTES = ("format", "complete", "name", "class_names", "mean", "std", "array_sha256", "source_sha256", "options")
BLOCK_BYTES = 8 << 20  # read or written at a time
_SUMMED_BYTES = 1 << 20  # smaller blocks are no faster, and every call delays the thread that reads batches
_SUMMED_ROWS = 1 << 16  # the sum of this many squares, each up to 255², fits in 32 bits
_IMAGES_NDIM = 4
_SIGNATURE = b"\x89HDF\r\n\x1a\n"  # the first bytes of every HDF5 file

Rows: TypeAlias = np.ndarray[Any, Any] | h5py.Dataset | StoredArray
"""Array in memory or in a file, stored in chunks or contiguously; its rows are read by slicing."""

_SHA256 = re.compile(r"[0-9a-f]{64}")

_UNREADABLE = (AttributeError, KeyError, MemoryError, OSError, OverflowError, RuntimeError, TypeError, ValueError)
"""Errors that h5py and the checks in this module raise for a damaged file; RuntimeError includes RecursionError."""


@dataclass(frozen=True)
class Dataset:
    """The description of a prepared dataset; the pixels are read only on request, for example by :meth:`load`.

    Attributes:
        path: the HDF5 file.
        name: name of the dataset.
        class_names: one name per class; labels are indices into this tuple.
        mean: mean of the training pixels divided by 255, per channel, in [0, 1].
        std: standard deviation of the training pixels divided by 255, per channel; 0 for a constant channel.
        shapes: shape (N, H, W, C) of the image array of each split.
        array_sha256: SHA-256 of the bytes of each array, keyed by names such as ``train/images``.
        source_sha256: SHA-256 of each source file.
        options: options used to read the source, such as size and test_fraction.
        is_sealed: whether the file contains a checksum of its attributes; if it does, the checksum has been verified.
        format: version of the file layout.
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
    is_sealed: bool = True
    format: int = FORMAT

    def __repr__(self) -> str:
        """Return the dataset's name, file and digest, its numbers of images, and its classes, on three lines."""
        counts = ", ".join(f"{count:,} {split}" for split, (count, *_) in self.shapes.items())
        shape = "×".join(map(str, self.image_shape))
        classes = ", ".join(self.class_names[:SHOWN_CLASSES])
        more = ", …" if len(self.class_names) > SHOWN_CLASSES else ""
        return three_lines(
            f"Dataset {self.name}: {self.path}, digest {short_digest(self.digest)}",
            f"  images {shape}: {counts}",
            f"  {len(self.class_names)} classes: {classes}{more}",
        )

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Read and check a dataset's description and labels, without reading any pixels.

        Args:
            path: a file written by ``cnnjob prepare``.

        Returns:
            The dataset.

        Raises:
            DataError: the file is missing, incomplete or truncated, has been edited, or is not a prepared dataset.
        """
        path = Path(path)
        with _reading(path) as file:
            version = _format_of(path, file)  # first, since nothing else can be relied on in an unfinished file
            arrays = _arrays(file, version)
            hdf5.require_attributes(file.id, "/", (*ATTRIBUTES, SEAL))
            description = _description(file, arrays)
            dataset = cls(path=path, is_sealed=SEAL in file.attrs, format=version, **description)
            dataset._require_sound()
            if dataset.is_sealed:
                _require_seal(hdf5.text(file, SEAL), description)
            for name in dataset.splits:
                _require_labels(f"{name}/labels", arrays[f"{name}/labels"], len(dataset.class_names))
        return dataset

    @classmethod
    def find(cls, name: Path | str, folder: Path | str) -> Self:
        """Open a dataset.

        Args:
            name: path of an ``.h5`` or ``.hdf5`` file, or name of a dataset in ``folder``.
            folder: folder in which datasets are looked up by name.

        Raises:
            DataError: the dataset is missing or damaged.
        """
        named = Path(name)
        return cls.open(named if named.suffix in SUFFIXES else Path(folder) / f"{name}.h5")

    @property
    def digest(self) -> str:
        """SHA-256 of the arrays, their shapes and the class names; the same on every machine."""
        # The dataset's name and sources are excluded, because training on identical arrays gives identical results. The
        # mean and std follow from the arrays.
        return sha256_of(canonical_json([self.array_sha256, self.class_names, self.shapes]).encode())

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (H, W, C) of every image."""
        return self.shapes["train"][1:]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, in the order train, val, test."""
        return tuple(split for split in SPLITS if split in self.shapes)

    @property
    def size_bytes(self) -> int:
        """Total size of the images in all splits, in bytes."""
        return sum(prod(shape) for shape in self.shapes.values())

    def load(self, split: str, check: Callable[[str, np.ndarray], None] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Read one split into memory.

        Args:
            split: one of :attr:`splits`.
            check: called with the name of each array, such as ``train/images``, and the array as stored in the file;
                defaults to :meth:`require_digest`.

        Returns:
            Images (N, H, W, C) uint8 and labels (N,) int64.

        Raises:
            DataError: the file is damaged.
            JobError: the dataset does not have this split.
        """
        with self._arrays_of(split) as arrays:
            images, labels = (array[0 : len(array)] for array in arrays)
        for name, array in zip(ARRAYS, (images, labels), strict=True):
            (check or self.require_digest)(f"{split}/{name}", array)
        return images, labels.astype(np.int64)

    def require_digest(self, name: str, array: Rows) -> None:
        """Check an array against its digest; for the training images, also check the dataset's mean and std.

        Args:
            name: name of the array, such as ``train/images``.
            array: the array as stored in the file.

        Raises:
            DataError: the digest, mean or std does not match.
        """
        moments = Moments() if name == TRAINING_IMAGES else None
        digest = digest_of(array, moments)
        if digest != self.array_sha256[name]:
            raise DataError(
                f"{self.path}: damaged ({name} has sha256 {digest}, expected {self.array_sha256[name]}). {_AGAIN}"
            )
        if moments:
            self._require_moments(*moments.mean_and_std())

    def _require_moments(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Refuse a stored mean or std that is not exactly equal to the one computed from the training images."""
        # The computation gives the same bits on every machine, so no tolerance is needed.
        for name, found, expected in (("mean", self.mean, mean), ("std", self.std, std)):
            if found != expected:
                raise DataError(
                    f"{self.path}: the attribute {name} does not match the training images (found "
                    f"{_format_per_channel(found)}; expected {_format_per_channel(expected)}). Prepare the "
                    "dataset again with --force"
                )

    def labels(self, split: str) -> np.ndarray:
        """Read the labels of one split and check them against their digest.

        Args:
            split: one of :attr:`splits`.

        Returns:
            Labels (N,) int64.

        Raises:
            DataError: the file is damaged.
            JobError: the dataset does not have this split.
        """
        with self._arrays_of(split) as (_, stored):
            labels = stored[0 : len(stored)]
        self.require_digest(f"{split}/labels", labels)
        return np.asarray(labels, np.int64)

    def example(self, split: str, index: int) -> tuple[np.ndarray, int]:
        """Read one image and its label, without checking digests.

        Args:
            split: one of :attr:`splits`.
            index: index of the image in the split, from 0.

        Returns:
            The image (H, W, C) uint8 and its label.

        Raises:
            DataError: there is no such split, it has no such image, or the file is damaged.
        """
        with self._arrays_of(split) as (images, labels):
            if not 0 <= index < len(labels):
                raise DataError(
                    f"{self.path}: no image {split}:{index} (found {len(labels):,} images). "
                    f"Choose one from {split}:0 to {split}:{len(labels) - 1}"
                )
            row = slice(index, index + 1)
            return images[row][0], int(labels[row][0])

    def counts(self, split: str) -> tuple[int, ...]:
        """Return the number of images per class in one split, without checking digests.

        Args:
            split: one of :attr:`splits`.

        Returns:
            One count per class.

        Raises:
            DataError: the file is damaged.
            JobError: the dataset does not have this split.
        """
        with self._arrays_of(split) as (_, labels):
            return tuple(np.bincount(labels[0 : len(labels)], minlength=len(self.class_names)).tolist())

    def verify(self, *splits: str) -> None:
        """Check the arrays against their digests and the mean and std against the training images, block by block.

        Args:
            *splits: the splits to verify; all by default.

        Raises:
            DataError: the file is damaged; the message names the first array that does not match.
            JobError: the dataset does not have this split.
        """
        for split in splits or self.splits:
            with self._arrays_of(split) as arrays:
                for name, array in zip(ARRAYS, arrays, strict=True):
                    self.require_digest(f"{split}/{name}", array)

    def stored(self, split: str) -> StoredArray:
        """Return the image array of one split without reading it, so that images can be read a few at a time.

        Args:
            split: one of :attr:`splits`.

        Raises:
            DataError: the file is damaged, or its arrays are stored in chunks, as in format 1.
            JobError: the dataset does not have this split.
        """
        with self._arrays_of(split) as (images, _):
            if not isinstance(images, StoredArray):
                raise DataError(
                    f"{self.path}: the images are stored in chunks (found format {self.format}). "
                    "Prepare the dataset again with --force"
                )
            return images

    @contextmanager
    def _arrays_of(self, split: str) -> Iterator[tuple[Rows, Rows]]:
        if split not in self.shapes:
            raise DataError(f"{self.path}: no split {split!r} (found {', '.join(self.splits)}). Choose one of these")
        with _reading(self.path) as file:
            arrays = _arrays(file, self.format)
            # Each call reopens the file, so `prepare --force` may have replaced it since the previous call.
            if _shapes(arrays) != self.shapes:
                raise ValueError("the file was replaced while it was being read")
            images, labels = (_open_rows(self.path, f"{split}/{name}", arrays, self.format) for name in ARRAYS)
            if self.format == CHUNKED_FORMAT:
                yield images, labels
                return
        yield images, labels

    def _require_sound(self) -> None:
        """Refuse attributes that contradict the arrays or each other."""
        shapes = {shape[1:] for shape in self.shapes.values()}
        arrays = {f"{split}/{array}" for split in self.shapes for array in ARRAYS}
        if not {"train", "test"} <= self.shapes.keys():
            raise ValueError(f"the train split or the test split is missing (found {', '.join(self.splits) or 'none'})")
        if len(shapes) > 1:
            raise ValueError(f"the splits have images of different shapes (found {self.shapes})")
        if {len(self.mean), len(self.std)} != {self.image_shape[2]}:
            found = f"{len(self.mean)} and {len(self.std)} values for {self.image_shape[2]} channels"
            raise ValueError(f"mean and std do not have one value per channel (found {found})")
        if self.array_sha256.keys() != arrays:
            raise ValueError("the attribute array_sha256 does not have exactly one checksum for each array in the file")
        if not all(map(_SHA256.fullmatch, (*self.array_sha256.values(), *self.source_sha256.values()))):
            raise ValueError("a checksum in array_sha256 or source_sha256 is not a SHA-256")
        if not all(map(_is_unicode, (self.name, *self.class_names))):
            raise ValueError("the name of the dataset or of a class contains a lone surrogate")
        require_class_names(self.class_names)


def require_class_names(names: Sequence[str]) -> None:
    """Require at least one class name, and require all names to be unique and not blank.

    Args:
        names: one name per class.

    Raises:
        ValueError: there are no names, or a name is blank or occurs twice.
    """
    if not names:
        raise ValueError("there are no classes, since class_names is empty")
    if empty := [number for number, name in enumerate(names) if not name.strip()]:
        raise ValueError(f"the name of a class is blank (found {names[empty[0]]!r} for class {empty[0]})")
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise ValueError(f"two classes have the same name (found {twice!r})")


def _format_per_channel(values: tuple[float, ...]) -> str:
    return ", ".join(map(repr, values))


def _is_unicode(text: str) -> bool:
    """Return whether a string is valid Unicode: it must not contain lone surrogates, which JSON escapes can produce."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def is_damaged(path: Path) -> bool:
    """Return whether a file that could not be opened as a dataset may be a damaged or unfinished dataset.

    Args:
        path: a file that :meth:`Dataset.open` refused.

    Returns:
        True for an ``.h5`` file that is in this format, or that contains at least the name of one of its attributes;
        False for any other file, including a damaged HDF5 file of another program.
    """
    try:
        with open_regular(path) as raw:  # h5py would block on a pipe
            if path.suffix != ".h5" or raw.read(len(_SIGNATURE)) != _SIGNATURE:
                return False
        with h5py.File(path, "r", locking=False) as file:
            return "format" in file.attrs and _known_format(hdf5.number(file, "format")) is not None
    except _UNREADABLE:
        with open_regular(path) as raw:
            first = raw.read(_SEARCHED_BYTES)
            raw.seek(max(len(first), path.stat().st_size - _SEARCHED_BYTES))
            return _OWN_ATTRIBUTE in first or _OWN_ATTRIBUTE in raw.read()


def blocks(array: Rows) -> Iterator[np.ndarray]:
    """Yield the rows of an array in order, in blocks of about 8 MiB; the array may be in memory or in a file."""
    row_bytes = max(1, array.dtype.itemsize * prod(array.shape[1:]))
    [chunk, *_] = (isinstance(array, h5py.Dataset) and array.chunks) or (1,)
    # Blocks of whole chunks, so that no chunk is read and checked twice.
    step = max(1, BLOCK_BYTES // row_bytes // chunk) * chunk
    for start in range(0, len(array), step):
        yield array[start : start + step]


class Moments:
    """The mean and standard deviation of pixels divided by 255, per channel, computed from exact sums.

    The results are the same on every machine, since the sums are integers and only a few IEEE 754 operations follow.
    """

    def __init__(self) -> None:
        """Initialise all sums to zero."""
        self._n, self._totals, self._squares = 0, [0], [0]

    def add(self, images: np.ndarray) -> None:
        """Add images (N, H, W, C) uint8."""
        _, _, width, channels = images.shape
        # (N·H, W·C): NumPy sums long rows about a hundred times faster than rows of C values.
        rows = images.reshape(-1, width * channels)
        step = min(_SUMMED_ROWS, max(1, _SUMMED_BYTES // rows.shape[1]))
        totals, squares = np.zeros((2, channels), np.uint64)  # of one call; Python's integers below cannot overflow
        for start in range(0, len(rows), step):
            values = rows[start : start + step]
            totals += _by_channel(values, channels)
            squares += _by_channel(np.multiply(values, values, dtype=np.uint16), channels)  # 255² fits in 16 bits
        self._n += len(rows) * width
        self._totals = [a + b for a, b in zip_longest(self._totals, totals.tolist(), fillvalue=0)]
        self._squares = [a + b for a, b in zip_longest(self._squares, squares.tolist(), fillvalue=0)]

    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the mean and the standard deviation, each as one number per channel."""
        n, both = self._n, list(zip(self._totals, self._squares, strict=True))
        return (
            tuple(total / (255 * n) for total, _ in both),
            # n·Σx² − (Σx)² is an exact integer; in floats it would suffer cancellation for a nearly constant channel.
            tuple(math.sqrt(n * squares - total * total) / (255 * n) for total, squares in both),
        )


def _by_channel(values: np.ndarray, channels: int) -> np.ndarray:
    """Return the sum per channel, (C,) uint64, of pixel rows (n, W·C), where n is at most ``_SUMMED_ROWS``."""
    summed: np.ndarray = values.sum(axis=0, dtype=np.uint32).reshape(-1, channels).sum(axis=0, dtype=np.uint64)
    return summed


def digest_of(array: Rows, moments: Moments | None = None) -> str:
    """Return the SHA-256 of an array's bytes in C order, little-endian; also add its rows to ``moments``, if given."""
    digest = hashlib.sha256()
    for block in blocks(array):
        digest.update(np.ascontiguousarray(block, block.dtype.newbyteorder("<")).data)
        if moments:
            moments.add(block)
    return digest.hexdigest()


def seal_of(description: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a dataset's description.

    Args:
        description: dict with the keys name, class_names, mean, std, shapes, array_sha256, source_sha256 and options.
    """
    return sha256_of(canonical_json(description).encode())


_AGAIN = "Prepare the dataset again with --force"


@contextmanager
def _reading(path: Path) -> Iterator[h5py.File]:
    """Open a file for reading; turn errors from h5py and from checks in the ``with`` block into a DataError."""
    try:
        if not path.is_file():
            elsewhere = f" --out {path}" if path.absolute() != Path("data", path.name).absolute() else ""
            near = closest_name(path.stem, (file.stem for file in path.parent.glob("*.h5")))
            hint = f" Did you mean {near}?" if near else ""
            raise DataError(f"{path}: no such dataset.{hint} Prepare it:\n    cnnjob prepare {path.stem}{elsewhere}")
        # No locks: they fail on some network file systems, and datasets are replaced, never changed in place.
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except _UNREADABLE as error:
        raise DataError(f"{path}: cannot be read as a prepared dataset ({error}). {_AGAIN}") from error


def _format_of(path: Path, file: h5py.File) -> int:
    """Return the format of a file; refuse an unknown format or an incomplete file."""
    value = hdf5.number(file, "format") if "format" in file.attrs else None
    known = _known_format(value)
    if known is None:
        if value is None:
            raise DataError(
                f"{path}: not a cnnjob dataset (found an HDF5 file without a format attribute). Choose another file"
            )
        formats = f"{CHUNKED_FORMAT} or {FORMAT}"
        raise DataError(f"{path}: not a dataset in format {formats} (found format {value}). {_AGAIN}")
    if "complete" not in file.attrs or not np.array_equal(hdf5.number(file, "complete"), 1):
        raise DataError(f"{path}: incomplete because its preparation did not finish. {_AGAIN}")
    return known


def _known_format(value: Any) -> int | None:
    return next((known for known in (CHUNKED_FORMAT, FORMAT) if np.array_equal(value, known)), None)


def _arrays(file: h5py.File, version: int) -> dict[str, h5py.Dataset]:
    """Return a file's arrays by name, such as ``train/images``; check their structure but do not read them."""
    open_array = hdf5.chunked_array if version == CHUNKED_FORMAT else hdf5.contiguous_array
    arrays: dict[str, h5py.Dataset] = {}
    for split in hdf5.require_members(file, SPLITS):
        group = hdf5.subgroup(file, split)
        hdf5.require_members(group, ARRAYS)
        images = open_array(group, "images", (np.uint8,))
        labels = open_array(group, "labels", (np.uint8, np.dtype("<u2")))
        if images.ndim != _IMAGES_NDIM or labels.shape != images.shape[:1]:
            raise ValueError(f"images and labels do not match (found {images.shape} and {labels.shape} in {split})")
        arrays |= {f"{split}/images": images, f"{split}/labels": labels}
    return arrays


def _open_rows(path: Path, name: str, arrays: Mapping[str, h5py.Dataset], version: int) -> Rows:
    """Return one array of a file whose format is ``version``; slicing the array reads rows from the file."""
    array = arrays[name]
    if version == CHUNKED_FORMAT:
        return array
    return StoredArray(path, name, array.id.get_offset(), array.shape, array.dtype, FileVersion.of(path))


def _shapes(arrays: Mapping[str, h5py.Dataset]) -> dict[str, tuple[int, int, int, int]]:
    return {split: arrays[f"{split}/images"].shape for split in SPLITS if f"{split}/images" in arrays}


def _description(file: h5py.File, arrays: Mapping[str, h5py.Dataset]) -> dict[str, Any]:
    return {
        "name": hdf5.text(file, "name"),
        "class_names": tuple(_json(file, "class_names", list, str)),
        "mean": _per_channel(file, "mean"),
        "std": _per_channel(file, "std"),
        "shapes": _shapes(arrays),
        "array_sha256": _json(file, "array_sha256", dict, str),
        "source_sha256": _json(file, "source_sha256", dict, str),
        "options": _json(file, "options", dict, object),
    }


def _per_channel(file: h5py.File, name: str) -> tuple[float, ...]:
    values = hdf5.number(file, name)
    # NaN fails both comparisons.
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        shown = f"{values.ravel()[:4].tolist()} of shape {values.shape}"
        raise ValueError(f"the attribute {name} should be one number from 0 to 1 per channel (found {shown})")
    return tuple(values.astype(np.float64).tolist())


def _require_seal(seal: str, description: Mapping[str, Any]) -> None:
    expected = seal_of(description)
    if seal != expected:
        raise ValueError(f"the attributes have been changed (found sha256 {seal!r:.80}, expected {expected})")


def _json(file: h5py.File, name: str, kind: type[Any], items: type) -> Any:
    """Parse a JSON attribute that must be a list with items of one type, or a dict with values of one type."""
    value = parse_json(hdf5.text(file, name))
    values = value.values() if isinstance(value, dict) else value
    if not isinstance(value, kind) or not all(isinstance(item, items) for item in values):
        raise TypeError(f"the attribute {name} is not a {kind.__name__} of {items.__name__}")
    return value


def _require_labels(name: str, labels: h5py.Dataset, classes: int) -> None:
    """Refuse labels that are not class indices."""
    for block in blocks(labels):
        if block.max() >= classes:
            raise ValueError(
                f"a label does not refer to a class (found {block.max()} in {name}, but only {classes} classes)"
            )
