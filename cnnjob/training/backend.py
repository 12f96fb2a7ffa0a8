"""What computes a run: NumPy on the processor or CUDA on a GPU, chosen at its first start and kept."""

import os

from cnnjob import nn
from cnnjob.errors import JobError
from cnnjob.jobs.job import Job
from cnnjob.nn.cuda.availability import why_unavailable
from cnnjob.nn.cuda.device import CudaDevice
from cnnjob.runs.run import Run
from cnnjob.training.memory import require_device_memory
from cnnjob.training.setup import TrainingSetup


def select_backend(job: Job, run: Run) -> str:
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
    lacking = f"{run.path} was started on the CPU" if wanted == "numpy" else why_unavailable()
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


def make_backend(name: str, workers: nn.Workers, setup: TrainingSetup) -> nn.Backend:
    """Make a backend, with room for a job's training.

    Args:
        name: by :func:`select_backend`.
        workers: the cores that NumPy uses.
        setup: what is to be trained.

    Returns:
        The backend.

    Raises:
        JobError: the GPU has not enough memory; or NumPy is asked for, and for what it cannot.
    """
    job = setup.job
    if job.resources.backend == "numpy" and job.train.precision == "float16":
        raise JobError(
            "train.precision: 'float16' is for a GPU, found resources.backend 'numpy'; change one of the two"
        )
    if name == "numpy":
        return nn.NumPyBackend(workers)
    backend = nn.CudaBackend(CudaDevice(job.train.precision))
    require_device_memory(setup, backend)
    return backend
