"""The GPU as a device. Only this module calls CuPy; it also loads cuBLAS and the kernel source."""

from collections.abc import Sequence
from ctypes import CDLL
from functools import cache
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from cnnjob.nn.arena import Array
from cnnjob.nn.cuda.blas import WORKSPACE_BYTES, Blas, address
from cnnjob.nn.tensors import Task

KERNELS_FOLDER = Path(__file__).parent
AMPERE, WIDE_TILE_BYTES = 80, 3 * 49152 + 1024
"""Lowest compute capability with TF32 and tiles (see ``tensor_cores.cu``), as 10 × major + minor; older GPUs compute in
float32 or multiply patches. Then the shared memory that the largest tile needs."""
SHARED_BYTES_ATTRIBUTE = 97
"""CUDA's ``cudaDevAttrMaxSharedMemoryPerBlockOptin``: the shared memory that a thread block may have."""
FIRST_SOURCE = "kernels.cu"
"""Source file that comes first, since it contains the definitions that the others use."""


def kernel_source(folder: Path = KERNELS_FOLDER) -> str:
    """Return the CUDA C source of all kernels, from several files that are compiled as one module."""
    files = sorted(folder.rglob("*.cu"), key=lambda path: (path.name != FIRST_SOURCE, path.name))
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


class CudaDevice:
    """The current GPU, with CuPy arrays and one stream on which everything runs in order."""

    def __init__(self, precision: str = "float32") -> None:
        """Use the GPU, with the given precision for GEMMs (see :attr:`cnnjob.nn.cuda.device_api.Device.precision`)."""
        import cupy
        from cuda.pathfinder import load_nvidia_dynamic_lib  # noqa: PLC0415 - comes with CuPy

        self._cupy, self._runtime = cupy, cupy.cuda.runtime
        # Non-blocking: it does not wait for the default stream, and unlike that stream it can be captured.
        self._stream = cupy.cuda.Stream(non_blocking=True)
        number = self._runtime.getDevice()
        properties = self._runtime.getDeviceProperties(number)
        self.name, self.capability = str(properties["name"].decode()), 10 * properties["major"] + properties["minor"]
        is_ampere = self.capability >= AMPERE
        has_much = self._runtime.deviceGetAttribute(SHARED_BYTES_ATTRIBUTE, number) >= WIDE_TILE_BYTES
        self.wide_stages = (3 if has_much else 2) if is_ampere else 0
        options = "-std=c++17", f"-DWIDE_STAGES={self.wide_stages}"
        self._kernel = cache(cupy.RawModule(code=kernel_source(), options=options).get_function)
        self.precision = "float32" if precision == "tf32" and not is_ampere else precision
        library, tf32 = CDLL(load_nvidia_dynamic_lib("cublas").abs_path), is_ampere and precision != "float32"
        blas = Blas(library, self._stream, self.zeros((WORKSPACE_BYTES,), np.uint8), tf32=tf32)
        self.gemm, self.wait = blas.gemm, self._stream.synchronize
        self.versions = {"cupy": cupy.__version__, "cuda": self._runtime.driverGetVersion(), "cublas": blas.version}
        self.versions["nvrtc"] = list(cupy.cuda.nvrtc.getVersion())

    def zeros(self, shape: tuple[int, ...], dtype: object) -> Array:
        """Return a new array of zeros on the GPU, or raise a ``MemoryError`` if there is not enough memory."""
        # CuPy clears memory on the thread's current stream, which may be that of another device.
        self._stream.use()
        return self._cupy.zeros(shape, dtype)  # type: ignore[no-any-return]

    def copy(self, source: Array, target: Array) -> None:
        """Copy between contiguous arrays of equal size, on the GPU or the host; the copy is complete on return."""
        # On the same stream, so that the copy comes after everything launched before it.
        addresses = address(target), address(source)
        self._runtime.memcpyAsync(*addresses, source.nbytes, self._runtime.memcpyDefault, self._stream.ptr)
        self.wait()

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Return a new NumPy array in page-locked memory, or raise a ``MemoryError`` if there is not enough."""
        kind, count = np.dtype(dtype), prod(shape)
        memory = self._cupy.cuda.alloc_pinned_memory(max(1, count * kind.itemsize))
        return np.frombuffer(memory, kind, count).reshape(shape)

    def upload(self, source: Array, target: Array) -> Task:
        """Start copying page-locked memory to the GPU; return a function that waits until the copy is complete."""
        addresses = address(target), address(source)
        self._runtime.memcpyAsync(*addresses, source.nbytes, self._runtime.memcpyDefault, self._stream.ptr)
        copied = self._cupy.cuda.Event(disable_timing=True)
        copied.record(self._stream)
        return copied.synchronize  # type: ignore[no-any-return]

    def launch(
        self,
        name: str,
        grid: tuple[int, int],
        block: tuple[int, int],
        arguments: Sequence[object],
        shared_bytes: int = 0,
    ) -> None:
        """Launch a kernel on arrays and NumPy scalars, with the given size of its dynamic shared memory."""
        kernel = self._kernel(name)
        if shared_bytes > kernel.max_dynamic_shared_size_bytes:  # noqa: PLR1730 - setting it is a call of the driver
            kernel.max_dynamic_shared_size_bytes = shared_bytes
        kernel(grid, block, tuple(arguments), shared_mem=shared_bytes, stream=self._stream)

    def capture(self, run: Task) -> Task:
        """Record the kernels and GEMMs of a task without running them, and return a task that replays them."""
        self._stream.begin_capture()
        try:
            run()
        finally:
            # Even after an error: a stream that stays in capture mode runs nothing.
            graph = self._stream.end_capture()
        return lambda: graph.launch(self._stream)

    @property
    def free_bytes(self) -> int:
        """Return the GPU's free memory, in bytes."""
        return int(self._runtime.memGetInfo()[0])
