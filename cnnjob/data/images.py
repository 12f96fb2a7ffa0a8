"""Read the pixels of an image file, in bounded memory and time; `prepare` and `predict` share this code.

Only common formats are read: Pillow starts programs for others (EPS: Ghostscript) or loads rarely used code. Of an
animation or a file of several pages the first image is read; transparency is dropped; the EXIF orientation is applied.
"""

import io
import re
import resource
import struct
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from cnnjob import files
from cnnjob.errors import DataError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_MOST_PIXELS = 32_000_000  # 128 MB in Pillow, twice that while it is turned or converted
_BIG_TIFF = b"+"  # at byte 2, where Pillow looks for it too: the header then has 16 bytes instead of 8
_RAW = 1
"""Value of the TIFF tag Compression for uncompressed pixels."""
_MOST_PARTS = 20_000
"""Maximum number of strips or tiles in a TIFF."""
_MOST_BYTES = 400_000_000
"""Maximum memory for decoding: a file of a few MB can ask for gigabytes without having many pixels."""
MOST_SECONDS = 10.0
"""Maximum processor time for decoding; most images of 32 million pixels take less than a second."""
_READ_BYTES = 64 << 10
"""Bytes of a PPM that are read at a time."""
_SCAN_BYTES = 1 << 10
"""Bytes of a progressive JPEG read at a time: up to a hundred scans, each of which passes over all pixels."""
_GREY = frozenset({"1", "L", "LA", "La"})
_COLOUR = frozenset({"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})
_MOST_BYTE = 255
_BITS = 8
_WIDE = re.compile(r";(16|32)[BLN]")  # with a byte order; plain BGR;16 has 16 bits for all three channels
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_UNREADABLE = (AttributeError, EOFError, IndexError, KeyError, MemoryError, OSError, OverflowError, RuntimeError,
               SyntaxError, TypeError, ValueError, ZeroDivisionError, struct.error, zlib.error,
               Image.DecompressionBombError, Image.DecompressionBombWarning)  # fmt: skip


class Header(NamedTuple):
    """Size and kind of an image, read from its header."""

    height: int
    """Height of the upright image, in pixels, after the EXIF orientation."""
    width: int
    """Width of the upright image, in pixels."""
    is_grey: bool
    """True for images without colour channels."""


class _TooLongError(Exception):
    """Decoding takes longer than allowed."""


class _TimedReader(io.BufferedReader):
    """A file that refuses reads after a time limit, which works because Pillow reads most formats in small parts."""

    def __init__(self, raw: io.RawIOBase, most_seconds: float) -> None:
        super().__init__(raw)
        self.most_bytes: int | None = None
        # Processor time: a slow file system or a busy machine makes no image unusable.
        self._end = time.thread_time() + most_seconds

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to ``size`` bytes, or up to ``most_bytes`` if that is less."""
        if time.thread_time() > self._end:
            raise _TooLongError
        if self.most_bytes is not None and size is not None:
            size = self.most_bytes if size < 0 else min(size, self.most_bytes)
        return super().read(size)


def header(path: Path, *, most_seconds: float = MOST_SECONDS) -> Header:
    """Read an image's header, without its pixels.

    Args:
        path: the file.
        most_seconds: maximum processor time, in seconds.

    Returns:
        The image's size and whether it is grey.

    Raises:
        DataError: the file is not an image, or not a usable one.
    """
    with _opened(path, most_seconds) as image:
        return _header(image)


def pixels(
    path: Path, shape: tuple[int, int, int], *, most_seconds: float = MOST_SECONDS
) -> tuple[np.ndarray[Any, Any], Header]:
    """Read an image's pixels: upright, scaled to cover the shape, and cropped around the centre.

    Args:
        path: the file.
        shape: (H, W, C) of the result; C is 1 or 3.
        most_seconds: maximum processor time, in seconds.

    Returns:
        The pixels (H, W, C) uint8, and the image's header.

    Raises:
        DataError: the file is not an image, not a usable one, or cannot be decoded.
    """
    height, width, channels = shape
    mode = "L" if channels == 1 else "RGB"
    with _opened(path, most_seconds) as opened:
        found = _header(opened)
        ImageOps.exif_transpose(opened, in_place=True)
        image = opened if opened.mode == mode else opened.convert(mode)
        if image.size != (width, height):
            image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        return np.array(image, np.uint8).reshape(shape), found


def _header(image: Image.Image) -> Header:
    turned = (
        image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation) in _TURNED
    )  # Pillow has turned a TIFF's size
    height, width = (image.width, image.height) if turned else (image.height, image.width)
    return Header(height, width, image.mode in _GREY)


@contextmanager
def _opened(path: Path, most_seconds: float) -> Iterator[Image.Image]:
    """Open an image with limits on memory and time, and check its header; errors of Pillow become a DataError."""
    try:
        with warnings.catch_warnings(), _memory_bounded(), _opened_file(path, most_seconds) as file:
            warnings.simplefilter("ignore")  # such as those of a corrupt EXIF block
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            _require_bounded_parts(file)  # before Pillow: opening a TIFF already lists all of its strips
            with Image.open(file, formats=FORMATS) as image:
                _require_usable(image)
                _read_in_small_parts(image, file)
                yield image
    except UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise DataError(f"{path}: not an image of a known format (known are {known}). Convert or remove it") from error
    except _TooLongError:
        raise DataError(f"{path}: takes more than {most_seconds:g} s to decode. Convert or remove it") from None
    except MemoryError:
        raise DataError(
            f"{path}: takes more than {_MOST_BYTES // 10**6} MB of memory to decode. Convert or remove it"
        ) from None
    except _UNREADABLE as error:
        raise DataError(f"{path}: not a usable image, {error}. Repair, convert or remove it") from error


def _opened_file(path: Path, most_seconds: float) -> _TimedReader:
    return _TimedReader(files.open_regular(path).detach(), most_seconds)


def _read_in_small_parts(image: ImageFile, file: _TimedReader) -> None:
    """Make Pillow read little at a time where much time passes between reads, so that the time limit is noticed.

    That is a progressive JPEG, whose every scan passes over all pixels, and a PPM, which Pillow decodes in Python.
    """
    if "progressive" in image.info:
        image.decodermaxblock = _SCAN_BYTES
    if image.format == "PPM":
        file.most_bytes = _READ_BYTES


@contextmanager
def _memory_bounded() -> Iterator[None]:
    """Limit the growth of this process to the memory that an image may take."""
    # Field 5 is data and stack in pages. RLIMIT_DATA also covers malloc's private mappings since Linux 4.7.
    pages = int(Path("/proc/self/statm").read_bytes().split()[5])
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit = pages * resource.getpagesize() + _MOST_BYTES
    if before[0] in range(limit):  # a lower limit is in force; RLIM_INFINITY is negative
        limit = before[0]
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _require_bounded_parts(file: BinaryIO) -> None:
    """Refuse a TIFF with very many or overlapping strips or tiles: each one is decoded, however few its pixels."""
    # Reads the first directory only, by Pillow's own parser, which does not list the strips.
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
                raise ValueError(f"it has {len(parts):,} strips or tiles and the most is {_MOST_PARTS:,}")
        if directory.get(TiffImagePlugin.COMPRESSION, _RAW) != _RAW:
            _require_apart(directory, file.seek(0, io.SEEK_END))
            file.seek(0)


def _require_apart(directory: TiffImagePlugin.ImageFileDirectory_v2, file_bytes: int) -> None:
    """Refuse strips or tiles with more bytes than the file: the same bytes would be decoded many times."""
    sizes = [directory.get(tag) for tag in (TiffImagePlugin.STRIPBYTECOUNTS, TiffImagePlugin.TILEBYTECOUNTS)]
    counts = [size for size in sizes if size is not None]
    if not counts or not all(isinstance(size, tuple) and all(map(_is_count, size)) for size in counts):
        raise ValueError("it does not say how many bytes its strips or tiles have")
    if (most := max(map(sum, counts))) > file_bytes:
        raise ValueError(f"its strips or tiles overlap, with {most:,} bytes in a file of {file_bytes:,}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 0


def _require_usable(image: ImageFile) -> None:
    if image.width * image.height > _MOST_PIXELS:
        raise ValueError(f"it has {image.width} x {image.height} pixels and the most is {_MOST_PIXELS:,}")
    # Pillow would clip 16-bit samples, or keep only their upper bytes, without a warning.
    if image.mode not in _GREY | _COLOUR or _is_wide(image):
        raise ValueError(f"its pixels are not of 8 bits per channel (found {_raw_mode(image) or image.mode})")


def _is_wide(image: ImageFile) -> bool:
    """Return whether Pillow would silently truncate samples, or read signed samples as unsigned."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
        kinds = image.tag_v2.get(TiffImagePlugin.SAMPLEFORMAT, (1,))
        if max(bits) > _BITS or set(kinds) != {1}:
            return True
    # A PPM states its largest value, which Pillow scales to 8 bits; other formats name 16 bits in the raw mode.
    codec, arguments = next(((tile.codec_name, tile.args) for tile in image.tile), ("", None))
    most = arguments[1] if codec.startswith("ppm") and isinstance(arguments, tuple) else 0
    return most > _MOST_BYTE or bool(_WIDE.search(_raw_mode(image)))


def _raw_mode(image: ImageFile) -> str:
    """Return Pillow's name for the pixel format of the file, such as ``RGB;16B``."""
    return str(image.tile[0].args) if image.tile else ""
