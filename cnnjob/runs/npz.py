"""Writer for named arrays in one ``.npz`` file, and a reader that accepts only what this writer produces.

``numpy.load`` can also read the files. The zip comment holds the SHA-256 of all other bytes, so flipped bits and
truncation are detected. A correct checksum does not prove who wrote the file: the reader therefore uses neither pickle
nor decompression, and each array must have exactly the size that its header declares, so reading a file takes at most
twice its size in memory.
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
_EPOCH = (1980, 1, 1, 0, 0, 0)  # a fixed date, the earliest in zip: equal arrays give equal files
_DATE = 1 << 5 | 1
"""1 January 1980 in zip's 16-bit encoding of dates: year - 1980, month, day."""
_LOCAL = struct.Struct("<4s5H3I2H")
"""A zip member's local header: signature, version, flags, method, time, date, CRC, compressed and uncompressed size,
and lengths of name and extra field."""
_NAME = re.compile(r"[\w./+-]+\.npy", re.ASCII)
_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    rb"\{'descr': '(?P<dtype><f[248]|[<|][iu][1248]|<U[1-9]\d{0,7})', 'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>|\d{1,18},|\d{1,18}(?:, \d{1,18}){1,31})\), \} *\n"
)
_ODD = (ValueError, LookupError, OverflowError, OSError, NotImplementedError, struct.error, zipfile.BadZipFile)
"""Exceptions that :mod:`zipfile` and the checks in this module raise for a malformed archive."""
_LAST_CODE_POINT = 0x10FFFF
_IN_64_BITS = 2**32 - 1
"""Value of a 32-bit size field if the actual size is in the zip64 extra field."""


def arrays_to_bytes(arrays: Mapping[str, np.ndarray]) -> memoryview:
    """Return arrays as the content of an ``.npz`` file that includes a digest of the whole file."""
    buffer = io.BytesIO()
    # Not numpy.savez: by default it pickles object arrays, and it cannot write a zip comment.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = _LABEL + b"0" * _DIGITS  # the comment's length is hashed too
        for name, array in arrays.items():
            # Only large members are zip64, so that small files have the same bytes as those of older versions.
            is_large = _size_of(np.asarray(array)) > zipfile.ZIP64_LIMIT
            with archive.open(zipfile.ZipInfo(f"{name}.npy", _EPOCH), "w", force_zip64=is_large) as entry:
                np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)
    content = buffer.getbuffer()  # the digest is filled in place, so a large checkpoint is in memory only once
    content[-_DIGITS:] = hashlib.sha256(content[:-_DIGITS]).hexdigest().encode()
    return content


def _size_of(array: np.ndarray) -> int:
    """Return the size of an array in NumPy's ``.npy`` format, in bytes."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return header.tell() + array.nbytes


def require_digest(file: BinaryIO, where: str) -> None:
    """Raise an error if a file does not end with a digest.

    Only the end of the file is read; the file's position is then set to the start.

    Args:
        file: an open file.
        where: the file's name, for the error message.

    Raises:
        DataError: the file does not end with a digest.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - len(_LABEL) - _DIGITS, 0))
    if file.read(len(_LABEL)) != _LABEL:
        raise DataError(_damaged(where, size))
    file.seek(0)


def has_digest(content: bytes | memoryview) -> bool:
    """Return whether a file's content ends with a digest, right or wrong, as written by :func:`arrays_to_bytes`."""
    return bytes(content[-_DIGITS - len(_LABEL) : -_DIGITS]) == _LABEL


def arrays_from_bytes(content: bytes | memoryview, where: str) -> dict[str, np.ndarray]:
    """Verify the output of :func:`arrays_to_bytes` and return its arrays.

    Args:
        content: content of an ``.npz`` file.
        where: the file's name, for the error message.

    Returns:
        Copies of the arrays, by name.

    Raises:
        DataError: the content is truncated or altered, or was not written by this module.
    """
    body, digest = content[:-_DIGITS], content[-_DIGITS:]
    if not has_digest(content) or hashlib.sha256(body).hexdigest().encode() != bytes(digest):
        raise DataError(_damaged(where, len(content)))
    try:
        return dict(_member_arrays(memoryview(content)))
    except _ODD as error:
        raise DataError(f"{where}: not a file that cnnjob wrote, although its checksum matches ({error})") from error


def _damaged(where: str, size: int) -> str:
    return f"{where}: damaged (its checksum does not match its {size:,} bytes)"


def _member_arrays(content: memoryview) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each member's name and array; the members must follow one another without gaps from the first byte."""
    names, position = set(), 0
    # BytesIO shares the memory of a bytes object but copies any other buffer; a checkpoint may be gigabytes in size.
    with zipfile.ZipFile(io.BytesIO(content.obj if isinstance(content.obj, bytes) else content)) as archive:
        for info in archive.infolist():
            start = _data_offset(content, info, position)
            position = start + info.file_size
            names.add(info.filename)
            yield info.filename.removesuffix(".npy"), array_from_bytes(content[start:position])
        if position != archive.start_dir or len(archive.comment) != len(_LABEL) + _DIGITS:
            raise ValueError("there is extra data between or after its arrays")
        if len(names) < len(archive.infolist()):  # zip allows this; a dict of arrays would silently keep only the last
            raise ValueError("two of its arrays have the same name")


def _data_offset(content: memoryview, info: zipfile.ZipInfo, position: int) -> int:
    """Return the offset of a member's data, after checking that this module could have written the member's headers."""
    # A zip file describes each member twice, in a local header and in the central directory. Readers differ in which
    # one they use, so the two must agree.
    header = _local_header(info)
    start, size = position + len(header), info.file_size
    told = (info.header_offset, info.flag_bits, info.compress_type, info.date_time)
    is_told_so = told == (position, 0, zipfile.ZIP_STORED, _EPOCH) and not info.comment
    has_extra = bool(info.extra) and max(position, size) <= zipfile.ZIP64_LIMIT
    if content[position:start] != header or not is_told_so or has_extra or not _NAME.fullmatch(info.filename):
        raise ValueError(f"not a plain array: {info.filename[:_SHOWN]!r}")
    if info.compress_size != size or start + size > len(content):
        raise ValueError(f"{info.filename}: its size is inconsistent with that of the file")
    if zlib.crc32(content[start : start + size]) != info.CRC:
        raise ValueError(f"{info.filename}: its checksum does not match")
    return start


def _local_header(info: zipfile.ZipInfo) -> bytes:
    """Return the local header that precedes a member's data; sizes above 2 GiB are in a zip64 field after the name."""
    size, name = info.file_size, info.filename.encode()
    is_large = size > zipfile.ZIP64_LIMIT
    version, shown, extra = (45, _IN_64_BITS, struct.pack("<2H2Q", 1, 16, size, size)) if is_large else (20, size, b"")
    head = (b"PK\3\4", version, 0, zipfile.ZIP_STORED, 0, _DATE, info.CRC, shown, shown, len(name), len(extra))
    return _LOCAL.pack(*head) + name + extra


def array_from_bytes(content: memoryview) -> np.ndarray:
    """Return the array stored in an ``.npy`` file.

    The file's header must declare exactly the size that the file has.

    Args:
        content: the content of the file, in NumPy's format.

    Returns:
        A copy of the array: integers, floating-point numbers or strings.

    Raises:
        ValueError: the content is not an array of one of these types, or its size does not match the header.
    """
    # Magic and version (8 bytes), header length (2 bytes, little endian), header, data. The header is a Python literal,
    # which numpy.load evaluates; the regular expression here allows only one spelling and a few types.
    start = len(_MAGIC) + 2 + int.from_bytes(content[len(_MAGIC) : len(_MAGIC) + 2], "little")
    header = _HEADER.fullmatch(bytes(content[len(_MAGIC) + 2 : start]))
    if bytes(content[: len(_MAGIC)]) != _MAGIC or not header:
        raise ValueError("not an array of numbers or text in NumPy's format")
    dtype = np.dtype(header["dtype"].decode())
    shape = tuple(map(int, re.findall(rb"\d+", header["shape"])))
    if math.prod(shape) * dtype.itemsize != len(content) - start:  # checked before memory of that size is allocated
        raise ValueError(f"{len(content) - start:,} bytes do not match an array of {dtype} with shape {shape}")
    if dtype.kind == "U":
        codes = np.frombuffer(content[start:], "<u4")  # NumPy stores text as UTF-32
        if codes.size and codes.max() > _LAST_CODE_POINT:
            raise ValueError("its text contains invalid code points")
    order: Literal["F", "C"] = "F" if header["fortran"] == b"True" else "C"
    # Copied, since a view would keep the whole file in memory and often be unaligned: members begin at any byte.
    return np.ndarray(shape, dtype, content, start, order=order).copy(order="K")


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, fence: Callable[[], None] = files.no_fence) -> None:
    """Write named arrays atomically to an ``.npz`` file that includes a digest of its content."""
    files.write_whole(path, arrays_to_bytes(arrays), fence=fence)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the named arrays in a file after verifying the digest of the whole file.

    Raises:
        DataError: the file is missing, truncated or altered, or was not written by :func:`write_arrays`.
    """
    with files.open_regular(path) as file:
        try:
            require_digest(file, str(path))  # so that a huge foreign file is not read into memory
            content = file.read(os.fstat(file.fileno()).st_size)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({files.reason_of(error)})") from error
    return arrays_from_bytes(content, str(path))
