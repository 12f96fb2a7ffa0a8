"""Limits on the memory and the time that decoding an image takes, whatever its file contains."""

import ctypes
import io
import resource
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image, TiffImagePlugin, _imaging
from PIL.ImageFile import ImageFile

_MOST_PARTS = 20_000
"""Maximum number of strips or tiles in a TIFF file."""
MOST_BYTES = 400_000_000
"""Maximum memory for decoding, in bytes; a file of a few MB can require gigabytes even if it has few pixels."""
MOST_SECONDS = 10.0
"""Maximum CPU time for decoding, in seconds; most images of 32 million pixels take less than a second."""
_READ_BYTES = 64 << 10
"""Number of bytes read at a time from a PPM file."""
_SCAN_BYTES = 1 << 10
"""Number of bytes read at a time from a progressive JPEG, which may have a hundred scans over all pixels."""
_BIG_TIFF = b"+"  # byte 2 of a BigTIFF file, which Pillow also checks; the header has 16 bytes instead of 8
UNCOMPRESSED = 1
"""Value of the TIFF Compression tag for uncompressed pixels."""
_LIMITED: list[bool] = []
"""Not empty while the limits set by :func:`decoding_limits` are in force."""


@contextmanager
def decoding_limits() -> Iterator[None]:
    """Limit the memory that this process may allocate while it decodes an image, and silence Pillow's warnings.

    A caller that reads many small images should enter this context once for all of them, since entering it takes a
    noticeable fraction of the time needed to read one image. Entering it again while it is active has no effect. The
    limit applies to the whole process, so only one thread may decode.
    """
    if _LIMITED:
        yield
        return
    # Field 5 is data and stack in pages. RLIMIT_DATA also covers malloc's private mappings since Linux 4.7.
    pages = int(Path("/proc/self/statm").read_bytes().split()[5])
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit = pages * resource.getpagesize() + MOST_BYTES
    if before[0] in range(limit):  # a lower limit is in force; RLIM_INFINITY is negative
        limit = before[0]
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    _LIMITED.append(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as those about a corrupt EXIF block
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        _LIMITED.clear()
        resource.setrlimit(resource.RLIMIT_DATA, before)


def decoding_is_limited() -> bool:
    """Return whether the limits set by :func:`decoding_limits` are in force."""
    return bool(_LIMITED)


class DecodingTimeError(Exception):
    """The error raised when decoding takes longer than allowed."""


class TimedReader(io.BufferedReader):
    """A reader that raises an error after a time limit; the time is checked on each of Pillow's many small reads."""

    def __init__(self, raw: io.RawIOBase, most_seconds: float) -> None:
        """Wrap a file; the time limit, in seconds of CPU time, counts from now."""
        super().__init__(raw)
        self.most_bytes: int | None = None
        # CPU time, so that no image is refused because of a slow file system or a busy machine.
        self._end = time.thread_time() + most_seconds

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to ``size`` or ``most_bytes`` bytes, whichever is less."""
        if time.thread_time() > self._end:
            raise DecodingTimeError
        if self.most_bytes is not None and size is not None:
            size = self.most_bytes if size < 0 else min(size, self.most_bytes)
        return super().read(size)


def read_in_small_parts(image: ImageFile, file: TimedReader) -> None:
    """Make Pillow read less at a time in formats that are slow to decode, so that the time limit takes effect.

    These formats are progressive JPEG, in which every scan covers all pixels, and PPM, which Pillow decodes in Python.
    """
    if "progressive" in image.info:
        image.decodermaxblock = _SCAN_BYTES
    if image.format == "PPM":
        file.most_bytes = _READ_BYTES


def require_bounded_parts(file: BinaryIO) -> None:
    """Refuse a TIFF with too many or overlapping strips or tiles, since each is decoded even if the image is small.

    Raises:
        ValueError: there are too many strips or tiles, or they overlap or do not state their sizes.
    """
    # Only the first directory is read, with Pillow's own parser, which does not list the strips.
    head = file.read(8)
    head += file.read(8) if head[2:3] == _BIG_TIFF else b""
    file.seek(0)
    if head.startswith(tuple(TiffImagePlugin.PREFIXES)):
        directory = TiffImagePlugin.ImageFileDirectory_v2(head)
        file.seek(directory.next)
        directory.load(file)
        file.seek(0)
        for tag in (TiffImagePlugin.STRIPOFFSETS, TiffImagePlugin.TILEOFFSETS):
            parts = directory.get(tag, ())
            if isinstance(parts, tuple | bytes | str) and len(parts) > _MOST_PARTS:
                raise ValueError(f"it has {len(parts):,} strips or tiles; the maximum is {_MOST_PARTS:,}")
        if directory.get(TiffImagePlugin.COMPRESSION, UNCOMPRESSED) != UNCOMPRESSED:
            _require_apart(directory, file.seek(0, io.SEEK_END))
            _silence_libtiff()
            file.seek(0)


def _require_apart(directory: TiffImagePlugin.ImageFileDirectory_v2, file_bytes: int) -> None:
    """Refuse overlapping strips or tiles: they exceed the file's size in total, and could take very long to decode."""
    sizes = [directory.get(tag) for tag in (TiffImagePlugin.STRIPBYTECOUNTS, TiffImagePlugin.TILEBYTECOUNTS)]
    counts = [size for size in sizes if size is not None]
    if not counts or not all(isinstance(size, tuple) and all(map(_is_count, size)) for size in counts):
        raise ValueError("it does not state the sizes of its strips or tiles")
    if (most := max(map(sum, counts))) > file_bytes:
        raise ValueError(f"its strips or tiles overlap: they total {most:,} bytes in a file of {file_bytes:,} bytes")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 0


@cache
def _silence_libtiff() -> None:
    """Stop libtiff, which Pillow uses for compressed TIFF files, from printing to stderr.

    Pillow still raises an exception for every error.
    """
    library = ctypes.CDLL(_imaging.__file__)
    for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        if set_handler := getattr(library, name, None):  # missing if Pillow was built without libtiff
            set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            set_handler(None)
