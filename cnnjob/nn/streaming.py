"""Streaming of images that do not fit in memory: upcoming batches are read ahead into a ring buffer."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod
from typing import Protocol

import numpy as np

from cnnjob.nn.arena import Array, ArrayStore
from cnnjob.nn.blocks import Shape
from cnnjob.nn.tensors import Task

BATCHES = 4
"""Number of batches in the ring: one being processed and three being read ahead."""
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
    """A reader that loads each step's images into a ring buffer before the step runs.

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
        self.images: Array = memory.zeros((self.n_resident + BATCHES * batch_size, *image_shape), np.uint8)
        """The images that stay in memory, then the ring; uint8."""
        self._ring = self.images[self.n_resident :]
        self._staged = memory.staging(self._ring)
        self._reader = ThreadPoolExecutor(1, "images")
        self._read: dict[int, Future[int]] = {}
        self._uploaded: Uploads = {}
        self._step = 0
        self._start_read: StartRead = _no_read
        self._fill()

    @staticmethod
    def count_bytes(image_shape: Shape, batch_size: int, n_resident: int = 0) -> int:
        """Return the size of :attr:`images` in bytes, without allocating it."""
        return (n_resident + BATCHES * batch_size) * prod(image_shape)

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
        batches = order.reshape(-1, batch_size)
        n_resident = self.n_resident if source is self._resident_source else 0

        def start_read(step: int) -> None:
            if step < len(batches):
                self._read[step] = self._reader.submit(self._take, source, batches[step], n_resident, step)

        self._step, self._start_read = step, start_read
        for ahead in range(step, step + BATCHES - 1):
            start_read(ahead)
        slots = self.n_resident + np.arange(BATCHES)[:, None] * self._batch_size
        if not n_resident:
            return np.resize(slots + np.arange(batch_size), order.shape)
        streamed = batches >= n_resident
        # Only images that do not stay in memory are read, into the beginning of the batch's slot.
        read = np.resize(slots, (len(batches), 1)) + np.cumsum(streamed, axis=1) - 1
        return np.where(streamed, read, batches).reshape(-1)

    def next(self) -> None:
        """Wait for the images of the step about to run, and start reading the images of a later step.

        Raises:
            Exception: any exception that the source raised while reading the images.
        """
        step = self._step
        count = self._read.pop(step).result()
        staged, ring = self._slot(step, self._staged)[:count], self._slot(step, self._ring)[:count]
        # The previous step has been computed or, on a GPU, launched: its slot is free once its upload is complete.
        self._uploaded.pop(step - 1, _nothing)()
        self._uploaded[step] = self._memory.upload(staged, ring)
        self._step += 1
        self._start_read(step + BATCHES - 1)

    def close(self) -> None:
        """Stop reading."""
        self._drop()
        self._reader.shutdown()

    def _take(self, source: ImageSource, indices: Array, n_resident: int, step: int) -> int:
        """Read a step's images that do not stay in memory, and return their number."""
        read = indices[indices >= n_resident] if n_resident else indices
        source.take(read, self._slot(step, self._staged)[: len(read)])
        return len(read)

    def _slot(self, step: int, ring: Array) -> Array:
        start = step % BATCHES * self._batch_size
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


def _no_read(step: int) -> None:
    raise RuntimeError(f"no images to read for step {step}: the stream was not started")
