"""Read members of a tar archive, plain or compressed, in bounded memory whatever the archive claims.

Python's tarfile keeps every header and reads as much of one as it claims to have, so headers are parsed here.

References:
    POSIX.1-2017, "pax Interchange Format" and "ustar Interchange Format"; GNU tar manual, "Basic Tar Format".
"""

import bz2
import errno
import gzip
import io
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from cnnjob.errors import DataError
from cnnjob.files import open_regular

MOST_MEMBER_BYTES = 160 << 20  # CIFAR-100's training batch has 155 MB
_MOST_BYTES = 1 << 30  # a whole archive, unpacked; CIFAR's have 186 MB
_MOST_HEADERS = 10_000
_MOST_IMAGES = 20_000_000  # headers of an archive of images, a pax header and the member's own for each
_MOST_HEADER_BYTES = 64 << 10
_MOST_DECODER_BYTES = 100 << 20  # `xz -9` takes 65 MB
_BLOCK = 512
_READ_BYTES = 1 << 20
_DAMAGED = (EOFError, OSError, OverflowError, ValueError, lzma.LZMAError, zlib.error)
_CHECKSUM = slice(148, 156)
_FILES = b"0\0" + b"7"  # regular files: of ustar, of the oldest tars, and contiguous ones
_FOLDER = b"5"
_WITHOUT_CONTENT = b"123456"  # links, devices, folders and pipes, whatever size they state
_MAGIC = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"]\0": "xz"}


def read_members(archive: Path, wanted: list[str]) -> Iterator[tuple[str, bytes]]:
    """Read members of an archive, each at most once, in the archive's order.

    Args:
        archive: a tar archive, plain or compressed by gzip, bzip2 or xz.
        wanted: file names without folders.

    Yields:
        Name and content of each wanted member in the archive.

    Raises:
        DataError: the archive is damaged, or exceeds a limit on its size or structure.
    """
    try:
        with open_regular(archive) as file:
            yield from _wanted_of(_Unpacked(_decoder(file)), wanted)
    except _DAMAGED as error:
        raise DataError(f"{archive}: damaged, or not a tar archive ({error}). Copy or download it again") from error


def _wanted_of(unpacked: "_Unpacked", wanted: list[str]) -> Iterator[tuple[str, bytes]]:
    read: set[str] = set()
    for member in _headers(unpacked):
        name = PurePosixPath(member.name).name
        if not member.is_file or name not in wanted:
            unpacked.skip(member.size)
            continue
        if name in read:
            raise ValueError(f"{name} is in it twice")
        read.add(name)
        yield name, unpacked.content(member.size)


def _decoder(file: io.BufferedReader) -> io.BufferedIOBase:
    # By content: the pinned archive of a user may have any name.
    kind = _MAGIC.get(file.peek(2)[:2])
    if kind == "gzip":
        return gzip.GzipFile(fileobj=file)
    if kind == "bzip2":
        return bz2.BZ2File(file)
    return io.BufferedReader(_Xz(file), _READ_BYTES) if kind == "xz" else file


class _Xz(io.RawIOBase):
    """Decompressor of an xz file with a memory limit, which Python's LZMAFile does not offer."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file, self._decoder = file, lzma.LZMADecompressor(memlimit=_MOST_DECODER_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override] # it is one
        content, packed = b"", b""
        while not content:
            if self._decoder.eof:  # another stream may follow after padding of zeros
                packed = self._decoder.unused_data.lstrip(b"\0") or self._after_zeros()
                if not packed:
                    return 0
                self._decoder = lzma.LZMADecompressor(memlimit=_MOST_DECODER_BYTES)
            elif self._decoder.needs_input:
                packed = self._file.read(_READ_BYTES)
                if not packed:
                    raise EOFError("it ends within an xz stream")
            content = self._decoder.decompress(packed, len(buffer))
            packed = b""
        buffer[: len(content)] = content
        return len(content)

    def _after_zeros(self) -> bytes:
        while packed := self._file.read(_READ_BYTES):
            if packed := packed.lstrip(b"\0"):
                break
        return packed


def decompressed_file(archive: Path) -> BinaryIO:
    """Open a tar archive, or decompress it into a temporary file without a name.

    Raises:
        DataError: it is damaged, or there is no space for it.
    """
    file = open_regular(archive)
    stream = _decoder(file)
    if stream is file:
        return file
    with file:
        temporary = tempfile.TemporaryFile()  # noqa: SIM115 - the caller keeps it
        try:
            shutil.copyfileobj(stream, temporary, _READ_BYTES)
        except _DAMAGED as error:
            temporary.close()
            reason = f"no space in {tempfile.gettempdir()} to decompress it"
            is_full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
            advice = "Set TMPDIR to a folder with space" if is_full else "Copy or download it again"
            raise DataError(f"{archive}: {reason if is_full else f'damaged ({error})'}. {advice}") from error
    return temporary


def tar_members(archive: Path, file: BinaryIO) -> Iterator[tuple[str, bool, int, int]]:
    """List the files and folders of a decompressed tar archive.

    Args:
        archive: the archive, for messages.
        file: its decompressed content.

    Yields:
        Name of a file or folder, whether it is a folder, position and size of its content.

    Raises:
        DataError: the archive is damaged.
    """
    size = file.seek(0, io.SEEK_END)
    try:
        # Without its end, an archive that was cut between two members would only seem to hold fewer.
        _require_end(file, size)
        unpacked = _Unpacked(file, size)
        for member in _headers(unpacked, _MOST_IMAGES):
            position = file.tell()
            _require_within(position + member.size, size)
            if member.is_file or member.kind == _FOLDER:
                yield member.name, member.kind == _FOLDER, position, member.size
            file.seek(position + member.size + -member.size % _BLOCK)
    except _DAMAGED as error:
        raise DataError(f"{archive}: damaged, or not a tar archive ({error}). Copy or download it again") from error


def _require_end(file: BinaryIO, size: int) -> None:
    file.seek(max(0, size - _BLOCK))
    if file.read(_BLOCK).strip(b"\0"):
        raise EOFError("its end is missing")
    file.seek(0)


def _require_within(end: int, size: int) -> None:
    if end > size:
        raise EOFError("it ends within a member")


class _Unpacked:
    """Decompressed bytes of an archive, with a limit on their number."""

    def __init__(self, stream: IO[bytes] | io.BufferedIOBase, most_bytes: int = _MOST_BYTES) -> None:
        self._stream, self._left, self._most = stream, most_bytes, most_bytes

    def read(self, size: int) -> bytes:
        """Read ``size`` bytes; fewer at the end of the archive."""
        content = self._stream.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise ValueError(f"it unpacks to more than {self._most:,} bytes")
        return content

    def pieces(self, size: int) -> Iterator[bytes]:
        """Read ``size`` bytes in parts, and the padding of their last block of 512 bytes."""
        filled = size + -size % _BLOCK
        for start in range(0, filled, _READ_BYTES):
            piece = self.read(min(_READ_BYTES, filled - start))
            if len(piece) < min(_READ_BYTES, filled - start):
                raise EOFError("it ends within a member")
            yield piece[: max(0, size - start)]

    def content(self, size: int) -> bytes:
        """Read a member's content."""
        if size > MOST_MEMBER_BYTES:
            raise ValueError(f"a member of {size:,} bytes, the most is {MOST_MEMBER_BYTES:,}")
        content = io.BytesIO()  # grows with what is really there, not with the size that a header claims
        for piece in self.pieces(size):
            content.write(piece)
        return content.getvalue()

    def skip(self, size: int) -> None:
        """Read past a member's content: a compressed stream cannot seek."""
        for _ in self.pieces(size):
            pass

    def drain(self) -> None:
        """Read to the end of the stream, so that the checksum of a compressed file is verified."""
        while self.read(_READ_BYTES):
            pass


@dataclass(frozen=True)
class _Member:
    """Name, type and size of a member, from its header."""

    name: str
    kind: bytes
    size: int

    @property
    def is_file(self) -> bool:
        return self.kind in _FILES


def _headers(unpacked: _Unpacked, most: int = _MOST_HEADERS) -> Iterator[_Member]:
    """Yield the members; the caller must read or skip a member's content before it asks for the next."""
    extended: dict[str, str] = {}
    for _ in range(most):
        head = unpacked.read(_BLOCK)
        if not head.strip(b"\0"):  # a block of zeros, or nothing, ends the archive
            unpacked.drain()
            return
        member = _parsed(head)
        if member.kind in b"xgLK":
            if member.size > _MOST_HEADER_BYTES:
                raise ValueError(f"a header of {member.size:,} bytes, the most is {_MOST_HEADER_BYTES:,}")
            extended |= _extension(member.kind, unpacked.content(member.size))
            continue
        if member.kind == b"S" or any(key.startswith("GNU.sparse") for key in extended):
            raise ValueError("a sparse member")
        size = 0 if member.kind in _WITHOUT_CONTENT else int(extended.get("size", member.size))
        yield _Member(extended.get("path", member.name), member.kind, size)
        extended = {}
    raise ValueError(f"more than {most:,} headers")


def _parsed(head: bytes) -> _Member:
    """Parse a header block of 512 bytes."""
    if len(head) < _BLOCK:
        raise EOFError("it ends within a header")
    # The checksum is the sum of the block's bytes, with its own field counted as eight spaces.
    blanked = head[: _CHECKSUM.start] + b" " * 8 + head[_CHECKSUM.stop :]
    if _number(head[_CHECKSUM]) != sum(blanked):
        raise ValueError("a header whose checksum does not fit")
    name, kind, size = _decode_field(head[:100]), head[156:157], _number(head[124:136])
    prefix = _decode_field(head[345:500]) if head[257:263] == b"ustar\0" else ""
    return _Member(f"{prefix}/{name}" if prefix else name, kind, size)


def _decode_field(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode(errors="surrogateescape")


def _number(field: bytes) -> int:
    """Parse a number in octal, or in GNU's base 256."""
    if field[0] == 0x80:  # noqa: PLR2004 - the mark of a base-256 number
        return int.from_bytes(field[1:])
    digits = field.strip(b" \0")
    if not digits.isdigit():
        raise ValueError(f"a header whose number is {field[:12]!r}")
    return int(digits, 8)


def _extension(kind: bytes, content: bytes) -> dict[str, str]:
    """Return the keywords of a pax header, or GNU's long name as ``path``; global pax headers are ignored."""
    if kind == b"L":
        return {"path": _decode_field(content)}
    keywords = {}
    while kind == b"x" and content:
        # A record is "LENGTH KEY=VALUE\n", and LENGTH counts the whole record.
        length = content.split(b" ", 1)[0]
        if not length.isdigit() or not len(length) + 1 < int(length[:9]) <= len(content):
            raise ValueError("a pax header whose lengths do not fit")
        record, content = content[len(length) + 1 : int(length)], content[int(length) :]
        key, _, value = record.rstrip(b"\n").decode(errors="surrogateescape").partition("=")
        keywords[key] = value
    size = keywords.get("size", "0")
    if not size.isascii() or not size.isdigit() or len(size) > len(str(1 << 64)):
        raise ValueError(f"a pax header of the size {size[:20]!r}")
    return keywords
