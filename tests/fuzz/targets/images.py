"""Image files and arrays of images."""

from pathlib import Path

from cnnjob.data.images import header, read_picture
from tests.fuzz.targets import Target
from tests.helpers.image_sources import tiff_of_strips, unusable_images, usable_images


def _seeds() -> list[bytes]:
    small = [content for _, content in unusable_images().values() if len(content) < 50_000]
    return [*usable_images().values(), *small, tiff_of_strips(50)]


def _read(content: bytes, folder: Path) -> None:
    path = folder / "image"
    path.write_bytes(content)
    found = header(path)
    assert found.height > 0
    assert found.width > 0
    picture = read_picture(path, (4, 4, 3))
    assert picture.header == found
    assert picture.pixels.shape == (4, 4, 3)


TARGET = Target(_seeds, _read)
