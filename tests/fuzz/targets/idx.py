"""IDX files, plain and gzipped."""

import gzip
import struct
from pathlib import Path

import numpy as np

from cnnjob.data.prepare import idx
from tests.fuzz.targets import Target
from tests.helpers.image_sources import idx as written

_LABELS = "train-labels-idx1-ubyte"
_IMAGES = "train-images-idx3-ubyte"
_TEST = {
    "t10k-images-idx3-ubyte": written(np.zeros((1, 2, 3), np.uint8)),
    "t10k-labels-idx1-ubyte": written(np.zeros(1, np.uint8)),
}


def _seeds() -> list[bytes]:
    """Images and labels, each behind its length, so that both are mutated."""
    pairs = [(written(np.zeros((n, 2, 3), np.uint8)), written(np.zeros(n, np.uint8))) for n in (1, 5)]
    pairs += [(gzip.compress(images, mtime=0), labels) for images, labels in pairs]
    return [struct.pack(">I", len(images)) + images + labels for images, labels in pairs]


def _read(content: bytes, folder: Path) -> None:
    length = int.from_bytes(content[:4], "big")
    parts = {_IMAGES: content[4 : 4 + length], _LABELS: content[4 + length :]}
    for name, part in (parts | _TEST).items():
        (folder / name).write_bytes(part)
    for block in idx.read({name: folder / name for name in parts | _TEST}):
        assert len(block.images) == len(block.labels)


TARGET = Target(_seeds, _read)
