"""Which runs one job of SLURM carries, where its files lie, and what names it in the queue.

A run that is submitted alone keeps them in its own folder; a sweep is one job array with a folder beside the runs:

runs/.sweeps/<digest8>/
runs.json   the run of every element, by its number
…           submitit's files
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self

from cnnjob import files
from cnnjob.errors import DataError
from cnnjob.jobs import json_files
from cnnjob.runs.restart_log import restarts_of
from cnnjob.runs.run import DIGEST_DIGITS, Run
from cnnjob.slurm.scheduler.queue import QueuedJob

SWEEPS = ".sweeps"
_NAMED = re.compile(r"cnnjob (.*) \d+")


@dataclass(frozen=True)
class JobArray:
    """The runs of one job: one run, or those of an array by element."""

    runs: tuple[Run, ...]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Self:
        """The batch of these runs, wherever this process stands."""
        return cls(tuple(Run(run.path.resolve()) for run in runs))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The batch that a folder names: a run's, or a sweep's.

        Raises:
            DataError: the sweep's list of runs is damaged.
        """
        path = folder / "runs.json"
        if not os.path.exists(path):  # noqa: PTH110 - Path's raises at a name that is too long or closed
            return cls((Run(folder),))
        return cls(tuple(Run(Path(run)) for run in json_files.read_list(path, str, at_least=2)))

    @property
    def is_array(self) -> bool:
        """Whether it is a job array."""
        return len(self.runs) > 1

    @property
    def folder(self) -> Path:
        """What names it: always the same for the same runs."""
        if not self.is_array:
            return self.runs[0].path
        digest = files.sha256_of(*(f"{run.path}\n".encode() for run in self.runs))
        return self.runs[0].path.parent / SWEEPS / digest[:DIGEST_DIGITS]

    @property
    def files_folder(self) -> Path:
        """Where submitit's files and the logs lie."""
        return self.folder if self.is_array else self.runs[0].slurm_folder

    @property
    def name(self) -> str:
        """The job's name in the queue: the run's, or that of the runs of a sweep without their digests."""
        return self.runs[0].name.rpartition("-")[0] if self.is_array else self.runs[0].name

    @property
    def comment(self) -> str:
        """What finds it in the queue, whatever its name; another one after each life of its runs, begun or not."""
        return f"cnnjob {self.folder} {sum(attempt_of(run) + len(restarts_of(run)) for run in self.runs)}"

    def write(self) -> None:
        """Make its folder, and write down which element carries which run."""
        self.files_folder.mkdir(parents=True, exist_ok=True)
        if self.is_array:
            files.write_json(self.folder / "runs.json", [str(run.path) for run in self.runs])

    def own_run(self) -> Run:
        """The run of this very process: the one of its element of the array.

        Raises:
            DataError: there is no such element.
        """
        return self.run_of(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))

    def run_of(self, element: str) -> Run:
        """The run of an element of the array; of a single job always its run.

        Raises:
            DataError: there is no such element.
        """
        if not self.is_array:
            return self.runs[0]
        if not element.isdecimal() or int(element) >= len(self.runs):
            raise DataError(f"{self.folder}: no element {element!r}, found {len(self.runs)}; submit the sweep again")
        return self.runs[int(element)]


def attempt_of(run: Run) -> int:
    """The number of a run's next life."""
    return len(run.attempt_files()) + 1


def batch_of(job: QueuedJob) -> JobArray | None:
    """Return the batch that a job names in its comment; None where it names none that can be read."""
    named = _NAMED.fullmatch(job.comment)
    try:
        return JobArray.read(Path(named[1])) if named else None
    except DataError:
        return None


def queued(jobs: Iterable[QueuedJob]) -> dict[Path, str]:
    """Which run is carried by which of the jobs, as far as their comments tell: ``17``, or ``17_3`` of an array."""
    return {path: found[-1].job_id for path, found in carried(jobs).items()}


def carried(jobs: Iterable[QueuedJob]) -> dict[Path, list[QueuedJob]]:
    """Return the jobs that carry each run, as far as their comments tell."""
    read = lru_cache(None)(JobArray.read)  # an array's elements share one list of runs
    found: dict[Path, list[QueuedJob]] = {}
    for job in jobs:
        if named := _NAMED.fullmatch(job.comment):
            try:
                run = read(Path(named[1])).run_of(job.job_id.partition("_")[2])
            except DataError:
                continue  # a job of a sweep that is no more: nothing of ours
            found.setdefault(run.path, []).append(job)
    return found
