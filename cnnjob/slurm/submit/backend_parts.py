"""Grouping runs by backend, since runs with CUDA and runs with NumPy need different resource requests."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from cnnjob.errors import DataError
from cnnjob.jobs.job import Job
from cnnjob.runs.run import Run
from cnnjob.slurm.submit.request import Request
from cnnjob.training.backend import describe_missing_cupy, first_backend


@dataclass(frozen=True)
class Part:
    """Runs with the same backend and the same request."""

    backend: str
    """The runs' backend: ``numpy``, ``cuda`` or ``auto``."""
    request: Request
    runs: list[Run]

    def warnings(self) -> Iterator[str]:
        """Yield a warning if some requested GPUs would be idle, and one if none can be used without CuPy."""
        if idle := self.request.idle_gpus(self.backend):
            yield idle
        if self.backend != "numpy" and self.request.gpu_count and (missing := describe_missing_cupy()):
            yield f"GPUs are requested, but {missing}; or train on CPUs with --gpus 0"


def split_by_backend(jobs: Sequence[tuple[Job, Run]], request: Request, *, asks_for_gpus: bool) -> list[Part]:
    """Group runs by backend.

    A run that has been started keeps its backend; a new run uses the backend that its job requests.

    Args:
        jobs: pairs of a job and its run; the job's resources are those of this submission.
        request: the request; GPUs are added to it or removed from it as each backend requires.
        asks_for_gpus: whether the command line requests GPUs.

    Returns:
        One part per backend; within each part, the runs keep their order.

    Raises:
        JobError: a run's job requests a backend different from the one that the run was started with.
    """
    runs_by_backend: dict[str, list[Run]] = {}
    for job, run in jobs:
        runs_by_backend.setdefault(_backend(job, run), []).append(run)
    return [
        Part(backend, request.with_gpus(backend, explicit=asks_for_gpus), runs)
        for backend, runs in runs_by_backend.items()
    ]


def _backend(job: Job, run: Run) -> str:
    requested = job.resources.backend
    with suppress(DataError):  # a damaged run folder is reported when its SLURM job starts
        return requested if run.state() == "finished" else first_backend(job, run) or requested
    return requested
