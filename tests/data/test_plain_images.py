"""Plain PNG and JPEG files are decoded without Pillow's parsers: to the same pixels, or not at all."""

import io
import random
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from cnnjob.data.image_limits import decoding_limits
from cnnjob.data.images import read_picture
from cnnjob.data.plain_images import plain_pixels
from cnnjob.errors import DataError
from tests.helpers.image_sources import crc, encoded, png16, random_bytes, turned_exif, usable_images

COLOUR, GREY = Image.fromarray(random_bytes((9, 7, 3), 0)), Image.fromarray(random_bytes((9, 7), 1))
SMOOTH = Image.fromarray(random_bytes((2, 2, 3), 2)).resize((17, 20))


@pytest.fixture(autouse=True)
def limits() -> Iterator[None]:
    """Set the limits once, since setting them takes longer than reading a small image."""
    with decoding_limits():
        yield


def with_chunk(content: bytes, kind: bytes, data: bytes, *, last: bool = False, checksum: bytes | None = None) -> bytes:
    """Insert a chunk into a PNG file: after IHDR, or before IEND."""
    position = len(content) - 12 if last else 33
    chunk = struct.pack(">I", len(data)) + kind + data + (checksum or crc(kind + data))
    return content[:position] + chunk + content[position:]


def with_segment(content: bytes, marker: int, data: bytes) -> bytes:
    """Insert a segment into a JPEG file after its first one."""
    return content[:20] + struct.pack(">2BH", 0xFF, marker, len(data) + 2) + data + content[20:]


def text(key: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text(key, "0")
    return encoded(COLOUR, "png", pnginfo=info)


PNG, JPEG = encoded(COLOUR, "png"), encoded(COLOUR, "jpeg")
PLAIN = {
    "colour.png": PNG,
    "grey.png": encoded(GREY, "png"),
    "smooth.png": encoded(SMOOTH, "png"),
    "stored.png": encoded(COLOUR, "png", compress_level=0),
    "resolution.png": encoded(COLOUR, "png", dpi=(72, 72)),
    "gamma.png": with_chunk(PNG, b"gAMA", bytes(4)),
    "software.png": text("Software"),
    "date.png": with_chunk(PNG, b"tEXt", b"date:create\0now", last=True),
    "one row of zeros.png": with_chunk(PNG[:33] + PNG[-12:], b"IDAT", zlib.compress(bytes(22))),
    "colour.jpg": JPEG,
    "grey.jpg": encoded(GREY, "jpeg"),
    "smooth.jpg": encoded(SMOOTH, "jpeg", quality=30, optimize=True),
    "fine.jpg": encoded(SMOOTH, "jpeg", quality=100, subsampling=0),
    "progressive.jpg": encoded(SMOOTH, "jpeg", progressive=True),
    "restarts.jpg": encoded(SMOOTH, "jpeg", restart_marker_blocks=1),
    "comment.jpg": encoded(COLOUR, "jpeg", comment=b"none"),
    "more.jpg": JPEG + b"more",
}
OTHER = {
    **{name: content for name, content in usable_images().items() if name not in PLAIN},
    "turned.jpg": encoded(COLOUR, "jpeg", exif=turned_exif()),
    "deep grey.png": png16(1),
    "transparent colour.png": encoded(COLOUR, "png", transparency=(0, 0, 0)),
    "late transparent colour.png": with_chunk(PNG, b"tRNS", bytes(6), last=True),
    "moving.png": encoded(COLOUR, "png", save_all=True, append_images=[COLOUR.rotate(180)]),
    "profile.png": encoded(COLOUR, "png", icc_profile=b"none"),
    **{f"key {key}.png": text(key) for key in ("exif", "xmp", "transparency", "interlace", "Raw profile type exif")},
    "two parts.png": with_chunk(PNG, b"IDAT", b""),
    "two headers.png": with_chunk(PNG, b"IHDR", PNG[16:29]),
    "interlaced.png": PNG[:28] + b"\1" + crc(PNG[12:28] + b"\1") + PNG[33:],
    "filters.png": PNG[:27] + b"\1\0" + crc(PNG[12:27] + b"\1\0") + PNG[33:],
    "short gamma.png": with_chunk(PNG, b"gAMA", bytes(3)),
    "late short gamma.png": with_chunk(PNG, b"gAMA", bytes(3), last=True),
    "checksum.png": with_chunk(PNG, b"gAMA", bytes(4), checksum=bytes(4)),
    "checksum of the header.png": PNG[:29] + bytes(4) + PNG[33:],
    "no width.png": PNG[:16] + bytes(4) + PNG[20:29] + crc(PNG[12:16] + bytes(4) + PNG[20:29]) + PNG[33:],
    "no pixels.png": PNG[:33] + PNG[-12:],
    "Adobe.jpg": with_segment(JPEG, 0xEE, b"Adobe" + bytes(7)),
    "short Adobe.jpg": with_segment(JPEG, 0xEE, b"Adobe"),
    "short JFIF.jpg": with_segment(JPEG, 0xE0, b"JFIF\0"),
    "two frames.jpg": with_segment(JPEG, 0xC0, bytes((8, 0, 9, 0, 7, 3, 1, 17, 0, 2, 17, 0, 3, 17, 0))),
    "12 bits.jpg": with_segment(JPEG, 0xC1, bytes((12, 0, 9, 0, 7, 1, 1, 17, 0))),
    "no frame.jpg": JPEG[:20] + JPEG[JPEG.index(b"\xff\xda") :],
    "padded.jpg": JPEG[:20] + b"\xff" + JPEG[20:],
    "nothing": b"",
}


def checked_pixels(content: bytes) -> np.ndarray | None:
    """The pixels (H, W, C) of a plain file, which Pillow's parsers must agree with."""
    try:
        pixels = plain_pixels(content, 1 << 16)
    except (OSError, ValueError, struct.error):
        return None
    if pixels is None:
        return None
    parsed = read_picture("plain", None, content=content)
    np.testing.assert_array_equal(parsed.pixels, pixels)
    assert parsed.header[:2] == pixels.shape[:2]
    assert parsed.header[2:] == (pixels.shape[2] == 1, False, 1, 8)
    assert not parsed.is_transparent
    assert not parsed.is_dim
    return pixels


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_file_has_the_pixels_that_pillow_reads(name: str) -> None:
    pixels = checked_pixels(PLAIN[name])
    assert pixels is not None
    np.testing.assert_array_equal(pixels.squeeze(), np.asarray(Image.open(io.BytesIO(PLAIN[name]))))


@pytest.mark.parametrize("name", OTHER)
def test_any_other_file_is_left_to_pillow(name: str) -> None:
    assert checked_pixels(OTHER[name]) is None


@pytest.mark.parametrize("content", [PNG, JPEG], ids=["png", "jpeg"])
def test_a_file_with_more_pixels_is_left_to_pillow(content: bytes) -> None:
    assert plain_pixels(content, 9 * 7) is not None
    assert plain_pixels(content, 9 * 7 - 1) is None


@pytest.mark.parametrize("name", PLAIN)
def test_a_truncated_file_is_never_read_otherwise(name: str) -> None:
    content = PLAIN[name]
    n_read = sum(checked_pixels(content[:length]) is not None for length in range(len(content)))
    assert n_read <= 16  # without its last marker or checksum, or without what follows the image


@pytest.mark.parametrize("name", PLAIN)
def test_a_damaged_file_is_never_read_otherwise(name: str) -> None:
    content, draw = PLAIN[name], random.Random(name)
    for _ in range(100):
        damaged = bytearray(content)
        position = draw.randrange(min(len(content), draw.choice([64, 256, 1 << 16])))
        damaged[position : position + draw.randrange(3)] = draw.randbytes(draw.randrange(3))
        checked_pixels(bytes(damaged))


def test_a_palette_image_without_a_palette_is_refused() -> None:
    head = PNG[12:25] + b"\3\0\0\0"
    content = with_chunk(PNG[:12] + head + crc(head) + PNG[33:], b"tRNS", b"\0\1\2")
    with pytest.raises(DataError, match="not a usable image"):
        read_picture("palette.png", None, content=content)
