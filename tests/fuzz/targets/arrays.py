"""The ``.npy`` files of `predict`."""

import io
from pathlib import Path

import numpy as np

from cnnjob.training.inference.predict import read_image_array
from tests.fuzz.targets import Target


def _seeds() -> list[bytes]:
    shapes = ((3, 3), (3, 3, 1), (2, 3, 3, 1))
    return [_saved(np.zeros(shape, np.uint8)) for shape in shapes] + [_saved(np.eye(3))]


def _saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _read(content: bytes, folder: Path) -> None:
    path = folder / "images.npy"
    path.write_bytes(content)
    images = read_image_array(path, (3, 3, 1))
    assert images.shape[1:] == (3, 3, 1)
    assert images.dtype == np.uint8
    images.sum()


TARGET = Target(_seeds, _read)
