"""One image file -> pixels, with a cap on its size and one message for whatever is wrong with it."""

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from cnnjob.errors import DataError

_MAX_PIXELS = 32_000_000  # 128 MB in Pillow, and twice that while it is turned or converted
_GREY = frozenset({"1", "L", "LA", "La"})
_COLOUR = frozenset({"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_RUNS_PROGRAMS = frozenset({"EPS"})  # Pillow calls Ghostscript for it
_UNREADABLE = (EOFError, IndexError, KeyError, MemoryError, OSError, OverflowError, SyntaxError, TypeError, ValueError,
               struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning)  # fmt: skip


def header(path: Path) -> tuple[int, int, bool]:
    """What an image file says about itself; its pixels are not read.

    Args:
        path: the file.

    Returns:
        Height and width as one looks at it, and whether it is grey.

    Raises:
        DataError: no image, or one that cannot be used.
    """
    with _opened(path) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation) in _TURNED
        height, width = (image.width, image.height) if turned else (image.height, image.width)
        return height, width, image.mode in _GREY


def pixels(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """The pixels of an image file, upright, scaled to cover the shape and cropped to its middle.

    Of an animation the first frame counts; transparency is dropped.

    Args:
        path: the file.
        shape: (H, W, C), C being 1 or 3.

    Returns:
        (H, W, C) uint8.

    Raises:
        DataError: the file does not decode.
    """
    height, width, channels = shape
    mode = "L" if channels == 1 else "RGB"
    with _opened(path) as opened:
        image = opened if opened.mode == mode else opened.convert(mode)
        ImageOps.exif_transpose(image, in_place=True)
        if image.size != (width, height):
            image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        return np.asarray(image).reshape(shape)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image whose header has been looked at; whatever Pillow finds wrong in it is a DataError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a corrupt EXIF block and the like
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                _require_usable(image)
                yield image
    except _UNREADABLE as error:
        raise DataError(f"{path}: not a usable image, {error}; repair it, or take it away") from error


def _require_usable(image: Image.Image) -> None:
    if image.width * image.height > _MAX_PIXELS:
        raise ValueError(f"it has {image.width} x {image.height} pixels and the most is {_MAX_PIXELS:,}")
    if image.mode not in _GREY | _COLOUR:
        raise ValueError(f"its pixels are of Pillow's mode {image.mode}, not of 8 bits")
    if image.format in _RUNS_PROGRAMS:
        raise ValueError(f"reading {image.format} would run another program")
