"""Read image files within limits on memory and time; `prepare` and `predict` share this code.

Every image is converted to 8 bits per channel by the same rules:

- The EXIF or TIFF orientation is applied, so the image is upright.
- 16-bit values are reduced to 8 bits according to the range of the type: value // 256 (12-bit TIFF: value // 16). A
  PPM file states its maximum value, which becomes 255. In a 16-bit RGB image, a pixel is transparent if the upper byte
  of each channel equals that of the transparent colour, since Pillow reads only the upper bytes.
- Transparent pixels are composited onto a background, white by default.
- Only the first image of an animation or a multi-page file is read.
- An image counts as greyscale if it has a palette of greys, 1 bit per pixel, or one grey channel and transparency.
- Images are scaled with the bilinear filter, by functions such as :func:`PIL.ImageOps.fit`; a large JPEG is first
  decoded at a half, a quarter or an eighth of its size, but no smaller than needed (:meth:`PIL.Image.Image.draft`).

Only common formats are read. For others, Pillow starts external programs (Ghostscript for EPS) or loads rarely used
code.
"""

import io
import math
import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, get_args

import numpy as np
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from cnnjob import files
from cnnjob.data.image_formats import FORMATS, describe_unknown_format
from cnnjob.data.image_limits import (
    MOST_BYTES,
    MOST_SECONDS,
    UNCOMPRESSED,
    DecodingTimeError,
    TimedReader,
    decoding_is_limited,
    decoding_limits,
    read_in_small_parts,
    require_bounded_parts,
)
from cnnjob.data.plain_images import plain_pixels
from cnnjob.errors import DataError

_MOST_PIXELS = 32_000_000  # 128 MB in Pillow, twice that while an image is rotated or converted
_SEPARATE = 2
"""Value of the TIFF PlanarConfiguration tag for one plane per channel."""
_WHITE_IS_ZERO = 0
"""Value of the TIFF PhotometricInterpretation tag for images whose value 0 is white."""
_MOST_CONTENT = 64 << 20
"""Maximum size of a file that is read into memory before decoding, in bytes; a larger file is read in parts."""
_FEW_BYTES = 64 << 10
_FEW_PIXELS = 1 << 16
_GREY = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"})
_COLOUR = frozenset({"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})
_MOST_BYTE = 255
_BITS = 8
_FEW_BITS = {"L;2": 3, "L;4": 15}
"""Pillow's raw modes for greyscale images with 2 or 4 bits per pixel, and the maximum pixel value in each mode."""
_WIDE = re.compile(r"(?<!BGR);(16|32)")  # BMP's BGR;16 has 16 bits for all three channels together
_TIFF_BITS = {1, 2, 4, 8, 12, 16}
_MOST_OF_12_BITS = (1 << 12) - 1
_EXIF = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
"""Pillow's keys for metadata that may contain an orientation."""
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_UNREADABLE = (AssertionError, AttributeError, EOFError, IndexError, KeyError, MemoryError, OSError, OverflowError,
               RuntimeError, SyntaxError, TypeError, ValueError, ZeroDivisionError, struct.error, zlib.error,
               Image.DecompressionBombError, Image.DecompressionBombWarning)  # fmt: skip


Fit = Literal["crop", "pad", "stretch"]
"""How an image is fitted to another shape: ``crop`` scales it to cover the shape and crops it around the centre,
``pad`` scales it to fit inside the shape and pads it with the background, and ``stretch`` changes its aspect ratio."""
FITS: tuple[Fit, ...] = get_args(Fit)
WHITE = (255, 255, 255)


class Header(NamedTuple):
    """The size and type of an image, read from its header."""

    height: int
    """Height of the upright image, in pixels, after the EXIF orientation has been applied."""
    width: int
    """Width of the upright image, in pixels."""
    is_grey: bool
    """True for images without colour."""
    has_alpha: bool = False
    """True if the image can store transparency; all its pixels may still be opaque."""
    n_frames: int = 1
    """Number of animation frames or pages in the file, of which only the first is read; 2 stands for two or more."""
    bits: int = 8
    """Bits per channel in the file: 8 (which includes fewer), 12 or 16."""


class Picture(NamedTuple):
    """A decoded image."""

    pixels: np.ndarray[Any, Any]
    """Pixels as uint8 (H, W, C)."""
    header: Header
    is_transparent: bool
    """True if any pixel is not fully opaque."""
    is_dim: bool
    """True if the file has 16 bits per channel but no value above 4095, as in 12-bit data."""

    def remarks(self) -> Iterator[str]:
        """Yield short remarks for the user on how the pixels were read."""
        if self.header.n_frames > 1:
            yield "only the first of several images was read"
        if self.is_transparent:
            yield "transparent pixels were composited onto the background"
        if self.is_dim:
            yield "16-bit pixels with no value above 4095 are nearly black. Scale 12-bit data to 16 bits first"


class _Opened(NamedTuple):
    """An image whose header has been read. Its raw mode is stored here because Pillow discards it on decoding."""

    image: ImageFile
    raw_mode: str
    """Pillow's name for the file's pixel format, such as ``RGB;16B``."""
    bits: int
    orientation: int
    """EXIF orientation, 1..8; 1 is upright."""

    def header(self) -> Header:
        """Return the image's header."""
        image = self.image
        # Pillow has already swapped the height and width of a TIFF image.
        is_turned = self.orientation in _TURNED and image.format != "TIFF"
        height, width = (image.width, image.height) if is_turned else (image.height, image.width)
        is_grey = (
            image.mode in _GREY
            or self.raw_mode.startswith("LA;16")  # Pillow has no mode for 16-bit grey with alpha
            or (image.mode in {"P", "PA"} and _palette_is_grey(image))
        )
        # The other images in an MPO file are previews, or the view for the other eye.
        n_frames = 2 if getattr(image, "is_animated", False) and image.format != "MPO" else 1
        return Header(height, width, is_grey, image.has_transparency_data, n_frames, self.bits)

    def picture(
        self, head: Header, shape: tuple[int, int, int] | None, fit: Fit, background: tuple[int, int, int]
    ) -> Picture:
        """Return the decoded image: upright, 8 bits, opaque, and fitted to the shape (H, W, C) if one is given."""
        # A coloured background behind transparent pixels turns a greyscale image into a colour image.
        mode = "L" if head.is_grey and len({*background}) == 1 else "RGB"
        upright: Image.Image = self.image
        if shape and isinstance(self.image, JpegImageFile):
            self.image.draft(self.image.mode, _least_size(self.image, head, shape[:2], fit))
        if self.orientation != 1:
            upright = ImageOps.exif_transpose(upright)
        upright.load()
        is_dim = head.bits == 2 * _BITS and _most(upright) <= _MOST_OF_12_BITS
        if head.bits > _BITS or self.raw_mode in _FEW_BITS:
            upright = _of_8_bits(upright, head.bits, self.raw_mode)
        is_transparent = False
        if upright.has_transparency_data:
            upright, is_transparent = _opaque(upright, mode, background)
        image = upright if upright.mode == mode else upright.convert(mode)
        return Picture(_array(_fit_image(image, shape, fit, background)), head, is_transparent, is_dim)


def header(path: Path | str, *, content: bytes | None = None, most_seconds: float = MOST_SECONDS) -> Header:
    """Read an image's header; the pixels are read only if needed to determine whether a palette image is grey.

    Args:
        path: the file; only its name is used if ``content`` is given.
        content: the file's content, if it has already been read.
        most_seconds: maximum CPU time, in seconds.

    Returns:
        The image's size and type.

    Raises:
        DataError: the file is not an image, or the image is not usable.
    """
    content = _content(path) if content is None else content
    with _opened(path, content, most_seconds) as opened:
        return opened.header()


def inspect_image(
    path: Path | str, content: bytes, most_pixels: int, background: tuple[int, int, int] = WHITE
) -> tuple[Header, Picture | None]:
    """Read an image's header, and decode the image if it is small.

    Decoding a small image at once is faster than opening its file again later.

    Args:
        path: name of the file.
        content: content of the file.
        most_pixels: maximum height times width of an image that is decoded.
        background: colour (R, G, B) behind transparent pixels, each 0..255.

    Returns:
        The header, and the decoded image with its original size and channels; None instead of the decoded image if it
        has too many pixels.

    Raises:
        DataError: the file is not an image, the image is not usable, or it cannot be decoded.
    """
    if decoding_is_limited() and len(content) <= _FEW_BYTES and (picture := _plain_picture(content, most_pixels)):
        return picture.header, picture
    with _opened(path, content, MOST_SECONDS) as opened:
        head = opened.header()
        few = head.height * head.width <= most_pixels
        return head, opened.picture(head, None, "crop", background) if few else None


def read_picture(
    path: Path | str,
    shape: tuple[int, int, int] | None,
    *,
    fit: Fit = "crop",
    background: tuple[int, int, int] = WHITE,
    content: bytes | None = None,
    most_seconds: float = MOST_SECONDS,
) -> Picture:
    """Read an image, turn it upright, make it opaque with 8 bits per channel, and fit it to a shape.

    Args:
        path: the file; only its name is used if ``content`` is given.
        shape: (H, W, C) of the result, where C is 1 or 3; None for the image's original size and channels.
        fit: how to fit an image of a different size.
        background: colour (R, G, B) behind transparent pixels and around padded images, each 0..255.
        content: the file's content, if it has already been read.
        most_seconds: maximum CPU time, in seconds.

    Returns:
        The image.

    Raises:
        DataError: the file is not an image, the image is not usable, or it cannot be decoded.
    """
    content = _content(path) if content is None else content
    with _opened(path, content, most_seconds) as opened:
        return opened.picture(opened.header(), shape, fit, background)


def fit_pixels(
    pixels: np.ndarray[Any, Any],
    shape: tuple[int, int, int],
    fit: Fit = "crop",
    background: tuple[int, int, int] = WHITE,
) -> np.ndarray[Any, Any]:
    """Fit pixels to a shape in the same way as :func:`read_picture`.

    Args:
        pixels: uint8 (H, W, 1) or (H, W, 3).
        shape: (H, W, C) of the result.
        fit: how to fit an image of a different size.
        background: colour (R, G, B) around padded images.

    Returns:
        Pixels as uint8, with the given shape.
    """
    if pixels.shape == shape:
        return pixels
    return _array(
        _fit_image(Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels), shape, fit, background)
    )


def _plain_picture(content: bytes, most_pixels: int) -> Picture | None:
    """Read a small image of one of the most common types, in two thirds of the time that the general method takes.

    Args:
        content: a file's content.
        most_pixels: maximum height times width of an image that is read.

    Returns:
        The image, as :meth:`_Opened.picture` would return it. None if the image is large, if its file contains anything
        unusual (see :mod:`cnnjob.data.plain_images`), or if the file may be damaged.
    """
    try:
        pixels = plain_pixels(content, min(most_pixels, _FEW_PIXELS))
    except (MemoryError, *_UNREADABLE):
        return None  # the caller opens it again, with a time limit, and reports the error
    if pixels is None:
        return None
    height, width, channels = pixels.shape
    return Picture(pixels, Header(height, width, is_grey=channels == 1), is_transparent=False, is_dim=False)


def _array(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, -1)


def _content(path: Path | str) -> bytes | None:
    """Return a file's content; None if it is too large to hold in memory together with its pixels."""
    try:
        with files.open_regular(Path(path)) as file:
            return file.read() if os.fstat(file.fileno()).st_size <= _MOST_CONTENT else None
    except OSError as error:
        raise DataError(f"{path}: not a usable image ({error}). Repair, convert or remove it") from error


def _orientation(image: ImageFile, content: bytes | None) -> int:
    """Return an image's EXIF orientation, or 1 if it has none."""
    if content is not None and image.format == "PNG":
        # Pillow would decode the whole image to find out, since the chunk may follow the pixels.
        may_have = any(key in content for key in (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp"))
    else:
        may_have = not image.info.keys().isdisjoint(_EXIF) or image.format == "TIFF"
    return int(image.getexif().get(ExifTags.Base.Orientation, 1)) if may_have else 1


def _palette_is_grey(image: Image.Image) -> bool:
    """Return whether all palette colours that an image's pixels use are grey."""
    palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    coloured = np.flatnonzero((palette != palette[:, :1]).any(axis=1))
    if not coloured.size:
        return True
    if image.mode == "PA":
        return False
    counts = np.array(image.histogram())  # decodes the image: only its pixels show which colours are used
    return not counts[coloured].any()


def _luma(colour: tuple[int, int, int]) -> int:
    """Return the grey level to which Pillow converts a colour, according to ITU-R 601-2."""
    return int(np.asarray(Image.new("RGB", (1, 1), colour).convert("L"))[0, 0])


def _least_size(image: ImageFile, head: Header, size: tuple[int, int], fit: Fit) -> tuple[int, int]:
    """Return the minimum (width, height) at which a JPEG must be decoded for a result of ``size`` (H, W)."""
    height, width = size
    if fit == "pad":  # to fit inside, use the smaller of the two factors
        factor = min(height / head.height, width / head.width)
        height, width = math.ceil(factor * head.height), math.ceil(factor * head.width)
    return (width, height) if (image.height, image.width) == (head.height, head.width) else (height, width)


def _fit_image(
    image: Image.Image, shape: tuple[int, int, int] | None, fit: Fit, background: tuple[int, int, int]
) -> Image.Image:
    """Return an image in mode L or RGB, fitted to the size and channels of a shape (H, W, C)."""
    if shape is None:
        return image
    mode, size, bilinear = "L" if shape[2] == 1 else "RGB", (shape[1], shape[0]), Image.Resampling.BILINEAR
    image = image if image.mode == mode else image.convert(mode)
    if image.size == size:
        return image
    if fit == "crop":
        return ImageOps.fit(image, size, bilinear)
    if fit == "pad":
        return ImageOps.pad(image, size, bilinear, color=background if mode == "RGB" else _luma(background))
    return image.resize(size, bilinear)


def _most(image: Image.Image) -> int:
    """Return the maximum value of a 16-bit image; for colour images, an upper bound."""
    if image.mode in _GREY and image.mode.startswith("I"):
        return int(np.asarray(image).max())
    bands = image.getextrema()
    largest = max(high for _, high in (bands if isinstance(bands[0], tuple) else (bands,)))
    return int(largest) << 8 | _MOST_BYTE  # Pillow has kept only the upper byte


def _of_8_bits(image: Image.Image, bits: int, raw_mode: str) -> Image.Image:
    """Return an image reduced to 8 bits per channel, with its transparent colour scaled in the same way as its pixels.

    Pillow keeps the transparent colour as stated in the file, but compares it with pixels already scaled to 8 bits.
    """
    key = image.info.get("transparency")
    if image.mode.startswith("I"):
        values = np.asarray(image)  # (H, W)
        image = Image.fromarray((values >> (bits - _BITS)).astype(np.uint8))
        if key is not None:
            image.putalpha(Image.fromarray(np.where(values == key, 0, _MOST_BYTE).astype(np.uint8)))
    elif isinstance(key, tuple) and bits > _BITS:
        image.info["transparency"] = tuple(value >> (bits - _BITS) for value in key)
    elif isinstance(key, int) and raw_mode in _FEW_BITS:
        image.info["transparency"] = key * (_MOST_BYTE // _FEW_BITS[raw_mode])
    return image


def _opaque(image: Image.Image, mode: str, background: tuple[int, int, int]) -> tuple[Image.Image, bool]:
    """Return an image composited onto the background, in mode L or RGB, and whether any pixel was transparent."""
    image = image.convert(f"{mode}A")
    alpha, colours = image.getchannel("A"), image.convert(mode)
    if alpha.getextrema()[0] == _MOST_BYTE:
        return colours, False
    ground = Image.new(mode, image.size, background if mode == "RGB" else background[0])
    ground.paste(colours, mask=alpha)  # (colour × alpha + background × (255 − alpha)) / 255, rounded
    return ground, True


@contextmanager
def _opened(path: Path | str, content: bytes | None, most_seconds: float) -> Iterator[_Opened]:
    """Open an image with limits on memory and time and check its header; turn Pillow's errors into a DataError."""
    try:
        with decoding_limits(), io.BytesIO(content) if content is not None else files.open_regular(Path(path)) as file:
            if content is not None and len(content) <= _FEW_BYTES:
                # A small file with few pixels cannot take long, so the clock need not be checked on every read.
                image = _usable_image(file)
                if image.width * image.height <= _FEW_PIXELS:
                    yield _with_header(image, content)
                    return
                file.seek(0)
            yield _with_header(_timed_image(file, most_seconds), content)
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: {describe_unknown_format(path, content)}") from error
    except DecodingTimeError:
        raise DataError(f"{path}: decoding takes more than {most_seconds:g} s. Convert or remove it") from None
    except MemoryError:
        raise DataError(
            f"{path}: decoding takes more than {MOST_BYTES // 10**6} MB of memory. Convert or remove it"
        ) from None
    except _UNREADABLE as error:
        raise DataError(f"{path}: not a usable image ({error}). Repair, convert or remove it") from error


def _timed_image(file: BinaryIO, most_seconds: float) -> ImageFile:
    # BufferedReader is typed for a raw file, but also works with a buffered file or bytes in memory.
    reader = TimedReader(file, most_seconds)  # type: ignore[arg-type]
    image = _usable_image(reader)
    read_in_small_parts(image, reader)
    return image


def _usable_image(file: BinaryIO) -> ImageFile:
    require_bounded_parts(file)  # first, because Pillow lists all strips of a TIFF on opening it
    return Image.open(file, formats=FORMATS)


def _with_header(image: ImageFile, content: bytes | None) -> _Opened:
    """Return an image with the properties read from its header, after checking them.

    Raises:
        ValueError: the image has too many pixels, or a pixel format that is not supported.
    """
    if image.width * image.height > _MOST_PIXELS:
        raise ValueError(f"it has {image.width} x {image.height} pixels; the maximum is {_MOST_PIXELS:,}")
    raw_mode = str(image.tile[0].args) if image.tile else ""
    bits = _bits(image, raw_mode)
    if image.mode not in _GREY | _COLOUR or not bits:
        raise ValueError(f"its pixels do not have 8 or 16 bits per channel (found {raw_mode or image.mode})")
    if isinstance(image, TiffImagePlugin.TiffImageFile) and (reason := _misread_tiff(image, bits)):
        raise ValueError(reason)
    return _Opened(image, raw_mode, bits, _orientation(image, content))


def _misread_tiff(image: TiffImagePlugin.TiffImageFile, bits: int) -> str:
    """Return why a TIFF image is refused, or an empty string if it is accepted.

    An image is refused if Pillow would decode wrong pixels without raising an error.
    """
    tags = image.tag_v2
    n_channels = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
    is_raw = tags.get(TiffImagePlugin.COMPRESSION, UNCOMPRESSED) == UNCOMPRESSED
    is_planar = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION, 1) == _SEPARATE and n_channels > 1
    # Uncompressed planes of 16 bits are read as 8 bits, and the plane of grey with alpha is not found.
    if is_planar and ((is_raw and bits > _BITS) or n_channels == len("LA")):
        return "its channels are stored in separate planes, which is not supported for this pixel format"
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO and bits > _BITS:
        return f"its values of {bits} bits count from white to black, which is not supported"
    return ""


def _bits(image: ImageFile, raw_mode: str) -> int:
    """Return the bits per channel (8 or more), or 0 if the values are signed, floating-point or wider than 16 bits."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = set(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
        kinds = set(image.tag_v2.get(TiffImagePlugin.SAMPLEFORMAT, (1,)))
        return max(_BITS, *bits) if bits <= _TIFF_BITS and kinds == {1} else 0
    # Pillow scales the values by the stated maximum: to 16 bits in a grey PPM with more than 8 bits, otherwise to 8.
    if image.format == "PPM":
        return 16 if image.mode == "I" else 8
    wide = _WIDE.search(raw_mode)
    if wide or image.mode.startswith("I"):
        return 16 if wide and wide[1] == "16" else 0
    return 8
