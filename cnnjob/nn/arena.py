"""Memory for plans: the arena, and flat buffers with named views.

Planning code runs twice on an arena. In the first pass, the arena counts bytes and returns arrays that have a shape but
no memory; it then allocates once, and the second pass gets real arrays. The exact size of a plan's memory can therefore
be computed without allocating it, and a step never allocates.
"""

import mmap
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from operator import mul
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.lib.stride_tricks import as_strided

from cnnjob.nn.blocks import Shape

Array = np.ndarray[Any, Any]
Plan = TypeVar("Plan")

ALIGNMENT_BYTES = 64
"""Size of a cache line."""
HUGE_PAGE_BYTES = 1 << 21
"""Size of a huge page; large arrays are aligned to it so that they need fewer TLB entries."""


def aligned(count: int) -> int:
    """Return a number of bytes rounded up to whole cache lines."""
    return -(-count // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


class ArrayStore(Protocol):
    """Memory that holds arrays, on the host or on a device."""

    lanes: int
    """Number of concurrent lanes; lane n mod ``lanes`` runs task n of a list. Each lane runs its tasks in order."""

    def zeros(self, shape: Shape, dtype: Any) -> Array:
        """Return a new array of zeros, aligned to a cache line."""

    def copy(self, source: Array, target: Array) -> None:
        """Copy between arrays of equal shape and dtype.

        Each array is in this memory or on the host. The copy is complete on return.
        """

    def resident(self, array: Array) -> Array:
        """Return the array itself if it is in this memory, or else a copy in this memory."""

    def host(self, array: Array) -> Array:
        """Return the array, or a copy of it, as a NumPy array."""

    def staging(self, target: Array) -> Array:
        """Return ``target`` itself, or a NumPy array of its shape whose content :meth:`upload` copies to ``target``."""

    def upload(self, source: Array, target: Array) -> Callable[[], object]:
        """Start copying part of a staging array; return a function that waits until the source can be overwritten.

        All work launched later sees the copied data.
        """


class HostMemory:
    """Host memory for NumPy arrays; if ``lanes`` exceeds 1, processes that are forked later share this memory."""

    def __init__(self, lanes: int = 1) -> None:
        """Provide memory for up to ``lanes`` concurrent tasks."""
        self.lanes = lanes

    def zeros(self, shape: Shape, dtype: Any) -> Array:
        """Return a new array of zeros, aligned to a cache line."""
        size = prod(shape) * np.dtype(dtype).itemsize
        alignment = HUGE_PAGE_BYTES if size >= HUGE_PAGE_BYTES else ALIGNMENT_BYTES
        # NumPy does not guarantee this alignment: allocate more than needed and start at the first aligned byte. Zeros
        # from np.zeros take up no physical memory until they are written, and use huge pages from 4 MiB up.
        raw = _shared_bytes(size + alignment) if self.lanes > 1 else np.zeros(size + alignment, np.uint8)
        return _shaped(raw[-raw.ctypes.data % alignment :], shape, dtype)

    def copy(self, source: Array, target: Array) -> None:
        """Copy between arrays of equal shape and dtype."""
        np.copyto(target, source, casting="no")

    def resident(self, array: Array) -> Array:
        """Return the array itself."""
        return array

    def host(self, array: Array) -> Array:
        """Return the array itself."""
        return array

    def staging(self, target: Array) -> Array:
        """Return the target itself."""
        return target

    def upload(self, source: Array, target: Array) -> Callable[[], object]:
        """Copy nothing: source and target are the same memory."""
        assert source.ctypes.data == target.ctypes.data  # noqa: S101 - the source is part of a staging array
        return lambda: None


class Arena:
    """One block of zeroed memory from which a plan's arrays are taken.

    ``take`` returns memory that nothing else uses while the plan exists. ``scratch`` returns memory that all blocks
    share: its contents are lost when a block's task ends. Shards that may run concurrently have separate scratch
    memory, which is counted for every shard so that the count does not depend on the number of cores.
    """

    def __init__(
        self,
        owner: ArrayStore | None = None,
        memory: Array | None = None,
        scratch_bytes: Mapping[int, int] | None = None,
    ) -> None:
        """Create an arena, which only counts bytes if ``memory`` is None; :meth:`allocate` provides the memory."""
        self._owner, self._memory = owner, memory
        self._used_bytes = 0
        self._scratch_bytes: dict[int, int] = {}
        # All regions are as large as the largest shard's, since lane n also runs shards n + lanes, n + 2·lanes, etc.
        largest = max((scratch_bytes or {0: 0}).values())
        self._regions = [self._carve(largest) for _ in scratch_bytes or ()]

    @classmethod
    def allocate(cls, owner: ArrayStore, build: Callable[[Self], Plan]) -> Plan:
        """Build a plan twice: first to count its memory, then in memory of exactly that size."""
        counting = cls()
        build(counting)
        return build(cls(owner, owner.zeros((counting.size_bytes,), np.uint8), counting._scratch_bytes))

    @classmethod
    def count_bytes(cls, build: Callable[[Self], object]) -> int:
        """Return the exact size of a plan's memory in bytes, without allocating it."""
        counting = cls()
        build(counting)
        return counting.size_bytes

    @property
    def size_bytes(self) -> int:
        """Return the number of bytes taken so far, including scratch memory."""
        # An arena with memory carves out its scratch regions at the start, so they are part of the used bytes.
        if self._memory is not None:
            return self._used_bytes
        return self._used_bytes + len(self._scratch_bytes) * max(self._scratch_bytes.values(), default=0)

    def take(self, shape: Shape, dtype: Any) -> Array:
        """Return a zeroed array that nothing else uses."""
        size = prod(shape) * np.dtype(dtype).itemsize
        return _shaped(self._carve(aligned(size)), shape, dtype)

    def constant(self, values: Array) -> Array:
        """Return a copy of ``values`` in an array that nothing else uses."""
        array = self.take(values.shape, values.dtype)
        if self._owner:
            self._owner.copy(values, array)
        return array

    def scratch(self, shard: int, *arrays: tuple[Shape, Any]) -> list[Array]:
        """Return arrays of the given shapes and dtypes whose contents are lost when a block's task ends."""
        sizes = [aligned(prod(shape) * np.dtype(dtype).itemsize) for shape, dtype in arrays]
        self._scratch_bytes[shard] = max(self._scratch_bytes.get(shard, 0), sum(sizes))
        region = self._regions[shard % self._owner.lanes] if self._owner else None
        starts = accumulate(sizes[:-1], initial=0)
        return [
            _shaped(None if region is None else region[start:], shape, dtype)
            for start, (shape, dtype) in zip(starts, arrays, strict=True)
        ]

    def _carve(self, size: int) -> Array | None:
        """Return the next ``size`` bytes of the arena; if the arena has no memory, count them and return None."""
        start = self._used_bytes
        self._used_bytes += size
        return None if self._memory is None else self._memory[start : start + size]


def _shared_bytes(size: int) -> Array:
    """Return ``size`` bytes of zeros that stay shared with processes forked later."""
    try:
        memory = mmap.mmap(-1, size)
    except OSError as error:
        raise MemoryError(f"could not allocate {size:,} bytes of shared memory: {error}") from error
    with suppress(OSError):  # huge pages, if the system supports them for shared memory
        memory.madvise(mmap.MADV_HUGEPAGE)
    array = np.frombuffer(memory, np.uint8)
    array.fill(0)  # touches every page, so that the peak memory of this process includes all of it
    return array


def shape_only_array(shape: Shape, dtype: Any) -> Array:
    """Return an array with a shape but no memory, for counting and layout; its values must not be accessed."""
    # Use the strides of a real array, so that slices and reshapes are views wherever they would be for a real array.
    inner_first = tuple(accumulate(shape[:0:-1], mul, initial=np.dtype(dtype).itemsize))
    return as_strided(np.empty(1, dtype), shape, inner_first[::-1] if shape else ())


def _shaped(memory: Array | None, shape: Shape, dtype: Any) -> Array:
    """Return the first bytes of ``memory`` viewed as an array, or a shape-only array if ``memory`` is None."""
    if memory is None:
        return shape_only_array(shape, dtype)
    array: Array = memory[: prod(shape) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)
    return array


@dataclass(frozen=True)
class BufferLayout:
    """The positions of named arrays in a flat buffer; each array starts on a cache line."""

    shapes: dict[str, Shape]
    """Shape of each array."""
    offsets: dict[str, int]
    """Index of the first element of each array."""
    size: int
    """Number of elements in the buffer, including gaps."""

    @classmethod
    def of(cls, shapes: Mapping[str, Shape], itemsize: int) -> Self:
        """Lay out arrays of the same dtype one after another."""
        offsets, size = {}, 0
        for name, shape in shapes.items():
            offsets[name] = size
            size += aligned(prod(shape) * itemsize) // itemsize
        return cls(dict(shapes), offsets, size)

    def views(self, flat: Array) -> dict[str, Array]:
        """Return the named arrays in a flat buffer, as views."""
        return {name: flat[self.slice_of(name)].reshape(shape) for name, shape in self.shapes.items()}

    def flatten(self, arrays: Mapping[str, Array], dtype: Any) -> Array:
        """Return a new flat buffer that holds the named arrays, with zeros in the gaps."""
        flat = np.zeros(self.size, dtype)
        for name, view in self.views(flat).items():
            view[...] = arrays[name]
        return flat

    def slice_of(self, name: str) -> slice:
        """Return the slice of the flat buffer that holds the array with this name."""
        start = self.offsets[name]
        return slice(start, start + prod(self.shapes[name]))
