"""The runs that one SLURM job carries, the folder of its files, and its name and comment in the queue.

The files of a run that is submitted alone are in its own folder. A sweep is one job array, with a folder of its own:

    runs/.sweeps/<digest8>/
        runs.json   the run of each array task, in the order of their numbers
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
"""Name of the folder of all sweeps, inside the folder of runs."""
COMMENT = re.compile(r"cnnjob (.*) \d+")
"""The comment of a job: folder of the run or sweep, and a number that changes with each attempt."""


@dataclass(frozen=True)
class JobArray:
    """The runs of one SLURM job: a single run, or one per array task."""

    runs: tuple[Run, ...]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Self:
        """Create a job array of some runs, with absolute paths: the job has another current folder."""
        return cls(tuple(Run(run.path.resolve()) for run in runs))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the job array of a folder, which is that of a run or of a sweep.

        Raises:
            DataError: the sweep's list of runs is damaged.
        """
        path = folder / "runs.json"
        if not os.path.exists(path):  # noqa: PTH110 - Path's raises at a name that is too long or closed
            return cls((Run(folder),))
        return cls(tuple(Run(Path(run)) for run in json_files.read_list(path, str, at_least=2)))

    @property
    def is_array(self) -> bool:
        """True if SLURM runs it as a job array; False if it has a single run."""
        return len(self.runs) > 1

    @property
    def folder(self) -> Path:
        """The folder of the run or of the sweep, which is always the same for the same runs."""
        if not self.is_array:
            return self.runs[0].path
        digest = files.sha256_of(*(f"{run.path}\n".encode() for run in self.runs))
        return self.runs[0].path.parent / SWEEPS / files.short_digest(digest)

    @property
    def files_folder(self) -> Path:
        """The folder of submitit's files and the logs."""
        return self.folder if self.is_array else self.runs[0].slurm_folder

    @property
    def name(self) -> str:
        """The job's name in the queue: the run's, or for a sweep the name of its first run without the digest."""
        return self.runs[0].name.rpartition("-")[0] if self.is_array else self.runs[0].name

    @property
    def comment(self) -> str:
        """The comment by which the job is found in the queue, whatever its name.

        It changes with each attempt and each restart of one of the runs, so that a job and its successor, which may be
        in the queue at once, have different comments.
        """
        return f"cnnjob {self.folder} {sum(next_attempt(run) + len(try_read_restart_log(run)) for run in self.runs)}"

    def write(self) -> None:
        """Create the folder, and for a sweep write the list of runs."""
        self.files_folder.mkdir(parents=True, exist_ok=True)
        if self.is_array:
            files.write_json(self.folder / "runs.json", [str(run.path) for run in self.runs])

    def own_run(self) -> Run:
        """Return the run of this process, by ``SLURM_ARRAY_TASK_ID``.

        Raises:
            DataError: there is no such array task.
        """
        return self.run_of(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))

    def run_of(self, task: str) -> Run:
        """Return the run of an array task, or the only run whatever the task.

        Args:
            task: the number of the array task, as text.

        Raises:
            DataError: there is no such array task.
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
    """Read the job array that a job names in its comment; return None if it names none or that cannot be read."""
    match = COMMENT.fullmatch(job.comment)
    try:
        return JobArray.read(Path(match[1])) if match else None
    except DataError:
        return None
