"""What a checkpoint holds, and how it is kept: whole, verified, the newest two.

A checkpoint is the one truth of a run: weights, optimiser, best weights, position, history and the
losses of the open epoch. It is written only with finite numbers in it, and read only by its own job.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cnnjob import files
from cnnjob.errors import DataError, TrainingError
from cnnjob.jobs import json_files
from cnnjob.runs import npz, schemas

FORMAT = 1
KEPT = 2
_NAME = re.compile(r"step-(\d{1,15})\.npz", re.ASCII)

Arrays = dict[str, np.ndarray]


@dataclass
class TrainingProgress:
    """How far a training has come; all of it survives."""

    epoch: int = 0
    """Epochs wholly done."""
    epoch_step: int = 0
    """Steps done in the open epoch."""
    step: int = 0
    """Steps done since the start."""
    done: bool = False
    """Whether no step is left to do."""
    best_epoch: int = 0
    """The epoch whose weights are kept; 0 before the first."""
    best_accuracy: float = -1.0
    """Its accuracy on the selecting split."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One record an epoch."""
    epoch_seconds: float = 0.0
    """Time spent on the open epoch so far."""
    train_seconds: float = 0.0
    """Time spent since the start, evaluation included, lost work not."""
    cpu_seconds: float = 0.0
    """Processor time since the start, lost work not."""
    bits_may_differ_from_step: int | None = None
    """From where on the run may differ from an unbroken one, and None if nowhere."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a training goes on from."""

    progress: TrainingProgress
    arrays: Arrays
    """``weights/…``, ``best/…`` and the optimiser's slots, as ``velocity/…``, by parameter; ``losses`` and ``hits`` of
    the open epoch."""
    header: dict[str, Any]
    """Whose it is: job digest, data digest, attempt, backend, versions, cores."""


def save(folder: Path, checkpoint: Checkpoint, fence: Any) -> Path:
    """Write a checkpoint, and drop all but it and the one before it.

    Args:
        folder: of the run's checkpoints.
        checkpoint: what to keep.
        fence: called before the rename; it raises when the run is no longer this process's.

    Returns:
        The file.

    Raises:
        TrainingError: a number in it is not finite; nothing was written.
    """
    for name, array in checkpoint.arrays.items():
        if not np.isfinite(array).all():
            raise TrainingError(f"{name}: not finite at step {checkpoint.progress.step}; nothing was saved")
    head = {"format": FORMAT, **checkpoint.header, "progress": asdict(checkpoint.progress)}
    path = folder / f"step-{checkpoint.progress.step:09d}.npz"
    if not folder.is_dir():
        fence()
        folder.mkdir()  # somebody removed it; what is in memory is worth more
    npz.write_arrays(path, {"header": np.array(files.canonical_json(head)), **checkpoint.arrays}, fence=fence)
    older = sorted(old for old in folder.glob("step-*.npz") if old.name < path.name)
    for stale in {*folder.glob("step-*.npz")} - {path, *older[1 - KEPT :]}:
        stale.unlink(missing_ok=True)
    return path


@dataclass(frozen=True)
class ExpectedArrays:
    """The arrays that a checkpoint must hold to be restored."""

    shapes: Mapping[str, tuple[int, ...]]
    """The shape of each floating-point array, by its name."""
    steps: int
    """Steps of an epoch."""

    def require(self, checkpoint: Checkpoint) -> None:
        """Check what the arrays are.

        Raises:
            ValueError: one is missing or of another shape or kind, or does not fit the progress.
        """
        progress, arrays = checkpoint.progress, checkpoint.arrays
        if progress.step != progress.epoch * self.steps + progress.epoch_step or progress.epoch_step > self.steps:
            raise ValueError(f"step {progress.step} is not step {progress.epoch_step} after {progress.epoch} epochs")
        for name, shape in {**self.shapes, "losses": (progress.epoch_step,)}.items():
            array = arrays.get(name)
            if array is None or array.shape != shape or array.dtype.kind != "f" or not np.isfinite(array).all():
                raise ValueError(f"it has no {name} of {shape} finite numbers")
        hits = arrays.get("hits")
        if hits is None or hits.shape != (progress.epoch_step,) or hits.dtype.kind not in "iu":
            raise ValueError(f"it has no hits of {progress.epoch_step} steps")


def load(folder: Path, digest: str, contents: ExpectedArrays | None = None) -> tuple[Checkpoint | None, list[str]]:
    """Read the newest checkpoint that is whole; damaged ones before it are set aside as ``….damaged``.

    Args:
        folder: of the run's checkpoints.
        digest: of the job and its data; a checkpoint of another is refused.
        contents: what it must hold; not checked by default.

    Returns:
        The checkpoint, or None where there is none yet; and a warning for each damaged one.

    Raises:
        DataError: all of them are damaged, or the newest is of another job or format.
    """
    paths = sorted(folder.glob("step-*.npz"), reverse=True)
    warnings: list[str] = []
    for number, path in enumerate(paths):
        try:
            found = _read(path, digest, contents)
        except _DamagedError as error:
            warnings.append(str(error))
            continue
        for damaged in paths[:number]:
            damaged.rename(damaged.with_name(f"{damaged.name}.damaged"))
        return found, warnings
    if paths:
        raise DataError(
            "\n".join(warnings) + f"\n{folder}: no whole checkpoint is left; "
            f"see to the disk, or remove {folder.parent} to start the run anew"
        )
    return None, []


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint of a folder, by its name; 0 where there is none."""
    names = (_NAME.fullmatch(path.name) for path in folder.glob("step-*.npz"))
    return max((int(name[1]) for name in names if name), default=0)


class _OtherFormatError(DataError):
    """A checkpoint of another version; an older one is of it too."""


class _DamagedError(DataError):
    """A checkpoint that cannot be read; an older one may."""


def _read(path: Path, digest: str, contents: ExpectedArrays | None) -> Checkpoint:
    try:
        arrays = npz.read_arrays(path)
        head = _header(arrays.pop("header", None), path)
    except _OtherFormatError:
        raise
    except DataError as error:
        raise _DamagedError(str(error)) from error
    if head["digest"] != digest:
        raise DataError(f"{path}: of another job ({head['digest'][:8]}, this is {digest[:8]}); remove it")
    checkpoint = Checkpoint(TrainingProgress(**head.pop("progress")), arrays, head)
    try:
        if contents:
            contents.require(checkpoint)
    except ValueError as error:
        raise _DamagedError(f"{path}: damaged, {error}") from error
    return checkpoint


def _header(array: np.ndarray | None, path: Path) -> dict[str, Any]:
    if array is None or array.shape or array.dtype.kind != "U":
        raise DataError(f"{path}: damaged, it has no header")
    try:
        head = files.parse_json(str(array))
    except ValueError as error:
        raise DataError(f"{path}: damaged, its header is not JSON ({error})") from error
    if isinstance(head, dict) and isinstance(head.get("format"), int) and head["format"] != FORMAT:
        raise _OtherFormatError(f"{path}: checkpoint format {head['format']}, this version reads {FORMAT}")
    checked: dict[str, Any] = json_files.checked(head, schemas.CheckpointHeader, str(path))
    return checked
