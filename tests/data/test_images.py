"""Image files: `prepare` and `predict` say the same of the same file."""

import contextlib
import itertools
import os
import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cnnjob.data.image_limits import decoding_limits
from cnnjob.data.images import Picture, header, inspect_image, read_picture
from cnnjob.data.prepare.prepare import prepare
from cnnjob.errors import DataError
from cnnjob.runs.run import Run
from cnnjob.training.inference.predict import predict
from cnnjob.training.train import train
from tests.helpers.image_sources import jpeg_of_scans, png_of_chunks, unusable_images, usable_images, write_images
from tests.helpers.toy_jobs import job, run_of, trained

UNUSABLE = unusable_images()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(tmp_path_factory.mktemp("place"), train__epochs=1).run


@pytest.mark.parametrize("name", UNUSABLE)
def test_both_refuse_an_unusable_file_in_the_same_words(tmp_path: Path, run: Run, name: str) -> None:
    message, content = UNUSABLE[name]
    for label in "ab":
        write_images(tmp_path / label, 3)
    path = tmp_path / "b" / name.replace(".txt", ".dat")  # a .txt in a class folder is known to be no image
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as packing:
        prepare("folder", tmp_path / "out.h5", source=tmp_path, size=(6, 6), test_fraction=0.5)
    with pytest.raises(DataError) as predicting:
        predict(run, [str(path)])
    assert f"\n  {predicting.value}).\n" in str(packing.value)
    assert str(predicting.value).startswith(f"{path}: ")
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize("name", usable_images())
def test_both_read_a_usable_file(tmp_path: Path, run: Run, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(usable_images()[name])
    turned = name in {"turned.png", "progressive.jpg"}
    found = header(path)
    assert (found.height, found.width) == ((6, 5) if turned else (5, 6))
    picture = read_picture(path, (found.height, found.width, 3))
    assert picture.header == found
    assert (picture.pixels.dtype, picture.pixels.shape) == (np.uint8, (found.height, found.width, 3))
    (guess,) = predict(run, [str(path)])
    assert guess.scaled_from == (found.height, found.width)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff", "tiff deflated"])
def test_every_orientation_is_read_upright(tmp_path: Path, kind: str, orientation: int) -> None:
    stored = np.kron(np.array([[0, 60, 120], [180, 210, 250]], np.uint8), np.ones((16, 16), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"compression": "tiff_adobe_deflate"} if kind == "tiff deflated" else {}
    options |= {"lossless": True} if kind == "webp" else {}
    path = tmp_path / f"a.{kind.partition(' ')[0]}"
    Image.fromarray(stored).save(path, exif=exif, **options)
    # EXIF 2.3, 4.6.4: which side of what is seen the stored first row and first column are
    upright = [
        stored, stored[:, ::-1], stored[::-1, ::-1], stored[::-1],
        stored.T, stored.T[:, ::-1], stored.T[::-1, ::-1], stored.T[::-1],
    ][orientation - 1]  # fmt: skip
    found = header(path)
    assert (found.height, found.width) == upright.shape
    image = read_picture(path, (*upright.shape, 1)).pixels
    assert np.abs(image[..., 0].astype(int) - upright).max() <= (6 if kind == "jpeg" else 1)


def tiff(bits: int, planar: int, sample_format: int = 1) -> bytes:
    """An uncompressed RGB TIFF of 4 × 4 pixels, in one strip or in one per channel."""
    size = 16 * bits // 8
    strips = 3 if planar == 2 else 1
    tags = [
        (256, 3, [4]), (257, 3, [4]), (258, 3, [bits] * 3), (259, 3, [1]), (262, 3, [2]), (273, 4, [0] * strips),
        (277, 3, [3]), (278, 3, [4]), (279, 4, [3 * size // strips] * strips), (284, 3, [planar]),
        (339, 3, [sample_format] * 3),
    ]  # fmt: skip
    start = 8 + 2 + 12 * len(tags) + 4
    later, entries = b"", b""
    sizes = sum(len(values) * (2 if kind == 3 else 4) for _, kind, values in tags if len(values) > 1)
    for tag, kind, told in tags:
        values = [start + sizes + number * 3 * size // strips for number in range(strips)] if tag == 273 else told
        packed = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(packed) > 4:
            packed, later = struct.pack("<I", start + len(later)), later + packed
        entries += struct.pack("<HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    return head + entries + bytes(4) + later + bytes(range(3 * size))


@pytest.mark.parametrize("compression", ["tiff_adobe_deflate", "tiff_lzw", "jpeg"])
def test_libtiff_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str], compression: str) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.arange(3 * 32 * 32).astype(np.uint8).reshape(32, 32, 3)).save(path, compression=compression)
    content = path.read_bytes()
    for position in range(8, len(content), 7):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :])
        with contextlib.suppress(DataError):
            read_picture(path, None)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("planar", [1, 2])
@pytest.mark.parametrize(("bits", "sample_format"), [(32, 1), (16, 2), (8, 2)])
def test_wide_or_signed_planes_are_refused(tmp_path: Path, planar: int, bits: int, sample_format: int) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(8, planar))
    assert read_picture(path, (4, 4, 3)).pixels.shape == (4, 4, 3)
    path.write_bytes(tiff(bits, planar, sample_format))
    with pytest.raises(DataError, match=r"do not have 8 or 16 bits per channel|a damaged TIFF image"):
        header(path)


def test_no_program_is_started(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = tmp_path / "trace"
    for name in ("gs", "gswin32c", "gs.exe"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {trace}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "x.png").write_bytes(UNUSABLE["program.eps"][1])
    with pytest.raises(DataError, match="a PostScript document"):
        predict(run, [str(tmp_path / "x.png")])
    assert not trace.exists()


SHORT_OF_MEMORY = """
import resource, sys
from collections.abc import Callable
from pathlib import Path
from cnnjob.errors import DataError
from cnnjob.data.images import read_picture

in_use = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_DATA, (in_use + 20_000_000, resource.RLIM_INFINITY))
try:
    read_picture(Path(sys.argv[1]), (4, 4, 3))
except DataError as error:
    print(error)
"""


def test_an_image_that_takes_too_much_memory_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4000, 2000)).save(tmp_path / "large.png")
    command = [sys.executable, "-c", SHORT_OF_MEMORY, str(tmp_path / "large.png")]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "large.png: decoding takes more than 400 MB of memory. Convert or remove it" in said


LONG = {
    "scans.jpg": jpeg_of_scans(3000),
    "chunks.png": png_of_chunks(200_000),
    "comments.ppm": b"P3 4 4 255\n" + b"#\n" * 500_000 + b"7 " * 48,
    "numbers.pgm": b"P2 1000 400 255\n" + b"7 " * 400_000,
}


@pytest.mark.parametrize("name", LONG)
def test_an_image_that_takes_too_long_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(LONG[name])
    with pytest.raises(DataError, match=rf"{name}: decoding takes more than 0\.02 s\. Convert or remove it"):
        read_picture(path, (4, 4, 1), most_seconds=0.02)


@pytest.mark.parametrize("name", ["scans.jpg", "numbers.pgm"])
def test_what_takes_a_second_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(jpeg_of_scans(30) if name == "scans.jpg" else LONG[name])
    assert read_picture(path, (4, 4, 1)).pixels.shape == (4, 4, 1)


def test_the_limit_of_memory_is_taken_back(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    path = tmp_path / "strips.tiff"
    path.write_bytes(UNUSABLE[path.name][1])
    with pytest.raises(DataError):
        header(path)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


@pytest.mark.parametrize("name", [*usable_images(), *(name for name, (_, content) in UNUSABLE.items() if content)])
def test_a_small_image_is_examined_as_it_is_read(tmp_path: Path, name: str) -> None:
    content = (usable_images() | {name: content for name, (_, content) in UNUSABLE.items()})[name]
    path = tmp_path / name
    path.write_bytes(content)

    def outcome(read: Callable[[], Picture | None]) -> object:
        try:
            picture = read()
        except DataError as error:
            return str(error)
        return picture and (picture.pixels.tolist(), *picture[1:])

    with decoding_limits():
        examined = outcome(lambda: inspect_image(path, content, 64 * 64)[1])
    if examined is not None:
        assert examined == outcome(lambda: read_picture(path, None))


def test_predict_fits_an_image_as_its_dataset_was_fitted(tmp_path: Path) -> None:
    for split, name in itertools.product(("train", "test"), "ab"):
        write_images(tmp_path / "shapes" / split / name, 8, mode="RGBA", size=(9, 6), seed=ord(name))
    orange = (200, 100, 0)
    source = tmp_path / "shapes"
    dataset = prepare("folder", tmp_path / "toy.h5", source=source, size=(8, 8), fit="pad", background=orange).dataset
    made = train(run_of(job(train__epochs=1), dataset, tmp_path / "runs")).run
    path = source / "test" / "a" / "0000.png"
    images, _ = dataset.load("test")
    expected = read_picture(path, (8, 8, 3), fit="pad", background=orange).pixels
    np.testing.assert_array_equal(images[0], expected)
    by_file, by_address = predict(made, [str(path), "test:0"])
    assert (by_file.class_name, by_file.probability) == (by_address.class_name, by_address.probability)
    assert by_file.remarks == ("transparent pixels were composited onto the background",)
