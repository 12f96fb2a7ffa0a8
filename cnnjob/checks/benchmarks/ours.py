"""cnnjob's CPU engine, and the steps shared by the CPU and GPU engines."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np

from cnnjob import nn
from cnnjob.checks.benchmarks.engines import MAX_STEPS_PER_TURN, Action, Engine, do_nothing
from cnnjob.checks.benchmarks.workloads import Array, Workload
from cnnjob.nn.arena import Arena
from cnnjob.nn.backend import Backend
from cnnjob.nn.blocks import Shape
from cnnjob.nn.operations import split_block
from cnnjob.nn.plan import empty_step_inputs
from cnnjob.nn.tensors import Task, Tensor


@contextmanager
def numpy_engines(work: Workload) -> Iterator[dict[str, Engine]]:
    """Yield a dict that maps the name of a row in the results to the NumPy backend's engine.

    Inside the ``with`` block, BLAS libraries use only one thread; torch is not limited.
    """
    from threadpoolctl import threadpool_limits  # noqa: PLC0415 - it inspects every loaded library

    with threadpool_limits(1, user_api="blas"), nn.Workers(nn.available_cores()) as workers:
        backend = nn.NumPyBackend(workers)
        begin, step = (build_training_step if work.steps else build_block_step)(backend, work)
        yield {f"cnnjob {backend.name}": Engine(step, "ours", begin=begin)}


def build_training_step(backend: Backend, work: Workload) -> tuple[Action, Action]:
    """Return two functions: one resets the step inputs to those of the first step, the other runs a training step."""
    network = nn.Network(work.layers)
    state = nn.State(network, work.optimiser, backend)
    pixels = nn.PixelNormalisation.unit(work.image_shape[-1])
    state.initialise(network, 0, work.images, pixels)
    # There are enough step inputs for the longest turn, and every step reads the same batch.
    inputs = nn.build_step_inputs(backend, work.images, work.labels, MAX_STEPS_PER_TURN, work.batch_size, 0)
    backend.copy(np.resize(np.arange(work.batch_size), len(inputs.order)), inputs.order)
    backend.copy(np.full(MAX_STEPS_PER_TURN, work.learning_rate), inputs.learning_rates)
    plan = nn.TrainingPlan(backend, network, state, work.optimiser, inputs, pixels, work.batch_size)

    return partial(backend.copy, np.zeros(2, np.int64), inputs.position), plan.step


def build_block_step(backend: Backend, work: Workload) -> tuple[Action, Action]:
    """Return a reset function, which does nothing, and a function that runs one block forward and backward."""
    [layer] = work.layers
    random, count = np.random.default_rng(0), work.batch_size
    shapes = {name: parameter.shape for name, parameter in layer.block.parameters(layer.input_shape).items()}

    def drawn(shape: Shape) -> Array:
        return backend.resident(np.asarray(random.standard_normal(shape), backend.dtype))

    weights = {name: drawn(shape) for name, shape in shapes.items()}
    gradients = {name: backend.zeros(shape, backend.dtype) for name, shape in shapes.items()}

    def build(arena: Arena) -> tuple[Tensor, Tensor, Task]:
        x = Tensor.take(arena, (count, *layer.input_shape), backend.dtype, border=getattr(layer.block, "pad", 0))
        y = Tensor.take(arena, (count, *layer.output_shape), backend.dtype)
        inputs = empty_step_inputs(layer.input_shape, backend)
        [operation] = split_block(layer.block)
        assert not isinstance(operation, nn.Residual)  # noqa: S101 - the types
        step = backend.plan_operation(arena, operation, x, y, (weights, gradients), inputs, 0)
        return x, y, backend.compile_step(arena, inputs, [step.forward, step.backward])

    x, y, run = Arena.allocate(backend, build)
    backend.copy(drawn(x.padded.shape), x.padded)
    backend.copy(drawn(y.gradient.shape), y.gradient)
    return do_nothing, run
