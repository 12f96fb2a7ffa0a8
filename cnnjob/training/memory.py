"""Memory of a training: counted to the byte before anything is allocated; a job that needs too much is refused."""

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
"""Maximum number of images per evaluation step."""
INDEX_BYTES = 8
"""Size of a label or an index, int64."""


@dataclass(frozen=True)
class MemoryEstimate:
    """The exact sizes of a training's arrays in bytes, by purpose."""

    data: int
    """Images, labels, and the indices of the images of each step."""
    parameters: int
    """Parameters, gradients, the optimiser's slots and the best parameters so far."""
    training: int
    """Buffers of the training steps."""
    evaluation: int
    """Buffers of the evaluations, and the probabilities that they compute."""
    checkpoint: int
    """The copy that is made when a checkpoint is saved."""

    @property
    def total(self) -> int:
        """All of it, in bytes."""
        return self.on_device + self.checkpoint

    @property
    def on_device(self) -> int:
        """The bytes on the GPU if one is used; a checkpoint is made in host memory."""
        return self.data + self.parameters + self.training + self.evaluation


def estimate_memory(setup: TrainingSetup, backend: nn.Backend | None = None) -> MemoryEstimate:
    """Count the memory of a training without allocating it; on the NumPy backend by default."""
    job, dataset, network = setup.job, setup.dataset, setup.network
    backend, optimiser = backend or nn.NumPyBackend(nn.Workers(1)), build_optimiser(job.train)
    state = nn.State(network, optimiser, backend, shape_only=True)  # arrays with shapes but without memory
    batch = evaluation_batch([dataset.shapes["test"][0], dataset.shapes.get("val", (setup.n_validation,))[0]])
    images = sum(prod(shape) + shape[0] * INDEX_BYTES for shape in dataset.shapes.values())  # a pixel is one byte
    chosen = 2 * dataset.shapes["train"][0] * INDEX_BYTES  # the epoch's order; training and validation indices
    best, options = state.parameters.nbytes, build_training_options(job)
    return MemoryEstimate(
        images + chosen,
        state.size_bytes + best,
        nn.TrainingPlan.count_bytes(backend, network, state, optimiser, job.train.batch_size, options),
        nn.EvaluationPlan.count_bytes(backend, network, state, batch, job.train.test_time_augmentation),
        best + sum(flat.nbytes for flat in state.saved_buffers.values()),
    )


def estimate_device_memory(setup: TrainingSetup) -> MemoryEstimate:
    """Count the memory of a training on a GPU, which need not exist."""
    return estimate_memory(setup, nn.CudaBackend(ShapeOnlyDevice(setup.job.train.precision)))


def evaluation_batch(counts: Iterable[int]) -> int:
    """Return the number of images per evaluation step, given the sizes of the splits to evaluate."""
    return min(EVALUATION_BATCH, max(counts))


def require_memory(setup: TrainingSetup, backend: str = "numpy") -> None:
    """Refuse a job that does not fit into this machine's memory, before anything is allocated.

    Args:
        setup: what to train.
        backend: ``numpy``; or ``cuda``, for which only data and checkpoints pass through host memory.

    Raises:
        JobError: the job needs more memory than is available; the message names both sizes.
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
    """Refuse a job that does not fit into the GPU's memory, before anything is allocated.

    Raises:
        JobError: it needs more than is free; the message names the largest batch size that fits.
    """
    job = setup.job
    free, batch = backend.device.free_bytes, job.train.batch_size

    def needed(size: int) -> int:
        resized = job.model_copy(update={"train": job.train.model_copy(update={"batch_size": size})})
        return estimate_memory(replace(setup, job=resized), backend).on_device

    if needed(batch) <= free:
        return
    # needed() grows with the batch size; counting allocates nothing, so trying some sizes costs little.
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
        JobError: in place of a ``MemoryError``.
    """
    try:
        yield
    except MemoryError as error:
        # CuPy's subclass shows that it is the GPU's memory that has run out.
        kind = f"{type(error).__module__}.{type(error).__name__}".removeprefix("builtins.")
        raise JobError(
            f"{job.name}: no memory for its arrays ({kind}: {error}); "
            "see what else runs here, or lower train.batch_size; what is saved stays"
        ) from error
