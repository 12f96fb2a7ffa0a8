"""Read the binary versions of CIFAR-10, CIFAR-100 and STL-10: fixed-size records of bytes without a header.

References:
    Krizhevsky, "Learning multiple layers of features from tiny images" (2009).
    Coates, Lee and Ng, "An analysis of single-layer networks in unsupervised feature learning" (2011).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from cnnjob.data.prepare.arrays.stream import ArraySet, LabelledStream, rows_per_block
from cnnjob.errors import DataError
from cnnjob.files import open_regular, read_bytes, read_text

_CIFAR_SHAPE = (3, 32, 32)
_CIFAR_BYTES = 3 * 32 * 32
_STL_SHAPE = (3, 96, 96)
_STL_BYTES = 3 * 96 * 96
_STL_LABEL_BYTES = 1 << 20
_AGAIN = "Copy or download it again"


def find_binary_set(root: Path, names: Sequence[str]) -> ArraySet | None:
    """Return the images in a folder that contains a dataset's binary version; None for any other folder.

    Args:
        root: the folder.
        names: paths of the files in the folder that are not images.

    Raises:
        DataError: a file is missing or damaged.
    """
    by_name = {name.rpartition("/")[2]: root / name for name in names}
    if "train_X.bin" in by_name:
        return _stl10(by_name)
    if "data_batch_1.bin" in by_name:
        batches = [f"data_batch_{number}.bin" for number in range(1, 6)]
        if missing := [name for name in batches if name not in by_name]:
            raise DataError(f"{root}: training batches are missing ({', '.join(missing)}). Copy them to this folder")
        trains = [by_name[name] for name in batches]
        return _cifar(by_name, "CIFAR-10", trains, "test_batch.bin", "batches.meta.txt", n_labels=1)
    if "fine_label_names.txt" in by_name and "train.bin" in by_name:
        return _cifar(by_name, "CIFAR-100", [by_name["train.bin"]], "test.bin", "fine_label_names.txt", n_labels=2)
    return None


def _cifar(
    by_name: dict[str, Path], title: str, trains: Sequence[Path], test: str, table: str, *, n_labels: int
) -> ArraySet:
    splits = {"train": _cifar_stream(trains, n_labels)}
    if test in by_name:
        splits["test"] = _cifar_stream([by_name[test]], n_labels)
    files = [*trains, *([by_name[test]] if test in by_name else [])]
    return ArraySet(f"binary version of {title}", splits, files, _names(by_name.get(table), first=0))


def _cifar_stream(paths: Sequence[Path], n_labels: int) -> LabelledStream:
    record = n_labels + _CIFAR_BYTES
    counts = [_count(path, record) for path in paths]
    labels = np.concatenate([block[:, n_labels - 1] for block in _records(paths, record)])  # the fine label is the last

    def blocks() -> Iterator[np.ndarray]:
        for block in _records(paths, record):
            # Each record contains all red values, then all green values, then all blue values.
            yield block[:, n_labels:].reshape(-1, *_CIFAR_SHAPE).transpose(0, 2, 3, 1)

    return LabelledStream(str(paths[0]), (sum(counts), 32, 32, 3), blocks, labels.astype(np.int64))


def _stl10(by_name: dict[str, Path]) -> ArraySet:
    splits, files = {}, []
    for split in ("train", "test"):
        images, labels = by_name.get(f"{split}_X.bin"), by_name.get(f"{split}_y.bin")
        if images and labels:
            splits[split] = _stl_stream(images, labels)
            files += [images, labels]
    left_out = ["unlabeled_X.bin"] if "unlabeled_X.bin" in by_name else []
    names = _names(by_name.get("class_names.txt"), first=1)
    return ArraySet("binary version of STL-10", splits, files, names, left_out)


def _stl_stream(images: Path, labels: Path) -> LabelledStream:
    count = _count(images, _STL_BYTES)
    values = np.frombuffer(read_bytes(labels, _STL_LABEL_BYTES), np.uint8)  # (N,), from 1

    def blocks() -> Iterator[np.ndarray]:
        for block in _records([images], _STL_BYTES):
            yield block.reshape(-1, *_STL_SHAPE).transpose(0, 3, 2, 1)  # images are stored column by column

    return LabelledStream(str(images), (count, 96, 96, 3), blocks, values.astype(np.int64))


def _count(path: Path, record: int) -> int:
    """Return the number of records in a file."""
    size = path.stat().st_size
    if size == 0 or size % record:
        raise DataError(f"{path}: its size is not a multiple of {record:,} bytes (found {size:,} bytes). {_AGAIN}")
    return size // record


def _records(paths: Sequence[Path], record: int) -> Iterator[np.ndarray]:
    """Yield the records of several files in blocks (n, record) uint8."""
    step = rows_per_block(record)
    for path in paths:
        with open_regular(path) as file:
            while content := file.read(step * record):
                if len(content) % record:
                    raise DataError(f"{path}: ends within a record of {record:,} bytes. {_AGAIN}")
                yield np.frombuffer(content, np.uint8).reshape(-1, record)


def _names(path: Path | None, *, first: int) -> dict[int, str] | None:
    """Return the class name of each label, read from a file with one name per line; None if ``path`` is None."""
    if path is None:
        return None
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    return dict(enumerate(lines, start=first))
