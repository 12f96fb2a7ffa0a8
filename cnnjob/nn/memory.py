"""Where a plan's arrays lie: the arena, and flat buffers with named views.

An arena is filled twice by the same code: first it counts, handing out hollow arrays that have a
shape and no memory, then it allocates once and hands out the real ones. So the count is the exact
memory of a plan, known without allocating it, and a step never allocates.
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
HUGE_PAGE_BYTES = 1 << 21
"""Large arrays start on one: fewer addresses to look up."""


def aligned(count: int) -> int:
    """The next multiple of a cache line, in bytes."""
    return -(-count // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


class ArrayStore(Protocol):
    """Where arrays lie: the host's memory, or a device's."""

    lanes: int
    """Tasks of a list that may run at once: task n in lane n mod ``lanes``, one after the other."""

    def zeros(self, shape: Shape, dtype: Any) -> Array:
        """A new array of zeroes that starts on a cache line."""

    def copy(self, source: Array, target: Array) -> None:
        """Copy between arrays of one size and dtype, here or on the host; it is done on return."""

    def resident(self, array: Array) -> Array:
        """The same values where the blocks can read them; itself where they can."""

    def host(self, array: Array) -> Array:
        """The same values where NumPy can read them; itself where it can."""


class HostMemory:
    """NumPy's arrays; where several tasks run at once, also the processes' that are forked later."""

    def __init__(self, lanes: int = 1) -> None:
        """Memory for tasks of which so many run at once."""
        self.lanes = lanes

    def zeros(self, shape: Shape, dtype: Any) -> Array:
        """A new array of zeroes that starts on a cache line."""
        size = prod(shape) * np.dtype(dtype).itemsize
        alignment = HUGE_PAGE_BYTES if size >= HUGE_PAGE_BYTES else ALIGNMENT_BYTES
        raw = (_shared_bytes if self.lanes > 1 else _own_bytes)(size + alignment)
        return _shaped(raw[-raw.ctypes.data % alignment :], shape, dtype)

    def copy(self, source: Array, target: Array) -> None:
        """Copy between arrays of one size and dtype."""
        np.copyto(target, source, casting="no")

    def resident(self, array: Array) -> Array:
        """Itself."""
        return array

    def host(self, array: Array) -> Array:
        """Itself."""
        return array


class Arena:
    """One block of zeroed memory that a plan's arrays are taken from.

    ``take`` gives memory of one's own for the plan's life. ``scratch`` gives memory that other
    blocks use too, between one block's call and the next; shards that may run at once have their own.
    It is counted for every shard, so that the count does not depend on the cores.
    """

    def __init__(
        self,
        owner: ArrayStore | None = None,
        memory: Array | None = None,
        scratch_bytes: Mapping[int, int] | None = None,
    ) -> None:
        """Use :meth:`filled`; without memory an arena only counts."""
        self._owner, self._memory = owner, memory
        self._used_bytes = 0
        self._scratch_bytes: dict[int, int] = {}
        largest = max((scratch_bytes or {0: 0}).values())
        self._regions = [self._carve(largest) for _ in scratch_bytes or ()]

    @classmethod
    def filled(cls, owner: ArrayStore, build: Callable[[Self], Plan]) -> Plan:
        """Build a plan in memory of exactly its size."""
        count = cls()
        build(count)
        return build(cls(owner, owner.zeros((count.size_bytes,), np.uint8), count._scratch_bytes))

    @classmethod
    def count_bytes(cls, build: Callable[[Self], object]) -> int:
        """The exact memory of a plan, without allocating it."""
        count = cls()
        build(count)
        return count.size_bytes

    @property
    def size_bytes(self) -> int:
        """Bytes taken so far, scratch included."""
        scratch = len(self._scratch_bytes) * max(self._scratch_bytes.values(), default=0)
        return self._used_bytes + scratch * (self._memory is None)

    def take(self, shape: Shape, dtype: Any) -> Array:
        """A zeroed array of the plan's own."""
        size = prod(shape) * np.dtype(dtype).itemsize
        return _shaped(self._carve(aligned(size)), shape, dtype)

    def constant(self, values: Array) -> Array:
        """An array of the plan's own that holds these values."""
        array = self.take(values.shape, values.dtype)
        if self._owner:
            self._owner.copy(values, array)
        return array

    def scratch(self, shard: int, *arrays: tuple[Shape, Any]) -> list[Array]:
        """Arrays of the given shapes and dtypes whose content does not outlive a block's call."""
        sizes = [aligned(prod(shape) * np.dtype(dtype).itemsize) for shape, dtype in arrays]
        self._scratch_bytes[shard] = max(self._scratch_bytes.get(shard, 0), sum(sizes))
        region = self._regions[shard % self._owner.lanes] if self._owner else None
        starts = accumulate(sizes[:-1], initial=0)
        return [
            _shaped(None if region is None else region[start:], shape, dtype)
            for start, (shape, dtype) in zip(starts, arrays, strict=True)
        ]

    def _carve(self, size: int) -> Array | None:
        start = self._used_bytes
        self._used_bytes += size
        return None if self._memory is None else self._memory[start : start + size]


def _own_bytes(size: int) -> Array:
    """So many bytes of zeroes; NumPy asks for huge pages from 4 MiB on."""
    return np.zeros(size, np.uint8)


def _shared_bytes(size: int) -> Array:
    """So many bytes of zeroes that a forked process sees too, each other's changes included."""
    try:
        memory = mmap.mmap(-1, size)
    except OSError as error:
        raise MemoryError(f"no {size:,} bytes of shared memory: {error}") from error
    with suppress(OSError):  # huge pages, where the system has them for shared memory
        memory.madvise(mmap.MADV_HUGEPAGE)
    array = np.frombuffer(memory, np.uint8)
    array.fill(0)  # so that this process has it all and its peak of memory says so
    return array


def shape_only_array(shape: Shape, dtype: Any) -> Array:
    """An array with a shape and no memory, to count and lay out with; it must not be touched."""
    inner_first = tuple(accumulate(shape[:0:-1], mul, initial=np.dtype(dtype).itemsize))
    return as_strided(np.empty(1, dtype), shape, inner_first[::-1] if shape else ())


def _shaped(memory: Array | None, shape: Shape, dtype: Any) -> Array:
    """See bytes as an array; without memory, a hollow one that must not be touched."""
    if memory is None:
        return shape_only_array(shape, dtype)
    array: Array = memory[: prod(shape) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)
    return array


@dataclass(frozen=True)
class Layout:
    """Where named arrays lie in a flat buffer: each starts on a cache line."""

    shapes: dict[str, Shape]
    offsets: dict[str, int]
    size: int
    """Elements of the buffer, gaps included."""

    @classmethod
    def of(cls, shapes: Mapping[str, Shape], itemsize: int) -> Self:
        """Lay arrays of one dtype out, one after the other."""
        offsets, size = {}, 0
        for name, shape in shapes.items():
            offsets[name] = size
            size += aligned(prod(shape) * itemsize) // itemsize
        return cls(dict(shapes), offsets, size)

    def views(self, flat: Array) -> dict[str, Array]:
        """The named arrays of a flat buffer, as views."""
        return {name: flat[self.slices(name)].reshape(shape) for name, shape in self.shapes.items()}

    def filled(self, arrays: Mapping[str, Array], dtype: Any) -> Array:
        """A flat buffer that holds the named arrays, and zeroes in the gaps."""
        flat = np.zeros(self.size, dtype)
        for name, view in self.views(flat).items():
            view[...] = arrays[name]
        return flat

    def slices(self, name: str) -> slice:
        """The place of one array."""
        start = self.offsets[name]
        return slice(start, start + prod(self.shapes[name]))
