"""Write a dataset into one HDF5 file; only this module creates the file layout.

The reader for each format returns :class:`DatasetContents`, whose chunks are written as they arrive, so only one chunk
at a time is in memory, regardless of the dataset's size. Digests, mean and standard deviation are then computed from
what the file actually contains, not from what was meant to be written.
"""

import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from traceback import clear_frames
from typing import Any

import h5py
import numpy as np

from cnnjob.data.dataset import ARRAYS, FORMAT, SEAL, SPLITS, TRAINING_IMAGES, Moments, digest_of, seal_of
from cnnjob.data.prepare.folders.tree import Listing
from cnnjob.data.prepare.output_path import target_of
from cnnjob.errors import DataError
from cnnjob.files import canonical_json, no_fence, whole

# Files can be read by HDF5 1.8 (2008); "earliest" would limit attributes to 64 KiB, which is not enough.
_LIBVER = ("v108", "v110")
ALIGNMENT_BYTES = 4096
"""Alignment of arrays in the file, in bytes: the size of a memory page and of a block on most disks."""
_BYTE_CLASSES = 256


@dataclass(frozen=True)
class Chunk:
    """Consecutive images of one split.

    Attributes:
        where: the file that the images come from, for messages.
        split: train, val or test.
        start: index of the first image in the split.
        images: (N, H, W, C) uint8.
        labels: (N,) integers.
        count: number of images in the whole split, which must be known because a contiguous array cannot grow.
    """

    where: str
    split: str
    start: int
    images: np.ndarray
    labels: np.ndarray
    count: int


@dataclass(frozen=True)
class DatasetContents:
    """The contents of a source, ready to be written.

    Attributes:
        class_names: one name per class.
        sha256: SHA-256 of each source file, by name.
        blocks: the images, in chunks; nothing is parsed before the first chunk is requested.
        warnings: warnings about the source, one line each.
        description: detected type of the source, in one line.
        faults: the reason why each skipped file is unusable, by file name; complete once all blocks have been read.
        bases: the folders that contain the class folders.
        remarks: notes for the user on how images were read, each with the number of images concerned; complete once
            all blocks have been read.
        n_images: total number of images in all splits; None if not known before they are read.
        listing: the files in the source; None unless it is a folder of images.
    """

    class_names: tuple[str, ...]
    sha256: dict[str, str]
    blocks: Iterator[Chunk]
    warnings: tuple[str, ...] = ()
    description: str = ""
    faults: dict[str, str] = field(default_factory=dict)
    bases: tuple[Path, ...] = ()
    remarks: Counter[str] = field(default_factory=Counter)
    n_images: int | None = None
    listing: Listing | None = None


def write(
    path: Path,
    name: str,
    contents: DatasetContents,
    options: dict[str, Any],
    *,
    fence: Callable[[], None] = no_fence,
) -> None:
    """Write a dataset, completely or not at all.

    Args:
        path: the file; its folder is created if necessary, and a symbolic link is followed.
        name: name of the dataset.
        contents: the contents to write.
        options: how the source was read, as JSON values.
        fence: called just before the finished file replaces an existing one; it raises an error to prevent this.

    Raises:
        DataError: the source is damaged, or the file cannot be written.
    """
    try:
        target = target_of(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole(target, fence=fence) as temporary, _Disk(temporary, "x+") as disk:
            with _created(disk) as file:
                written = Counter[str]()
                for block in contents.blocks:
                    _write_chunk(file, block, len(contents.class_names))
                    written[block.split] += len(block.images)
                    disk.require_written()
                _require_whole(file, contents, written)
                _write_attributes(file, name, contents, options)
                file.attrs["complete"] = 1  # last: a file without it is unfinished
            disk.require_written()  # again, since closing the file writes what HDF5 still has in memory
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}). Free some space, or choose another folder"
        ) from error


@contextmanager
def _created(disk: "_Disk") -> Iterator[h5py.File]:
    """Create an HDF5 file in a ``_Disk``.

    The HDF5 file is always closed before the ``_Disk``, even if h5py is interrupted while it creates the file.
    """
    try:
        with h5py.File(disk, "w", libver=_LIBVER, alignment_threshold=1, alignment_interval=ALIGNMENT_BYTES) as file:
            yield file
    except BaseException as error:
        clear_frames(error.__traceback__)  # references in the frames would keep the file open until Python exits
        raise


class _Disk(io.FileIO):
    """A file that records a failed write and raises the error only in :meth:`require_written`.

    HDF5 crashes with a segmentation fault when it closes a file on a full disk. Therefore every write appears to
    succeed, and if one has failed, the file is discarded afterwards.
    """

    failure: BaseException | None = None
    """The recorded error, if any; nothing more is written after it."""

    def write(self, content: Any, /) -> int:
        """Write all bytes, or record the failure; return the number of bytes in either case."""
        rest = memoryview(content).cast("B")
        written = len(rest)
        with self._recording_failure():
            while rest and not self.failure:
                rest = rest[super().write(rest) :]
        return written

    def truncate(self, size: int | None = None, /) -> int:
        """Set the file's length, or record the failure."""
        with self._recording_failure():
            size = super().truncate(size)
        return size or 0

    @contextmanager
    def _recording_failure(self) -> Iterator[None]:
        try:
            yield
        except (OSError, KeyboardInterrupt) as error:  # an interrupt makes the write fail as well
            self.failure = error

    def require_written(self) -> None:
        """Raise the recorded failure, if any."""
        if self.failure:
            raise self.failure


def _write_chunk(file: h5py.File, block: Chunk, classes: int) -> None:
    """Write a chunk at its position in its split; the first chunk of a split creates the arrays."""
    wrong = block.labels[(block.labels < 0) | (block.labels >= classes)]
    if wrong.size:
        raise DataError(
            f"{block.where}: a label is out of range (found {wrong[0]}). Labels must be from 0 to {classes - 1}"
        )
    group = file.require_group(block.split)
    if "images" not in group:
        _create_arrays(group, block, classes)
    end, count = block.start + len(block.images), len(group["images"])
    announced = max(end, block.count)
    if announced != count:
        raise DataError(
            f"{block.where}: the number of {block.split} images changed during reading (found {announced:,} "
            f"instead of {count:,}). Leave the source unchanged and run the same command again"
        )
    for name, values in zip(ARRAYS, (block.images, block.labels), strict=True):
        group[name][block.start : end] = values


def _create_arrays(group: h5py.Group, block: Chunk, classes: int) -> None:
    """Create the two arrays of a split: contiguous in the file, and not yet filled."""
    label_type = np.uint8 if classes <= _BYTE_CLASSES else np.dtype("<u2")
    images = (block.count, *block.images.shape[1:])
    for name, shape, dtype in (("images", images, np.uint8), ("labels", images[:1], label_type)):
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_layout(h5py.h5d.CONTIGUOUS)
        layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # every row will be written, so filling would write it twice
        layout.set_obj_track_times(False)  # timestamps would make the files of equal datasets differ
        h5py.h5d.create(
            group.id, name.encode(), h5py.h5t.py_create(np.dtype(dtype)), h5py.h5s.create_simple(shape), layout
        )


def _require_whole(file: h5py.File, contents: DatasetContents, written: Mapping[str, int]) -> None:
    """Refuse a split with missing images."""
    for split, count in written.items():
        if count != len(file[split]["images"]):
            raise DataError(
                f"{', '.join(contents.sha256)}: {split} images are missing (found {count:,} of "
                f"{len(file[split]['images']):,}). Run the same command again, without changing the source meanwhile"
            )


def _write_attributes(file: h5py.File, name: str, contents: DatasetContents, options: dict[str, Any]) -> None:
    """Write the attributes, computed from what the file now contains."""
    _require_splits(file, contents)
    arrays = {f"{split}/{array}": file[split][array] for split in SPLITS if split in file for array in ARRAYS}
    moments = Moments()
    digests = {key: digest_of(array, moments if key == TRAINING_IMAGES else None) for key, array in arrays.items()}
    mean, std = moments.mean_and_std()
    described = {
        "name": name,
        "class_names": contents.class_names,
        "mean": mean,
        "std": std,
        "shapes": {split: file[split]["images"].shape for split in file},
        "array_sha256": digests,
        "source_sha256": contents.sha256,
        "options": options,
    }
    texts = {key: canonical_json(described[key]) for key in ("class_names", "array_sha256", "source_sha256", "options")}
    for key, text in {"name": name, **texts, SEAL: seal_of(described)}.items():
        file.attrs[key] = np.bytes_(text.encode())  # of fixed length, as the reader requires
    file.attrs.update(format=FORMAT, mean=mean, std=std)


def _require_splits(file: h5py.File, contents: DatasetContents) -> None:
    where = ", ".join(contents.sha256)
    for split in ("train", "test"):
        if split not in file or not len(file[split]["images"]):
            raise DataError(f"{where}: no {split} images. A dataset needs training and test images")
    shapes = {split: file[split]["images"].shape[1:] for split in file}
    if len(set(shapes.values())) > 1:
        raise DataError(f"{where}: the splits have images of different shapes (found {shapes})")
