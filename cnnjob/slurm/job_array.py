"""The runs of a SLURM job, the folder with the job's files, and the job's name and comment in the queue.

If a single run is submitted, the job's files are in the run's folder. A sweep is one job array with its own folder:

    runs/.sweeps/<digest8>/
        runs.json   the run of each array task, in task order
        …           submitit's files
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cnnjob import files
from cnnjob.errors import DataError
from cnnjob.jobs import json_files
from cnnjob.runs.restart_log import try_read_restart_log
from cnnjob.runs.run import Run
from cnnjob.slurm.scheduler.queue import QueuedJob

SWEEPS = ".sweeps"
"""Name of the folder inside the runs folder that contains all sweep folders."""
COMMENT = re.compile(r"cnnjob (.*) \d+")
"""Matches a job's comment: the folder of the run or sweep, and a number that changes with each attempt."""


@dataclass(frozen=True)
class JobArray:
    """The runs of one SLURM job: a single run, or one per array task."""

    runs: tuple[Run, ...]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Self:
        """Return a job array of the runs, with absolute paths because the job's working directory may differ."""
        return cls(tuple(Run(run.path.resolve()) for run in runs))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the job array of a run folder or sweep folder.

        Raises:
            DataError: the sweep's list of runs is damaged.
        """
        path = folder / "runs.json"
        if not os.path.exists(path):  # noqa: PTH110 - Path.exists raises if the name is too long or access is denied
            return cls((Run(folder),))
        return cls(tuple(Run(Path(run)) for run in json_files.read_list(path, str, at_least=2)))

    @property
    def is_array(self) -> bool:
        """True if there are several runs, so that SLURM runs them as a job array; False if there is only one."""
        return len(self.runs) > 1

    @property
    def folder(self) -> Path:
        """The folder of the run or, for an array, of the sweep; its path depends only on the paths of the runs."""
        if not self.is_array:
            return self.runs[0].path
        digest = files.sha256_of(*(f"{run.path}\n".encode() for run in self.runs))
        return self.runs[0].path.parent / SWEEPS / files.short_digest(digest)

    @property
    def files_folder(self) -> Path:
        """The folder for submitit's files and the logs."""
        return self.folder if self.is_array else self.runs[0].slurm_folder

    @property
    def name(self) -> str:
        """The job's name in the queue: the run's name or, for a sweep, the first run's name without its digest."""
        return self.runs[0].name.rpartition("-")[0] if self.is_array else self.runs[0].name

    @property
    def comment(self) -> str:
        """The comment by which the SLURM job is found in the queue, whatever the job's name.

        The comment changes with each attempt and each restart of any of the runs, because a job and its successor may
        be in the queue at the same time and need different comments.
        """
        return f"cnnjob {self.folder} {sum(next_attempt(run) + len(try_read_restart_log(run)) for run in self.runs)}"

    def write(self) -> None:
        """Create the folder and, for a sweep, write the list of runs."""
        self.files_folder.mkdir(parents=True, exist_ok=True)
        if self.is_array:
            files.write_json(self.folder / "runs.json", [str(run.path) for run in self.runs])

    def own_run(self) -> Run:
        """Return the run that this process trains, according to ``SLURM_ARRAY_TASK_ID``.

        Raises:
            DataError: the job array has no task with the number in ``SLURM_ARRAY_TASK_ID``.
        """
        return self.run_of(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))

    def run_of(self, task: str) -> Run:
        """Return the run of an array task; if the job is not an array, return its only run, whatever the number.

        Args:
            task: the array task's number as a string.

        Raises:
            DataError: the job array has no task with this number.
        """
        if not self.is_array:
            return self.runs[0]
        if not task.isdecimal() or int(task) >= len(self.runs):
            raise DataError(
                f"{self.folder}: no array task {task!r} (found {len(self.runs)} runs). Submit the sweep again"
            )
        return self.runs[int(task)]


def next_attempt(run: Run) -> int:
    """Return the number of a run's next attempt."""
    return len(run.attempt_files()) + 1


def read_job_array(job: QueuedJob) -> JobArray | None:
    """Return the job array whose folder is named in a SLURM job's comment.

    The result is None if the comment names no folder, or if the job array's files are damaged.
    """
    match = COMMENT.fullmatch(job.comment)
    try:
        return JobArray.read(Path(match[1])) if match else None
    except DataError:
        return None
