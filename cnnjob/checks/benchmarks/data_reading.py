"""Measure how fast a dataset is read: in random batches, as streamed during training, and as a whole, in order."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import Any

import numpy as np

from cnnjob import nn
from cnnjob.data.dataset import Dataset
from cnnjob.data.prepare.writer import Chunk, DatasetContents, write
from cnnjob.data.stored import RowReader
from cnnjob.nn.arena import HostMemory

IMAGE_SHAPES = ((32, 32, 3), (224, 224, 3))
BATCH_SIZE = 128
BLOCK_BYTES = 8 << 20
"""Size of each read when the file is read in order."""
CHUNK_BYTES = 64 << 20
"""Size of the chunks in which the dataset is generated."""


@dataclass(frozen=True)
class ReadingRow:
    """The result of reading a file in one way."""

    image_shape: tuple[int, int, int]
    file_bytes: int
    reading: str
    images_per_second: float
    megabytes_per_second: float

    def as_json(self) -> dict[str, Any]:
        """Return the row as a dict for JSON."""
        return asdict(self)


def measure_reading(folder: Path, file_bytes: int, seconds: float) -> Iterator[ReadingRow]:
    """Write files of random images, measure how fast they are read, and remove the files.

    Args:
        folder: the folder for the files, on the disk to measure.
        file_bytes: size of each file.
        seconds: duration of each measurement with random batches.

    Yields:
        One row per image shape and way of reading (in order or in random batches, from the page cache or from disk);
        for each shape, reading from the page cache is measured first.
    """
    for shape in IMAGE_SHAPES:
        with TemporaryDirectory(prefix="cnnjob-bench-", dir=folder) as inside:
            yield from _measure(_write_dataset(Path(inside, "images.h5"), shape, file_bytes), file_bytes, seconds)


def _write_dataset(path: Path, shape: tuple[int, int, int], file_bytes: int) -> Dataset:
    """Write a dataset of random images whose file size is about ``file_bytes``."""
    count = max(2 * BATCH_SIZE, file_bytes // prod(shape))
    step = max(1, CHUNK_BYTES // prod(shape))
    random = np.random.default_rng(0)

    def chunks() -> Iterator[Chunk]:
        for split, n in (("train", count), ("test", 1)):
            for start in range(0, n, step):
                rows = min(step, n - start)
                images = np.frombuffer(random.bytes(rows * prod(shape)), np.uint8).reshape(rows, *shape)
                yield Chunk("bench", split, start, images, np.zeros(rows, np.int64), n)

    write(path, "bench", DatasetContents(("a", "b"), {}, chunks()), {})
    return Dataset.open(path)


def _measure(dataset: Dataset, file_bytes: int, turn_seconds: float) -> Iterator[ReadingRow]:
    shape, image_bytes = dataset.image_shape, prod(dataset.image_shape)
    with dataset.stored("train").open() as images:

        def row(reading: str, count: int, seconds: float) -> ReadingRow:
            return ReadingRow(shape, file_bytes, reading, count / seconds, count * image_bytes / seconds / 1e6)

        in_order, at_random = "in order", f"random batches of {BATCH_SIZE}"
        _read_in_order(images)  # into the page cache
        yield row(f"{in_order}, page cache", *_read_in_order(images))
        yield row(f"{at_random}, page cache", *_read_at_random(images, turn_seconds))
        with _checking(dataset):
            yield row(f"{at_random}, page cache, while digests are checked", *_read_at_random(images, turn_seconds))
        _drop_from_page_cache(dataset.path)
        yield row(f"{at_random}, disk", *_read_at_random(images, turn_seconds))
        _drop_from_page_cache(dataset.path)
        yield row(f"{in_order}, disk", *_read_in_order(images))


def _read_in_order(images: RowReader) -> tuple[int, float]:
    """Read all images; return the number of images and the elapsed seconds."""
    rows = max(1, BLOCK_BYTES // prod(images.shape[1:]))
    block = np.empty((rows, *images.shape[1:]), np.uint8)
    started = time.perf_counter()
    for start in range(0, len(images), rows):
        images.read(start, block[: min(rows, len(images) - start)])
    return len(images), time.perf_counter() - started


def _read_at_random(images: RowReader, turn_seconds: float) -> tuple[int, float]:
    """For about ``turn_seconds``, read batches as in training; return the number of images and the elapsed seconds."""
    order = np.random.default_rng(0).permutation(len(images))
    order = order[: len(order) // BATCH_SIZE * BATCH_SIZE]
    stream = nn.ImageStream(HostMemory(), images.shape[1:], BATCH_SIZE)
    count, started = 0, time.perf_counter()
    seconds = 0.0
    while seconds < turn_seconds:
        stream.start(images, order, BATCH_SIZE)
        for _ in range(len(order) // BATCH_SIZE):
            stream.next()
            count, seconds = count + BATCH_SIZE, time.perf_counter() - started
            if seconds >= turn_seconds:
                break
    stream.close()
    return count, seconds


@contextmanager
def _checking(dataset: Dataset) -> Iterator[None]:
    """Verify the digests of the training split repeatedly in a background thread; training verifies them only once."""
    over = Event()

    def check() -> None:
        while not over.is_set():
            dataset.verify("train")

    thread = Thread(target=check, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _drop_from_page_cache(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # only pages that were written to the disk can be dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
