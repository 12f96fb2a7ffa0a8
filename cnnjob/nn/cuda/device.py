"""The device seam: all that a training asks of CuPy and cuBLAS."""

from collections.abc import Sequence
from ctypes import CDLL
from functools import cache
from typing import Any

import numpy as np

from cnnjob.nn.blocks import Shape
from cnnjob.nn.cuda.blas import WORKSPACE_BYTES, Blas
from cnnjob.nn.cuda.sources import kernel_source
from cnnjob.nn.memory import Array


class CudaDevice:
    """The current GPU, its arrays (CuPy's), and one stream on which everything runs in order."""

    def __init__(self, precision: str = "float32") -> None:
        """Take it, for GEMMs in ``float32`` or ``tf32``."""
        import cupy
        from cuda.pathfinder import load_nvidia_dynamic_lib  # noqa: PLC0415 - comes with CuPy

        self._cupy, self._runtime = cupy, cupy.cuda.runtime
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._stream.use()  # in this thread, by CuPy too
        module = cupy.RawModule(code=kernel_source())
        self._kernel = cache(module.get_function)
        library, workspace = CDLL(load_nvidia_dynamic_lib("cublas").abs_path), self.zeros((WORKSPACE_BYTES,), np.uint8)
        blas = Blas(library, self._address, self._stream.ptr, workspace, tf32=precision == "tf32")
        self.gemm, self.precision = blas.gemm, precision
        self.name = str(self._runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode())
        driver, nvrtc = self._runtime.driverGetVersion(), cupy.cuda.nvrtc.getVersion()
        self.versions = {"cupy": cupy.__version__, "cuda": driver, "cublas": blas.version, "nvrtc": list(nvrtc)}

    def zeros(self, shape: Shape, dtype: Any) -> Array:
        """A new array of zeroes on the GPU; a ``MemoryError`` where there is no room."""
        array: Array = self._cupy.zeros(shape, dtype)
        return array

    def copy(self, source: Array, target: Array) -> None:
        """Copy between contiguous arrays of one size, on the GPU or the host; it is done on return."""
        places = self._address(target), self._address(source)
        self._runtime.memcpyAsync(*places, source.nbytes, self._runtime.memcpyDefault, self._stream.ptr)
        self._stream.synchronize()

    def launch(self, name: str, grid: tuple[int, int], block: tuple[int, int], arguments: Sequence[Any]) -> None:
        """Run a kernel on arrays and NumPy scalars."""
        self._kernel(name)(grid, block, tuple(arguments))

    @property
    def free_bytes(self) -> int:
        """Memory of the GPU that nobody holds."""
        return int(self._runtime.memGetInfo()[0])

    @staticmethod
    def _address(array: Any) -> int:
        return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr)
