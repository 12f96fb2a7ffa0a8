"""cnnjob's GPU engines, and lower bounds on the step time on a GPU.

Each step is queued without waiting for the one before it.
"""

from collections.abc import Iterator
from math import prod

import numpy as np

from cnnjob import nn
from cnnjob.checks.benchmarks import floors, ours
from cnnjob.checks.benchmarks.engines import Action, Engine, Role, do_nothing
from cnnjob.checks.benchmarks.workloads import Workload
from cnnjob.nn.cuda.availability import choose_kernel_cache
from cnnjob.nn.cuda.device import CudaDevice
from cnnjob.nn.cuda.device_api import each, gemm, in_order
from cnnjob.nn.cuda.graphs import Captured
from cnnjob.nn.tensors import Task

PRECISIONS = ("float32", "tf32")
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
    yield floors.PRODUCTS, "products", in_order(list(_gpu_products(device, work)))
    size = floors.min_bytes_per_step(work) // 8  # floats, read and written
    source, target = (device.zeros((size,), np.float32) for _ in range(2))
    arguments = source, source, np.int64(size), 0, size, target, False
    yield floors.BYTES, "bytes", each(device, "activation_slope", 1, size, *arguments)


def _gpu_products(device: CudaDevice, work: Workload) -> Iterator[Task]:
    """Yield each block's matrix products: forward pass, weight gradient and, if needed, input gradient."""
    for layer_index, layer in enumerate(work.layers):
        if not isinstance(layer.block, nn.Conv | nn.Dense):
            continue
        weights = layer.block.parameters(layer.input_shape)["weights"].shape
        inner, columns, rows = prod(weights[:-1]), weights[-1], work.batch_size
        if isinstance(layer.block, nn.Conv):
            rows *= prod(layer.block.convolved(layer.input_shape))
        x, w, y = (device.zeros(shape, np.float32) for shape in ((rows, inner), (inner, columns), (rows, columns)))
        yield gemm(device, x, w, y)
        yield gemm(device, x, y, w, (True, False))
        if work.needs_input_gradient or layer_index > 0:
            yield gemm(device, y, w, x, (False, True))
