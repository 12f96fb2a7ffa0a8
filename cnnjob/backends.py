"""What computes a run: NumPy on the processor or CUDA on a GPU, chosen at its first start and kept."""

import os
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager

from cnnjob import nn
from cnnjob.bindings import memory_of, network_of
from cnnjob.datasets import Dataset
from cnnjob.errors import JobError
from cnnjob.jobs import Job
from cnnjob.nn.cuda.device import CudaDevice
from cnnjob.nn.cuda.finding import lack
from cnnjob.runs import Run


def backend_name(job: Job, run: Run) -> str:
    """What the run was started with, or what its job asks for; ``auto`` takes a GPU where there is one.

    Args:
        job: the run's, with the resources of this life.
        run: it may have been started.

    Returns:
        ``numpy`` or ``cuda``.

    Raises:
        JobError: the run was started with the other; or a GPU is asked for or held, and none can be used.
    """
    asked, first = job.resources.backend, first_backend(job, run)
    held = os.environ.get("SLURM_JOB_GPUS") or os.environ.get("SLURM_STEP_GPUS")
    wanted = first or asked
    lacking = f"{run.path} was started on the CPU" if wanted == "numpy" else lack()
    if asked == "numpy" or (lacking and wanted != "cuda" and not held):
        return "numpy"
    if not lacking:
        return "cuda"
    reasons = (
        [f"this SLURM job holds the GPU {held}"] if held else [f"{run.path} was started on a GPU"] if first else []
    )
    wish = ", and ".join([f"resources.backend: {asked!r}", *reasons])
    raise JobError(f"{wish}, but {lacking}; or submit it with --gpus 0, or set it to 'numpy'")


def first_backend(job: Job, run: Run) -> str | None:
    """Return what a run was started with, ``numpy`` or ``cuda``; None where it was not.

    Raises:
        JobError: its job now asks for the other.
    """
    asked, first = job.resources.backend, run.environment().get("backend")
    if first and asked not in {"auto", first}:
        raise JobError(
            f"resources.backend: {asked!r}, but {run.path} was started with {first!r} and other bits would come out; "
            f"leave it at {first!r}, or move the run away"
        )
    return first


def backend_of(name: str, workers: nn.Workers, job: Job, dataset: Dataset) -> nn.Backend:
    """Make a backend, with room for a job's training.

    Args:
        name: by :func:`backend_name`.
        workers: the cores that NumPy uses.
        job: what is to be trained.
        dataset: on what.

    Returns:
        The backend.

    Raises:
        JobError: the GPU has not enough memory; or NumPy is asked for, and for what it cannot.
    """
    if job.resources.backend == "numpy" and job.train.precision == "float16":
        raise JobError(
            "train.precision: 'float16' is for a GPU, found resources.backend 'numpy'; change one of the two"
        )
    if name == "numpy":
        return nn.NumPyBackend(workers)
    backend = nn.CudaBackend(CudaDevice(job.train.precision))
    _require_room(job, dataset, backend)
    return backend


@contextmanager
def room_or_said(job: Job) -> Iterator[None]:
    """Say that memory which was there is no more.

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


def _require_room(job: Job, dataset: Dataset, backend: nn.CudaBackend) -> None:
    """Refuse what the GPU cannot hold, before it is tried."""
    network = network_of(job.model, dataset.image_shape, len(dataset.class_names))
    free, batch = backend.device.free_bytes, job.train.batch_size

    def needed(size: int) -> int:
        resized = job.model_copy(update={"train": job.train.model_copy(update={"batch_size": size})})
        return memory_of(resized, network, dataset, backend).on_device

    if needed(batch) <= free:
        return
    largest = bisect_right(range(1, batch), free, key=needed)
    fits = f"the largest train.batch_size that fits is {largest}" if largest else "not even a batch of one image fits"
    raise JobError(
        f"{job.name}: needs {needed(batch):,} bytes of GPU memory, {free:,} are free on {backend.device.name} "
        f"and {fits}; lower it or the blocks' sizes, or use a larger GPU"
    )
