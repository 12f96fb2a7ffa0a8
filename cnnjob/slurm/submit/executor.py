"""submitit's executors, as they are used here. Imported only where something is submitted."""

import os
import shlex
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import DelayedSubmission
from submitit.slurm.slurm import _make_sbatch_string

from cnnjob import files
from cnnjob.errors import SchedulerError
from cnnjob.slurm import next_command
from cnnjob.slurm.job_array import JobArray
from cnnjob.slurm.node.node_task import NodeTask
from cnnjob.slurm.scheduler import client, sbatch, site

MARGIN_SECONDS = 30.0
"""The job stops itself so long before its end, should no signal have come."""
SCRIPT = "submission.sh"
SUBMITITS_MINUTES, SUBMITITS_TIMEOUTS = 5, 3
"""What submitit writes into a pickle by default; a job that stops itself in time uses neither."""


class Executor(submitit.SlurmExecutor):  # type: ignore[misc]  # submitit has no types
    """Submits a batch through :mod:`cnnjob.slurm.scheduler.sbatch`, from a folder that no other submission uses."""

    def __init__(self, batch: JobArray, parameters: dict[str, Any], folder: Path) -> None:
        """Make one for a batch, with the parameters of its script."""
        super().__init__(folder=folder, python=python())
        self._comment = parameters["comment"]
        self._script = script(batch, parameters)
        self.accepted = ""
        """The job that SLURM has taken."""

    def _submit_command(self, command: str) -> Any:  # noqa: ARG002 - submitit's form
        path = self.folder / SCRIPT
        path.write_text(self._script, encoding="utf-8")
        self.accepted = sbatch.submit(self._comment, str(path))
        return submitit.SlurmJob(self.folder, self.accepted, [0])


def python() -> str:
    """Return this interpreter for a shell; ``-P``: it imports nothing from the folder it is started in."""
    return f"{shlex.quote(sys.executable)} -P"


def script(batch: JobArray, parameters: dict[str, Any]) -> str:
    """The exact batch script; needs no SLURM."""
    folder = batch.files_folder
    command = f"{python()} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return str(_make_sbatch_string(command, folder, **parameters))


def submit(batch: JobArray, parameters: dict[str, Any]) -> str:
    """Submit a batch; the job's id, without the elements' numbers.

    Raises:
        SchedulerError: SLURM refused, is not there, or did not answer.
        KeyboardInterrupt: with a message where SLURM may have taken the job.
    """
    for program in ("sbatch", "srun"):
        if not shutil.which(program):
            raise SchedulerError(f"{program}: not found; this machine has no SLURM, log in to one that has")
    folder = files.temporary_name(batch.files_folder / "submission")
    folder.mkdir()
    executor = Executor(batch, parameters, folder)
    try:
        job = executor.submit(_life(batch))
        _publish(batch, str(job.job_id), job.paths.submitted_pickle, folder / SCRIPT)
    except SchedulerError as error:
        said = site.explained(_last_line(str(error)), len(batch.runs), next_command.continue_command(batch.runs[0]))
        raise SchedulerError(f"{batch.name}: {said}") from error
    except BaseException as error:  # the job would find nothing to run
        if isinstance(error, KeyboardInterrupt) and not executor.accepted:
            raise KeyboardInterrupt(
                f"{batch.name}: SLURM may have taken the job. The same command looks for it first; to cancel it:\n"
                f"  {next_command.cancel_command(batch.runs[0])}"
            ) from error
        with suppress(SchedulerError):
            client.cancel([executor.accepted] * bool(executor.accepted))
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return str(job.job_id)


def _life(batch: JobArray) -> NodeTask:
    return NodeTask(str(batch.folder), MARGIN_SECONDS)


def lacks(batch: JobArray, job_id: str) -> bool:
    """Return whether a job of a batch, or an array task, has not got what it runs.

    Where the folder of another user is closed, nobody can know, nor change it.
    """
    folder = batch.files_folder
    if not os.path.lexists(folder):  # removed while the job waits, which could not even write its log
        return os.access(folder.parent, os.W_OK)
    return os.access(folder, os.W_OK) and not (folder / f"{job_id}_submitted.pkl").exists()


def supply(batch: JobArray, job_id: str) -> None:
    """Give a job of a batch what it runs, where that was removed, or its own submission was ended before it did so."""
    batch.files_folder.mkdir(exist_ok=True)
    delayed = DelayedSubmission(_life(batch))
    delayed.set_timeout(SUBMITITS_MINUTES, SUBMITITS_TIMEOUTS)
    for place in _pickles(batch, job_id):
        if not place.exists():
            written = files.temporary_name(place)
            delayed.dump(written)
            written.replace(place)


def _publish(batch: JobArray, job_id: str, pickle: Path, script: Path) -> None:
    """Move the files of a job to where it looks for them."""
    for place in _pickles(batch, job_id):
        linked = pickle.with_name(f"{place.name}.new")
        linked.hardlink_to(pickle)
        linked.replace(place)
    script.replace(batch.files_folder / f"{job_id}_submission.sh")


def lend(batch: JobArray, job_id: str, other: str) -> None:
    """Give another job of the same batch what it runs, where its own submission has not done so.

    A submission that is not told its job's id finds one by the comment, which may be that of the other.
    """
    for ours, theirs in zip(_pickles(batch, job_id), _pickles(batch, other), strict=True):
        with suppress(FileExistsError):
            theirs.hardlink_to(ours)


def _pickles(batch: JobArray, job_id: str) -> list[Path]:
    """Return where submitit looks for what a job runs."""
    elements = [f"{job_id}_{element}" for element in range(len(batch.runs))] if batch.is_array else []
    return [batch.files_folder / f"{name}_submitted.pkl" for name in (job_id, *elements)]


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("Try ")]
    return next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "without a word")
