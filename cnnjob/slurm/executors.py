"""submitit's executors, as they are used here. Imported only where something is submitted."""

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import _make_sbatch_string

from cnnjob.errors import SchedulerError
from cnnjob.slurm import scheduler, site
from cnnjob.slurm.batches import Batch
from cnnjob.slurm.life import Life

MARGIN_SECONDS = 30.0
"""The job stops itself so long before its end, should no signal have come."""


class Executor(submitit.SlurmExecutor):  # type: ignore[misc]  # submitit has no types
    """Submits a batch through :mod:`cnnjob.slurm.sbatch`."""

    def __init__(self, batch: Batch, parameters: dict[str, Any]) -> None:
        """Make one for a batch, with the parameters of its script."""
        super().__init__(folder=batch.files_folder, python=python())
        self._comment = batch.comment
        self.parameters.update(parameters)

    def _make_submission_command(self, submission_file_path: Any) -> list[str]:
        return [sys.executable, "-m", "cnnjob.slurm.sbatch", self._comment, str(submission_file_path)]


def python() -> str:
    """This interpreter, for a shell."""
    return shlex.quote(sys.executable)


def script(batch: Batch, parameters: dict[str, Any]) -> str:
    """The exact batch script; needs no SLURM."""
    folder = batch.files_folder
    command = f"{python()} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return str(_make_sbatch_string(command, folder, **parameters))


def submit(batch: Batch, parameters: dict[str, Any]) -> str:
    """Submit a batch; the job's id, without the elements' numbers.

    Raises:
        SchedulerError: SLURM refused, is not there, or did not answer.
    """
    if not scheduler.is_there():
        raise SchedulerError("sbatch: not found; this machine has no SLURM, log in to one that has")
    try:
        executor = Executor(batch, parameters)
    except RuntimeError as error:
        raise SchedulerError("srun: not found; this machine has no SLURM, log in to one that has") from error
    before = set(batch.files_folder.iterdir())
    with _clean_environment(), redirect_stderr(StringIO()):  # submitit shows there what its error says
        try:
            job = executor.submit(Life(str(batch.folder), MARGIN_SECONDS))
        except (FailedJobError, FailedSubmissionError) as error:
            for path in set(batch.files_folder.iterdir()) - before:
                path.unlink(missing_ok=True)  # the script and the pickle of a job that is none
            said = _last_line(str(error))
            raise SchedulerError(f"{batch.name}: {said}{site.advice(said)}") from error
    for element in range(len(batch.runs)) if batch.is_array else ():
        os.link(job.paths.submitted_pickle, batch.files_folder / f"{job.job_id}_{element}_submitted.pkl")
    return str(job.job_id)


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("Try ")]
    return next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "without a word")


@contextmanager
def _clean_environment() -> Iterator[None]:
    """Keep what an enclosing job left in the environment away from sbatch."""
    kept = dict(os.environ)
    os.environ.clear()
    os.environ.update(scheduler.clean(kept))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)
