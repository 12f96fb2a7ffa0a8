"""The device seam: all that a training asks of CuPy and cuBLAS."""

from collections.abc import Sequence
from ctypes import CDLL
from functools import cache

import numpy as np

from cnnjob.nn.cuda.blas import WORKSPACE_BYTES, Blas, address
from cnnjob.nn.cuda.sources import kernel_source
from cnnjob.nn.memory import Array
from cnnjob.nn.tensors import Task


class CudaDevice:
    """The current GPU, its arrays (CuPy's), and one stream on which everything runs in order."""

    def __init__(self, precision: str = "float32") -> None:
        """Take it, for GEMMs in a precision, see :attr:`cnnjob.nn.cuda.device_api.Device.precision`."""
        import cupy
        from cuda.pathfinder import load_nvidia_dynamic_lib  # noqa: PLC0415 - comes with CuPy

        self._cupy, self._runtime = cupy, cupy.cuda.runtime
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._kernel = cache(cupy.RawModule(code=kernel_source(), options=("-std=c++17",)).get_function)
        library = CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
        blas = Blas(library, self._stream.ptr, self.zeros((WORKSPACE_BYTES,), np.uint8), tf32=precision != "float32")
        self.gemm, self.wait, self.precision = blas.gemm, self._stream.synchronize, precision
        self.name = str(self._runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode())
        self.versions = {"cupy": cupy.__version__, "cuda": self._runtime.driverGetVersion(), "cublas": blas.version}
        self.versions["nvrtc"] = list(cupy.cuda.nvrtc.getVersion())

    def zeros(self, shape: tuple[int, ...], dtype: object) -> Array:
        """A new array of zeroes on the GPU; a ``MemoryError`` where there is no room."""
        self._stream.use()  # CuPy clears the memory on the stream that this thread used last
        return self._cupy.zeros(shape, dtype)  # type: ignore[no-any-return]

    def copy(self, source: Array, target: Array) -> None:
        """Copy between contiguous arrays of one size, on the GPU or the host; it is done on return."""
        ends = address(target), address(source)
        self._runtime.memcpyAsync(*ends, source.nbytes, self._runtime.memcpyDefault, self._stream.ptr)
        self.wait()

    def launch(self, name: str, grid: tuple[int, int], block: tuple[int, int], arguments: Sequence[object]) -> None:
        """Run a kernel on arrays and NumPy scalars."""
        self._kernel(name)(grid, block, tuple(arguments), stream=self._stream)

    def capture(self, run: Task) -> Task:
        """Record what a task launches, without running it; the task that replays it."""
        self._stream.begin_capture()
        try:
            run()
        finally:
            graph = self._stream.end_capture()
        return lambda: graph.launch(self._stream)

    @property
    def free_bytes(self) -> int:
        """Memory of the GPU that nobody holds."""
        return int(self._runtime.memGetInfo()[0])
