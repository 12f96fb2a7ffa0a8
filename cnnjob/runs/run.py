"""Run folders: the files in each, and the state that they represent.

runs/NAME-<digest8>/
job.json            the resolved job and a description of its dataset, fixed at creation
initial.npz         the initial weights, if the job sets model.init_from
environment.json    the environment of the first attempt
attempts/0001.json  one file per attempt, which serves as claim, restart counter and fence
history.jsonl       one line per epoch (derived from the checkpoint)
checkpoints/        the newest two
predictions.npz     predictions for the test images, with the chosen weights
weights.npz         the chosen weights
examples.npz        some test images with their feature maps and saliency maps; older runs have none
result.json         present if and only if the run is finished
evaluations/        metrics on other datasets, one JSON and one CSV file per dataset and split
heartbeat           empty; touched during training, so that a process whose attempt record was removed is detected
log.txt             log of all attempts
slurm/              submitit's files, the request, the newest submission, the restart log
"""

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from cnnjob.errors import CnnjobError, DataError, note_names, three_lines
from cnnjob.files import short_digest
from cnnjob.jobs import json_files, manifest
from cnnjob.jobs.job import FORMAT, Job
from cnnjob.runs import clock, npz, schemas
from cnnjob.runs.process import (
    HEARTBEAT_LIMIT_SECONDS,
    HEARTBEAT_SECONDS,
    heartbeat_age_seconds,
    is_alive,
    is_earlier_job_start,
)

State = Literal["pending", "running", "stopped", "lost", "failed", "finished"]
"""State of a run. A ``stopped`` run ended on purpose; a ``lost`` run's process died without recording why. Both can be
resumed."""

UNRECORDED = "a process without a record in attempts/ is training this run; it stops at its next checkpoint"
UNSEALED = "job.json has no SHA-256 of its content (an older version wrote it), so damage or edits go unnoticed"
DATA_KEYS = {"path", "name", "digest", "image_shape", "class_names", "mean", "std"}
"""The fields of the dataset's description in ``job.json``."""
OLDEST_FORMAT = 2
"""Format of manifests that do not record their format."""
SYNC_FOLDERS = {"tensorboard": ".tensorboard", "wandb": ".wandb"}
"""Names of the folders, in the folder of runs, to which ``cnnjob sync`` copies the runs, by tool."""
HISTORY_BYTES = 2**28
"""Maximum size of ``history.jsonl``: enough for a million epochs."""
_ATTEMPT_FILE = re.compile(r"\d{4,18}\.json", re.ASCII)

JobIsOver = Callable[[Mapping[str, Any], float], bool]
"""Function that returns whether an attempt's SLURM job is over according to the scheduler.

It is called with the attempt's record and the seconds since the last heartbeat.
"""


@dataclass(frozen=True)
class Run:
    """A run folder: its paths, and methods that read its files."""

    path: Path

    def __post_init__(self) -> None:
        """Accept a string as the path, and register the path so that line breaks in its name are escaped in output."""
        object.__setattr__(self, "path", Path(self.path))
        note_names(self.path)

    def __repr__(self) -> str:
        """Return the run's folder, state, settings, progress and results, on three lines."""
        try:
            job, state = self.job(), self.state()
            line = f"  {job.dataset}, seed {job.seed}, "
            if state == "finished":
                result = self.result()
                epochs = f"{result.get('epochs')} of {job.train.epochs} epochs, best epoch {result.get('best_epoch')}"
                accuracy = 100 * result.get("test_accuracy", math.nan)
                scores = f"  test accuracy {accuracy:.2f} %, {result.get('parameters', 0):,} parameters"
            else:
                history = self.history()
                epochs = f"{history[-1]['epoch'] if history else 0} of {job.train.epochs} epochs"
                last = {name: value for name, value in (history or [{}])[-1].items() if name.endswith("_accuracy")}
                scores = "  " + ", ".join(f"{name.replace('_', ' ')} {100 * last[name]:.2f} %" for name in sorted(last))
            lines = [f"Run {self.path}: {state}", f"{line}{epochs}", *([scores] if scores.strip() else [])]
        except (CnnjobError, OSError) as error:
            lines = [f"Run {self.path}", f"  {error}".partition(". ")[0]]
        return three_lines(*lines)

    @classmethod
    def of(cls, job: Job, data_digest: str, root: Path) -> Self:
        """Return a job's run on a dataset; the same job and data always give the same folder."""
        return cls(root / f"{job.name}-{short_digest(job.digest(data_digest))}")

    @classmethod
    def all(cls, *paths: Path | str) -> list[Self]:
        """Return the run folders at the given paths or directly inside them, sorted by name within each path.

        Hidden folders are skipped. Folders that are not runs or cannot be read are included, so that the caller can
        report them.

        Raises:
            DataError: one of the paths cannot be listed.
        """
        runs: dict[Path, None] = {}  # an ordered set: a run that is given twice is listed once
        for path in map(Path, paths):
            if looks_like_a_run(path):
                runs[path] = None
            elif os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises if permission is denied
                children = (child for child in _list_folder(path) if os.path.isdir(child))  # noqa: PTH112
                runs.update(dict.fromkeys(sorted(child for child in children if not child.name.startswith("."))))
        return [cls(path) for path in runs]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def job_file(self) -> Path:
        """Path of the manifest, which contains the resolved job and the description of its dataset."""
        return self.path / "job.json"

    @property
    def initial_file(self) -> Path:
        """Path of the initial weights; the file does not exist if they are drawn at random."""
        return self.path / manifest.INITIAL

    @property
    def environment_file(self) -> Path:
        """Path of the record of the first attempt's environment."""
        return self.path / "environment.json"

    @property
    def attempts_folder(self) -> Path:
        """Folder of the attempt records, one file per attempt."""
        return self.path / "attempts"

    @property
    def heartbeat_file(self) -> Path:
        """Path of an empty file whose modification time shows when a process that trains the run was last alive."""
        return self.path / "heartbeat"

    @property
    def checkpoints_folder(self) -> Path:
        """Folder of the newest checkpoints."""
        return self.path / "checkpoints"

    @property
    def history_file(self) -> Path:
        """Path of the history, which has one line of JSON per epoch."""
        return self.path / "history.jsonl"

    @property
    def predictions_file(self) -> Path:
        """Path of the test predictions: probabilities, labels, class names and most confident errors."""
        return self.path / "predictions.npz"

    @property
    def weights_file(self) -> Path:
        """Path of the chosen weights."""
        return self.path / "weights.npz"

    @property
    def examples_file(self) -> Path:
        """Path of the file with some test images and their feature maps and saliency maps."""
        return self.path / "examples.npz"

    @property
    def result_file(self) -> Path:
        """Path of a finished run's metrics and costs."""
        return self.path / "result.json"

    @property
    def evaluations_folder(self) -> Path:
        """Folder of the run's evaluations on other datasets."""
        return self.path / "evaluations"

    @property
    def slurm_folder(self) -> Path:
        """Path of the folder that contains submitit's files, the request for resources and the restart log."""
        return self.path / "slurm"

    @property
    def submission_file(self) -> Path:
        """Path of the newest submission's record, with ``job_id`` (``17`` or ``17_3``), ``log`` and more."""
        return self.slurm_folder / "job.json"

    @property
    def log_file(self) -> Path:
        """Path of the log of all attempts."""
        return self.path / "log.txt"

    def manifest(self) -> dict[str, Any]:
        """Return the content of ``job.json``: ``job``, ``data`` and the full ``digest``.

        Raises:
            DataError: the manifest is missing, damaged or edited, or the folder is not a cnnjob run.
        """
        return json_files.read_sealed(self.job_file, manifest.Manifest)

    def data(self) -> dict[str, Any]:
        """Return the description of the dataset in ``job.json``: its path and everything that prediction needs.

        Raises:
            DataError: the description is missing or damaged.
        """
        data: dict[str, Any] = self.manifest()["data"]
        if not data.keys() >= DATA_KEYS:
            raise DataError(f"{self.job_file}: damaged (its data must contain all of {', '.join(sorted(DATA_KEYS))})")
        return data

    def job(self) -> Job:
        """Return the job recorded when the run was created; an older format is converted to the current one.

        Raises:
            DataError: the job is missing or damaged.
        """
        frozen = self.manifest()
        job = manifest.job_in(frozen, self.path)
        return Job.checked(job, str(self.job_file), manifest_format(frozen))

    def is_older(self) -> bool:
        """Return whether the run's job is in a format other than the current one; if so, the run cannot be resumed.

        Raises:
            DataError: the run's job is missing or damaged.
        """
        return manifest_format(self.manifest()) != FORMAT

    def require_current(self) -> None:
        """Raise an error if the run cannot be resumed because its job is in another format.

        Raises:
            DataError: the job is in another format, so its settings no longer have the same meaning.
        """
        if self.is_older():
            raise DataError(
                f"{self.path}: created by another version of cnnjob (found job format "
                f"{manifest_format(self.manifest())}, expected {FORMAT}). The meaning of its settings and the choice "
                "of validation images have changed since, so it is not resumed. To begin a new run, train or submit "
                "its job"
            )

    def environment(self) -> dict[str, Any]:
        """Return the record of the first attempt's environment; empty before the first attempt."""
        return (
            json_files.read_checked(self.environment_file, schemas.EnvironmentRecord)
            if self.environment_file.exists()
            else {}
        )

    def result(self) -> dict[str, Any]:
        """Return the content of ``result.json``, as described by :class:`cnnjob.runs.schemas.ResultRecord`.

        Raises:
            DataError: the run is not finished, or the file is damaged.
        """
        if not self.result_file.exists():
            raise DataError(f"{self.path}: no result, since the run is not finished (found state {self.state()}). "
                            "Train it further")  # fmt: skip
        return json_files.read_checked(self.result_file, schemas.ResultRecord)

    def history(self) -> list[dict[str, Any]]:
        """Return one record per epoch, oldest first; empty before the first epoch ends.

        Raises:
            DataError: the file is damaged.
        """
        if not self.history_file.exists():
            return []
        return json_files.read_lines(self.history_file, schemas.EpochRecord, HISTORY_BYTES)

    def weights(self) -> dict[str, np.ndarray]:
        """Return the chosen weights by name, after verifying the file's checksum.

        Raises:
            DataError: the file is missing or damaged.
        """
        return npz.read_arrays(self.weights_file)

    def predictions(self) -> dict[str, np.ndarray]:
        """Return the content of ``predictions.npz``, after verifying its checksum.

        Raises:
            DataError: the file is missing or damaged.
        """
        return npz.read_arrays(self.predictions_file)

    def attempts(self) -> list[dict[str, Any]]:
        """Return the attempt records, oldest first.

        Raises:
            DataError: a record is damaged.
        """
        return [json_files.read_checked(path, schemas.AttemptRecord) for path in self.attempt_files()]

    def attempt_files(self) -> list[Path]:
        """Return the paths of the attempt records, oldest first.

        Raises:
            DataError: their folder exists but cannot be read.
        """
        records = (path for path in _list_folder(self.attempts_folder) if _ATTEMPT_FILE.fullmatch(path.name))
        return sorted(records, key=lambda path: (int(path.stem), path.name))  # 9999.json, then 10000.json

    def identity(self) -> dict[str, Any]:
        """Return the facts that distinguish this folder from its copies, even on hosts where the folder's path differs.

        These are the folder's resolved path, its inode and the inodes of its parent folders in the same file system.
        Moving the folder within a file system preserves its inode, but changes a parent's inode or a name in the path.
        """
        path = self.path.resolve()
        return {"folder": str(path), "inode": path.stat().st_ino, "parents": _inodes_above(path)}

    def owns(self, record: dict[str, Any]) -> bool:
        """Return whether a record was made in this folder, rather than copied into this folder together with the run.

        A record that does not identify a folder, as written by older versions, counts as made in this folder.
        """
        folder, inode = record.get("folder"), record.get("inode")
        return folder is None or folder == str(self.path.resolve()) or inode == self.path.stat().st_ino

    def is_copied(self, record: dict[str, Any]) -> bool:
        """Return whether a record was copied from another folder that still exists.

        If the recorded folder does not exist on this host, the result is False: the record may describe this folder as
        seen from another host, on which the folder has a different path and inode.
        """
        return not self.owns(record) and os.path.exists(record["folder"])  # noqa: PTH110 - Path.exists raises if permission is denied

    def was_moved(self, record: dict[str, Any]) -> bool:
        """Return whether this folder or one of its parents was moved or renamed after a record was made.

        A different path alone does not prove this: another host, or an automounter, may mount the same file system
        elsewhere.
        """
        here, there = self.path.resolve(), Path(record.get("folder") or self.path.resolve())
        if here == there or _is_same(here, there):
            return False
        above, before = _inodes_above(here), record.get("parents")
        if before is None:  # a record from an older version: only the path can be compared
            return True
        # Compare names only as far up as both mounts reach: the topmost folder may be a mount point with any name.
        shared = min(len(above), len(before))
        names, old_names = ([path.name, *(parent.name for parent in path.parents)][:shared] for path in (here, there))
        return above[:shared] != before[:shared] or names != old_names

    def unrecorded_seconds(self) -> float | None:
        """Return the seconds since the last heartbeat of a process that has no record in ``attempts/``.

        A process whose record was removed during training can no longer be identified, but it keeps touching the
        heartbeat file. The result is None if there is no such process.
        """
        try:
            written = self.heartbeat_file.lstat().st_mtime
        except OSError:
            return None
        paths = self.attempt_files()
        recorded = paths[-1].lstat().st_mtime if paths else -math.inf
        # An attempt touches the heartbeat file, then its record; a kill in between leaves the two one interval apart.
        if written <= recorded + 2 * HEARTBEAT_SECONDS or (paths and self._is_copied(paths[-1])):
            return None
        age = max(clock.age_seconds(self.heartbeat_file, self.path.parent, self.path), 0.0)  # the future counts as now
        return age if age < HEARTBEAT_LIMIT_SECONDS else None

    def _is_copied(self, record: Path) -> bool:
        """Return whether an attempt's record, and therefore the heartbeat too, was copied from another run folder.

        If the folder was copied slowly, the copied heartbeat can be much newer than the copied record, as if it came
        from a process without a record.
        """
        with suppress(DataError):
            return self.is_copied(json_files.read_checked(record, schemas.AttemptRecord))
        return False

    def require_no_links(self) -> None:
        """Refuse a run folder in which a file or folder that is written to is a symbolic link.

        The run folder itself may be a symbolic link.

        Raises:
            DataError: such a file or folder is a symbolic link.
        """
        for path in (
            *(self.attempts_folder, self.checkpoints_folder, self.evaluations_folder, self.slurm_folder),
            *(self.log_file, self.heartbeat_file),
        ):
            if path.is_symlink():
                raise DataError(
                    f"{path}: must not be a symbolic link (found one to {path.readlink()}), since nothing is written "
                    "through links inside a run folder. Remove it, or move its target here"
                )

    def state(self, job_is_over: JobIsOver | None = None) -> State:
        """Return the run's state, determined from its folder.

        Args:
            job_is_over: determines whether the SLURM job of an owner that seems alive is over; if so, the run is
                ``lost``.

        Returns:
            The state.

        Raises:
            DataError: the last attempt's record is damaged, or the folder cannot be read.
        """
        if _exists(self.result_file):  # checked first: it is written last, while its process may still be alive
            return "finished"
        if self.unrecorded_seconds() is not None:
            return "running"
        paths = self.attempt_files()
        if not paths:
            return "pending"
        last = json_files.read_checked(paths[-1], schemas.AttemptRecord)
        if last["ended"] is None:
            return "running" if owner_is_alive(last, paths[-1], job_is_over) else "lost"
        return "failed" if str(last["why"]).startswith("failed") else "stopped"


def manifest_format(frozen: dict[str, Any]) -> int:
    """Return the format of a manifest's job; :data:`OLDEST_FORMAT` if the manifest is too old to state the format."""
    written_as = frozen.get("format", OLDEST_FORMAT)
    return written_as if isinstance(written_as, int) else OLDEST_FORMAT


def version_notes(frozen: dict[str, Any]) -> Iterator[str]:
    """Yield remarks on a run whose ``job.json`` was written by an older version.

    Args:
        frozen: the content of ``job.json``.
    """
    if json_files.SEAL not in frozen:
        yield UNSEALED
    if (written_as := manifest_format(frozen)) != FORMAT:
        yield f"job.json has format {written_as}; its settings are converted to the current format, {FORMAT}"


def looks_like_a_run(path: Path) -> bool:
    """Return whether a folder contains anything that only run folders contain; True if it cannot be read."""
    try:
        return any(_exists(path / name) for name in ("job.json", "attempts", "result.json"))
    except DataError:
        return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises if permission is denied


def _exists(path: Path) -> bool:
    """Return whether a file exists.

    Raises:
        DataError: the file's folder cannot be searched.
    """
    try:
        return path.exists()
    except OSError as error:
        raise DataError(_unreadable(path.parent, error)) from error


def _list_folder(folder: Path) -> list[Path]:
    """Return the paths in a folder; an empty list if it does not exist.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DataError(_unreadable(folder, error)) from error


def _unreadable(folder: Path, error: OSError) -> str:
    return f"{folder}: cannot be read ({error.strerror}). Ask its owner for permission"


def _inodes_above(path: Path) -> list[int]:
    """Return the inodes of a resolved path's parent folders within its file system, nearest first."""
    states, device = map(_state_of, path.parents), path.stat().st_dev
    return [
        state.st_ino for state in takewhile(lambda state: state is not None and state.st_dev == device, states) if state
    ]


def _state_of(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (OSError, ValueError):  # ValueError: a path from a damaged record may contain a NUL
        return None


def _is_same(path: Path, other: Path) -> bool:
    """Return whether two paths refer to the same folder."""
    state, others = _state_of(path), _state_of(other)
    return state is not None and others is not None and os.path.samestat(state, others)


def owner_is_alive(owner: dict[str, Any], record: Path, job_is_over: JobIsOver | None) -> bool:
    """Return whether the owner of a run still owns it.

    Args:
        owner: the record of the run's last attempt.
        record: the path of that record.
        job_is_over: called at most once, with the owner's record, if the owner seems alive.

    Returns:
        False if the owner no longer exists on this host, was started before the last restart of this process's SLURM
        job, has had no heartbeat for five minutes, or owns another folder, of which the run's folder is a copy.
    """
    if Run(record.parents[1]).is_copied(owner):
        return False
    if is_earlier_job_start(owner) or not is_alive(owner, record):
        return False
    # The scheduler is queried last, since this runs a command, and only if nothing else shows that the owner is dead.
    return not (owner.get("job_id") and job_is_over and job_is_over(owner, heartbeat_age_seconds(record)))
