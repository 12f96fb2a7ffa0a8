"""The rules by which every kind of image becomes 8 bits per channel, against decoders of the tests' own and NumPy."""

import itertools
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from cnnjob.data.images import FITS, Fit, header, read_picture
from cnnjob.errors import DataError
from tests.helpers.image_sources import crc, encoded, random_bytes

COLOUR_TYPES = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""PNG's colour types with their bit depths (PNG specification, third edition, table 12)."""
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def png(values: np.ndarray, colour_type: int, bits: int, more: dict[bytes, bytes]) -> bytes:
    """A PNG of values (H, W, channels) as they are stored; ``more`` are the chunks before the pixels."""
    height, width, _ = values.shape
    if bits == 16:
        rows = values.astype(">u2").reshape(height, -1).view(np.uint8)
    elif bits == 8:
        rows = values.astype(np.uint8).reshape(height, -1)
    else:
        shifts = np.arange(bits)[::-1]
        rows = np.packbits((values.reshape(height, -1, 1) >> shifts & 1).reshape(height, -1).astype(np.uint8), axis=1)
    content = b"".join(b"\0" + row.tobytes() for row in rows)
    parts = {b"IHDR": struct.pack(">2I5B", width, height, bits, colour_type, 0, 0, 0), **more}
    parts |= {b"IDAT": zlib.compress(content), b"IEND": b""}
    chunks = (struct.pack(">I", len(part)) + name + part + crc(name + part) for name, part in parts.items())
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def composited(colours: np.ndarray, alpha: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """Colours (H, W, C) of 0..255 below alpha (H, W), rounded."""
    ground = np.array(background[: colours.shape[2]])
    mixed: np.ndarray = colours * alpha[..., None] + ground * (255 - alpha[..., None])
    return (mixed + 127) // 255


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (200, 10, 60)])
@pytest.mark.parametrize("transparent", ["", "transparent"])
@pytest.mark.parametrize(("kind", "bits"), [(kind, bits) for kind, depths in COLOUR_TYPES.items() for bits in depths])
def test_every_kind_of_png(
    tmp_path: Path, kind: int, bits: int, transparent: str, background: tuple[int, int, int]
) -> None:
    generator = np.random.default_rng(bits * 10 + kind)
    values = generator.integers(0, 1 << bits, (7, 9, CHANNELS[kind]))
    more: dict[bytes, bytes] = {}
    alpha = None
    if kind == 3:
        palette = generator.integers(0, 256, (1 << bits, 3), np.uint8)
        more[b"PLTE"] = palette.tobytes()
        colours = palette[values[..., 0]].astype(int)
        if transparent:
            opacities = generator.integers(0, 256, 1 << bits, np.uint8)
            more[b"tRNS"] = opacities.tobytes()
            alpha = opacities[values[..., 0]].astype(int)
    else:
        colours = values >> 8 if bits == 16 else values * (255 // ((1 << bits) - 1))
        if kind in {4, 6}:
            colours, alpha = colours[..., :-1], colours[..., -1]
        elif transparent:
            # Where Pillow keeps one byte of 16 bits, the key is compared by that byte too.
            key = values[3, 4]
            more[b"tRNS"] = key.astype(">u2").tobytes()
            alpha = np.where((values == key).all(axis=-1), 0, 255)
    if alpha is not None:
        if len({*background}) > 1 and colours.shape[2] == 1:
            colours = np.repeat(colours, 3, axis=2)  # a coloured background makes a grey image coloured
        colours = composited(colours, alpha, background)
    path = tmp_path / "a.png"
    path.write_bytes(png(values, kind, bits, more))
    picture = read_picture(path, None, background=background)
    channels = 3 if colours.shape[2] == 3 or len({*background}) > 1 else 1
    np.testing.assert_array_equal(picture.pixels, np.broadcast_to(colours, (7, 9, channels)))
    assert picture.is_transparent == (alpha is not None and alpha.min() < 255)
    assert picture.header.bits == max(8, bits)


def turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """The upright image of what is stored (EXIF 2.3, 4.6.4 A)."""
    swapped = image.swapaxes(0, 1)
    return [
        image, image[:, ::-1], image[::-1, ::-1], image[::-1],
        swapped, swapped[:, ::-1], swapped[::-1, ::-1], swapped[::-1],
    ][orientation - 1]  # fmt: skip


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "packbits", "tiff_adobe_deflate"])
def test_every_tiff_is_upright(tmp_path: Path, compression: str, orientation: int) -> None:
    generator = np.random.default_rng(orientation)
    stored = [
        generator.integers(0, 256, (40, 70), np.uint8),
        generator.integers(0, 256, (40, 70, 3), np.uint8),
        generator.integers(0, 1 << 16, (40, 70), np.uint16),
        generator.integers(0, 256, (40, 70, 4), np.uint8),
    ]
    for (number, image), rows in itertools.product(enumerate(stored), (40, 7)):
        path = tmp_path / f"{number}.tif"
        Image.fromarray(image).save(path, compression=compression, tiffinfo={274: orientation, 278: rows})
        upright = turned(image, orientation)
        if image.dtype == np.uint16:
            upright = upright >> 8
        if image.ndim == 3 and image.shape[2] == 4:
            upright = composited(upright[..., :3].astype(int), upright[..., 3].astype(int), (255, 255, 255))
        head = header(path)
        assert (head.height, head.width) == upright.shape[:2]
        pixels = read_picture(path, None).pixels
        np.testing.assert_array_equal(pixels, upright.reshape(*upright.shape[:2], -1))


def test_grey_is_what_is_grey(tmp_path: Path) -> None:
    grey = Image.fromarray(random_bytes((6, 7), 0))
    colour = Image.fromarray(random_bytes((6, 7, 3), 1))
    unused = grey.quantize(16)
    unused.putpalette([*unused.getpalette()[:48], 255, 0, 0])  # type: ignore[index] # a colour that no pixel has
    files = {
        "grey.gif": (encoded(grey, "gif"), 1),
        "colour.gif": (encoded(colour, "gif"), 3),
        "palette.png": (encoded(grey.quantize(16), "png"), 1),
        "unused colour.png": (encoded(unused, "png"), 1),
        "colours.png": (encoded(colour.quantize(16), "png"), 3),
        "bit.tif": (encoded(grey.convert("1"), "tiff"), 1),
        "alpha.png": (encoded(Image.fromarray(random_bytes((6, 7, 2), 2)), "png"), 1),
        "ink.jpg": (encoded(colour.convert("CMYK"), "jpeg"), 3),
        "ink.tif": (encoded(colour.convert("CMYK"), "tiff"), 3),
    }
    for name, (content, channels) in files.items():
        path = tmp_path / name
        path.write_bytes(content)
        assert header(path).is_grey == (channels == 1), name
        assert read_picture(path, None).pixels.shape == (6, 7, channels), name
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGBA")).astype(int)
        on_white = composited(expected[..., :3], expected[..., 3], (255, 255, 255))
        np.testing.assert_array_equal(read_picture(path, (6, 7, 3)).pixels, on_white, err_msg=name)


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tiff"])
def test_the_first_of_several_images_is_read(tmp_path: Path, kind: str) -> None:
    first, second = (Image.fromarray(random_bytes((6, 7, 3), seed)).quantize(8).convert("RGB") for seed in (0, 1))
    lossless: dict[str, Any] = {"lossless": True} if kind == "webp" else {}
    path = tmp_path / f"several.{kind}"
    first.save(path, save_all=True, append_images=[second], **lossless)
    picture = read_picture(path, (6, 7, 3))
    np.testing.assert_array_equal(picture.pixels, np.asarray(first))
    assert "only the first of several images was read" in picture.remarks()
    first.save(path, **lossless)
    assert not [*read_picture(path, (6, 7, 3)).remarks()]


@pytest.mark.parametrize("most", [4095, 4096, 65535])
def test_12_bits_in_16_are_noticed(tmp_path: Path, most: int) -> None:
    values = np.linspace(0, most, 42).astype(np.uint16).reshape(6, 7)
    Image.fromarray(values).save(tmp_path / "grey.png")
    Image.fromarray(values).save(tmp_path / "grey.tif")
    (tmp_path / "colour.png").write_bytes(png(np.repeat(values[..., None], 3, axis=2), 2, 16, {}))
    for name in ("grey.png", "grey.tif", "colour.png"):
        picture = read_picture(tmp_path / name, None)
        np.testing.assert_array_equal(picture.pixels[..., 0], values >> 8)
        assert picture.is_dim == (most == 4095), name
        assert bool([*picture.remarks()]) == picture.is_dim


@pytest.mark.parametrize("most", [1, 100, 255, 1023, 4095, 65535])
def test_a_ppm_is_scaled_from_its_largest_value(tmp_path: Path, most: int) -> None:
    values = np.random.default_rng(most).integers(0, most + 1, (6, 7))
    content = values.astype(">u2" if most > 255 else np.uint8).tobytes()
    (tmp_path / "a.pgm").write_bytes(b"P5 7 6 %d\n" % most + content)
    pixels = read_picture(tmp_path / "a.pgm", None).pixels[..., 0]
    assert np.abs(pixels - 255 * values / most).max() < 1


def test_a_large_jpeg_is_read_at_a_fraction_of_its_size(tmp_path: Path) -> None:
    rows, columns = np.mgrid[0:480, 0:640]
    smooth = np.stack([rows // 2, columns // 3, (rows + columns) // 5], axis=2).astype(np.uint8)
    for orientation in (1, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.jpg"
        Image.fromarray(smooth).save(path, exif=exif, quality=90)
        size = (48, 64) if orientation == 1 else (64, 48)  # (H, W)
        with Image.open(path) as image:
            image.draft("RGB", (64, 48))
            assert image.size == (80, 60)  # an eighth
            expected = ImageOps.fit(ImageOps.exif_transpose(image), size[::-1], Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(read_picture(path, (*size, 3)).pixels, np.asarray(expected))


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("shape", [(8, 8, 3), (20, 10, 3), (30, 50, 1)])
def test_ways_to_fit(tmp_path: Path, fit: Fit, shape: tuple[int, int, int]) -> None:
    image = Image.fromarray(random_bytes((24, 36, 3), 0))
    path = tmp_path / "a.png"
    image.save(path)
    size, bilinear = shape[1::-1], Image.Resampling.BILINEAR
    source = image if shape[2] == 3 else image.convert("L")
    orange = (200, 100, 0)
    expected = {
        "crop": lambda: ImageOps.fit(source, size, bilinear),
        "pad": lambda: ImageOps.pad(source, size, bilinear, color=orange if shape[2] == 3 else 118),  # its luma
        "stretch": lambda: source.resize(size, bilinear),
    }[fit]()
    pixels = read_picture(path, shape, fit=fit, background=orange).pixels
    np.testing.assert_array_equal(pixels, np.asarray(expected).reshape(shape))


def test_a_dark_bmp_of_five_and_six_bits_is_not_one_of_16_bits() -> None:
    """Its raw mode is BGR;16, which counts the bits of all three channels together."""
    values = np.arange(4, dtype="<u2").reshape(2, 2)  # blue 0..3 of 31
    masks = struct.pack("<3L", 0xF800, 0x07E0, 0x001F)
    header = struct.pack("<LllHHLLllLL", 40, 2, -2, 1, 16, 3, values.nbytes, 0, 0, 0, 0)
    start = struct.pack("<2sLHHL", b"BM", 66 + values.nbytes, 0, 0, 66)
    picture = read_picture("dark.bmp", None, content=start + header + masks + values.tobytes())
    assert (picture.header.bits, picture.is_dim) == (8, False)
    assert picture.pixels[..., 2].ravel().tolist() == [value * 255 // 31 for value in range(4)]


def tiff(values: np.ndarray, *, planar: int, photometric: int, order: str) -> bytes:
    """An uncompressed 16-bit TIFF of values (H, W, C), with its planes apart or together."""
    height, width, channels = values.shape
    planes = values.transpose(2, 0, 1) if planar == 2 else values
    data = planes.astype(f"{order}u2").tobytes()
    count = channels if planar == 2 else 1
    size = len(data) // count
    bits, offsets, sizes = [16] * channels, [8 + row * size for row in range(count)], [size] * count
    tags = [(256, [width]), (257, [height]), (258, bits), (259, [1]), (262, [photometric]), (273, offsets)]
    tags += [(277, [channels]), (278, [height]), (279, sizes), (284, [planar])]
    more, entries, start = b"", b"", 8 + len(data)
    for tag, numbers in tags:
        packed = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(numbers) > 1:
            more, packed = more + packed, struct.pack(f"{order}I", start + len(more))
        entries += struct.pack(f"{order}HHI", tag, 4, len(numbers)) + packed
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, start + len(more))
    return head + data + more + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_files_that_pillow_misreads_are_refused(order: str) -> None:
    values = np.random.default_rng(0).integers(0, 1 << 16, (6, 5, 3))
    together = read_picture("a.tif", None, content=tiff(values, planar=1, photometric=2, order=order))
    np.testing.assert_array_equal(together.pixels, values >> 8)
    with pytest.raises(DataError, match="separate planes"):
        read_picture("a.tif", None, content=tiff(values, planar=2, photometric=2, order=order))
    grey = values[..., :1]
    black = read_picture("a.tif", None, content=tiff(grey, planar=1, photometric=1, order=order))
    np.testing.assert_array_equal(black.pixels, grey >> 8)
    with pytest.raises(DataError, match=r"count from white to black|unsupported pixel format"):
        read_picture("a.tif", None, content=tiff(grey, planar=1, photometric=0, order=order))
