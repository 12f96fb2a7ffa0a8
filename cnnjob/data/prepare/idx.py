"""Read IDX files, plain or gzipped: MNIST and its descendants.

References:
    LeCun, Cortes and Burges, "The MNIST database of handwritten digits" (1998), "File formats".
"""

import gzip
import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

import numpy as np

from cnnjob.data.dataset import BLOCK_BYTES
from cnnjob.data.prepare.writer import Chunk
from cnnjob.errors import DataError
from cnnjob.files import open_regular

_GZIP_MAGIC = b"\x1f\x8b"
_UNSIGNED_BYTES = 8  # the type code in an IDX magic number
_PREFIXES = {"train": "train", "test": "t10k"}
_AGAIN = "copy or download it again"


@dataclass(frozen=True)
class _Idx:
    """An open IDX file, positioned after its header."""

    where: str
    stream: BufferedIOBase
    shape: tuple[int, ...]

    def read(self, rows: int) -> np.ndarray:
        """Read the next rows as an array (rows, …) uint8."""
        expected = rows * math.prod(self.shape[1:])
        content = _take(self.where, self.stream, expected)
        if len(content) != expected:
            raise DataError(f"{self.where}: shorter than its header says, it promises {self.shape}; {_AGAIN}")
        return np.frombuffer(content, np.uint8).reshape(rows, *self.shape[1:])

    def require_end(self) -> None:
        """Require the end of the file; reaching it also makes gzip verify its checksum."""
        if _take(self.where, self.stream, 1):
            raise DataError(f"{self.where}: longer than its header says, it promises {self.shape}; {_AGAIN}")


def read(files: Mapping[str, Path]) -> Iterator[Chunk]:
    """Read the images and labels of both splits, a few MiB at a time.

    Args:
        files: the four IDX files by their published names, gzipped or plain.

    Yields:
        Chunks of images (N, H, W, 1).

    Raises:
        DataError: a file is damaged, or the numbers of images and labels differ.
    """
    for split, prefix in _PREFIXES.items():
        mine = {name.split("-")[1]: path for name, path in files.items() if name.startswith(prefix)}
        yield from _read_split(split, mine["images"], mine["labels"])


def _read_split(split: str, images_path: Path, labels_path: Path) -> Iterator[Chunk]:
    with ExitStack() as stack:
        images = stack.enter_context(_open(images_path, dimensions=3))
        labels = stack.enter_context(_open(labels_path, dimensions=1))
        n, height, width = images.shape
        if labels.shape != (n,):
            raise DataError(f"{labels.where}: {labels.shape[0]} labels, found {n} images in {images.where}; {_AGAIN}")
        step = max(1, BLOCK_BYTES // (height * width))
        for start in range(0, n, step):
            rows = min(step, n - start)
            pixels = images.read(rows)[..., None]  # (rows, H, W, 1)
            yield Chunk(labels.where, split, start, pixels, labels.read(rows), n)
        images.require_end()
        labels.require_end()


@contextmanager
def _open(path: Path, dimensions: int) -> Iterator[_Idx]:
    """Open an IDX file and read its header; the content decides whether it is gzipped, not the name."""
    with open_regular(path) as file:
        zipped = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        file.seek(0)
        stream: BufferedIOBase = gzip.GzipFile(fileobj=file) if zipped else file
        yield _Idx(str(path), stream, _read_header(str(path), stream, dimensions))


def _read_header(where: str, stream: BufferedIOBase, dimensions: int) -> tuple[int, ...]:
    """Read the magic number and the dimensions, 4 bytes each, and return the shape."""
    header = _take(where, stream, 4 + 4 * dimensions)
    magic = bytes([0, 0, _UNSIGNED_BYTES, dimensions])
    if header[:4] != magic or len(header) != 4 + 4 * dimensions:
        raise DataError(
            f"{where}: not an IDX file of {dimensions} dimension(s), it starts {header[:4].hex(' ')}; {_AGAIN}"
        )
    shape = tuple(np.frombuffer(header[4:], ">u4").tolist())
    # Only a row's size is bounded: rows are read one block at a time, and a file that is too short is noticed then.
    if min(shape) == 0 or math.prod(shape[1:]) > BLOCK_BYTES:
        raise DataError(f"{where}: its header is wrong, it promises {shape}; {_AGAIN}")
    return shape


def _take(where: str, stream: BufferedIOBase, size: int) -> bytes:
    """Read up to ``size`` bytes; errors of gzip become a DataError."""
    try:
        return stream.read(size)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{where}: damaged, {error}; {_AGAIN}") from error
