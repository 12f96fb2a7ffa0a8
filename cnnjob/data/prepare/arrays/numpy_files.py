"""Read images and labels from ``.npz`` and ``.npy`` files, block by block and without pickles."""

import math
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from cnnjob.data.prepare.arrays.in_memory import as_labels, image_layout
from cnnjob.data.prepare.arrays.stream import ArraySet, LabelledStream, rows_per_block
from cnnjob.data.prepare.folders.layout import split_of_name
from cnnjob.errors import DataError
from cnnjob.files import A_GIT_LFS_POINTER, GIT_LFS_POINTER, open_regular

_IMAGES = frozenset({"x", "images", "image", "imgs", "img", "pixels", "data"})
_STATISTICS = frozenset({"mean", "std", "var", "min", "max"})
_LABELS = frozenset({"y", "labels", "label", "targets", "target", "classes"})
_MAX_HEADER = 10_000
_MAX_BLOCK_BYTES = 64 << 20  # maximum size of one read, and of all labels
_DAMAGED = (EOFError, KeyError, MemoryError, NotImplementedError, OSError, OverflowError, RuntimeError, TypeError,
            ValueError, SyntaxError, tokenize.TokenError, struct.error, zipfile.BadZipFile, zlib.error)  # fmt: skip
MAGIC = b"\x93NUMPY"


@dataclass(frozen=True)
class ArrayFile:
    """An array stored in an ``.npy`` file or as a member of an ``.npz`` file.

    Attributes:
        path: the file.
        member: name of the member; empty for an ``.npy`` file.
        name: name of the array, from which its role is recognised.
    """

    path: Path
    member: str
    name: str

    @property
    def where(self) -> str:
        """Location of the array, for messages."""
        return f"{self.path}: {self.member}" if self.member else str(self.path)

    @contextmanager
    def open(self) -> "Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype]]":
        """Open the array, skip its header, and yield the stream, the shape and the data type.

        Raises:
            DataError: the file is damaged, or does not contain a plain array in C order.
        """
        try:
            with ExitStack() as stack:
                file: IO[bytes] = stack.enter_context(open_regular(self.path))
                if self.member:
                    file = stack.enter_context(stack.enter_context(zipfile.ZipFile(file)).open(self.member))
                major, _ = npy.read_magic(file)
                read = npy.read_array_header_1_0 if major == 1 else npy.read_array_header_2_0
                shape, is_fortran, dtype = read(file, max_header_size=_MAX_HEADER)
                _require_plain(self.where, shape, dtype, is_fortran=is_fortran)
                yield file, shape, dtype
        except _DAMAGED as error:
            raise DataError(f"{self.where}: not readable as an array ({error}). Save it again with NumPy") from error

    def whole(self) -> np.ndarray:
        """Read the whole array at once; used for labels.

        Raises:
            DataError: the array is damaged or too large.
        """
        with self.open() as (file, shape, dtype):
            return _rows(file, shape[0] if shape else 1, shape[1:], dtype)


def _require_plain(where: str, shape: tuple[int, ...], dtype: np.dtype, *, is_fortran: bool) -> None:
    if dtype.hasobject:
        raise DataError(f"{where}: an array of Python objects (found {dtype}). Save it as an array of numbers")
    if is_fortran and len(shape) > 1:
        raise DataError(
            f"{where}: the array is in Fortran order, so its images are not contiguous (found shape {shape}). "
            "Save numpy.ascontiguousarray(array) instead"
        )


def _rows(file: IO[bytes], count: int, row: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = count * math.prod(row) * dtype.itemsize
    if size > _MAX_BLOCK_BYTES:
        raise ValueError(f"a block has {size:,} bytes, more than the maximum of {_MAX_BLOCK_BYTES:,}")
    content = file.read(size)
    if len(content) != size:
        raise EOFError(f"it ends after {len(content):,} of {size:,} bytes")
    return np.frombuffer(content, dtype).reshape(count, *row)


def array_files(path: Path) -> list[ArrayFile]:
    """Return the arrays in an ``.npy`` or ``.npz`` file.

    Raises:
        DataError: the file is damaged.
    """
    stem = path.name.rpartition(".")[0]
    with open_regular(path) as file:
        start = file.read(len(GIT_LFS_POINTER))
        if start == GIT_LFS_POINTER:
            raise DataError(f"{path}: {A_GIT_LFS_POINTER}")
        if start.startswith(MAGIC):
            return [ArrayFile(path, "", stem)]
        try:
            with zipfile.ZipFile(file) as archive:
                names = [name for name in archive.namelist() if name.endswith(".npy")]
        except _DAMAGED as error:
            raise DataError(f"{path}: not an .npz file ({error}). Save it again with numpy.savez") from error
    # A single unnamed array takes the name of its file.
    own = len(names) == 1 and names[0] == "arr_0.npy"
    return [ArrayFile(path, name, stem if own else name.removesuffix(".npy")) for name in names]


def role_of(name: str) -> tuple[str, str] | None:
    """Return the split and type (images or labels) that an array's name indicates; None if it indicates no type.

    An array whose name indicates no split is taken to be part of the training set.
    """
    split, rest = split_of_name(name.replace("t10k", "test")) or ("train", name)
    words = set(re.findall(r"[a-z]+", rest.lower()))
    if words & _STATISTICS:
        return None
    if words & _IMAGES and not words & _LABELS:
        return split, "images"
    return (split, "labels") if words & _LABELS else None


def find_numpy_set(arrays: Sequence[ArrayFile], source: str) -> ArraySet:
    """Return the images and labels, identified among all arrays by their names.

    Args:
        arrays: all arrays in a file or folder.
        source: the file or folder, for messages.

    Returns:
        The images with their labels.

    Raises:
        DataError: the names do not show which arrays are images and labels, or an array is damaged.
    """
    roles: dict[tuple[str, str], ArrayFile] = {}
    for array in arrays:
        role = role_of(array.name)
        if role in roles:
            raise DataError(f"{source}: two arrays contain {role[0]} {role[1]} (found {roles[role].where} and "
                            f"{array.where}). Remove one")  # fmt: skip
        if role:
            roles[role] = array
    splits = [split for split, kind in roles if kind == "images"]
    named = dict.fromkeys(split for split, _ in roles)
    missing = [f"{split} {kind}" for split in named for kind in ("images", "labels") if (split, kind) not in roles]
    if not splits or missing:
        names = ", ".join(array.name for array in arrays) or "none"
        raise DataError(
            f"{source}: no {' or '.join(missing) or 'image arrays'} (found the arrays {names}). "
            "Name them x_train, y_train, x_test and y_test"
        )
    used = {array.where for array in roles.values()}
    return ArraySet(
        f"NumPy arrays {', '.join(array.name for array in roles.values())}",
        {split: _stream(roles[split, "images"], roles[split, "labels"]) for split in splits},
        sorted({array.path for array in roles.values()}),
        left_out=[array.name for array in arrays if array.where not in used],
    )


def _stream(images: ArrayFile, labels: ArrayFile) -> LabelledStream:
    with images.open() as (_, stored, dtype):
        shape, arrange = image_layout(images.where, stored, dtype)
    step = rows_per_block(math.prod(shape[1:]))

    def blocks() -> Iterator[np.ndarray]:
        with images.open() as (file, _, _):
            for start in range(0, shape[0], step):
                yield arrange(_rows(file, min(step, shape[0] - start), stored[1:], np.dtype(np.uint8)))

    return LabelledStream(images.where, shape, blocks, as_labels(labels.where, labels.whole()))
