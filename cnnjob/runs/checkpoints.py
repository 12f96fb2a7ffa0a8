"""Checkpoints: their contents, and how they are saved and restored. The newest two are kept.

A checkpoint is a run's single source of truth. It contains the weights, the optimiser slots, the best weights, the
training progress and the current epoch's losses. It is written only if all its numbers are finite, and restored only
for the same job on the same data.
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
"""Number of checkpoints kept per run: if the newest one is damaged, the one before it is restored."""
_NAME = re.compile(r"step-(\d{1,15})\.npz", re.ASCII)

Arrays = dict[str, np.ndarray]


@dataclass
class TrainingProgress:
    """Training progress, stored in every checkpoint."""

    epoch: int = 0
    """Number of completed epochs."""
    epoch_step: int = 0
    """Steps completed in the current epoch."""
    step: int = 0
    """Steps completed since the start."""
    done: bool = False
    """True if training has finished, with no steps left."""
    best_epoch: int = 0
    """The epoch with the best weights so far, from 1; 0 before the first evaluation."""
    best_accuracy: float = -1.0
    """The best epoch's accuracy on the selection split, in 0..1; the epoch's number if the last is always selected."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One record per completed epoch."""
    epoch_seconds: float = 0.0
    """Wall time spent on the current epoch so far."""
    train_seconds: float = 0.0
    """Wall time since the start, including evaluation but not lost work."""
    cpu_seconds: float = 0.0
    """Processor time since the start, not including lost work."""
    bits_may_differ_from_step: int | None = None
    """The step from which results may not be bit-identical to those of an uninterrupted run; None if they all are."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything needed to resume training."""

    progress: TrainingProgress
    arrays: Arrays
    """The arrays by name: ``weights/…``, ``best/…`` and optimiser slots such as ``velocity/…``, each followed by a
    parameter name; and the current epoch's ``losses`` and ``hits`` (numbers of right predictions), both of shape
    (epoch_step,)."""
    header: dict[str, Any]
    """Origin of the checkpoint: digest of job and data, attempt, and environment (backend, versions, cores)."""


def save(folder: Path, checkpoint: Checkpoint, fence: Any) -> Path:
    """Write a checkpoint, and remove all other checkpoints except the previous one.

    Args:
        folder: the run's ``checkpoints/``.
        checkpoint: the checkpoint to save.
        fence: function called before the file is renamed to its final name; it raises an error if this process no
            longer owns the run.

    Returns:
        The path of the new checkpoint.

    Raises:
        TrainingError: the checkpoint contains a number that is not finite; nothing was written.
    """
    # If a NaN were saved twice, both good checkpoints would be gone, with nothing left to resume from.
    for name, array in checkpoint.arrays.items():
        if not np.isfinite(array).all():
            raise TrainingError(f"{name} is not finite at step {checkpoint.progress.step}, so no checkpoint was saved")
    head = {"format": FORMAT, **checkpoint.header, "progress": asdict(checkpoint.progress)}
    path = folder / f"step-{checkpoint.progress.step:09d}.npz"
    if not folder.is_dir():
        fence()
        folder.mkdir()  # it was removed during training; the work in memory must not be lost too
    # The header is a 0-d string array, since an .npz file without pickles can hold only arrays.
    npz.write_arrays(path, {"header": np.array(files.canonical_json(head)), **checkpoint.arrays}, fence=fence)
    # A file with a higher step was not written by this attempt. It is removed too, because the next start would
    # restore it instead of this one.
    older = [old for old in _by_step(folder) if _step_of(old) < checkpoint.progress.step]
    for stale in {*folder.glob("step-*.npz")} - {path, *older[1 - KEPT :]}:
        stale.unlink(missing_ok=True)
    return path


@dataclass(frozen=True)
class ExpectedArrays:
    """The arrays that a checkpoint must hold to be restored."""

    shapes: Mapping[str, tuple[int, ...]]
    """Shape of each floating-point array, by name."""
    steps: int
    """Steps per epoch."""

    def require(self, checkpoint: Checkpoint) -> None:
        """Check that a checkpoint has the expected arrays, and that the arrays match the checkpoint's progress.

        Raises:
            ValueError: an array is missing, has the wrong shape or dtype, or does not match the progress.
        """
        progress, arrays = checkpoint.progress, checkpoint.arrays
        if progress.step != progress.epoch * self.steps + progress.epoch_step or progress.epoch_step > self.steps:
            raise ValueError(
                f"step {progress.step} does not match step {progress.epoch_step} of epoch {progress.epoch}"
            )
        for name, shape in {**self.shapes, "losses": (progress.epoch_step,)}.items():
            array = arrays.get(name)
            if array is None or array.shape != shape or array.dtype.kind != "f" or not np.isfinite(array).all():
                raise ValueError(f"{name} is missing, or is not an array of finite numbers with shape {shape}")
        n_correct = arrays.get("hits")
        if n_correct is None or n_correct.shape != (progress.epoch_step,) or n_correct.dtype.kind not in "iu":
            raise ValueError(f"hits is missing, or is not an array of {progress.epoch_step} integers")


def load_newest(
    folder: Path, digest: str, contents: ExpectedArrays | None = None
) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest intact checkpoint, and rename damaged checkpoints that are newer to ``….damaged``.

    Only the run's owner may call this function; other processes call :func:`find_newest`.

    Args:
        folder: the run's ``checkpoints/``.
        digest: the digest of the job and its data; a checkpoint with a different digest is refused.
        contents: the arrays that the checkpoint must hold; not checked by default.

    Returns:
        The checkpoint, or None if there is none yet; and one warning per damaged checkpoint.

    Raises:
        DataError: all checkpoints are damaged, or the newest intact one belongs to another job or has another format.
    """
    checkpoint, damaged = find_newest(folder, digest, contents)
    # Renamed only after finding an intact one: if all of them seem damaged, the disk may be at fault.
    for path in damaged:
        path.rename(path.with_name(f"{path.name}.damaged"))
    return checkpoint, list(damaged.values())


def find_newest(
    folder: Path, digest: str, contents: ExpectedArrays | None = None
) -> tuple[Checkpoint | None, dict[Path, str]]:
    """Return the newest intact checkpoint, without changing any file.

    Args:
        folder: the run's ``checkpoints/``.
        digest: the digest of the job and its data; a checkpoint with a different digest is refused.
        contents: the arrays that the checkpoint must hold; not checked by default.

    Returns:
        The newest intact checkpoint, or None if no checkpoint exists; and a dict that maps the path of each newer,
        damaged checkpoint to a message.

    Raises:
        DataError: all checkpoints are damaged, or the newest intact one belongs to another job or has another format.
    """
    damaged: dict[Path, str] = {}
    for path in reversed(_by_step(folder)):
        try:
            return _read_checkpoint(path, digest, contents), damaged
        except _DamagedError as error:
            damaged[path] = str(error)
    if damaged:
        raise DataError(
            "\n".join(damaged.values())
            + f"\n{folder}: no intact checkpoint is left. Restore one from a backup, or remove "
            f"{folder.parent} to start from scratch"
        )
    return None, {}


def newest_step(folder: Path) -> int:
    """Return the step of the newest checkpoint in a folder, taken from its file name; 0 if there is none."""
    return max([0, *map(_step_of, folder.glob("step-*.npz"))])


def _by_step(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, oldest first; sorting by name would be wrong from step 10⁹ onwards."""
    return sorted(folder.glob("step-*.npz"), key=lambda path: (_step_of(path), path.name))


def _step_of(path: Path) -> int:
    """Return a checkpoint's step, taken from the file name; -1 if the name is not that of a checkpoint."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


class _OtherFormatError(DataError):
    """The checkpoint has a format that this version cannot read; the previous checkpoint has the same format."""


class _DamagedError(DataError):
    """The checkpoint cannot be read; the one before it may be intact."""


def _read_checkpoint(path: Path, digest: str, contents: ExpectedArrays | None) -> Checkpoint:
    try:
        arrays = npz.read_arrays(path)
        head = _parse_header(arrays.pop("header", None), path)
    except _OtherFormatError:
        raise
    except DataError as error:
        raise _DamagedError(str(error)) from error
    if head["digest"] != digest:
        found, expected = files.short_digest(head["digest"]), files.short_digest(digest)
        raise DataError(f"{path}: belongs to another job (found digest {found}, expected {expected}). Remove it")
    checkpoint = Checkpoint(TrainingProgress(**head.pop("progress")), arrays, head)
    try:
        if contents:
            contents.require(checkpoint)
    except ValueError as error:
        raise _DamagedError(f"{path}: damaged ({error})") from error
    return checkpoint


def _parse_header(array: np.ndarray | None, path: Path) -> dict[str, Any]:
    if array is None or array.shape or array.dtype.kind != "U":
        raise DataError(f"{path}: damaged (it has no header)")
    try:
        head = files.parse_json(str(array))
    except ValueError as error:
        raise DataError(f"{path}: damaged (its header is not JSON: {error})") from error
    if isinstance(head, dict) and isinstance(head.get("format"), int) and head["format"] != FORMAT:
        raise _OtherFormatError(f"{path}: checkpoint format {head['format']}, but this version reads format {FORMAT}")
    checked: dict[str, Any] = json_files.checked(head, schemas.CheckpointHeader, str(path))
    return checked
