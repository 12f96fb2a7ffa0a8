"""Read arrays that are stored contiguously in a file, using ``preadv`` at their offsets.

A memory map would be faster, but its pages count as resident memory, and a truncated file would kill the process with
SIGBUS. HDF5 is not involved, so no HDF5 state is carried across a fork and no lock is taken.
"""

import os
import time
import weakref
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np

from cnnjob.errors import DataError
from cnnjob.files import open_regular, reason_of

MOST_READ_BYTES = 1 << 30
"""Maximum size of one read, in bytes; Linux reads at most 2 GiB at a time."""
SLOW_SECONDS_PER_READ, SLOW_SECONDS_PER_BYTE = 20e-6, 0.5e-9
"""Maximum time to read rows from the page cache, in seconds per read and per byte; a slower read starts prefetching."""
_RESUME = "then run the same command to resume"


@dataclass(frozen=True)
class FileVersion:
    """The version of a file; the version changes if the file is replaced, truncated or written to."""

    device: int
    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path | int) -> Self:
        """Return the version of the file with the given path or file descriptor.

        Raises:
            OSError: there is no such file, or it cannot be read.
        """
        status = os.stat(path)  # noqa: PTH116 - it may be a descriptor
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class StoredArray:
    """An array stored contiguously in a file.

    Attributes:
        path: the file.
        name: name of the array, for messages.
        offset: position of the array's first byte in the file.
        shape: shape of the array, (N, …).
        dtype: type of the values.
        version: version of the file when this object was created; reading fails if the file has changed since.
    """

    path: Path
    name: str
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    version: FileVersion

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        """Size of one row, in bytes."""
        return self.dtype.itemsize * prod(self.shape[1:])

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Read consecutive rows.

        Raises:
            DataError: the file was replaced, changed or truncated, or cannot be read.
        """
        start, stop, _ = rows.indices(len(self))
        values = np.empty((max(0, stop - start), *self.shape[1:]), self.dtype)
        with self.open() as reader:
            reader.read(start, values)
        return values

    def open(self) -> "RowReader":
        """Open the file for reading rows.

        Raises:
            DataError: the file is missing, cannot be read, or no longer has the expected version.
        """
        return RowReader(self)


class RowReader:
    """A reader for the rows of a stored array.

    It keeps the file open until ``close()`` is called, and detects whether the file has been replaced.
    """

    def __init__(self, array: StoredArray) -> None:
        """Open the file of an array; see :meth:`StoredArray.open`."""
        self.shape, self._array = array.shape, array
        with open_regular(array.path) as file:
            self._descriptor = os.dup(file.fileno())
        # Also closes the file of a reader that is dropped without close(), for example if training fails to start.
        self.close = weakref.finalize(self, os.close, self._descriptor)
        self._is_slow = True
        self._require_version(self._descriptor)

    def __enter__(self) -> Self:
        """Return the reader itself; it is closed when the ``with`` block ends."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file."""
        self.close()

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._array)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """Return the rows with the given indices as a new array; see :meth:`take`."""
        rows = np.empty((len(indices), *self.shape[1:]), self._array.dtype)
        self.take(indices, rows)
        return rows

    def _require_version(self, file: Path | int) -> None:
        """Check that the file still has the version recorded in the array.

        Raises:
            DataError: the file was replaced, changed or truncated, or is missing.
        """
        array = self._array
        try:
            version = FileVersion.of(file)
        except OSError as error:
            raise DataError(f"{array.path}: cannot be read ({reason_of(error)}). Restore it, {_RESUME}") from error
        if version.size < array.version.size:
            raise DataError(
                f"{array.path}: truncated while in use (found {version.size:,} bytes instead of "
                f"{array.version.size:,}). Prepare the dataset again, {_RESUME}"
            )
        if version != array.version:
            raise DataError(f"{array.path}: replaced or changed while in use. Leave it unchanged, {_RESUME}")

    def read(self, start: int, rows: np.ndarray) -> None:
        """Read consecutive rows.

        Args:
            start: index of the first row.
            rows: contiguous array of the stored type that receives the rows.

        Raises:
            DataError: the file is truncated, or cannot be read.
        """
        self._read(self._array.offset + start * self._array.row_bytes, rows.data.cast("B"))

    def _read(self, position: int, content: memoryview) -> None:
        """Fill ``content`` with bytes from a position in the file, using as many reads as necessary."""
        array = self._array
        while content:
            try:
                count = os.preadv(self._descriptor, [content[:MOST_READ_BYTES]], position)
            except OSError as error:
                raise DataError(
                    f"{array.path}: {array.name} cannot be read ({reason_of(error)}). Check the disk, {_RESUME}"
                ) from error
            if not count:
                raise DataError(
                    f"{array.path}: truncated (the file ends within {array.name}). Prepare the dataset again, {_RESUME}"
                )
            content, position = content[count:], position + count

    def take(self, indices: np.ndarray, rows: np.ndarray) -> None:
        """Read the rows with the given indices.

        Args:
            indices: int64 (n,), each from 0 to the number of rows minus 1.
            rows: contiguous array (n, …) of the stored type that receives the rows.

        Raises:
            DataError: the file was replaced, changed or truncated, or cannot be read.
        """
        array, descriptor = self._array, self._descriptor
        self._require_version(array.path)
        if not len(indices):
            return
        content, started = rows.data.cast("B"), time.perf_counter()
        # Adjacent rows, such as those of an evaluation, are read together.
        firsts = np.flatnonzero(np.diff(indices, prepend=-2) != 1)
        positions = array.offset + indices[firsts] * array.row_bytes
        bounds = np.append(firsts, len(indices)) * array.row_bytes
        if self._is_slow:
            # The disk can then read them in parallel and in its preferred order.
            for position, start, stop in zip(
                positions.tolist(), bounds[:-1].tolist(), bounds[1:].tolist(), strict=True
            ):
                os.posix_fadvise(descriptor, position, stop - start, os.POSIX_FADV_WILLNEED)
        # Run as little Python as possible per read, because the training thread also needs the interpreter lock.
        for position, start, stop in zip(positions.tolist(), bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            part = content[start:stop]
            try:
                is_whole = os.preadv(descriptor, (part,), position) == stop - start
            except OSError:
                is_whole = False
            if not is_whole:
                self._read(position, part)  # reads the rows again, or raises an error that states the cause
        limit = len(firsts) * SLOW_SECONDS_PER_READ + len(content) * SLOW_SECONDS_PER_BYTE
        self._is_slow = time.perf_counter() - started > limit
