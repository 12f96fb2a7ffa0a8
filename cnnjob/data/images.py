"""One image file -> pixels, the same for `prepare` and `predict`, in bounded memory and time and with one error.

Common formats only: others would start programs (EPS: Ghostscript) or load what no one needs. Of an animation or of
several pages the first counts; transparency is dropped; an EXIF orientation is applied.
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
_MOST_PIXELS = 32_000_000  # 128 MB in Pillow, and twice that while it is turned or converted
_BIG_TIFF = b"+"
_RAW = 1
"""The compression of a TIFF that has none."""
_MOST_PARTS = 20_000
_MOST_BYTES = 400_000_000
"""What decoding may take: a file of a few MB can ask for gigabytes without many pixels."""
MOST_SECONDS = 10.0
"""Of a processor's time, which decoding may take; most images of 32 million pixels take under a second."""
_READ_BYTES = 64 << 10
_SCAN_BYTES = 1 << 10
"""Of a progressive JPEG, read at a time: a hundred scans, each of which goes through all pixels."""
_GREY = frozenset({"1", "L", "LA", "La"})
_COLOUR = frozenset({"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})
_MOST_BYTE = 255
_BITS = 8
_WIDE = re.compile(r";(16|32)[BLN]")  # by byte order; BGR;16 are 16 bits of all three
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_UNREADABLE = (AttributeError, EOFError, IndexError, KeyError, MemoryError, OSError, OverflowError, RuntimeError,
               SyntaxError, TypeError, ValueError, ZeroDivisionError, struct.error, zlib.error,
               Image.DecompressionBombError, Image.DecompressionBombWarning)  # fmt: skip


class Header(NamedTuple):
    """What an image file says about itself."""

    height: int
    """As one looks at it."""
    width: int
    is_grey: bool


class _TooLongError(Exception):
    """Decoding takes too long."""


class _TimedReader(io.BufferedReader):
    """A file that can be read as long as its image may take: Pillow reads most formats a little at a time."""

    def __init__(self, raw: io.RawIOBase, most_seconds: float) -> None:
        super().__init__(raw)
        self.most_bytes: int | None = None
        self._end = time.thread_time() + most_seconds

    def read(self, size: int | None = -1, /) -> bytes:
        """Read so many bytes, or as many as may be read at a time."""
        if time.thread_time() > self._end:
            raise _TooLongError
        if self.most_bytes is not None and size is not None:
            size = self.most_bytes if size < 0 else min(size, self.most_bytes)
        return super().read(size)


def header(path: Path, *, most_seconds: float = MOST_SECONDS) -> Header:
    """Read what an image file says about itself, not its pixels.

    Args:
        path: the file.
        most_seconds: what it may take of a processor's time.

    Returns:
        Its size and whether it is grey.

    Raises:
        DataError: no image, or one that cannot be used.
    """
    with _opened(path, most_seconds) as image:
        return _header(image)


def pixels(
    path: Path, shape: tuple[int, int, int], *, most_seconds: float = MOST_SECONDS
) -> tuple[np.ndarray[Any, Any], Header]:
    """Read the pixels of an image file, upright, scaled to cover the shape and cropped to its middle.

    Args:
        path: the file.
        shape: (H, W, C), C being 1 or 3.
        most_seconds: what it may take of a processor's time.

    Returns:
        (H, W, C) uint8, and what the file says about itself.

    Raises:
        DataError: no image, or one that cannot be used or does not decode.
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
    """An image whose header has been looked at; whatever Pillow finds wrong in it is a DataError."""
    try:
        with warnings.catch_warnings(), _memory_bounded(), _opened_file(path, most_seconds) as file:
            warnings.simplefilter("ignore")  # of a corrupt EXIF block and the like
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            _require_bounded_parts(file)
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
    """Let no single part of a file take long: of a progressive JPEG, and of a PPM, which Pillow decodes in Python."""
    if "progressive" in image.info:
        image.decodermaxblock = _SCAN_BYTES
    if image.format == "PPM":
        file.most_bytes = _READ_BYTES


@contextmanager
def _memory_bounded() -> Iterator[None]:
    """Let this process grow by no more than an image may take."""
    pages = int(Path("/proc/self/statm").read_bytes().split()[5])
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit = pages * resource.getpagesize() + _MOST_BYTES
    if before[0] in range(limit):  # less than that already; RLIM_INFINITY is negative
        limit = before[0]
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _require_bounded_parts(file: BinaryIO) -> None:
    """Refuse a TIFF of very many strips or tiles, or of such that overlap: each of them is decoded, pixels or not."""
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
    """Refuse strips or tiles that have more bytes than the file: they would be decoded again and again."""
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
    if image.mode not in _GREY | _COLOUR or _is_wide(image):
        raise ValueError(f"its pixels are not of 8 bits per channel (found {_raw_mode(image) or image.mode})")


def _is_wide(image: ImageFile) -> bool:
    """Return whether Pillow would quietly take a part of each value, or a signed value for an unsigned one."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
        kinds = image.tag_v2.get(TiffImagePlugin.SAMPLEFORMAT, (1,))
        if max(bits) > _BITS or set(kinds) != {1}:
            return True
    codec, arguments = next(((tile.codec_name, tile.args) for tile in image.tile), ("", None))
    most = arguments[1] if codec.startswith("ppm") and isinstance(arguments, tuple) else 0
    return most > _MOST_BYTE or bool(_WIDE.search(_raw_mode(image)))


def _raw_mode(image: ImageFile) -> str:
    """How Pillow names the pixels as the file has them, as ``RGB;16B``."""
    return str(image.tile[0].args) if image.tile else ""
