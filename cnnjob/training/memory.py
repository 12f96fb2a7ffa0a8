"""The memory of a training: counted to the byte before anything is allocated, and refused where there is less."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod

from cnnjob import nn
from cnnjob.errors import JobError
from cnnjob.jobs.job import Job
from cnnjob.nn.cuda.device_api import ShapeOnlyDevice
from cnnjob.runs import environment
from cnnjob.training.build import build_optimiser, build_training_options
from cnnjob.training.setup import TrainingSetup

EVALUATION_BATCH = 256
INDEX_BYTES = 8


@dataclass(frozen=True)
class MemoryEstimate:
    """The exact bytes of a training's arrays, by what they are for."""

    data: int
    """Images, labels, and which of them a step takes."""
    parameters: int
    """Parameters, gradients and the optimiser's slots; the best parameters beside them."""
    training: int
    """Buffers of the training steps."""
    evaluation: int
    """Buffers of the evaluations, and the probabilities they give."""
    checkpoint: int
    """The one copy that is made to save it."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.on_device + self.checkpoint

    @property
    def on_device(self) -> int:
        """What is on the GPU where one is used; a checkpoint is made on the host."""
        return self.data + self.parameters + self.training + self.evaluation


def estimate_memory(setup: TrainingSetup, backend: nn.Backend | None = None) -> MemoryEstimate:
    """Count the memory of a training without allocating it; with NumPy by default."""
    job, dataset, network = setup.job, setup.dataset, setup.network
    backend, optimiser = backend or nn.NumPyBackend(nn.Workers(1)), build_optimiser(job.train)
    state = nn.State(network, optimiser, backend, hollow=True)
    batch = evaluation_batch([dataset.shapes["test"][0], dataset.shapes.get("val", (setup.n_validation,))[0]])
    images = sum(prod(shape) + shape[0] * INDEX_BYTES for shape in dataset.shapes.values())
    chosen = 2 * dataset.shapes["train"][0] * INDEX_BYTES  # the epoch's order, and what is held out or not
    best, options = state.parameters.nbytes, build_training_options(job)
    return MemoryEstimate(
        images + chosen,
        state.size_bytes + best,
        nn.TrainingPlan.count_bytes(backend, network, state, optimiser, job.train.batch_size, options),
        nn.EvaluationPlan.count_bytes(backend, network, state, batch, job.train.test_time_augmentation),
        best + sum(flat.nbytes for flat in state.kept.values()),
    )


def estimate_device_memory(setup: TrainingSetup) -> MemoryEstimate:
    """Count the memory of a training on a GPU, also where there is none."""
    return estimate_memory(setup, nn.CudaBackend(ShapeOnlyDevice(setup.job.train.precision)))


def evaluation_batch(counts: Iterable[int]) -> int:
    """Return the images of one evaluation step, given the sizes of the splits that are evaluated."""
    return min(EVALUATION_BATCH, max(counts))


def require_memory(setup: TrainingSetup, backend: str = "numpy") -> None:
    """Refuse a job that this machine's memory cannot hold, before anything is allocated.

    Args:
        setup: what is to be trained.
        backend: ``numpy``, or ``cuda``, where only the data and the checkpoint pass through this memory.

    Raises:
        JobError: it needs more than there is; both are said.
    """
    memory = estimate_memory(setup)
    needed = memory.total if backend == "numpy" else memory.data + memory.checkpoint
    free = environment.available_memory_bytes()
    if needed > free:
        raise JobError(
            f"{setup.job.name}: needs {needed / 1e9:.1f} GB of memory for its arrays, {free / 1e9:.1f} GB are free; "
            "lower train.batch_size or the blocks' sizes, or use a larger machine"
        )


def require_device_memory(setup: TrainingSetup, backend: nn.CudaBackend) -> None:
    """Refuse what the GPU's memory cannot hold, before anything is allocated.

    Raises:
        JobError: it needs more than is free; the largest batch that fits is named.
    """
    job = setup.job
    free, batch = backend.device.free_bytes, job.train.batch_size

    def needed(size: int) -> int:
        resized = job.model_copy(update={"train": job.train.model_copy(update={"batch_size": size})})
        return estimate_memory(replace(setup, job=resized), backend).on_device

    if needed(batch) <= free:
        return
    largest = bisect_right(range(1, batch), free, key=needed)
    fits = f"the largest train.batch_size that fits is {largest}" if largest else "not even a batch of one image fits"
    raise JobError(
        f"{job.name}: needs {needed(batch):,} bytes of GPU memory, {free:,} are free on {backend.device.name} "
        f"and {fits}; lower it or the blocks' sizes, or use a larger GPU"
    )


@contextmanager
def memory_errors_as_job_error(job: Job) -> Iterator[None]:
    """Turn a MemoryError into a JobError.

    Raises:
        JobError: instead of a ``MemoryError``.
    """
    try:
        yield
    except MemoryError as error:
        kind = f"{type(error).__module__}.{type(error).__name__}".removeprefix("builtins.")  # CuPy's tells the GPU's
        raise JobError(
            f"{job.name}: no memory for its arrays ({kind}: {error}); "
            "see what else runs here, or lower train.batch_size; what is saved stays"
        ) from error
