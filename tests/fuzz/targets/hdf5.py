"""Packed datasets: opened, loaded, verified."""

import tempfile
from pathlib import Path

import numpy as np

from cnnjob.data.dataset import Dataset
from cnnjob.data.prepare.writer import Chunk, DatasetContents, write
from tests.fuzz.targets import Target
from tests.helpers.older_files import as_format_1


def _seeds() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pets.h5")
        seeds = [_packed(path, splits) for splits in (("train", "test"), ("train", "val", "test"))]
        return [*seeds, as_format_1(path).read_bytes()]


def _packed(path: Path, splits: tuple[str, ...]) -> bytes:
    blocks = (Chunk("x", split, 0, np.full((3, 2, 2, 1), 7, np.uint8), np.arange(3) % 2, 3) for split in splits)
    write(path, "pets", DatasetContents(("cat", "dog"), {"source": "0" * 64}, blocks), {"size": None})
    return path.read_bytes()


def _read(content: bytes, folder: Path) -> None:
    path = folder / "pets.h5"
    path.write_bytes(content)
    dataset = Dataset.open(path)
    for split in dataset.splits:
        images, labels = dataset.load(split)
        assert images.shape == dataset.shapes[split]
        assert images.dtype == np.uint8
        assert 0 <= labels.min() <= labels.max() < len(dataset.class_names)


TARGET = Target(_seeds, _read)
