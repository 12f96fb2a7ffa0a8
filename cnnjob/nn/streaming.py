"""Streaming of images that do not fit in memory: upcoming batches are read ahead into a ring buffer."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from typing import Protocol

import numpy as np

from cnnjob.nn.arena import Array, ArrayStore
from cnnjob.nn.blocks import Shape
from cnnjob.nn.tensors import Task

SLOTS = 4
"""Number of slots in the ring, each for the images of one or more steps: one in use and three being read ahead."""
MAX_READ_BYTES = 1 << 20
"""Maximum size of the images of several steps that are read together, since each read wakes another thread."""
StartRead = Callable[[int], None]
Uploads = dict[int, Task]


class ImageSource(Protocol):
    """Images that are not held in memory but read when they are needed, uint8 (N, H, W, C)."""

    @property
    def shape(self) -> Shape:
        """Return the shape (N, H, W, C)."""

    def take(self, indices: Array, images: Array) -> None:
        """Read the images with these indices, int64 (n,), into a contiguous array (n, H, W, C)."""


class ImageStream:
    """A reader that loads the images of the next steps into a ring buffer before the steps run.

    The ring buffer is the last part of :attr:`images`, an array in the backend's memory. The part before the ring is
    for images that stay in memory: the first images of one source (on a GPU, as many of them as fit). It may be empty.
    """

    def __init__(
        self,
        memory: ArrayStore,
        image_shape: Shape,
        batch_size: int,
        resident: tuple[ImageSource, int] | None = None,
    ) -> None:
        """Allocate the ring, and read the images that stay in memory.

        Args:
            memory: the backend's memory.
            image_shape: (H, W, C).
            batch_size: maximum number of images per step.
            resident: a source, and the number of images at its start that stay in memory.
        """
        self._memory, self._batch_size = memory, batch_size
        self._resident_source: ImageSource | None = resident[0] if resident else None
        self.n_resident = resident[1] if resident else 0
        """Number of images that stay in memory."""
        self.images: Array = memory.zeros((self.n_resident + SLOTS * batch_size, *image_shape), np.uint8)
        """The images that stay in memory, then the ring; uint8."""
        self._ring = self.images[self.n_resident :]
        self._staged = memory.staging(self._ring)
        self._reader = ThreadPoolExecutor(1, "images")
        self._read: dict[int, Future[int]] = {}
        self._uploaded: Uploads = {}
        self._steps_done, self._steps_per_read = 0, 1
        self._start_read: StartRead = _no_read
        self._fill()

    @staticmethod
    def count_bytes(image_shape: Shape, batch_size: int, n_resident: int = 0) -> int:
        """Return the size of :attr:`images` in bytes, without allocating it."""
        return (n_resident + SLOTS * batch_size) * prod(image_shape)

    def _fill(self) -> None:
        """Read the images that stay in memory, as many at a time as the ring holds."""
        if not self._resident_source:
            return
        for first in range(0, self.n_resident, len(self._ring)):
            part = slice(first, min(first + len(self._ring), self.n_resident))
            staged = self._staged[: part.stop - part.start]
            self._resident_source.take(np.arange(part.start, part.stop), staged)
            self._memory.upload(staged, self.images[part])()

    def start(self, source: ImageSource, order: Array, batch_size: int, step: int = 0) -> Array:
        """Start reading the images of the next steps; images that were read earlier but not used are dropped.

        Args:
            source: the images.
            order: indices of each step's images, int64 (steps × batch_size,).
            batch_size: images per step, at most the stream's batch size.
            step: first step to run.

        Returns:
            Index in :attr:`images` of each image in ``order``, int64. An index is valid only during the image's step.
        """
        self._drop()
        batch_bytes = batch_size * prod(self.images.shape[1:])
        self._steps_per_read = max(1, min(self._batch_size // batch_size, MAX_READ_BYTES // batch_bytes))
        n_resident = self.n_resident if source is self._resident_source else 0
        started, length = step * batch_size, self._steps_per_read * batch_size
        n_reads = -(-(len(order) - started) // length)
        # The images of each read, (reads, images); the last read may have fewer, hence the −1 at its end.
        reads = np.full((n_reads, length), -1, np.int64)
        reads.reshape(-1)[: len(order) - started] = order[started:]

        def start_read(number: int) -> None:
            if number < n_reads:
                self._read[number] = self._reader.submit(self._take, source, reads[number], n_resident, number)

        self._steps_done, self._start_read = 0, start_read
        for number in range(SLOTS - 1):
            start_read(number)
        # Only images that do not stay in memory are read, into the beginning of the read's slot.
        slots = self.n_resident + np.arange(n_reads)[:, None] % SLOTS * self._batch_size
        streamed = reads >= n_resident
        rows = np.zeros(len(order), np.int64)
        rows[started:] = np.where(streamed, slots + np.cumsum(streamed, axis=1) - 1, reads).reshape(-1)[
            : len(order) - started
        ]
        return rows

    def next(self) -> None:
        """Wait for the images of the step about to run, and start reading the images of later steps.

        Raises:
            Exception: any exception that the source raised while reading the images.
        """
        number, steps_done = divmod(self._steps_done, self._steps_per_read)
        if not steps_done:
            count = self._read.pop(number).result()
            staged, ring = self._slot(number, self._staged)[:count], self._slot(number, self._ring)[:count]
            # The steps of the previous read have been computed or, on a GPU, launched: their slot is free as soon as
            # its upload is complete.
            self._uploaded.pop(number - 1, _nothing)()
            self._uploaded[number] = self._memory.upload(staged, ring)
            self._start_read(number + SLOTS - 1)
        self._steps_done += 1

    def close(self) -> None:
        """Stop reading."""
        self._drop()
        self._reader.shutdown()

    def _take(self, source: ImageSource, indices: Array, n_resident: int, number: int) -> int:
        """Read the images that do not stay in memory, and return their number."""
        indices = indices[indices >= n_resident]  # also removes each −1
        source.take(indices, self._slot(number, self._staged)[: len(indices)])
        return len(indices)

    def _slot(self, number: int, ring: Array) -> Array:
        start = number % SLOTS * self._batch_size
        return ring[start : start + self._batch_size]

    def _drop(self) -> None:
        for read in self._read.values():
            if not read.cancel():
                read.exception()  # it may be writing to the ring
        for complete in self._uploaded.values():
            complete()
        self._read, self._uploaded = {}, {}


def _nothing() -> None:
    pass


def _no_read(number: int) -> None:
    raise RuntimeError(f"no images for read {number}: the stream was not started")
