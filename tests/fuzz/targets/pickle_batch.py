"""CIFAR's pickled batches."""

import pickle
from pathlib import Path

import numpy as np

from cnnjob.data.prepare import cifar
from tests.fuzz.targets import Target
from tests.helpers.image_sources import python2_batch


def _seeds() -> list[bytes]:
    rows = np.zeros((1, 3072), np.uint8)
    batch = {"data": rows, "labels": [3]}
    return [python2_batch(rows, [3]), *(pickle.dumps(batch, protocol) for protocol in range(2, 6))]


def _read(content: bytes, folder: Path) -> None:  # noqa: ARG001 - it reads no file
    images, labels = cifar.parse_batch(content, "batch")
    assert len(images) == len(labels)


TARGET = Target(_seeds, _read)
