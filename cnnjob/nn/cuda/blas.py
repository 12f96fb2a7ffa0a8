"""cuBLAS through ctypes: CuPy's own calls refuse to be captured into a graph, the library does not.

Our matrices are row-major, cuBLAS's column-major; a row-major matrix is its transpose in column-major order, so
out = a·b is asked for as outᵀ = bᵀ·aᵀ.
"""

from ctypes import byref, c_float, c_int, c_size_t, c_void_p
from typing import Any

import numpy as np

from cnnjob.nn.memory import Array

WORKSPACE_BYTES = 32 << 20
"""What NVIDIA recommends for Hopper; more than the others need. Our own, so that a graph holds its address."""

KINDS = {"float32": 0, "float16": 2}  # CUDA_R_32F, CUDA_R_16F
HALF_BYTES = 2
NORMAL, TRANSPOSED = 0, 1  # CUBLAS_OP_N, CUBLAS_OP_T
COMPUTE_FLOAT32, COMPUTE_TF32 = 68, 77  # CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32
DEFAULT_ALGORITHM = -1

STATUS = {
    1: "not initialised",
    3: "out of memory",
    7: "invalid value",
    8: "not on this GPU",
    13: "execution failed",
    14: "internal error",
    15: "not supported",
}


def address(array: Any) -> int:
    """Where an array's first value lies, of NumPy's or CuPy's."""
    return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr)


class Blas:
    """A handle of cuBLAS on one stream, with a workspace of its own."""

    def __init__(self, library: Any, stream: int, workspace: Array, *, tf32: bool = False) -> None:
        """Make it.

        Args:
            library: libcublas, loaded.
            stream: CUDA's pointer.
            workspace: memory that nothing else uses.
            tf32: round factors to 10 bits of mantissa, for the tensor cores; sums are float32.
        """
        self._library, self._workspace = library, workspace
        self._compute = COMPUTE_TF32 if tf32 else COMPUTE_FLOAT32
        self._handle, number = c_void_p(), c_int()
        self._call("cublasCreate_v2", byref(self._handle))
        self._call("cublasSetStream_v2", self._handle, c_void_p(stream))  # before the workspace, which it would reset
        memory = c_void_p(address(workspace)), c_size_t(workspace.nbytes)
        self._call("cublasSetWorkspace_v2", self._handle, *memory)
        self._call("cublasGetVersion_v2", self._handle, byref(number))
        self.version = number.value

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
        """Set out = alpha·a·b + beta·out.

        Args:
            a: (M, K), or (K, M) to be transposed; float32 or float16; rows are contiguous and may lie further apart.
            b: (K, N), or (N, K) to be transposed, likewise, of a's type.
            out: (M, N), likewise; float16 only where a is.
            transpose: whether a and b are to be.
            alpha: factor of the product.
            beta: factor of what ``out`` holds; with 0 it need not hold numbers.

        Raises:
            ValueError: the shapes do not fit.
        """
        (M, N), K = out.shape, a.shape[0 if transpose[0] else 1]
        if a.shape != ((K, M) if transpose[0] else (M, K)) or b.shape != ((N, K) if transpose[1] else (K, N)):
            raise ValueError(f"{a.shape} times {b.shape} into {out.shape}, transposed {transpose}")
        operations = [c_int(TRANSPOSED if flag else NORMAL) for flag in reversed(transpose)]
        factors, kind = (byref(c_float(alpha)), byref(c_float(beta))), c_int(KINDS[a.dtype.name])
        compute = COMPUTE_FLOAT32 if a.dtype.itemsize == HALF_BYTES else self._compute
        (first, second, result), sizes = map(self._matrix, (b, a, out)), map(c_int, (N, M, K))
        self._call(
            "cublasGemmEx",
            *(self._handle, *operations, *sizes, factors[0]),
            *(first[0], kind, first[1], second[0], kind, second[1], factors[1]),
            *(result[0], c_int(KINDS[out.dtype.name]), result[1], c_int(compute), c_int(DEFAULT_ALGORITHM)),
        )

    def _matrix(self, array: Array) -> tuple[c_void_p, c_int]:
        """Where a matrix starts, and how many values further its next row."""
        return c_void_p(address(array)), c_int(max(array.strides[0] // array.itemsize, array.shape[1]))

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise RuntimeError(f"{name}: {STATUS.get(status, 'failed')} (cuBLAS status {status})")
