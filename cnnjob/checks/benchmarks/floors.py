"""Times of parts of a step on this machine: the matrix products of direct convolutions, and the memory traffic.

The time of the memory traffic is a lower bound on the time of a step. So is that of the products, unless Winograd's
method saves some of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import numpy as np

from cnnjob import nn
from cnnjob.checks.benchmarks.engines import Engine
from cnnjob.checks.benchmarks.workloads import Array, Workload
from cnnjob.nn.blocks import Layer
from cnnjob.nn.tensors import Task
from cnnjob.nn.workers import SHARDS, SMALL_WORK, split_evenly

PRODUCTS, BYTES = "floor: products", "floor: bytes"
PARAMETER_PASSES = 6
"""Memory accesses per parameter: three reads (forward pass, backward pass, update) and one write (update) of the
value; one write and one read of the gradient."""
ACTIVATION_PASSES = 5
"""Memory accesses per activation: one write and two reads (next block, backward pass) of the value; one write and one
read of the gradient."""


@contextmanager
def floor_engines(work: Workload) -> Iterator[dict[str, Engine]]:
    """Yield the engines that measure these times on all cores, keyed by the names of their rows in the output."""
    with nn.Workers(nn.available_cores()) as workers:
        size = min_bytes_per_step(work) // 2  # a copy reads and writes
        source, target = (np.zeros(size, np.uint8) for _ in range(2))
        copies = [_copy_task(source[shard], target[shard]) for shard in split_evenly(size, SHARDS)]
        products = list(_cpu_products(work))
        yield {
            PRODUCTS: Engine(workers.distribute(products, work=SMALL_WORK), "products"),
            BYTES: Engine(workers.distribute(copies, work=SMALL_WORK), "bytes"),
        }


def _cpu_products(work: Workload) -> Iterator[Task]:
    """Yield each shard's matrix products: the output, the weight gradient and, if needed, the input gradient."""
    for layer, weight_gradient, input_gradient in layers_with_products(work):
        for rows, inner, columns in _shards(layer, work.batch_size):
            x, w, y = (np.ones(shape, np.float32) for shape in ((rows, inner), (inner, columns), (rows, columns)))
            dx, dw, z = np.empty_like(x), np.empty_like(w), np.empty_like(y)
            yield _product(x, w, z)
            if weight_gradient:
                yield _product(x.T, y, dw)
            if input_gradient:
                yield _product(y, w.T, dx)


def layers_with_products(work: Workload) -> Iterator[tuple[Layer, bool, bool]]:
    """Yield the convolutions and dense layers, including those of residual blocks.

    With each layer, yield whether the gradients with respect to its weights and to its input are computed.
    """
    layers: list[Layer] = []
    for layer in work.layers:
        layers += layer.block.layers(layer.input_shape) if isinstance(layer.block, nn.Residual) else [layer]
    for layer_index, layer in enumerate(layers):
        if isinstance(layer.block, nn.Conv | nn.Dense):
            yield layer, not layer.block.frozen, work.needs_input_gradient or layer_index > 0


def _shards(layer: Layer, count: int) -> Iterator[tuple[int, int, int]]:
    """Yield the sizes (m, k, n) of the matrix product of each shard of a layer.

    The shards of a convolution contain different images; those of a dense block contain different input values.
    """
    weights = layer.block.parameters(layer.input_shape)["weights"].shape
    inner, columns = prod(weights[:-1]), weights[-1]
    if isinstance(layer.block, nn.Conv):
        positions = prod(layer.output_shape[:2]) * layer.block.pool**2
        for shard in split_evenly(count, SHARDS):
            yield (shard.stop - shard.start) * positions, inner, columns
    else:
        for shard in split_evenly(inner, SHARDS):
            yield count, shard.stop - shard.start, columns


def _product(a: Array, b: Array, out: Array) -> Task:
    def run() -> None:
        np.matmul(a, b, out=out)

    return run


def min_bytes_per_step(work: Workload, activation_bytes: int = 4) -> int:
    """Return the number of bytes that a step must read and write if each block passes over its tensors only once.

    Parameters and gradients have 4 bytes; activations have ``activation_bytes``.
    """
    shapes = [layer.block.parameters(layer.input_shape) for layer in work.layers]
    parameters = sum(prod(parameter.shape) for block in shapes for parameter in block.values())
    activations = work.batch_size * sum(prod(layer.output_shape) for layer in work.layers)
    passes = 4 * PARAMETER_PASSES * parameters + activation_bytes * ACTIVATION_PASSES * activations
    return passes + work.images.nbytes


def _copy_task(source: Array, target: Array) -> Task:
    def run() -> None:
        np.copyto(target, source)

    return run
