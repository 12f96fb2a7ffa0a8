"""cnnjob's GPU engines, and lower bounds on the step time on a GPU.

Each step is queued without waiting for the one before it.
"""

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from cnnjob import nn
from cnnjob.checks.benchmarks import floors, ours
from cnnjob.checks.benchmarks.engines import Action, Engine, Role, do_nothing
from cnnjob.checks.benchmarks.workloads import Array, Workload
from cnnjob.nn.blocks import Layer
from cnnjob.nn.cuda.availability import choose_kernel_cache
from cnnjob.nn.cuda.blas import aligned_row
from cnnjob.nn.cuda.device import CudaDevice
from cnnjob.nn.cuda.device_api import Device, each, gemm, in_order
from cnnjob.nn.cuda.graphs import Captured
from cnnjob.nn.tensors import Task

PRECISIONS = ("float32", "tf32", "float16")
RANDOM_VALUES = 1 << 24
"""Maximum number of random values that are drawn for a matrix; larger matrices repeat them."""
GENERAL = "part by part"


def gpu_engines(work: Workload) -> dict[str, Engine]:
    """Return cnnjob's engines and the lower bounds for each precision, keyed by the names of their rows in the output.

    cnnjob runs a step in three ways: as a CUDA graph (``graph``); without a graph (``eager``); and with neither a graph
    nor fused kernels (``part by part``).
    """
    choose_kernel_cache()
    by_row = {}
    for precision in PRECISIONS:
        device = CudaDevice(precision)
        if device.precision != precision:  # the GPU does not have it
            continue
        backends = {
            f"cnnjob {GENERAL}": nn.CudaBackend(device, fuses=False, captures=False),
            "cnnjob eager": nn.CudaBackend(device, captures=False),
            "cnnjob graph": nn.CudaBackend(device),
        }
        for name, backend in backends.items():
            begin, step = (ours.build_training_step if work.steps else ours.build_block_step)(backend, work)
            by_row[f"{name} {precision}"] = _engine(device, step, "ours", begin)
        for name, role, run in _floors(device, work):
            by_row[f"{name} {precision}"] = _engine(device, Captured(device, run, tuple), role, do_nothing)
    return by_row


def _engine(device: CudaDevice, step: Action, role: Role, begin: Action) -> Engine:
    return Engine(step, role, f"gpu {device.precision}", begin, device.wait)


def _floors(device: CudaDevice, work: Workload) -> Iterator[tuple[str, Role, Task]]:
    """Yield the tasks that measure the lower bounds on the step time.

    One task runs only the matrix products; the other moves the minimum number of bytes and computes nothing.
    """
    yield floors.PRODUCTS, "products", in_order(list(gpu_products(device, work)))
    activation_bytes = 2 if device.precision == "float16" else 4
    size = floors.min_bytes_per_step(work, activation_bytes) // 8  # floats, read and written
    source, target = (device.zeros((size,), np.float32) for _ in range(2))
    arguments = source, source, np.int64(size), 0, size, target, False
    yield floors.BYTES, "bytes", each(device, "activation_slope", 1, size, *arguments)


def gpu_products(device: Device, work: Workload) -> Iterator[Task]:
    """Yield each layer's matrix products: the forward pass and, if they are computed, the two gradients.

    With ``float16``, the factors of convolutions are float16. All factors are random and stay as they are, since a GPU
    multiplies zeros, and what repeated products grow to, with less power and thus faster than a step's data.
    """
    layers = list(floors.layers_with_products(work))
    sizes = [_product_sizes(layer, work.batch_size) for layer, *_ in layers]
    largest = max(max(rows, inner) * aligned_row(max(inner, columns), np.float16) for rows, inner, columns in sizes)
    results = device.zeros((largest,), np.float32)
    for (layer, weight_gradient, input_gradient), (rows, inner, columns) in zip(layers, sizes, strict=True):
        in_float16 = device.precision == "float16" and isinstance(layer.block, nn.Conv)
        dtype: type[np.floating[Any]] = np.float16 if in_float16 else np.float32
        shapes = (rows, inner), (inner, columns), (rows, columns)
        x, w, y = (_random_matrix(device, *shape, dtype) for shape in shapes)
        yield gemm(device, x, w, _matrix_in(results, rows, columns))
        if weight_gradient:
            yield gemm(device, x, y, _matrix_in(results, inner, columns), (True, False))
        if input_gradient:
            yield gemm(device, y, w, _matrix_in(results.view(dtype), rows, inner), (False, True))


def _product_sizes(layer: Layer, batch_size: int) -> tuple[int, int, int]:
    """Return the sizes (m, k, n) of a layer's matrix product."""
    weights, rows = layer.block.parameters(layer.input_shape)["weights"].shape, batch_size
    if isinstance(layer.block, nn.Conv):
        rows *= prod(layer.block.convolved(layer.input_shape))
    return rows, prod(weights[:-1]), weights[-1]


def _random_matrix(device: Device, rows: int, columns: int, dtype: type[np.floating[Any]]) -> Array:
    """Return a matrix of normally distributed values on a device; they repeat after ``RANDOM_VALUES``."""
    memory = device.zeros((rows * aligned_row(columns, dtype),), dtype)
    values = np.random.default_rng(0).standard_normal(min(memory.size, RANDOM_VALUES), np.float32).astype(dtype)
    for first in range(0, memory.size, len(values)):
        part = memory[first : first + len(values)]
        device.copy(values[: part.size], part)
    return _matrix_in(memory, rows, columns)


def _matrix_in(memory: Array, rows: int, columns: int) -> Array:
    """Return the first values of an array as a matrix, with the row length that GEMMs prefer."""
    row = aligned_row(columns, memory.dtype)
    return memory[: rows * row].reshape(rows, row)[:, :columns]
