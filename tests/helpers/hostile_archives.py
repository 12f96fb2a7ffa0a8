"""Small archives that take gigabytes, or for ever, where headers are believed."""

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zlib
from collections.abc import Iterator

MEGABYTES = 600
_ZEROS = lzma.compress(bytes(16 << 20), preset=0)


def header(name: str, kind: bytes, size: int) -> bytes:
    """A header of 512 bytes; its checksum fits."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.size = kind, size
    return entry.tobuf(tarfile.GNU_FORMAT)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def pax(**keywords: str) -> bytes:
    """A pax header, whatever its keywords."""
    content = b""
    for key, value in keywords.items():
        record = f" {key}={value}\n".encode()
        length = len(record) + len(str(len(record) + 3))
        content += str(length).encode() + record
    return header("pax", b"x", len(content)) + padded(content)


def large(kind: bytes) -> bytes:
    """A header of hundreds of MB, in an xz file of 100 KB."""
    return lzma.compress(header("long", kind, MEGABYTES << 20), preset=0) + _ZEROS * (MEGABYTES >> 4)


def sparse() -> bytes:
    """A map of holes in a header that is continued without end."""
    head = bytearray(header("sparse", b"S", 0))
    head[482] = 1
    more = (b"00000000001\0" * 42 + b"\1").ljust(512, b"\0")
    return gzip.compress(fitting(bytes(head)) + more * 100_000, 1)


def fitting(head: bytes) -> bytes:
    """A header with the checksum that it should have."""
    return head[:148] + b"%06o\0 " % sum(head[:148] + b" " * 8 + head[156:512]) + head[156:]


def large_dictionary() -> bytes:
    """An xz file that wants 4 GB to be unpacked."""
    content = bytearray(lzma.compress(header("a", b"0", 0) + bytes(1024), preset=0))
    start, size = 12, 4 * (content[12] + 1)
    content[start + 4] = 40  # 2^32 - 1 bytes
    content[start + size - 4 : start + size] = struct.pack("<I", zlib.crc32(content[start : start + size - 4]))
    return bytes(content)


def many() -> bytes:
    return lzma.compress(header("empty", b"0", 0) * 200_000, preset=0)


def hostile_archives() -> Iterator[tuple[str, str, bytes]]:
    """Name, what is said of it, and content."""
    yield "pax.tar.xz", "a header has 629,145,600 bytes", large(b"x")
    yield "global.tar.xz", "a header has 629,145,600 bytes", large(b"g")
    yield "name.tar.xz", "a header has 629,145,600 bytes", large(b"L")
    yield "link.tar.xz", "a header has 629,145,600 bytes", large(b"K")
    yield "many.tar.xz", "more than 10,000 headers", many()
    yield "sparse.tar.gz", "a sparse file", sparse()
    keywords = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    yield "pax-sparse.tar", "a sparse file", pax(**keywords) + header("a", b"0", 1 << 20) + bytes(1 << 20)
    yield "dictionary.tar.xz", "Memory usage limit exceeded", large_dictionary()
    yield "huge.tar", "a member has 1,099,511,627,776 bytes", header("data_batch_1", b"0", 1 << 40)
    yield "pax-size.tar", "a member has 9", pax(size="9" * 19) + header("data_batch_1", b"0", 0)
    yield (
        "pax-digits.tar",
        "a pax header states the invalid size",
        pax(size="9" * 5000) + header("data_batch_1", b"0", 0),
    )
    yield "skipped.tar", "it ends within a member", header("other", b"0", 1 << 40)
    yield (
        "negative.tar",
        "a header contains the invalid number",
        fitting(header("a", b"0", 0)[:124] + b"\xff" * 12 + bytes(376)),
    )
    yield "lengths.tar", "lengths in a pax header are inconsistent", header("pax", b"x", 9) + padded(b"99 path=a")
    yield "cut.tar", "it ends within a header", header("a", b"0", 0) + header("b", b"0", 0)[:100]
    yield "sum.tar", "checksum of a header does not match", b"b" + header("a", b"0", 0)[1:]


def usual_archives() -> list[bytes]:
    """The same two members in every form and packing that is read."""
    plain = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
            for name in ("a", "b"):
                entry = tarfile.TarInfo("/".join(["folder"] * 12 + [name]))
                entry.size = 700
                tar.addfile(entry, io.BytesIO(name.encode() * 700))
        plain.append(buffer.getvalue())
    return [*plain, gzip.compress(plain[0]), lzma.compress(plain[1]), bz2.compress(plain[2])]
