"""Read SVHN's cropped digits from ``train_32x32.mat`` and ``test_32x32.mat``, which are MATLAB version 5 files.

References:
    Netzer et al., "Reading digits in natural images with unsupervised feature learning" (2011).
    MathWorks, "MAT-File Format": level 5.
"""

import io
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cnnjob.data.prepare.arrays.stream import ArraySet, LabelledStream, rows_per_block
from cnnjob.errors import DataError
from cnnjob.files import open_regular

_SUFFIX = "_32x32.mat"
_HEADER_BYTES = 128
_MATRIX, _COMPRESSED = 14, 15
_UINT8 = 2
"""Code of the MATLAB data type for unsigned bytes."""
_MAX_SMALL_ELEMENT = 1 << 10
_READ_BYTES = 1 << 16
_ZERO = 10
"""The label of the digit 0."""
_AGAIN = "Copy or download it again"


def find_svhn_set(root: Path, names: Sequence[str]) -> ArraySet | None:
    """Return SVHN's cropped digits; None if the folder contains neither ``train_32x32.mat`` nor ``test_32x32.mat``.

    Args:
        root: the folder.
        names: paths of the files in the folder that are not images.

    Raises:
        DataError: a file is damaged, or belongs to SVHN's full-numbers version.
    """
    by_name = {name.rpartition("/")[2]: root / name for name in names}
    if "digitStruct.mat" in by_name:
        raise DataError(f"{root}: SVHN's full-numbers version is not supported (found digitStruct.mat). "
                        "Download train_32x32.mat and test_32x32.mat instead")  # fmt: skip
    files = {split: by_name[f"{split}{_SUFFIX}"] for split in ("train", "test") if f"{split}{_SUFFIX}" in by_name}
    if not files:
        return None
    left_out = [name for name in by_name if name == f"extra{_SUFFIX}"]
    names_of_labels = {label: str(label % _ZERO) for label in range(1, _ZERO + 1)}
    splits = {split: _stream(path) for split, path in files.items()}
    return ArraySet("cropped digits of SVHN", splits, list(files.values()), names_of_labels, left_out)


def _stream(path: Path) -> LabelledStream:
    with _open_matrix(path, "y") as matrix:
        labels = np.frombuffer(matrix.stream.read(math.prod(matrix.shape)), np.uint8).astype(np.int64)
    with _open_matrix(path, "X") as matrix:
        shape = matrix.shape
    if len(shape) != 4 or shape[2] != 3:  # noqa: PLR2004 - (H, W, C, N)
        raise DataError(f"{path}: not an array of SVHN images (found shape {shape}). {_AGAIN}")
    height, width, channels, count = shape
    step = rows_per_block(height * width * channels)

    def blocks() -> Iterator[np.ndarray]:
        with _open_matrix(path, "X") as matrix:
            for start in range(0, count, step):
                rows = min(step, count - start)
                content = matrix.stream.read(rows * height * width * channels)
                # MATLAB's first index varies fastest: (N, C, W, H) in C order.
                yield np.frombuffer(content, np.uint8).reshape(rows, channels, width, height).transpose(0, 3, 2, 1)

    # The digit 0 has the label 10.
    return LabelledStream(str(path), (count, height, width, channels), blocks, labels)


class _Stream:
    """The bytes of a file from its current position onwards, decompressed if necessary."""

    def __init__(self, file: BinaryIO, *, compressed: bool) -> None:
        self._file = file
        self._decoder = zlib.decompressobj() if compressed else None

    def read(self, size: int) -> bytes:
        """Read exactly ``size`` bytes.

        Raises:
            EOFError: fewer bytes are left.
        """
        if self._decoder is None:
            content = self._file.read(size)
        else:
            parts: list[bytes] = []
            missing = size
            while missing and not self._decoder.eof:
                packed = self._decoder.unconsumed_tail or self._file.read(_READ_BYTES)
                if not packed:
                    break
                parts.append(self._decoder.decompress(packed, missing))
                missing -= len(parts[-1])
            content = b"".join(parts)
        if len(content) != size:
            raise EOFError(f"it ends after {len(content):,} of {size:,} bytes")
        return content

    def element(self) -> tuple[int, int, bytes]:
        """Read an element's tag and return the element's type, its size, and its content if stored in the tag."""
        first, second = struct.unpack("<II", tag := self.read(8))
        small = first >> 16  # a size in the upper half: the content follows in the same 8 bytes
        return (first & 0xFFFF, small, tag[4 : 4 + small]) if small else (first, second, b"")

    def small_element(self) -> bytes:
        """Read a small element and return its content."""
        _, size, content = self.element()
        if content or not size:
            return content
        if size > _MAX_SMALL_ELEMENT:
            raise ValueError(f"a field has {size:,} bytes, more than the maximum of {_MAX_SMALL_ELEMENT:,}")
        return self.read(size + -size % 8)[:size]


@dataclass(frozen=True)
class _Matrix:
    """A byte array in a MATLAB file, with its stream positioned at the first value."""

    shape: tuple[int, ...]
    stream: _Stream


@contextmanager
def _open_matrix(path: Path, name: str) -> Iterator[_Matrix]:
    """Open an array by its name; turn errors inside the ``with`` block into a DataError."""
    try:
        with open_regular(path) as file:
            yield _find_matrix(file, name)
    except (EOFError, ValueError, struct.error, zlib.error) as error:
        raise DataError(f"{path}: not readable as a MATLAB version 5 file ({error}). {_AGAIN}") from error


def _find_matrix(file: BinaryIO, name: str) -> _Matrix:
    if file.read(_HEADER_BYTES)[126:128] != b"IM":
        raise ValueError("no little-endian MATLAB header")
    while True:
        position = file.tell()
        if len(tag := file.read(8)) < 8:  # noqa: PLR2004 - the size of a tag
            raise EOFError(f"it ends before the array {name}")
        kind, size = struct.unpack("<II", tag)
        stream = _Stream(file, compressed=kind == _COMPRESSED)
        if kind == _COMPRESSED:
            kind, _ = struct.unpack("<II", stream.read(8))
        if kind == _MATRIX:
            stream.small_element()  # flags
            shape = struct.unpack(f"<{len(content := stream.small_element()) // 4}i", content)
            if stream.small_element().decode("latin-1") == name:
                data_kind, n_bytes, small = stream.element()
                if data_kind != _UINT8 or n_bytes != math.prod(shape):
                    raise ValueError(f"{name} is not an array of bytes")
                return _Matrix(shape, _Stream(io.BytesIO(small), compressed=False) if small else stream)
        file.seek(position + 8 + size)
