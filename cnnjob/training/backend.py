"""Selection of a run's backend: NumPy on the CPU or CUDA on a GPU.

The first attempt selects the backend, and all later attempts use the same one.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from cnnjob import nn
from cnnjob.errors import JobError
from cnnjob.jobs.job import Job
from cnnjob.nn.cuda.availability import INSTALL, why_unavailable
from cnnjob.nn.cuda.device import CudaDevice
from cnnjob.runs import environment
from cnnjob.runs.run import Run


def select_backend(job: Job, run: Run) -> str:
    """Return the backend that the run was started with or, for a new run, the job's choice; ``auto`` prefers a GPU.

    Args:
        job: the run's job, with the resources of this attempt.
        run: the run, which may already have been started.

    Returns:
        ``numpy`` or ``cuda``.

    Raises:
        JobError: the run was started with a different backend; or the job asks for a GPU, or SLURM has allocated a GPU,
            but no GPU can be used.
    """
    wanted, started_with = job.resources.backend, first_backend(job, run)
    name = started_with or wanted
    # SLURM sets the first variable in the batch script, and the second one in job steps.
    allocated = os.environ.get("SLURM_JOB_GPUS") or os.environ.get("SLURM_STEP_GPUS")
    obstacle = f"{run.path} was started on the CPU" if name == "numpy" else why_unavailable()
    # With a GPU allocated, "auto" never falls back to the CPU silently: the GPU would be idle for the whole SLURM job.
    if wanted == "numpy" or (obstacle and name != "cuda" and not allocated):
        return "numpy"
    if not obstacle:
        return "cuda"
    reason = f", and this SLURM job was allocated GPU {allocated}" if allocated else ""
    advice = "To train without a GPU, submit the job with --gpus 0, or set resources.backend to 'numpy'"
    if started_with == "cuda":  # on the CPU the run would get different bits
        reason = reason or f", and {run.path} was started on a GPU"
        advice = (
            "Resume the run where a GPU is available; or, to start again without one, move the run folder elsewhere"
        )
    raise JobError(f"resources.backend: {wanted!r}{reason}, but {obstacle}. {advice}")


def first_backend(job: Job, run: Run) -> str | None:
    """Return the backend that a run was started with, ``numpy`` or ``cuda``; None if it has not been started.

    Raises:
        JobError: the job now asks for a different backend.
    """
    wanted, started_with = job.resources.backend, run.environment().get("backend")
    if started_with and wanted not in {"auto", started_with}:
        raise JobError(
            f"resources.backend: {wanted!r}, but {run.path} was started with {started_with!r}, and another "
            f"backend would produce different bits. Leave it at {started_with!r}, or move the run folder elsewhere"
        )
    return started_with


def describe_missing_cupy() -> str:
    """Return what would go wrong in a SLURM job with a GPU if CuPy is not installed; empty if it is installed.

    A SLURM job finds the same packages as the process that submits it.
    """
    if find_spec("cupy"):
        return ""
    return f"CuPy is not installed in {sys.executable}, so the SLURM jobs will fail. Install it with {INSTALL}"


def select_evaluation_backend(wanted: str, job: Job) -> str:
    """Return the backend for evaluating a finished run; it may differ from the backend that trained the run.

    Args:
        wanted: ``numpy``, ``cuda``, or ``auto``: the GPU if one can be used and the job does not ask for NumPy.
        job: the run's job.

    Returns:
        ``numpy`` or ``cuda``.

    Raises:
        JobError: there is no such backend, or no GPU can be used.
    """
    if wanted not in {"auto", "numpy", "cuda"}:
        raise JobError(f"evaluate --backend: no such backend (found {wanted}). Choose from auto, numpy, cuda")
    if wanted == "numpy" or (wanted == "auto" and job.resources.backend == "numpy"):
        return "numpy"
    obstacle = why_unavailable()
    if obstacle and wanted == "cuda":
        raise JobError(f"evaluate --backend: 'cuda', but {obstacle}. Use --backend numpy")
    return "numpy" if obstacle else "cuda"


def make_backend(name: str, workers: nn.Workers, job: Job) -> nn.Backend:
    """Create a backend.

    Args:
        name: ``numpy`` or ``cuda``, from :func:`select_backend`.
        workers: the workers of the NumPy backend.
        job: the job to train.

    Returns:
        The backend.

    Raises:
        JobError: the job combines NumPy with float16.
    """
    if job.resources.backend == "numpy" and job.train.precision == "float16":
        raise JobError(
            "train.precision: 'float16' needs a GPU (found resources.backend 'numpy'). Change one of the two"
        )
    if name == "numpy":
        return nn.NumPyBackend(workers)
    return nn.CudaBackend(CudaDevice(job.train.precision))


def describe_environment(backend: nn.Backend) -> dict[str, Any]:
    """Describe this process's computing environment, for the run's ``environment.json``."""
    gpu = backend.device if isinstance(backend, nn.CudaBackend) else None
    precision = gpu.precision if gpu else backend.dtype.name
    return environment.describe(backend.name, precision, nn.ARITHMETIC, nn.available_cores(), gpu)


@contextmanager
def start_workers(count: int | None = None) -> Iterator[nn.Workers]:
    """Yield workers on ``count`` cores (all available cores by default), and limit BLAS to one thread.

    If BLAS used several threads, the order in which it adds numbers, and thus the bits of the result, would depend on
    the number of threads.
    """
    from threadpoolctl import threadpool_limits  # noqa: PLC0415 - it examines every loaded library

    with threadpool_limits(1), nn.Workers(count or nn.available_cores()) as workers:
        yield workers
