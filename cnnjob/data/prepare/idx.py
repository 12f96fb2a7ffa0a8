"""Read IDX files, plain or gzipped, as used by MNIST and its descendants.

References:
    LeCun, Cortes and Burges, "The MNIST database of handwritten digits" (1998), "File formats".
"""

import gzip
import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase, BufferedReader
from pathlib import Path

import numpy as np

from cnnjob.data.dataset import BLOCK_BYTES
from cnnjob.data.prepare.writer import Chunk
from cnnjob.errors import DataError
from cnnjob.files import open_regular

_GZIP_MAGIC = b"\x1f\x8b"
_TYPES: dict[int, np.dtype] = {
    code: np.dtype(name) for code, name in ((8, "u1"), (9, "i1"), (11, ">i2"), (12, ">i4"), (13, ">f4"), (14, ">f8"))
}
"""Data types by their code in the IDX magic number."""
_PREFIXES = {"train": "train", "test": "t10k"}
_AGAIN = "Copy or download it again"


@dataclass(frozen=True)
class IdxFile:
    """An open IDX file, positioned after its header.

    Attributes:
        where: path of the file, for messages.
        stream: decompressed content of the file.
        shape: shape of the array.
        dtype: type of the values, big-endian.
    """

    where: str
    stream: BufferedIOBase
    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self, rows: int) -> np.ndarray:
        """Read the next rows as an array (rows, …)."""
        expected = rows * math.prod(self.shape[1:]) * self.dtype.itemsize
        content = _take(self.where, self.stream, expected)
        if len(content) != expected:
            raise DataError(f"{self.where}: shorter than its header states (shape {self.shape}). {_AGAIN}")
        return np.frombuffer(content, self.dtype).reshape(rows, *self.shape[1:])

    def require_end(self) -> None:
        """Require that the whole file has been read; reaching its end also makes gzip verify the checksum."""
        if _take(self.where, self.stream, 1):
            raise DataError(f"{self.where}: longer than its header states (shape {self.shape}). {_AGAIN}")


def read(files: Mapping[str, Path]) -> Iterator[Chunk]:
    """Yield the images and labels of both splits, a few MiB at a time.

    Args:
        files: the four IDX files, gzipped or plain, by their published names.

    Yields:
        Chunks of images (N, H, W, 1).

    Raises:
        DataError: a file is damaged, or the numbers of images and labels differ.
    """
    for split, prefix in _PREFIXES.items():
        by_kind = {name.split("-")[1]: path for name, path in files.items() if name.startswith(prefix)}
        with open_idx(by_kind["images"], (3,)) as images, open_idx(by_kind["labels"], (1,)) as labels:
            yield from _read_split(split, images, labels)


def _read_split(split: str, images: IdxFile, labels: IdxFile) -> Iterator[Chunk]:
    n, height, width = images.shape
    if labels.shape != (n,):
        raise DataError(f"{labels.where}: {labels.shape[0]} labels for {n} images (in {images.where}). {_AGAIN}")
    step = max(1, BLOCK_BYTES // (height * width))
    for start in range(0, n, step):
        rows = min(step, n - start)
        pixels = images.read(rows)[..., None]  # (rows, H, W, 1)
        yield Chunk(labels.where, split, start, pixels, labels.read(rows), n)
    images.require_end()
    labels.require_end()


@contextmanager
def open_idx(path: Path, dimensions: tuple[int, ...]) -> Iterator[IdxFile]:
    """Open an IDX file and read its header; gzip is detected from the content, not the name.

    Args:
        path: the file.
        dimensions: the permitted numbers of dimensions. An array with more than two dimensions must have the type
            uint8; any other array must have an integer type.

    Raises:
        DataError: the file is damaged, is not an IDX file, or has dimensions or values that are not permitted.
    """
    with open_regular(path) as file:
        stream = _decompressed(file)
        head = _take(str(path), stream, 4)
        if len(head) != 4 or head[:2] != b"\0\0" or head[2] not in _TYPES:  # noqa: PLR2004
            raise DataError(f"{path}: not an IDX file (found {head.hex(' ') or 'no bytes'}). {_AGAIN}")
        if head[3] not in dimensions:
            raise DataError(
                f"{path}: not an IDX file of {' or '.join(map(str, dimensions))} dimensions (found {head[3]}). {_AGAIN}"
            )
        dtype = _TYPES[head[2]]
        are_labels = head[3] <= 2  # noqa: PLR2004 - only labels have one or two dimensions
        if dtype.kind == "f" or (dtype != np.uint8 and not are_labels):
            needed = "integers" if are_labels else "uint8"
            raise DataError(f"{path}: its values are not {needed} (found {dtype.newbyteorder('=')}). Convert them")
        content = _take(str(path), stream, 4 * head[3])
        if len(content) != 4 * head[3]:
            raise DataError(
                f"{path}: its header is incomplete (found {4 + len(content)} of {4 + 4 * head[3]} bytes). {_AGAIN}"
            )
        shape = tuple(np.frombuffer(content, ">u4").tolist())
        # Only the size of a row is limited: rows are read one block at a time, which detects a file that is too short.
        if min(shape) == 0 or math.prod(shape[1:]) > BLOCK_BYTES:
            raise DataError(f"{path}: its header is not valid (found shape {shape}). {_AGAIN}")
        yield IdxFile(str(path), stream, shape, dtype)


def peek_header(path: Path) -> int | None:
    """Return the number of dimensions of the array in an IDX file; None if the file is not an IDX file."""
    with open_regular(path) as file:
        try:
            head = _take(str(path), _decompressed(file), 4)
        except DataError:
            return None
    is_idx = len(head) == 4 and head[:2] == b"\0\0" and head[2] in _TYPES and 1 <= head[3] <= 4  # noqa: PLR2004
    return head[3] if is_idx else None


def _decompressed(file: BufferedReader) -> BufferedIOBase:
    is_gzip = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
    file.seek(0)
    return gzip.GzipFile(fileobj=file) if is_gzip else file


def _take(where: str, stream: BufferedIOBase, size: int) -> bytes:
    """Read up to ``size`` bytes; turn gzip errors into a DataError."""
    try:
        return stream.read(size)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{where}: damaged ({error}). {_AGAIN}") from error
