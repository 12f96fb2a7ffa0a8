"""submitit's SLURM executor, adapted: jobs, their batch scripts, and the pickles that they run.

Imported only where something is submitted, as it imports submitit.
"""

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
"""Time before its end at which a job stops by itself if no signal has come."""
SCRIPT = "submission.sh"
SUBMITITS_MINUTES, SUBMITITS_TIMEOUTS = 5, 3
"""submitit's defaults for the two fields of a pickle; a job that stops by itself in time uses neither."""


class Executor(submitit.SlurmExecutor):  # type: ignore[misc]  # submitit has no types
    """A submitit executor that calls :mod:`cnnjob.slurm.scheduler.sbatch`, from a folder that only it uses."""

    def __init__(self, batch: JobArray, parameters: dict[str, Any], folder: Path) -> None:
        """Create an executor.

        Args:
            batch: the runs.
            parameters: the parameters of the batch script, as submitit takes them.
            folder: for the files of this submission; it must exist.
        """
        super().__init__(folder=folder, python=python())
        self._comment = parameters["comment"]
        self._script = script(batch, parameters)
        self.accepted = ""
        """Id of the job that SLURM accepted; empty before that."""

    def _submit_command(self, command: str) -> Any:  # noqa: ARG002 - submitit's form
        path = self.folder / SCRIPT
        path.write_text(self._script, encoding="utf-8")
        # kept here as well, since an interrupt may come before submitit returns its job
        self.accepted = sbatch.submit(self._comment, str(path))
        return submitit.SlurmJob(self.folder, self.accepted, [0])


def python() -> str:
    """Return the command of this interpreter for a shell; with ``-P`` it imports nothing from the current folder."""
    return f"{shlex.quote(sys.executable)} -P"


def script(batch: JobArray, parameters: dict[str, Any]) -> str:
    """Return the exact batch script; needs no SLURM."""
    folder = batch.files_folder
    # not the folder of the submission: the files are moved here once SLURM has accepted the job
    command = f"{python()} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return str(_make_sbatch_string(command, folder, **parameters))


def submit(batch: JobArray, parameters: dict[str, Any]) -> str:
    """Submit a job array and return the job's id, without the numbers of array tasks.

    Raises:
        SchedulerError: SLURM refused, is not there, or did not answer.
        KeyboardInterrupt: Ctrl-C; with a message if SLURM may have accepted the job.
    """
    for program in ("sbatch", "srun"):
        if not shutil.which(program):
            raise SchedulerError(f"{program}: not found; this machine has no SLURM, log in to one that has")
    # a folder of its own, so that cleaning up after a refusal removes no file of another submission
    folder = files.temporary_name(batch.files_folder / "submission")
    folder.mkdir()
    executor = Executor(batch, parameters, folder)
    try:
        job = executor.submit(_life(batch))
        _publish(batch, str(job.job_id), job.paths.submitted_pickle, folder / SCRIPT)
    except SchedulerError as error:
        said = site.explained(_last_line(str(error)), len(batch.runs), next_command.continue_command(batch.runs[0]))
        raise SchedulerError(f"{batch.name}: {said}") from error
    except BaseException as error:  # whatever it is, an accepted job is cancelled: it would find no pickle to run
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
    """Return whether the pickle of a job or an array task is missing and can be written by this user.

    A folder of another user that cannot be written counts as complete.
    """
    folder = batch.files_folder
    if not os.path.lexists(folder):  # removed while the job waits, so that SLURM could not even open its log
        return os.access(folder.parent, os.W_OK)
    return os.access(folder, os.W_OK) and not (folder / f"{job_id}_submitted.pkl").exists()


def supply(batch: JobArray, job_id: str) -> None:
    """Write the missing pickles of a job: they were removed, or its submission was killed before it wrote them."""
    batch.files_folder.mkdir(exist_ok=True)
    delayed = DelayedSubmission(_life(batch))
    delayed.set_timeout(SUBMITITS_MINUTES, SUBMITITS_TIMEOUTS)
    for place in _pickles(batch, job_id):
        if not place.exists():
            written = files.temporary_name(place)
            delayed.dump(written)
            written.replace(place)


def _publish(batch: JobArray, job_id: str, pickle: Path, script: Path) -> None:
    """Move the files of a job to where the job looks for them."""
    for place in _pickles(batch, job_id):
        # a hard link and a rename: a job that starts meanwhile finds a whole pickle or none
        linked = pickle.with_name(f"{place.name}.new")
        linked.hardlink_to(pickle)
        linked.replace(place)
    script.replace(batch.files_folder / f"{job_id}_submission.sh")


def lend(batch: JobArray, job_id: str, other: str) -> None:
    """Link the pickles of a job to another job of the same runs, unless that has its own.

    A submission that was not told its job's id finds a job by the comment, which may be the job of another submission.
    """
    for ours, theirs in zip(_pickles(batch, job_id), _pickles(batch, other), strict=True):
        with suppress(FileExistsError):
            theirs.hardlink_to(ours)


def _pickles(batch: JobArray, job_id: str) -> list[Path]:
    """Return the paths at which submitit looks for the pickles of a job: by the job's id and by those of its tasks."""
    elements = [f"{job_id}_{element}" for element in range(len(batch.runs))] if batch.is_array else []
    return [batch.files_folder / f"{name}_submitted.pkl" for name in (job_id, *elements)]


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("Try ")]
    return next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "it printed nothing")
