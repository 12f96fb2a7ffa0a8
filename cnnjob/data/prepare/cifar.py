"""Read the "python version" of CIFAR: pickled batches, as files or in an archive that is read in one pass.

Nothing is extracted to disk: archive members are identified by name and can be in any order.

References:
    Krizhevsky, "Learning multiple layers of features from tiny images" (2009).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cnnjob.data.dataset import BLOCK_BYTES
from cnnjob.data.prepare.archives import MOST_MEMBER_BYTES, read_members
from cnnjob.data.prepare.catalogue import Entry
from cnnjob.data.prepare.pickles import PickledArray, load_plain
from cnnjob.data.prepare.writer import Chunk
from cnnjob.errors import DataError
from cnnjob.files import read_bytes

_CHANNELS, _SIDE = 3, 32
_IMAGE_BYTES = _CHANNELS * _SIDE * _SIDE
_LABELS = ("fine_labels", "labels")
_AGAIN = "Copy or download it again"


def read(entry: Entry, files: Mapping[str, Path]) -> Iterator[Chunk]:
    """Yield all images of CIFAR-10 or CIFAR-100.

    Args:
        entry: the catalogue entry of the dataset.
        files: either the archive or all batch files, by name.

    Yields:
        Chunks of images (N, 32, 32, 3), each with its position in the split.

    Raises:
        DataError: the archive or a batch file is damaged, or a batch file is missing.
    """
    positions = _batch_positions(entry)
    batches: Iterator[tuple[str, str, bytes]]
    if positions.keys() <= files.keys():
        batches = ((name, str(files[name]), read_bytes(files[name], MOST_MEMBER_BYTES)) for name in positions)
    else:
        batches = _wanted_members(next(iter(files.values())), list(positions))
    sizes: dict[str, int] = {}
    step = BLOCK_BYTES // _IMAGE_BYTES
    for name, where, content in batches:
        images, labels = parse_batch(content, where)
        split, index = positions[name]
        # Batches may be in any order: since their sizes are equal, a batch's number determines its position.
        n = sizes.setdefault(split, len(labels))
        if n != len(labels):
            raise DataError(
                f"{where}: differs in size from the other batches (found {len(labels)} images, expected {n}). {_AGAIN}"
            )
        count = n * sum(other == split for other, _ in positions.values())
        for start in range(0, n, step):
            rows = slice(start, start + step)
            pixels = images[rows].transpose(0, 2, 3, 1)  # N×H×W×C
            yield Chunk(where, split, index * n + start, pixels, labels[rows], count)


def parse_batch(content: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Parse one pickled batch.

    Args:
        content: the pickle.
        where: file or archive member that contains the pickle, for messages.

    Returns:
        Images (N, 3, 32, 32) uint8 and labels (N,) int64.

    Raises:
        DataError: the content is not a batch, or is an unsafe pickle.
    """
    batch = load_plain(content, where)
    images, labels = _field(batch, "data"), next(filter(None, (_field(batch, key) for key in _LABELS)), None)
    if not _is_rows(images):
        raise DataError(
            f"{where}: not a CIFAR batch (its data does not consist of rows of {_IMAGE_BYTES:,} bytes). {_AGAIN}"
        )
    # type() rather than isinstance(), since a bool is also an int. The shift is 0 only for labels from 0 to 65,535.
    if not isinstance(labels, list) or any(type(label) is not int or label >> 16 for label in labels):
        raise DataError(f"{where}: not a CIFAR batch (its labels are not a list of small integers). {_AGAIN}")
    if images.shape[0] != len(labels):
        raise DataError(
            f"{where}: the numbers of labels and images differ (found {len(labels)} and {images.shape[0]}). {_AGAIN}"
        )
    # (N, C, H, W), a view of the pickle's bytes: each row has all reds, then all greens, then all blues.
    pixels = np.frombuffer(images.content, np.uint8).reshape(-1, _CHANNELS, _SIDE, _SIDE)
    return pixels, np.array(labels, np.int64)


def _field(batch: Any, key: str) -> Any:
    """Return a field of a batch, or None if it is missing; field names written by Python 2 are bytes."""
    return batch.get(key.encode(), batch.get(key)) if isinstance(batch, dict) else None


def _is_rows(array: Any) -> bool:
    """Return whether an object is a pickled (N, 3072) uint8 array with as many bytes as its shape requires."""
    if not isinstance(array, PickledArray) or not isinstance(array.content, bytes | bytearray):
        return False
    n, rest = divmod(len(array.content), _IMAGE_BYTES)
    return array.code in {"u1", "|u1"} and array.shape == (n, _IMAGE_BYTES) and n > 0 and rest == 0


def _batch_positions(entry: Entry) -> dict[str, tuple[str, int]]:
    """Return each batch's split and its index in that split, by batch name."""
    names = [file.name for file in entry.unpacked]
    tests = [name for name in names if name.startswith("test")]
    trains = [name for name in names if name not in tests]
    return {
        name: (split, index)
        for split, batches in (("train", trains), ("test", tests))
        for index, name in enumerate(batches)
    }


def _wanted_members(archive: Path, wanted: list[str]) -> Iterator[tuple[str, str, bytes]]:
    """Yield each requested member's name, location for messages, and content, in archive order."""
    missing = list(wanted)
    for name, content in read_members(archive, wanted):
        missing.remove(name)
        yield name, f"{archive}: {name}", content
    if missing:
        raise DataError(f"{archive}: incomplete (missing {', '.join(missing)}). {_AGAIN}")
