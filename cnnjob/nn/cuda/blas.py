"""cuBLAS, called through ctypes: unlike CuPy's own calls of cuBLAS, direct calls can be captured in a CUDA graph.

The matrices here are row-major, while those of cuBLAS are column-major. A row-major matrix is its transpose in
column-major order, so out = a·b is computed as outᵀ = bᵀ·aᵀ.
"""

from ctypes import byref, c_float, c_int, c_size_t, c_void_p
from typing import Any
from weakref import finalize

import numpy as np

from cnnjob.nn.arena import Array

WORKSPACE_BYTES = 32 << 20
"""Workspace size that NVIDIA recommends for Hopper; other GPUs need less.

The workspace is not allocated by cuBLAS, so that its address in a recorded graph stays valid.
"""

TYPE_CODES = {"float32": 0, "float16": 2}  # CUDA_R_32F, CUDA_R_16F
FLOAT16_BYTES = 2
ROW_VALUES = 8
"""Row lengths of float16 matrices are multiples of this."""
NORMAL, TRANSPOSED = 0, 1  # CUBLAS_OP_N, CUBLAS_OP_T
COMPUTE_FLOAT32, COMPUTE_TF32 = 68, 77  # CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32
DEFAULT_ALGORITHM = -1

STATUS = {
    1: "not initialised",
    3: "out of memory",
    7: "invalid value",
    8: "not supported on this GPU",
    13: "execution failed",
    14: "internal error",
    15: "not supported",
}


def aligned_row(columns: int, dtype: Any) -> int:
    """Return the number of values from one row of a matrix to the next with which its GEMMs are fastest.

    For float16, rows start at multiples of 16 bytes: cuBLAS's fastest kernels on tensor cores load 8 values at a time
    (cuBLAS documentation, "Tensor Core Usage").
    """
    return -(-columns // ROW_VALUES) * ROW_VALUES if np.dtype(dtype) == np.float16 else columns


def address(array: Any) -> int:
    """Return the address of the first value of a NumPy or CuPy array."""
    return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr)


class Blas:
    """A cuBLAS handle for one stream, with its own workspace; both are released with this object."""

    def __init__(self, library: Any, stream: Any, workspace: Array, *, tf32: bool = False) -> None:
        """Create the handle.

        Args:
            library: libcublas, loaded with ctypes.
            stream: the CUDA stream, an object whose ``ptr`` is the stream's address.
            workspace: device memory that nothing else uses.
            tf32: whether to round float32 matrices to a 10-bit mantissa for the tensor cores; sums are float32.
        """
        self._library, self._workspace = library, workspace
        self._compute = COMPUTE_TF32 if tf32 else COMPUTE_FLOAT32
        self._handle = handle = c_void_p()
        version = c_int()
        self._call("cublasCreate_v2", byref(self._handle))
        # The stream is an argument so that it outlives the handle. At interpreter exit, the handle is left to the
        # driver: CUDA may have been shut down by then, and cublasDestroy would fail or wait forever.
        finalize(self, lambda _: library.cublasDestroy_v2(handle), stream).atexit = False
        # Set the stream before the workspace: cublasSetStream resets the workspace to the library's default.
        self._call("cublasSetStream_v2", self._handle, c_void_p(stream.ptr))
        memory = c_void_p(address(workspace)), c_size_t(workspace.nbytes)
        self._call("cublasSetWorkspace_v2", self._handle, *memory)
        self._call("cublasGetVersion_v2", self._handle, byref(version))
        self.version = version.value

    def gemm(
        self,
        a: Array,
        b: Array,
        out: Array,
        *,
        transpose: tuple[bool, bool] = (False, False),
        alpha: float = 1,
        beta: float = 0,
    ) -> None:
        """Compute out = alpha·a·b + beta·out.

        Args:
            a: (M, K), or (K, M) if transposed; float32 or float16; rows are contiguous but may have gaps between them.
            b: (K, N), or (N, K) if transposed; same dtype as a, and also with contiguous rows.
            out: (M, N), also with contiguous rows; float16 only if a is float16.
            transpose: whether to transpose a and b, respectively.
            alpha: factor for the product.
            beta: factor for the previous values of ``out``; if it is 0, these may be anything, even NaN.

        Raises:
            ValueError: the shapes do not match.
        """
        (M, N), K = out.shape, a.shape[0 if transpose[0] else 1]
        if a.shape != ((K, M) if transpose[0] else (M, K)) or b.shape != ((N, K) if transpose[1] else (K, N)):
            raise ValueError(f"cannot multiply {a.shape} by {b.shape} into {out.shape} (transposed: {transpose})")
        # All in reverse order: b before a, N before M.
        operations = [c_int(TRANSPOSED if flag else NORMAL) for flag in reversed(transpose)]
        factors, type_code = (byref(c_float(alpha)), byref(c_float(beta))), c_int(TYPE_CODES[a.dtype.name])
        compute = COMPUTE_FLOAT32 if a.dtype.itemsize == FLOAT16_BYTES else self._compute
        (first, second, result), sizes = map(self._matrix, (b, a, out)), map(c_int, (N, M, K))
        self._call(
            "cublasGemmEx",
            *(self._handle, *operations, *sizes, factors[0]),
            *(first[0], type_code, first[1], second[0], type_code, second[1], factors[1]),
            *(result[0], c_int(TYPE_CODES[out.dtype.name]), result[1], c_int(compute), c_int(DEFAULT_ALGORITHM)),
        )

    def _matrix(self, array: Array) -> tuple[c_void_p, c_int]:
        """Return a matrix's address and its leading dimension: the number of values from one row to the next."""
        # NumPy's stride for a single row is arbitrary, but cuBLAS requires at least the length of the row.
        return c_void_p(address(array)), c_int(max(array.strides[0] // array.itemsize, array.shape[1]))

    def _call(self, name: str, *arguments: Any) -> None:
        """Call a cuBLAS function and check its status."""
        status = getattr(self._library, name)(*arguments)
        if status:
            raise RuntimeError(f"{name}: {STATUS.get(status, 'failed')} (cuBLAS status {status})")
