"""Read the members of a plain or compressed tar archive in bounded memory, whatever sizes the archive states.

Python's tarfile keeps every header in memory and trusts the sizes in them, so headers are parsed here instead.

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

MOST_MEMBER_BYTES = 160 << 20  # CIFAR-100's training batch is 155 MB
_MOST_BYTES = 1 << 30  # maximum for a whole archive, decompressed; CIFAR's take 186 MB
_MOST_HEADERS = 10_000
_MOST_IMAGES = 20_000_000  # maximum number of headers if each image has a pax header and a member header
_MOST_HEADER_BYTES = 64 << 10
_MOST_DECODER_BYTES = 100 << 20  # `xz -9` takes 65 MB
TAR_BLOCK_BYTES = 512
"""Size of a tar header, and of the units in which members are stored."""
_READ_BYTES = 1 << 20
_DAMAGED = (EOFError, OSError, OverflowError, ValueError, lzma.LZMAError, zlib.error)
_CHECKSUM = slice(148, 156)
_FILES = b"0\0" + b"7"  # regular files in ustar and in the oldest tar formats, and contiguous files
_KINDS = {b"1": "link", b"2": "link", b"5": "folder"}  # hard links and symbolic links
_WITHOUT_CONTENT = b"123456"  # links, devices, folders and pipes, whatever size they state
_MAGIC = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"]\0": "xz"}


def read_members(archive: Path, wanted: list[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the requested members of an archive in the order in which they are stored.

    Args:
        archive: a tar archive, plain or compressed with gzip, bzip2 or xz.
        wanted: file names of the members to read, without their folders.

    Yields:
        Name and content of each requested member that the archive contains.

    Raises:
        DataError: the archive is damaged, or exceeds a limit on its size or structure.
    """
    try:
        with open_regular(archive) as file:
            yield from _select_members(_LimitedStream(_open_decoder(file)), wanted)
    except _DAMAGED as error:
        raise DataError(f"{archive}: damaged, or not a tar archive ({error}). Copy or download it again") from error


def _select_members(unpacked: "_LimitedStream", wanted: list[str]) -> Iterator[tuple[str, bytes]]:
    read: set[str] = set()
    for member in _iterate_members(unpacked):
        name = PurePosixPath(member.name).name
        if not member.is_file or name not in wanted:
            unpacked.skip(member.size)
            continue
        if name in read:
            raise ValueError(f"it contains {name} twice")
        read.add(name)
        yield name, unpacked.content(member.size)


def _open_decoder(file: io.BufferedReader) -> io.BufferedIOBase:
    # The compression is detected from the content: a pinned archive from the user may have any name.
    kind = _MAGIC.get(file.peek(2)[:2])
    if kind == "gzip":
        return gzip.GzipFile(fileobj=file)
    if kind == "bzip2":
        return bz2.BZ2File(file)
    return io.BufferedReader(_XzReader(file), _READ_BYTES) if kind == "xz" else file


class _XzReader(io.RawIOBase):
    """A decompressor with a memory limit for an xz file; Python's LZMAFile does not offer one."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file, self._decoder = file, lzma.LZMADecompressor(memlimit=_MOST_DECODER_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override] # it is one
        content, packed = b"", b""
        while not content:
            if self._decoder.eof:  # another stream may follow after zero padding
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
    """Open a tar archive; if it is compressed, decompress it into an unnamed temporary file first.

    Raises:
        DataError: the archive is damaged, or there is not enough space to decompress it.
    """
    file = open_regular(archive)
    stream = _open_decoder(file)
    if stream is file:
        return file
    with file:
        temporary = tempfile.TemporaryFile()  # noqa: SIM115 - the caller keeps it
        try:
            shutil.copyfileobj(stream, temporary, _READ_BYTES)
        except _DAMAGED as error:
            temporary.close()
            reason = f"not enough space in {tempfile.gettempdir()} to decompress it"
            is_full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
            advice = "Set TMPDIR to a folder with more space" if is_full else "Copy or download it again"
            raise DataError(f"{archive}: {reason if is_full else f'damaged ({error})'}. {advice}") from error
    return temporary


def is_tar_header(block: bytes) -> bool:
    """Return whether a file's first 512 bytes are a tar header.

    A header in the oldest format can be recognised only by its checksum.
    """
    try:
        return bool(_parse_tar_header(block).name)
    except _DAMAGED:
        return False


def tar_members(archive: Path, file: BinaryIO) -> Iterator[tuple[str, str, int, int]]:
    """Yield the files, folders and links in a decompressed tar archive.

    Args:
        archive: path of the archive, for messages.
        file: decompressed content of the archive.

    Yields:
        Each member's name, its type (``file``, ``folder`` or ``link``), and the position and size of its content.

    Raises:
        DataError: the archive is damaged.
    """
    size = file.seek(0, io.SEEK_END)
    try:
        # Without this check, an archive truncated between two members would only appear to have fewer members.
        _require_end(file, size)
        unpacked = _LimitedStream(file, size)
        for member in _iterate_members(unpacked, _MOST_IMAGES):
            position = file.tell()
            _require_within(position + member.size, size)
            if kind := "file" if member.is_file else _KINDS.get(member.kind):
                yield member.name, kind, position, member.size
            file.seek(position + member.size + -member.size % TAR_BLOCK_BYTES)
    except _DAMAGED as error:
        raise DataError(f"{archive}: damaged, or not a tar archive ({error}). Copy or download it again") from error


def _require_end(file: BinaryIO, size: int) -> None:
    file.seek(max(0, size - TAR_BLOCK_BYTES))
    if file.read(TAR_BLOCK_BYTES).strip(b"\0"):
        raise EOFError("the end of the archive is missing")
    file.seek(0)


def _require_within(end: int, size: int) -> None:
    if end > size:
        raise EOFError("it ends within a member")


class _LimitedStream:
    """The stream of an archive's decompressed content, limited in size."""

    def __init__(self, stream: IO[bytes] | io.BufferedIOBase, most_bytes: int = _MOST_BYTES) -> None:
        self._stream, self._left, self._most = stream, most_bytes, most_bytes

    def read(self, size: int) -> bytes:
        """Read ``size`` bytes, or fewer at the end of the archive."""
        content = self._stream.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise ValueError(f"it decompresses to more than {self._most:,} bytes")
        return content

    def pieces(self, size: int) -> Iterator[bytes]:
        """Yield ``size`` bytes in pieces, and skip the padding of the last 512-byte block."""
        filled = size + -size % TAR_BLOCK_BYTES
        for start in range(0, filled, _READ_BYTES):
            piece = self.read(min(_READ_BYTES, filled - start))
            if len(piece) < min(_READ_BYTES, filled - start):
                raise EOFError("it ends within a member")
            yield piece[: max(0, size - start)]

    def content(self, size: int) -> bytes:
        """Read a member's content."""
        if size > MOST_MEMBER_BYTES:
            raise ValueError(f"a member has {size:,} bytes, more than the maximum of {MOST_MEMBER_BYTES:,}")
        content = io.BytesIO()  # grows with the bytes actually present, not with the size stated in the header
        for piece in self.pieces(size):
            content.write(piece)
        return content.getvalue()

    def skip(self, size: int) -> None:
        """Skip a member's content by reading it, since a compressed stream is not seekable."""
        for _ in self.pieces(size):
            pass

    def drain(self) -> None:
        """Read to the end of the stream, so that the checksum of a compressed file is verified."""
        while self.read(_READ_BYTES):
            pass


@dataclass(frozen=True)
class _Member:
    """The name, type and size of a member, read from its header."""

    name: str
    kind: bytes
    size: int

    @property
    def is_file(self) -> bool:
        return self.kind in _FILES


def _iterate_members(unpacked: _LimitedStream, most: int = _MOST_HEADERS) -> Iterator[_Member]:
    """Yield the members; the caller must read or skip a member's content before requesting the next member."""
    extended: dict[str, str] = {}
    for _ in range(most):
        head = unpacked.read(TAR_BLOCK_BYTES)
        if not head.strip(b"\0"):  # the archive ends with a block of zeros, or at the end of the file
            unpacked.drain()
            return
        member = _parse_tar_header(head)
        if member.kind in b"xgLK":
            if member.size > _MOST_HEADER_BYTES:
                raise ValueError(f"a header has {member.size:,} bytes, more than the maximum of {_MOST_HEADER_BYTES:,}")
            extended |= _parse_extension(member.kind, unpacked.content(member.size))
            continue
        if member.kind == b"S" or any(key.startswith("GNU.sparse") for key in extended):
            raise ValueError("it contains a sparse file")
        size = 0 if member.kind in _WITHOUT_CONTENT else int(extended.get("size", member.size))
        yield _Member(extended.get("path", member.name), member.kind, size)
        extended = {}
    raise ValueError(f"it has more than {most:,} headers")


def _parse_tar_header(head: bytes) -> _Member:
    """Parse a 512-byte header block."""
    if len(head) < TAR_BLOCK_BYTES:
        raise EOFError("it ends within a header")
    # The checksum is the sum of the block's bytes, with the checksum field itself counted as eight spaces.
    blanked = head[: _CHECKSUM.start] + b" " * 8 + head[_CHECKSUM.stop :]
    if _parse_number(head[_CHECKSUM]) != sum(blanked):
        raise ValueError("the checksum of a header does not match")
    name, kind, size = _decode_field(head[:100]), head[156:157], _parse_number(head[124:136])
    prefix = _decode_field(head[345:500]) if head[257:263] == b"ustar\0" else ""
    return _Member(f"{prefix}/{name}" if prefix else name, kind, size)


def _decode_field(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode(errors="surrogateescape")


def _parse_number(field: bytes) -> int:
    """Parse a number in octal or in GNU's base-256 encoding."""
    if field[0] == 0x80:  # noqa: PLR2004 - marks a base-256 number
        return int.from_bytes(field[1:])
    digits = field.strip(b" \0")
    if not digits.isdigit():
        raise ValueError(f"a header contains the invalid number {field[:12]!r}")
    return int(digits, 8)


def _parse_extension(kind: bytes, content: bytes) -> dict[str, str]:
    """Return the keywords of a pax header; for a GNU header with a long name, return the name under the key ``path``.

    Global pax headers are ignored.

    Raises:
        ValueError: the header is damaged.
    """
    if kind == b"L":
        return {"path": _decode_field(content)}
    keywords = {}
    while kind == b"x" and content:
        # A record is "LENGTH KEY=VALUE\n", and LENGTH counts the whole record.
        length = content.split(b" ", 1)[0]
        if not length.isdigit() or not len(length) + 1 < int(length[:9]) <= len(content):
            raise ValueError("the record lengths in a pax header are inconsistent")
        record, content = content[len(length) + 1 : int(length)], content[int(length) :]
        key, _, value = record.rstrip(b"\n").decode(errors="surrogateescape").partition("=")
        keywords[key] = value
    size = keywords.get("size", "0")
    if not size.isascii() or not size.isdigit() or len(size) > len(str(1 << 64)):
        raise ValueError(f"a pax header states the invalid size {size[:20]!r}")
    return keywords
