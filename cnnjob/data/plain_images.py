"""Decode plain PNG and JPEG files with Pillow's decoders, but without its parsers, which are slow for small images.

A file with anything unusual is left to Pillow's parsers: optional chunks and segments are accepted only if they affect
neither the pixels nor the orientation, and if Pillow would accept them too. The decoders receive the same bytes as they
would from the parsers, so they return the same pixels and refuse the same files.
"""

import struct
import zlib
from typing import Any

import numpy as np
from PIL import _imaging

_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_PNG_MODES = {b"\x08\0\0\0\0": "L", b"\x08\x02\0\0\0": "RGB"}
"""Pillow's mode for the end of an IHDR chunk: bits, colour type, compression, filter and interlacing."""
_PNG_SIZE = struct.Struct(">II")  # width, height
_PNG_CHUNK = struct.Struct(">I4s")  # length, type
_PNG_CHUNKS = {b"bKGD": 0, b"cHRM": 32, b"gAMA": 4, b"pHYs": 9, b"sRGB": 1, b"tEXt": 0, b"tIME": 0}
"""Accepted chunks other than IHDR, IDAT and IEND, with the minimum length that Pillow requires."""
_PNG_KEYS = (b"Author\0", b"Comment\0", b"Creation Time\0", b"Description\0", b"Software\0", b"Title\0", b"date:")
"""Accepted keys of tEXt chunks; Pillow would mistake some others for an orientation or a transparent colour."""
_JPEG_START = b"\xff\xd8\xff"
_JPEG_SEGMENT = struct.Struct(">HH")  # marker, length
_JPEG_FRAME = struct.Struct(">BHHB")  # bits, height, width, channels
_JPEG_SEGMENTS = {0xFFC4: 2, 0xFFDB: 2, 0xFFDD: 4, 0xFFE0: 16, 0xFFFE: 2}  # DHT, DQT, DRI, APP0, COM
"""Accepted segments other than frames and scans, with a minimum length that satisfies Pillow."""
_JPEG_FRAMES = (0xFFC0, 0xFFC1, 0xFFC2)  # baseline, extended, progressive
_JPEG_SCAN = 0xFFDA
_MODES = {1: "L", 3: "RGB"}
_BITS = 8


def plain_pixels(content: bytes, max_pixels: int) -> np.ndarray | None:
    """Decode an opaque, upright PNG or JPEG file with 8 bits per channel.

    Args:
        content: content of a file.
        max_pixels: maximum height times width of an image that is decoded.

    Returns:
        The pixels, uint8 (H, W, 1) or (H, W, 3). None if the file is of another kind, contains anything unusual, or
        has too many pixels.

    Raises:
        struct.error, ValueError: the file may be damaged.
        AttributeError, TypeError: this version of Pillow has other decoders.
    """
    if content.startswith(_PNG_START):
        return _png(content, max_pixels)
    if content.startswith(_JPEG_START):
        return _jpeg(content, max_pixels)
    return None


def _png(content: bytes, max_pixels: int) -> np.ndarray | None:
    mode = _PNG_MODES.get(content[24:29])
    width, height = _PNG_SIZE.unpack_from(content, 16)
    if mode is None or not 0 < width * height <= max_pixels or not _has_checksum(content, 12, 29):
        return None
    data = None
    position = 33
    while True:
        length, kind = _PNG_CHUNK.unpack_from(content, position)
        end = position + 8 + length
        if kind == b"IEND":
            break
        if kind == b"IDAT":
            if data is not None:
                return None
            data = content[position + 8 : end]
        elif (
            kind not in _PNG_CHUNKS
            or length < _PNG_CHUNKS[kind]
            or (kind == b"tEXt" and not content.startswith(_PNG_KEYS, position + 8))
            or not _has_checksum(content, position + 4, end)
        ):
            return None
        position = end + 4
    return None if data is None else _decoded(data, mode, width, height, _imaging.zip_decoder(mode, mode, 0))


def _has_checksum(content: bytes, start: int, end: int) -> bool:
    return content[end : end + 4] == zlib.crc32(content[start:end]).to_bytes(4)


def _jpeg(content: bytes, max_pixels: int) -> np.ndarray | None:
    mode = None
    width = height = 0
    position = 2
    while True:
        marker, length = _JPEG_SEGMENT.unpack_from(content, position)
        if marker == _JPEG_SCAN:
            break
        if marker in _JPEG_FRAMES:
            bits, height, width, channels = _JPEG_FRAME.unpack_from(content, position + 4)
            if mode or bits != _BITS or channels not in _MODES or length != 8 + 3 * channels:
                return None
            mode = _MODES[channels]
        elif marker not in _JPEG_SEGMENTS or length < _JPEG_SEGMENTS[marker]:
            return None
        position += 2 + length
    if mode is None or not 0 < width * height <= max_pixels:
        return None
    return _decoded(content, mode, width, height, _imaging.jpeg_decoder(mode, mode, ""))


def _decoded(data: bytes, mode: str, width: int, height: int, decoder: Any) -> np.ndarray:
    """Return the pixels (H, W, C), as Image.frombytes and Image.tobytes would, but with a third of their overhead."""
    image = _imaging.new(mode, (width, height))
    decoder.setimage(image, (0, 0, width, height))
    position, error = decoder.decode(data)
    if position >= 0 or error:  # the position is negative at the end of the image
        raise ValueError("the image is incomplete or damaged")
    encoder = _imaging.raw_encoder(mode, mode)
    encoder.setimage(image, (0, 0, width, height))
    _, _, pixels = encoder.encode(width * height * len(mode))
    return np.frombuffer(pixels, np.uint8).reshape(height, width, len(mode))
