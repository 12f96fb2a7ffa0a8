"""Named arrays as one ``.npz`` file, and a reader that accepts nothing but what is written here.

Plain NumPy opens the files. The zip's comment is the SHA-256 of every other byte, so that a flipped bit or a lost tail
is found. A fitting checksum says nothing of who wrote it: the reader uses neither pickles nor decompression, and
each array must have exactly the bytes that its header states, so that reading takes twice the file's size at most.
"""

import hashlib
import io
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from cnnjob import files
from cnnjob.errors import DataError

_LABEL = b"sha256:"
_DIGITS = 64
_SHOWN = 80
_EPOCH = (1980, 1, 1, 0, 0, 0)  # a fixed date: equal arrays give equal files
_DATE = 1 << 5 | 1
"""The same as a zip has it."""
_LOCAL = struct.Struct("<4s5H3I2H")
"""Of a zip member: signature, version, flags, method, time, date, CRC, both sizes, lengths of name and extra field."""
_NAME = re.compile(r"[\w./+-]+\.npy", re.ASCII)
_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    rb"\{'descr': '(?P<dtype><f[248]|[<|][iu][1248]|<U[1-9]\d{0,7})', 'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>|\d{1,18},|\d{1,18}(?:, \d{1,18}){1,31})\), \} *\n"
)
_ODD = (ValueError, LookupError, OverflowError, OSError, NotImplementedError, struct.error, zipfile.BadZipFile)
"""What :mod:`zipfile` and the checks here raise for an odd archive."""
_LAST_CODE_POINT = 0x10FFFF
_IN_64_BITS = 2**32 - 1
"""What stands in the place of a size that 64 bits follow for."""


def arrays_to_bytes(arrays: Mapping[str, np.ndarray]) -> memoryview:
    """Return the content of an ``.npz`` file that carries the digest of the whole file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = _LABEL + b"0" * _DIGITS
        for name, array in arrays.items():
            is_large = _size_of(np.asarray(array)) > zipfile.ZIP64_LIMIT  # only those: a small file's bytes stay
            with archive.open(zipfile.ZipInfo(f"{name}.npy", _EPOCH), "w", force_zip64=is_large) as entry:
                np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)
    content = buffer.getbuffer()  # filled in place: a large network's checkpoint is held once, not twice
    content[-_DIGITS:] = hashlib.sha256(content[:-_DIGITS]).hexdigest().encode()
    return content


def _size_of(array: np.ndarray) -> int:
    """Return the bytes that an array takes in NumPy's format."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return header.tell() + array.nbytes


def require_digest(file: BinaryIO, where: str) -> None:
    """Refuse a file that does not end with a digest, before it is read; leave its position at the start.

    Raises:
        DataError: it does not; ``where`` names it.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - len(_LABEL) - _DIGITS, 0))
    if file.read(len(_LABEL)) != _LABEL:
        raise DataError(_damaged(where, size))
    file.seek(0)


def arrays_from_bytes(content: bytes | memoryview, where: str) -> dict[str, np.ndarray]:
    """Verify and read what :func:`arrays_to_bytes` made.

    Raises:
        DataError: the content is cut short, altered or made by something else; ``where`` names it.
    """
    body, digest = content[:-_DIGITS], content[-_DIGITS:]
    if bytes(body[-len(_LABEL) :]) != _LABEL or hashlib.sha256(body).hexdigest().encode() != bytes(digest):
        raise DataError(_damaged(where, len(content)))
    try:
        return dict(_members(memoryview(content)))
    except _ODD as error:
        raise DataError(f"{where}: damaged, its checksum fits but it is not as cnnjob writes it ({error})") from error


def _damaged(where: str, size: int) -> str:
    return f"{where}: damaged, its checksum does not fit its {size:,} bytes"


def _members(content: memoryview) -> Iterator[tuple[str, np.ndarray]]:
    """Read the arrays of an archive whose members follow each other without a gap, from its first byte."""
    names, position = set(), 0
    with zipfile.ZipFile(io.BytesIO(content.obj if isinstance(content.obj, bytes) else content)) as archive:
        for info in archive.infolist():
            start = _start_of(content, info, position)
            position = start + info.file_size
            names.add(info.filename)
            yield info.filename.removesuffix(".npy"), array_from_bytes(content[start:position])
        if position != archive.start_dir or len(archive.comment) != len(_LABEL) + _DIGITS:
            raise ValueError("something lies between its parts")
        if len(names) < len(archive.infolist()):
            raise ValueError("two of its arrays have one name")


def _start_of(content: memoryview, info: zipfile.ZipInfo, position: int) -> int:
    """Return where a member's bytes start, when both of its headers say what is written here."""
    header = _local_header(info)
    start, size = position + len(header), info.file_size
    told = (info.header_offset, info.flag_bits, info.compress_type, info.date_time)
    is_told_so = told == (position, 0, zipfile.ZIP_STORED, _EPOCH) and not info.comment
    has_extra = bool(info.extra) and max(position, size) <= zipfile.ZIP64_LIMIT
    if content[position:start] != header or not is_told_so or has_extra or not _NAME.fullmatch(info.filename):
        raise ValueError(f"no plain array, {info.filename[:_SHOWN]!r}")
    if info.compress_size != size or start + size > len(content):
        raise ValueError(f"{info.filename}: its size does not fit the file")
    if zlib.crc32(content[start : start + size]) != info.CRC:
        raise ValueError(f"{info.filename}: its checksum does not fit")
    return start


def _local_header(info: zipfile.ZipInfo) -> bytes:
    """Return what stands before a member's bytes; sizes from 2 GiB on are written in 64 bits behind its name."""
    size, name = info.file_size, info.filename.encode()
    is_large = size > zipfile.ZIP64_LIMIT
    version, shown, extra = (45, _IN_64_BITS, struct.pack("<2H2Q", 1, 16, size, size)) if is_large else (20, size, b"")
    head = (b"PK\3\4", version, 0, zipfile.ZIP_STORED, 0, _DATE, info.CRC, shown, shown, len(name), len(extra))
    return _LOCAL.pack(*head) + name + extra


def array_from_bytes(content: memoryview) -> np.ndarray:
    """Read an array in NumPy's own format, which has exactly the bytes that its header states.

    Args:
        content: of a ``.npy`` file.

    Returns:
        Integers, floating numbers or text; a copy.

    Raises:
        ValueError: it is none of these, or the sizes do not fit.
    """
    start = len(_MAGIC) + 2 + int.from_bytes(content[len(_MAGIC) : len(_MAGIC) + 2], "little")
    header = _HEADER.fullmatch(bytes(content[len(_MAGIC) + 2 : start]))
    if bytes(content[: len(_MAGIC)]) != _MAGIC or not header:
        raise ValueError("no array of numbers or text in NumPy's format")
    dtype = np.dtype(header["dtype"].decode())
    shape = tuple(map(int, re.findall(rb"\d+", header["shape"])))
    if math.prod(shape) * dtype.itemsize != len(content) - start:
        raise ValueError(f"{len(content) - start:,} bytes are no {dtype} {shape}")
    if dtype.kind == "U":
        _require_text(np.frombuffer(content[start:], "<u4"))
    order: Literal["F", "C"] = "F" if header["fortran"] == b"True" else "C"
    return np.ndarray(shape, dtype, content, start, order=order).copy(order="K")


def _require_text(codes: np.ndarray) -> None:
    if codes.size and codes.max() > _LAST_CODE_POINT:
        raise ValueError("its text has code points that do not exist")


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, fence: Callable[[], None] = files.no_fence) -> None:
    """Write named arrays as an ``.npz`` that carries the digest of the whole file."""
    files.write_whole(path, arrays_to_bytes(arrays), fence=fence)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read named arrays and verify the digest of the whole file.

    Raises:
        DataError: the file is missing, cut short, altered, or not as :func:`write_arrays` writes it.
    """
    with files.open_regular(path) as file:
        try:
            require_digest(file, str(path))  # a file of any size that is none of ours is not read whole
            content = file.read(os.fstat(file.fileno()).st_size)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({files.reason_of(error)})") from error
    return arrays_from_bytes(content, str(path))
