"""The part of CuPy that is used, on the CPU: what tests of whole trainings find under its name.

What this machine is said to have is told by environment variables, so that its absence can be tested too.
"""

import ctypes
import os
import time
import weakref
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.cuda.emulation import EmulatedDevice

__version__ = os.environ.get("STANDIN_CUPY", "14.2.0")
RUNTIME = int(os.environ.get("STANDIN_RUNTIME", "13020"))
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120) if RUNTIME >= 13000 else (50, 60, 70, 75, 80, 86, 89, 90)
"""What NVRTC compiles for."""
CAPABILITIES = [int(capability) for capability in os.environ.get("STANDIN_CAPABILITIES", "90").split()]
"""Of each GPU."""
KERNEL_CACHE = os.environ["CUPY_CACHE_DIR"]  # read and made here and now, as CuPy does
Path(KERNEL_CACHE).mkdir(parents=True, exist_ok=True)
DEFAULT = 4  # cudaMemcpyDefault: from where to where is seen by the addresses


class ndarray:  # noqa: N801 - CuPy's name
    """An array that NumPy cannot read, with the part of its interface that plans use; on a stream."""

    def __init__(self, values: Any, stream: int) -> None:
        self._values, self.stream = values, stream
        self.shape, self.strides, self.dtype = values.shape, values.strides, values.dtype
        self.size, self.nbytes, self.ndim, self.itemsize = values.size, values.nbytes, values.ndim, values.itemsize
        self.data = SimpleNamespace(ptr=values.ctypes.data)

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, place: Any) -> "ndarray":
        return ndarray(self._values[place], self.stream)

    def view(self, dtype: Any) -> "ndarray":
        return ndarray(self._values.view(dtype), self.stream)

    def reshape(self, *shape: Any) -> "ndarray":
        values = self._values.reshape(*shape)
        assert not values.size or np.shares_memory(values, self._values)
        return ndarray(values, self.stream)


class Memory:
    """What the arrays take, of what there is."""

    size = int(os.environ.get("STANDIN_BYTES", "16000000000"))
    used = 0

    @classmethod
    def take(cls, count: int) -> None:
        if cls.used + count > cls.size:
            raise MemoryError(f"Out of memory allocating {count:,} bytes (allocated so far: {cls.used:,} bytes)")
        cls.used += count

    @classmethod
    def give_back(cls, count: int) -> None:
        cls.used -= count


class Recording:
    """What a stream notes and does not do."""

    launches: list[Callable[[], object]] | None = None
    count = 0
    stream = 0
    products = 0

    @classmethod
    def do(cls, launch: Callable[[], object], on: int) -> None:
        if cls.launches is None:
            launch()
        else:
            assert on == cls.stream, f"launched on stream {on} while {cls.stream} records"
            cls.take_products()
            cls.launches.append(launch)

    @classmethod
    def take_products(cls) -> None:
        """cuBLAS is asked by others; what it has noted goes before what comes now."""
        assert cls.launches is not None
        library, first = cublas(), cls.products
        cls.products = library.standin_recorded()
        cls.launches += [partial(library.standin_replay, number) for number in range(first, cls.products)]

    @classmethod
    def forbid(cls) -> None:
        if cls.launches is not None:
            raise RuntimeError("cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing")


@cache
def cublas() -> ctypes.CDLL:
    return ctypes.CDLL(os.environ["STANDIN_CUBLAS"])


class Graph:
    def __init__(self, launches: list[Callable[[], object]]) -> None:
        self._launches = launches

    def launch(self, stream: "Stream") -> None:
        assert Recording.launches is None
        for launch in self._launches:
            launch()


def zeros(shape: tuple[int, ...], dtype: Any) -> ndarray:
    Recording.forbid()
    values = np.zeros(shape, dtype)
    Memory.take(values.nbytes)
    weakref.finalize(values, Memory.give_back, values.nbytes)
    return ndarray(values, Stream.used)


class RawModule:
    def __init__(self, code: str, options: tuple[str, ...]) -> None:
        assert options == ("-std=c++17", f"-DWIDE_STAGES={Runtime.wide_stages()}")
        self._device = EmulatedDevice(code)
        self._compiled = False

    def get_function(self, name: str) -> Any:
        if not self._compiled:  # only now, as CuPy does
            time.sleep(float(os.environ.get("STANDIN_COMPILE_SECONDS", "0")))
            self._compiled = True

        def kernel(
            grid: tuple[int, int],
            block: tuple[int, int],
            arguments: tuple[Any, ...],
            shared_mem: int = 0,
            stream: "Stream | None" = None,
        ) -> None:
            assert shared_mem <= kernel.max_dynamic_shared_size_bytes <= Runtime.shared_bytes  # type: ignore[attr-defined]
            on = stream.ptr if stream else Stream.used
            streams = {value.stream for value in arguments if isinstance(value, ndarray)}
            assert streams <= {on}, f"{name} on stream {on} reads and writes memory that is cleared on {streams}"
            values = [value._values if isinstance(value, ndarray) else value for value in arguments]
            Recording.do(partial(self._device.launch, name, grid, block, values), on)

        kernel.max_dynamic_shared_size_bytes = 49152  # type: ignore[attr-defined]
        return kernel


class Stream:
    number = 0x1234
    used = 0

    def __init__(self, *, non_blocking: bool) -> None:
        assert non_blocking
        Stream.number += 1
        self.ptr = Stream.number

    def use(self) -> None:
        Stream.used = self.ptr

    def synchronize(self) -> None:
        Recording.forbid()

    def begin_capture(self) -> None:
        Recording.forbid()
        Recording.count += 1
        Recording.launches, Recording.stream = [], self.ptr
        cublas().standin_record(1)

    def end_capture(self) -> Graph:
        Recording.take_products()
        cublas().standin_record(0)
        launches, Recording.launches = Recording.launches, None
        return Graph(launches or [])


def alloc_pinned_memory(count: int) -> bytearray:
    Recording.forbid()
    return bytearray(count)


class Event:
    """What is recorded on a stream, to be waited for."""

    def __init__(self, *, disable_timing: bool) -> None:
        assert disable_timing
        self._recorded = False

    def record(self, stream: Stream) -> None:
        Recording.forbid()
        self._recorded = True

    def synchronize(self) -> None:
        Recording.forbid()
        assert self._recorded, "an event that was not recorded is complete at once"


class Runtime:
    memcpyDefault = DEFAULT  # noqa: N815 - CuPy's name

    def driverGetVersion(self) -> int:  # noqa: N802
        return int(os.environ.get("STANDIN_DRIVER", str(RUNTIME)))

    def runtimeGetVersion(self) -> int:  # noqa: N802
        return RUNTIME

    def getDeviceCount(self) -> int:  # noqa: N802
        if os.environ.get("STANDIN_GPUS") == "0":
            raise RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
        return len(CAPABILITIES)

    def getDevice(self) -> int:  # noqa: N802
        return 0

    def getDeviceProperties(self, number: int) -> dict[str, Any]:  # noqa: N802
        major, minor = divmod(CAPABILITIES[number], 10)
        return {"name": f"Stand-in GPU{f' {number}' if number else ''}".encode(), "major": major, "minor": minor}

    shared_bytes = 232_448

    def deviceGetAttribute(self, attribute: int, number: int) -> int:  # noqa: N802
        assert (attribute, number) == (97, 0)
        return self.shared_bytes

    @staticmethod
    def wide_stages() -> int:
        return 3 if CAPABILITIES[0] >= 80 else 0

    def memGetInfo(self) -> tuple[int, int]:  # noqa: N802
        return int(os.environ.get("STANDIN_FREE", str(Memory.size - Memory.used))), Memory.size

    def memcpyAsync(self, target: int, source: int, count: int, kind: int, stream: int) -> None:  # noqa: N802
        Recording.forbid()
        assert kind == DEFAULT
        assert 0x1234 < stream <= Stream.number
        ctypes.memmove(target, source, count)


cuda = SimpleNamespace(
    runtime=Runtime(),
    Stream=Stream,
    Event=Event,
    alloc_pinned_memory=alloc_pinned_memory,
    nvrtc=SimpleNamespace(getVersion=lambda: (13, 2), getSupportedArchs=lambda: ARCHITECTURES),
)


def load_nvidia_dynamic_lib(name: str) -> Any:
    """cuda.pathfinder's, which finds CUDA's libraries."""
    if name in os.environ.get("STANDIN_MISSING", "").split():
        raise RuntimeError(f'Failure finding "lib{name}.so": No such file\n  attempts')
    return SimpleNamespace(abs_path=os.environ["STANDIN_CUBLAS"])
