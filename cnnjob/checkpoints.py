"""What a checkpoint holds, and how it is kept: whole, verified, the newest two.

A checkpoint is the one truth of a run: weights, optimiser, best weights, position, history and the
losses of the open epoch. It is written only with finite numbers in it, and read only by its own job.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cnnjob import files
from cnnjob.errors import DataError, TrainingError

FORMAT = 1
KEPT = 2

Arrays = dict[str, np.ndarray]


@dataclass
class Progress:
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

    progress: Progress
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
    files.write_arrays(path, {"header": np.array(files.canonical_json(head)), **checkpoint.arrays}, fence=fence)
    older = sorted(old for old in folder.glob("step-*.npz") if old.name < path.name)
    for stale in {*folder.glob("step-*.npz")} - {path, *older[1 - KEPT :]}:
        stale.unlink(missing_ok=True)
    return path


def load(folder: Path, digest: str) -> tuple[Checkpoint | None, list[str]]:
    """Read the newest checkpoint that is whole; damaged ones before it are set aside as ``….damaged``.

    Args:
        folder: of the run's checkpoints.
        digest: of the job and its data; a checkpoint of another is refused.

    Returns:
        The checkpoint, or None where there is none yet; and a warning for each damaged one.

    Raises:
        DataError: all of them are damaged, or the newest is of another job or format.
    """
    paths = sorted(folder.glob("step-*.npz"), reverse=True)
    warnings: list[str] = []
    for number, path in enumerate(paths):
        try:
            found = _read(path, digest)
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
    return max((int(path.stem.removeprefix("step-")) for path in folder.glob("step-*.npz")), default=0)


class _DamagedError(DataError):
    """A checkpoint that cannot be read; an older one may."""


def _read(path: Path, digest: str) -> Checkpoint:
    try:
        arrays = files.read_arrays(path)
        head = json.loads(str(arrays.pop("header")))
    except (DataError, KeyError, ValueError) as error:
        raise _DamagedError(str(error)) from error
    if head.get("format") != FORMAT:
        raise DataError(f"{path}: checkpoint format {head.get('format')}, this version reads {FORMAT}")
    if head["digest"] != digest:
        raise DataError(f"{path}: of another job ({head['digest'][:8]}, this is {digest[:8]}); remove it")
    return Checkpoint(Progress(**head.pop("progress")), arrays, head)
