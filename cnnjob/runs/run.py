"""A run is its folder: where its files lie, and what state it is in.

runs/NAME-<digest8>/
job.json            the resolved job and the data it reads, frozen
environment.json    what it first started with
attempts/0001.json  one file a life: claim, restart counter and fence in one
history.jsonl       one line an epoch (derived from the checkpoint)
checkpoints/        the newest two
predictions.npz     of the test images, by the chosen weights
weights.npz         the chosen weights
result.json         its presence *is* "finished"
heartbeat           empty; touched while a process trains, so that one whose record was removed is noticed
log.txt             appended over attempts
slurm/              submitit's files, the request, the newest job, what was decided after each life
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

from cnnjob.errors import DataError, note_names
from cnnjob.jobs import json_files, manifest
from cnnjob.jobs.job import FORMAT, Job
from cnnjob.runs import clock, npz, schemas
from cnnjob.runs.process import (
    HEARTBEAT_LIMIT_SECONDS,
    HEARTBEAT_SECONDS,
    is_alive,
    is_earlier_job_start,
    silent_seconds,
)

State = Literal["pending", "running", "stopped", "lost", "failed", "finished"]
"""``stopped``: on purpose, resumable. ``lost``: its process is gone without a word, resumable."""

UNRECORDED = "a process that has no record in attempts/ writes here; it stops at its next checkpoint"
UNSEALED = "job.json carries no SHA-256 of its content (an older version wrote it), so damage or an edit is not noticed"
DIGEST_DIGITS = 8
DATA_KEYS = {"path", "name", "digest", "image_shape", "class_names", "mean", "std"}
"""What ``job.json`` says of the dataset."""
OLDEST_FORMAT = 2
HISTORY_BYTES = 2**28
"""Of ``history.jsonl``, at most: a million epochs."""
_ATTEMPT_FILE = re.compile(r"\d{4,18}\.json", re.ASCII)

JobIsOver = Callable[[Mapping[str, Any], float], bool]
"""Whether a scheduler says that an attempt's job is over; of its record, and the seconds since its last heartbeat."""


@dataclass(frozen=True)
class Run:
    """The map of a run folder."""

    path: Path

    def __post_init__(self) -> None:
        """Know its name where it is printed."""
        note_names(self.path)

    @classmethod
    def of(cls, job: Job, data_digest: str, root: Path) -> Self:
        """The run of a job on a dataset: always the same folder."""
        return cls(root / f"{job.name}-{job.digest(data_digest)[:DIGEST_DIGITS]}")

    @classmethod
    def all(cls, *places: Path) -> list[Self]:
        """Every run folder at or right below the places, in order of name.

        Hidden folders are left out; a folder that is no run is not, nor one that cannot be read.

        Raises:
            DataError: a place cannot be listed.
        """
        found: dict[Path, None] = {}
        for place in places:
            if looks_like_a_run(place):
                found[place] = None
            elif os.path.isdir(place):  # noqa: PTH112 - Path's raises where it may not look
                children = (child for child in _listed(place) if os.path.isdir(child))  # noqa: PTH112
                found.update(dict.fromkeys(sorted(child for child in children if not child.name.startswith("."))))
        return [cls(path) for path in found]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def job_file(self) -> Path:
        """The resolved job and its data."""
        return self.path / "job.json"

    @property
    def environment_file(self) -> Path:
        """What the run first started with."""
        return self.path / "environment.json"

    @property
    def attempts_folder(self) -> Path:
        """One file a life."""
        return self.path / "attempts"

    @property
    def heartbeat_file(self) -> Path:
        """An empty file; its time is when a process that trains the run was last alive."""
        return self.path / "heartbeat"

    @property
    def checkpoints_folder(self) -> Path:
        """The newest checkpoints."""
        return self.path / "checkpoints"

    @property
    def history_file(self) -> Path:
        """One line an epoch."""
        return self.path / "history.jsonl"

    @property
    def predictions_file(self) -> Path:
        """Test probabilities, labels, class names and the most confidently wrong images."""
        return self.path / "predictions.npz"

    @property
    def weights_file(self) -> Path:
        """The chosen weights."""
        return self.path / "weights.npz"

    @property
    def result_file(self) -> Path:
        """The end's numbers."""
        return self.path / "result.json"

    @property
    def slurm_folder(self) -> Path:
        """What submitit wrote, the request, what was decided after each life."""
        return self.path / "slurm"

    @property
    def submission_file(self) -> Path:
        """The newest submission: ``job_id`` (``17``, ``17_3`` of an array), ``log``, ``comment``, ``submitted``."""
        return self.slurm_folder / "job.json"

    @property
    def log_file(self) -> Path:
        """What was said, over all attempts."""
        return self.path / "log.txt"

    def manifest(self) -> dict[str, Any]:
        """What ``job.json`` holds: ``job``, ``data`` and the full ``digest``.

        Raises:
            DataError: it is missing, damaged or edited, or this is no run of cnnjob.
        """
        return json_files.read_sealed(self.job_file, manifest.Manifest)

    def data(self) -> dict[str, Any]:
        """What ``job.json`` says of the dataset: where it lay, and what predicting needs of it.

        Raises:
            DataError: it is missing or damaged.
        """
        data: dict[str, Any] = self.manifest()["data"]
        if not data.keys() >= DATA_KEYS:
            raise DataError(f"{self.job_file}: damaged, its data lacks some of {', '.join(sorted(DATA_KEYS))}")
        return data

    def job(self) -> Job:
        """The job, as it was frozen; one of an older format is read as what it means now.

        Raises:
            DataError: it is missing or damaged.
        """
        frozen = self.manifest()
        return Job.checked(frozen["job"], str(self.job_file), format_of(frozen))

    def is_older(self) -> bool:
        """Return whether another version began the run, whose job does not mean the same now.

        Raises:
            DataError: its job is missing or damaged.
        """
        return format_of(self.manifest()) != FORMAT

    def require_current(self) -> None:
        """Refuse to go on with a run of another format.

        Raises:
            DataError: its job would not mean the same any more.
        """
        if self.is_older():
            raise DataError(
                f"{self.path}: another version of cnnjob began this run (job format {format_of(self.manifest())}, now "
                f"{FORMAT}), and its settings and validation images do not mean the same now, so it is not resumed. "
                "Train or submit its job to begin a new run"
            )

    def environment(self) -> dict[str, Any]:
        """What the run first started with; empty before that."""
        return (
            json_files.read(self.environment_file, schemas.EnvironmentRecord) if self.environment_file.exists() else {}
        )

    def result(self) -> dict[str, Any]:
        """The end's numbers; ``test_accuracy`` is one.

        Raises:
            DataError: the run is not finished, or the file is damaged.
        """
        return json_files.read(self.result_file, schemas.ResultRecord)

    def history(self) -> list[dict[str, Any]]:
        """One record an epoch, oldest first.

        Raises:
            DataError: the file is damaged.
        """
        there = self.history_file.exists()
        return json_files.read_lines(self.history_file, schemas.EpochRecord, HISTORY_BYTES) if there else []

    def weights(self) -> dict[str, np.ndarray]:
        """The chosen weights by name, verified.

        Raises:
            DataError: they are missing or damaged.
        """
        return npz.read_arrays(self.weights_file)

    def predictions(self) -> dict[str, np.ndarray]:
        """The content of ``predictions.npz``, verified.

        Raises:
            DataError: it is missing or damaged.
        """
        return npz.read_arrays(self.predictions_file)

    def attempts(self) -> list[dict[str, Any]]:
        """The lives of the run, oldest first.

        Raises:
            DataError: a record is damaged.
        """
        return [json_files.read(path, schemas.AttemptRecord) for path in self.attempt_files()]

    def attempt_files(self) -> list[Path]:
        """The records of the lives, oldest first.

        Raises:
            DataError: their folder cannot be read; that is not the same as none.
        """
        records = (path for path in _listed(self.attempts_folder) if _ATTEMPT_FILE.fullmatch(path.name))
        return sorted(records, key=lambda path: (int(path.stem), path.name))  # 9999.json, then 10000.json

    def identity(self) -> dict[str, Any]:
        """Return what tells this folder from a copy, whatever it is called on another host.

        Its resolved path; its inode, which a move leaves alone; and the inodes of the folders above it in its file
        system, of which a move changes one or a name.
        """
        path = self.path.resolve()
        return {"folder": str(path), "inode": path.stat().st_ino, "parents": _inodes_above(path)}

    def owns(self, record: dict[str, Any]) -> bool:
        """Return whether a record with an identity was made in this folder, not in one that this is a copy of.

        A record without one, made by an older version, is taken for its own.
        """
        folder, inode = record.get("folder"), record.get("inode")
        return folder is None or folder == str(self.path.resolve()) or inode == self.path.stat().st_ino

    def is_copied(self, record: dict[str, Any]) -> bool:
        """Return whether a record was copied from another folder, which is still there.

        Where that is not to be seen, this one may be it, under the name and number that another host gives it.
        """
        return not self.owns(record) and os.path.exists(record["folder"])  # noqa: PTH110 - Path's raises where it may not look

    def was_moved(self, record: dict[str, Any]) -> bool:
        """Return whether a record of this folder was made before it, or a folder above it, was moved or renamed.

        Another host, or an automounter, may mount the same file system at another path.
        """
        here, there = self.path.resolve(), Path(record.get("folder") or self.path.resolve())
        if here == there or _is_same(here, there):
            return False
        above, before = _inodes_above(here), record.get("parents")
        if before is None:
            return True
        shared = min(len(above), len(before))  # the last of them may be a place to mount on, of any name
        names, old_names = ([path.name, *(parent.name for parent in path.parents)][:shared] for path in (here, there))
        return above[:shared] != before[:shared] or names != old_names

    def unrecorded_seconds(self) -> float | None:
        """Return how long ago a process wrote to the run that has no record in ``attempts/``; None where none did.

        A process whose record was removed while it trains cannot be named, but its heartbeat goes on.
        """
        try:
            written = self.heartbeat_file.lstat().st_mtime
        except OSError:
            return None
        paths = self.attempt_files()
        recorded = paths[-1].lstat().st_mtime if paths else -math.inf
        if written <= recorded + 2 * HEARTBEAT_SECONDS or (paths and self._is_copied(paths[-1])):
            return None
        age = max(clock.age_seconds(self.heartbeat_file, self.path.parent, self.path), 0.0)
        return age if age < HEARTBEAT_LIMIT_SECONDS else None

    def _is_copied(self, record: Path) -> bool:
        """Return whether an attempt's record, and so the heartbeat, was copied; a slow copy dates it anew."""
        with suppress(DataError):
            return self.is_copied(json_files.read(record, schemas.AttemptRecord))
        return False

    def require_no_links(self) -> None:
        """Refuse to write through a link inside the run folder; the folder itself may be one.

        Raises:
            DataError: what is written to is a link.
        """
        for path in (
            *(self.attempts_folder, self.checkpoints_folder, self.slurm_folder),
            *(self.log_file, self.heartbeat_file),
        ):
            if path.is_symlink():
                raise DataError(
                    f"{path}: a link (found one to {path.readlink()}), and nothing is written through links inside a "
                    "run folder. Remove it, or put what it leads to in its place"
                )

    def state(self, has_ended: JobIsOver | None = None) -> State:
        """What state the run is in, by its folder alone.

        Args:
            has_ended: asked about the job of a process that seems to live, which makes it ``lost``.

        Returns:
            The state.

        Raises:
            DataError: the record of its last life is damaged, or the folder cannot be read.
        """
        if _exists(self.result_file):
            return "finished"
        if self.unrecorded_seconds() is not None:
            return "running"
        paths = self.attempt_files()
        if not paths:
            return "pending"
        last = json_files.read(paths[-1], schemas.AttemptRecord)
        if last["ended"] is None:
            return "running" if owner_is_alive(last, paths[-1], has_ended) else "lost"
        return "failed" if str(last["why"]).startswith("failed") else "stopped"


def format_of(frozen: dict[str, Any]) -> int:
    """Return the format that a job was frozen in; up to format 2 it was not written down."""
    written_as = frozen.get("format", OLDEST_FORMAT)
    return written_as if isinstance(written_as, int) else OLDEST_FORMAT


def notes_on(frozen: dict[str, Any]) -> Iterator[str]:
    """Yield what must be known of a run whose job an older version wrote.

    Args:
        frozen: what ``job.json`` holds.
    """
    if json_files.SEAL not in frozen:
        yield UNSEALED
    if (written_as := format_of(frozen)) != FORMAT:
        yield f"job.json has format {written_as}, now {FORMAT}: its settings are read as what they mean now"


def looks_like_a_run(path: Path) -> bool:
    """Return whether a folder holds any of what only a run's does; one that cannot be read may be a run."""
    try:
        return any(_exists(path / name) for name in ("job.json", "attempts", "result.json"))
    except DataError:
        return os.path.isdir(path)  # noqa: PTH112 - Path's raises where it may not look


def _exists(path: Path) -> bool:
    """Return whether a file is there.

    Raises:
        DataError: that cannot be known.
    """
    try:
        return path.exists()
    except OSError as error:
        raise DataError(_unreadable(path.parent, error)) from error


def _listed(folder: Path) -> list[Path]:
    """Return what lies in a folder; nothing where there is none.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DataError(_unreadable(folder, error)) from error


def _unreadable(folder: Path, error: OSError) -> str:
    return f"{folder}: cannot be read ({error.strerror}). Ask its owner to open it to you"


def _inodes_above(path: Path) -> list[int]:
    """Return the inodes of the folders above a resolved path, nearest first, as far as its file system goes."""
    states, device = map(_state_of, path.parents), path.stat().st_dev
    return [
        state.st_ino for state in takewhile(lambda state: state is not None and state.st_dev == device, states) if state
    ]


def _state_of(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (OSError, ValueError):  # ValueError: a damaged record may name anything
        return None


def _is_same(path: Path, other: Path) -> bool:
    """Return whether two paths lead to one folder."""
    state, others = _state_of(path), _state_of(other)
    return state is not None and others is not None and os.path.samestat(state, others)


def owner_is_alive(holder: dict[str, Any], record: Path, has_ended: JobIsOver | None) -> bool:
    """Whether a run is still its holder's.

    Args:
        holder: what the record of its last attempt says.
        record: that file.
        has_ended: asked, once, about the holder's job before the run is left to it.

    Returns:
        False where the holder is gone from this host, is an earlier life of this very SLURM job, has not been
        heard of for five minutes, or holds the folder that this one is a copy of.
    """
    if Run(record.parents[1]).is_copied(holder):
        return False
    if is_earlier_job_start(holder) or not is_alive(holder, record):
        return False
    return not (holder.get("job_id") and has_ended and has_ended(holder, silent_seconds(record)))
