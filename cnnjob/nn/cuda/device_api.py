"""Interface between the backend and a device: the device's methods, and its kernels' arguments and grids."""

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any, Protocol

import numpy as np

from cnnjob.nn.arena import Array
from cnnjob.nn.blocks import Shape
from cnnjob.nn.tensors import Task, Tensor

THREADS = 256
"""Threads per block of most kernels."""
WARP = 32
"""Threads per warp."""
MAX_BLOCKS = 65535
"""CUDA's limit on the number of blocks in the second dimension of a grid."""
CHANNELS, LANES = 32, 8
"""Number of channels, and of lanes per channel, in a thread block that sums over pixels."""


class Device(Protocol):
    """A device with its arrays; all work on the device runs in the order in which these methods are called."""

    @property
    def name(self) -> str:
        """Return the device's model name."""

    @property
    def precision(self) -> str:
        """Return the precision of GEMM factors: ``float32``, ``tf32`` (10-bit mantissa) or ``float16``.

        Sums are always float32. With ``float16``, only the factors in convolutions are float16, and all other factors
        are ``tf32``.
        """

    @property
    def wide_stages(self) -> int:
        """Return the number of stages of a wide tile (see ``tensor_cores.cu``) for which the GPU has shared memory.

        It is 3 or 2, or 0 if the GPU cannot compute tiles.
        """

    @property
    def versions(self) -> dict[str, Any]:
        """Return the versions of the libraries that affect the bits of the results."""

    @property
    def free_bytes(self) -> int:
        """Return the free memory, in bytes."""

    def zeros(self, shape: Shape, dtype: Any) -> Array:
        """Return a new array of zeros on the device."""

    def copy(self, source: Array, target: Array) -> None:
        """Copy between contiguous arrays of equal size, on the device or the host; the copy is complete on return."""

    def pinned(self, shape: Shape, dtype: Any) -> Array:
        """Return a new NumPy array in page-locked host memory."""

    def upload(self, source: Array, target: Array) -> Task:
        """Start copying page-locked memory to the device; return a function that waits until the copy is complete."""

    def capture(self, run: Task) -> Task:
        """Record the kernels and GEMMs of a task without running them, and return a task that replays them.

        The recording contains only the addresses of arrays. To keep the arrays alive, the caller must keep ``run``.
        """

    def wait(self) -> None:
        """Wait until all launched work is complete."""

    def launch(
        self,
        name: str,
        grid: tuple[int, int],
        block: tuple[int, int],
        arguments: Sequence[Any],
        shared_bytes: int = 0,
    ) -> None:
        """Launch a kernel on arrays and NumPy scalars, with the given size of its dynamic shared memory."""

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
        """Compute out = alpha·a·b + beta·out for matrices with contiguous rows.

        ``transpose`` specifies whether to transpose a and b, respectively. The matrices a and b have the same type,
        float32 or float16; sums are float32.
        """


class ShapeOnlyDevice:
    """A device without memory, used only to count the bytes that a plan needs; it cannot run anything."""

    wide_stages = 3

    def __init__(self, precision: str = "float32") -> None:
        """Store the precision for which memory is counted."""
        self.precision = precision

    def __getattr__(self, name: str) -> Any:
        """Return a function that raises an error when called; a plan may store the function, but must not call it."""

        def fail(*_: Any, **__: Any) -> Any:
            raise RuntimeError(f"{name}: called on a device without memory, which can only count bytes")

        return fail


def scalars(arguments: Sequence[Any]) -> tuple[Any, ...]:
    """Return a kernel's arguments, with Python numbers converted to the kernel's ``int`` and ``float``."""
    # Both have 32 bits, whereas CuPy would pass 64 bits; callers pass 64-bit arguments as NumPy scalars.
    scalar_types = {int: np.int32, bool: np.int32, float: np.float32}
    return tuple(scalar_types.get(type(value), lambda same: same)(value) for value in arguments)


def each(device: Device, name: str, images: int, size: int, *arguments: Any) -> Task:
    """Plan a kernel with one thread per value; ``images`` and ``size`` (values per image) become its last arguments."""
    # Images beyond the grid's limit are handled by a loop in the kernels.
    grid = (max(1, -(-size // THREADS)), min(images, MAX_BLOCKS))
    return partial(device.launch, name, grid, (THREADS, 1), scalars([*arguments, images, size]))


def gemm(
    device: Device,
    a: Array,
    b: Array,
    out: Array,
    transpose: tuple[bool, bool] = (False, False),
    *,
    alpha: float = 1,
    beta: float = 0,
) -> Task:
    """Plan out = alpha·a·b + beta·out."""
    return partial(device.gemm, a, b, out, transpose=transpose, alpha=alpha, beta=beta)


def in_order(tasks: Sequence[Task]) -> Task:
    """Return one task that runs several tasks in order."""

    def run() -> None:
        for task in tasks:
            task()

    return run


def bordered(array: Array) -> tuple[Array, np.int64, int]:
    """Return a kernel's arguments for an array (N, …): the array, and the strides of its images and rows.

    The strides are in values; the array may be the interior of a larger array with a border.
    """
    image, row = array.strides[0], array.strides[1] if array.ndim > 2 else 0  # noqa: PLR2004 - N, H, W, C
    return array, np.int64(image // array.itemsize), row // array.itemsize


def row_length(shape: Shape) -> int:
    """Return how many values of an image are contiguous: one row of pixels, or the whole vector."""
    return prod(shape[2:]) if len(shape) > 2 else shape[1]  # noqa: PLR2004 - N, H, W, C


def relu_backward(device: Device, y: Tensor, activation: str, out: Array) -> Task:
    """Plan the input gradient of an activation (ReLU or none); it is written to ``out`` (N, …), without a border."""
    N, *inner = y.value.shape
    value, image, row = bordered(y.value)
    arguments = value, y.gradient, image, row, row_length(y.value.shape), out, activation == "relu"
    return each(device, "activation_slope", N, prod(inner), *arguments)


MIN_ROWS_PER_SUM = 256
"""Minimum number of rows that each thread block adds up."""
MAX_PARTIAL_SUMS = 128
"""Maximum number of thread blocks that add up one column."""


def rows_per_sum(rows: int) -> int:
    """Return the number of rows that :func:`column_sums` adds up in one partial sum."""
    return max(MIN_ROWS_PER_SUM, -(-rows // MAX_PARTIAL_SUMS))


def column_sums(device: Device, values: Array, partial_sums: Array, out: Array) -> Task:
    """Plan the sum of a matrix over its rows, in a fixed order.

    Args:
        device: the device that runs the kernels.
        values: (R, U).
        partial_sums: scratch (⌈R / ``rows_per_sum(R)``⌉, U), overwritten.
        out: receives the sums, (U,).

    Returns:
        The task.
    """
    # Two launches instead of atomic additions, whose order would change from run to run.
    (rows, columns), n_partial = values.shape, len(partial_sums)

    def plan_sums(source: Array, target: Array, rows: int, rows_per_block: int) -> Task:
        grid = (-(-columns // 32), -(-rows // rows_per_block))
        arguments = scalars([source, target, np.int64(rows), columns, np.int64(rows_per_block)])
        return partial(device.launch, "column_sums", grid, (32, 8), arguments)

    return in_order(
        [
            plan_sums(values, partial_sums, rows, rows_per_sum(rows)),
            plan_sums(partial_sums, out, n_partial, n_partial),
        ]
    )
