"""How the backend speaks to a device: what a device is, and the arguments and grids of its kernels."""

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any, Protocol

import numpy as np

from cnnjob.nn.blocks import Shape
from cnnjob.nn.memory import Array
from cnnjob.nn.tensors import Task, Tensor

THREADS = 256
MOST_BLOCKS = 65535
"""In the second dimension of a grid; CUDA's limit."""


class Device(Protocol):
    """A device and its arrays; everything on it runs in the order in which it was asked for."""

    @property
    def name(self) -> str:
        """Its model."""

    @property
    def precision(self) -> str:
        """Of a GEMM's factors: ``float32``, ``tf32`` (10 bits of mantissa), or ``float16``; sums are float32.

        In float16 are those of convolutions; the others are then as in tf32.
        """

    @property
    def versions(self) -> dict[str, Any]:
        """Of the libraries that decide the bits."""

    @property
    def free_bytes(self) -> int:
        """Memory that nobody holds."""

    def zeros(self, shape: Shape, dtype: Any) -> Array:
        """A new array of zeroes on the device."""

    def copy(self, source: Array, target: Array) -> None:
        """Copy between contiguous arrays of one size, on the device or the host; it is done on return."""

    def capture(self, run: Task) -> Task:
        """Record what a task launches and multiplies, without running it; the task that does it all at once.

        It knows arrays by their addresses only: whoever asks for it keeps ``run``, which keeps them.
        """

    def wait(self) -> None:
        """Until all is done that was asked for."""

    def launch(self, name: str, grid: tuple[int, int], block: tuple[int, int], arguments: Sequence[Any]) -> None:
        """Run a kernel on arrays and NumPy scalars."""

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
        """Set out = alpha·a·b + beta·out, with matrices of contiguous rows; ``transpose`` says if a and b are to be.

        a and b are both float32 or both float16; sums are float32.
        """


class ShapeOnlyDevice:
    """A device without memory, to count with; nothing can be asked of it."""

    def __init__(self, precision: str = "float32") -> None:
        """Count for this precision."""
        self.precision = precision

    def __getattr__(self, name: str) -> Any:
        """A function that must not be called."""

        def fail(*_: Any, **__: Any) -> Any:
            raise RuntimeError(f"{name} of a device that only counts")

        return fail


def scalars(arguments: Sequence[Any]) -> tuple[Any, ...]:
    """Python's numbers as the kernels' ``int`` and ``float``."""
    kinds = {int: np.int32, bool: np.int32, float: np.float32}
    return tuple(kinds.get(type(value), lambda same: same)(value) for value in arguments)


def each(device: Device, name: str, images: int, size: int, *arguments: Any) -> Task:
    """Plan a kernel that has a thread for each of ``size`` values of each image, which are its last arguments."""
    grid = (max(1, -(-size // THREADS)), min(images, MOST_BLOCKS))
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
    """One task of several."""

    def run() -> None:
        for task in tasks:
            task()

    return run


def bordered(array: Array) -> tuple[Array, np.int64, int]:
    """An array (N, …) for the kernels: where it starts, and how far apart its images and their rows lie."""
    image, row = array.strides[0], array.strides[1] if array.ndim > 2 else 0  # noqa: PLR2004 - N, H, W, C
    return array, np.int64(image // array.itemsize), row // array.itemsize


def row_length(shape: Shape) -> int:
    """Values of an image that lie side by side: a row of pixels, or a vector."""
    return prod(shape[2:]) if len(shape) > 2 else shape[1]  # noqa: PLR2004 - N, H, W, C


def slope(device: Device, y: Tensor, activation: str, out: Array) -> Task:
    """Plan the gradient before a block's activation, into ``out`` (N, …) without a border."""
    N, *inner = y.value.shape
    value, image, row = bordered(y.value)
    arguments = value, y.gradient, image, row, row_length(y.value.shape), out, activation == "relu"
    return each(device, "activation_slope", N, prod(inner), *arguments)


SUM_ROWS = 256
"""The fewest rows that a block adds up."""
MOST_SUMS = 128
"""Blocks that add up one column."""


def sum_parts(rows: int) -> int:
    """How many partial sums :func:`column_sums` makes of so many rows."""
    return -(-rows // _part(rows))


def _part(rows: int) -> int:
    return max(SUM_ROWS, -(-rows // MOST_SUMS))


def column_sums(device: Device, values: Array, partial_sums: Array, out: Array) -> Task:
    """Plan the sum of (R, U) over its rows, in a fixed order.

    Args:
        device: where.
        values: (R, U).
        partial_sums: (``sum_parts(R)``, U), overwritten.
        out: (U,).

    Returns:
        The task.
    """
    (rows, columns), parts = values.shape, len(partial_sums)

    def sums(source: Array, target: Array, rows: int, part: int) -> Task:
        grid = (-(-columns // 32), -(-rows // part))
        arguments = scalars([source, target, np.int64(rows), columns, np.int64(part)])
        return partial(device.launch, "column_sums", grid, (32, 8), arguments)

    return in_order([sums(values, partial_sums, rows, _part(rows)), sums(partial_sums, out, parts, parts)])
