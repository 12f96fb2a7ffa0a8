"""This package's engines. A backend joins them by its name in :func:`engines`."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from cnnjob import nn
from cnnjob.benchmarks.workloads import Array, Run, Workload
from cnnjob.nn.backend import Backend
from cnnjob.nn.blocks import Shape
from cnnjob.nn.memory import Arena
from cnnjob.nn.operations import operations_of
from cnnjob.nn.plan import empty_feed
from cnnjob.nn.signals import Signal, Step


@contextmanager
def engines(work: Workload) -> Iterator[dict[str, Run]]:
    """A step on each backend, by the name of its row; torch keeps its own threads, BLAS is not torch's."""
    from threadpoolctl import threadpool_limits  # noqa: PLC0415 - it looks at every loaded library

    with threadpool_limits(1, user_api="blas"), nn.Workers(nn.available_cores()) as workers:
        backend = nn.NumPyBackend(workers)
        yield {f"cnnjob {backend.name}": (_training if work.steps else _block)(backend, work)}


def _training(backend: Backend, work: Workload) -> Run:
    """A training step."""
    network = nn.Network(work.layers)
    state = nn.State(network, work.optimiser, backend)
    state.initialise(network, 0)
    feed = nn.training_feed(backend, work.images, work.labels, 1, work.batch_size, 0)
    backend.copy(np.arange(work.batch_size), feed.order)
    backend.copy(np.array([work.learning_rate]), feed.learning_rates)
    pixels = nn.Pixels.unit(work.image_shape[-1])
    plan = nn.TrainingPlan(backend, network, state, work.optimiser, feed, pixels, work.batch_size)

    def step() -> None:
        backend.copy(np.zeros(2, np.int64), feed.position)
        plan.step()

    return step


def _block(backend: Backend, work: Workload) -> Run:
    """The only block, forward and backward."""
    [layer] = work.layers
    random, count = np.random.default_rng(0), work.batch_size
    shapes = {name: parameter.shape for name, parameter in layer.block.parameters(layer.input_shape).items()}

    def drawn(shape: Shape) -> Array:
        return backend.resident(np.asarray(random.standard_normal(shape), backend.dtype))

    weights = {name: drawn(shape) for name, shape in shapes.items()}
    gradients = {name: backend.zeros(shape, backend.dtype) for name, shape in shapes.items()}

    def build(arena: Arena) -> tuple[Signal, Signal, Step]:
        x = Signal.take(arena, (count, *layer.input_shape), backend.dtype, border=getattr(layer.block, "pad", 0))
        y = Signal.take(arena, (count, *layer.output_shape), backend.dtype)
        feed = empty_feed(layer.input_shape, backend)
        [operation] = operations_of(layer.block)
        assert not isinstance(operation, nn.Residual)  # noqa: S101 - the types
        return x, y, backend.block(arena, operation, x, y, (weights, gradients), feed, 0)

    x, y, step = Arena.filled(backend, build)
    for array in (x.value, y.gradient):
        array[...] = drawn(array.shape)

    def run() -> None:
        step.forward()
        step.backward()

    return run
