"""An adaptation of submitit's SLURM executor: jobs, their batch scripts, and the pickles that they run.

Import this module only to submit a job, since it imports the training code. It overrides submitit's private method
``SlurmExecutor._submit_command``; ``batch_script`` and ``local`` use other private names of submitit.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import DelayedSubmission

from cnnjob import files
from cnnjob.errors import SchedulerError
from cnnjob.slurm import next_command
from cnnjob.slurm.job_array import JobArray
from cnnjob.slurm.node.node_task import NodeTask
from cnnjob.slurm.scheduler import client, sbatch, site
from cnnjob.slurm.submit.batch_script import build_script, python_command

MARGIN_SECONDS = 30.0
"""Time before the end of a SLURM job at which training stops by itself if it has received no signal."""
SCRIPT = "submission.sh"
SUBMITIT_MINUTES, SUBMITIT_TIMEOUTS = 5, 3
"""submitit's default values for a pickle's time limit and number of timeouts.

A job that stops by itself in time uses neither.
"""


class Executor(submitit.SlurmExecutor):  # type: ignore[misc]  # submitit has no types
    """A submitit executor that submits through :mod:`cnnjob.slurm.scheduler.sbatch`."""

    def __init__(self, array: JobArray, parameters: dict[str, Any], folder: Path) -> None:
        """Create an executor.

        Args:
            array: the runs.
            parameters: parameters of the batch script, as returned by
                :func:`cnnjob.slurm.submit.batch_script.script_parameters`.
            folder: folder for the files of this submission; it must exist.
        """
        super().__init__(folder=folder, python=python_command())
        self._comment = parameters["comment"]
        self._script = build_script(array, parameters)
        self.accepted = ""
        """Id of the job, once SLURM has accepted it; empty before that."""

    def _submit_command(self, command: str) -> Any:  # noqa: ARG002 - submitit's signature
        path = self.folder / SCRIPT
        path.write_text(self._script, encoding="utf-8")
        # stored here as well, since an interrupt may arrive before submitit returns the job
        self.accepted = sbatch.submit_script(self._comment, str(path))
        return submitit.SlurmJob(self.folder, self.accepted, [0])


def submit_array(array: JobArray, parameters: dict[str, Any]) -> str:
    """Submit a job array and return its job id, without array task numbers.

    Raises:
        SchedulerError: SLURM refused the job, is not available, or did not answer.
        KeyboardInterrupt: Ctrl-C was pressed; the error has a message if SLURM may have accepted the job.
    """
    for program in ("sbatch", "srun"):
        if not shutil.which(program):
            raise SchedulerError(client.not_found_message(program))
    # a separate folder, so that cleaning up after a refusal removes no file of another submission
    folder = files.temporary_name(array.files_folder / "submission")
    folder.mkdir()
    executor = Executor(array, parameters, folder)
    try:
        job = executor.submit(_node_task(array))
        _move_files(array, str(job.job_id), job.paths.submitted_pickle, folder / SCRIPT)
    except SchedulerError as error:
        reason = site.explain_refusal(
            _error_line(str(error)), len(array.runs), next_command.continue_command(array.runs[0])
        )
        raise SchedulerError(f"{array.name}: {reason}") from error
    except BaseException as error:  # an accepted job is cancelled after any error: it would find no pickle to run
        if isinstance(error, KeyboardInterrupt) and not executor.accepted:
            raise KeyboardInterrupt(
                f"{array.name}: SLURM may have accepted the job. To make sure that it is submitted, run the same "
                f"command again; the command looks for that job first. To cancel it instead:\n  "
                f"{next_command.cancel_command(array.runs[0])}"
            ) from error
        if executor.accepted:
            with suppress(SchedulerError):
                client.cancel_jobs([executor.accepted])
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return str(job.job_id)


def _node_task(array: JobArray) -> NodeTask:
    return NodeTask(str(array.folder), MARGIN_SECONDS)


def lacks_files(array: JobArray, job_id: str) -> bool:
    """Return whether the pickle of a job or an array task is missing and this user has permission to write it."""
    folder = array.files_folder
    if not os.path.lexists(folder):  # removed while the job was waiting, so SLURM could not even open the job's log
        return os.access(folder.parent, os.W_OK)
    return os.access(folder, os.W_OK) and not (folder / f"{job_id}_submitted.pkl").exists()


def write_missing_pickles(array: JobArray, job_id: str) -> None:
    """Write the pickles of a job that do not exist, for example because the submission was killed."""
    array.files_folder.mkdir(exist_ok=True)
    delayed = DelayedSubmission(_node_task(array))
    delayed.set_timeout(SUBMITIT_MINUTES, SUBMITIT_TIMEOUTS)
    for path in _pickle_paths(array, job_id):
        if not path.exists():
            temporary = files.temporary_name(path)
            delayed.dump(temporary)
            temporary.replace(path)


def _move_files(array: JobArray, job_id: str, pickle: Path, script: Path) -> None:
    """Move a job's files to the paths at which the job looks for them."""
    for path in _pickle_paths(array, job_id):
        # a hard link and a rename, so that a job that starts meanwhile finds either a complete pickle or none
        link = pickle.with_name(f"{path.name}.new")
        link.hardlink_to(pickle)
        link.replace(path)
    script.replace(array.files_folder / f"{job_id}_submission.sh")


def link_pickles(array: JobArray, job_id: str, other_id: str) -> None:
    """Link a job's pickles under the id of another job for the same runs, unless the other job already has pickles.

    Two submissions of the same runs may use the same comment. A submission that did not receive the id of its job looks
    for the comment in the queue, and may find the other submission's job. Its own job then has no pickles.
    """
    for path, other_path in zip(_pickle_paths(array, job_id), _pickle_paths(array, other_id), strict=True):
        with suppress(FileExistsError):
            other_path.hardlink_to(path)


def _pickle_paths(array: JobArray, job_id: str) -> list[Path]:
    """Return the paths at which submitit looks for a job's pickles: one per job id and array task id."""
    task_ids = [f"{job_id}_{index}" for index in range(len(array.runs))] if array.is_array else []
    return [array.files_folder / f"{name}_submitted.pkl" for name in (job_id, *task_ids)]


def _error_line(text: str) -> str:
    """Return the line of sbatch's output that gives the reason for a refusal."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("Try ")]
    return next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "it printed nothing")
