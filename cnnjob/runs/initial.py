"""Find and read initial weights from another run or a file (``model.init_from``), and copy them to the run's folder.

When a job is loaded, :func:`find_initial` finds the weights and adds their SHA-256 to the job, whose digest covers it.
When the run is created, the weights are copied to its ``initial.npz``. From then on, only that copy is read.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from cnnjob import files
from cnnjob.errors import CnnjobError, DataError, plural
from cnnjob.files import short_digest
from cnnjob.jobs.job import Job
from cnnjob.jobs.manifest import INITIAL
from cnnjob.runs import npz
from cnnjob.runs.run import Run
from cnnjob.runs.summary import LATEST, find_runs, resolve_run

Arrays = Mapping[str, np.ndarray]

MAX_BYTES = 1 << 34
"""Maximum size of a file of weights."""
_SHOWN_NAMES = 8
"""Maximum number of array names in a message."""


@dataclass(frozen=True)
class InitialWeights:
    """The weights that ``model.init_from`` names."""

    content: bytes
    """Content of the run's ``initial.npz``: an unchanged copy of a file that a run wrote; otherwise, the arrays of the
    given file, converted to float32."""
    sha256: str
    """SHA-256 of ``content``."""
    arrays: Arrays
    """All arrays by name, float32, finite."""
    origin: dict[str, Any]
    """Where the weights came from, as described by :class:`cnnjob.jobs.manifest.InitialRecord`."""

    @property
    def source(self) -> str:
        """The name of the run that trained the weights, or of the file if no run is known."""
        return self.origin["run"] or Path(self.origin["source"]).name


def find_initial(job: Job, root: Path) -> Job:
    """Find the weights that a job starts from, and return the job with their location and their SHA-256.

    Args:
        job: a job; one without ``model.init_from`` is returned unchanged.
        root: the folder in which runs are looked up by name. ``latest`` is the most recent run, not counting fine-tuned
            runs of jobs with the same name.

    Returns:
        The job; ``init_from`` is the path of a run's folder or of a file, and ``init_sha256`` is set.

    Raises:
        DataError: the run or file is missing or damaged, the run is not finished, the file has no weights, or its
            SHA-256 is not the job's ``init_sha256``.
        JobError: the names of several runs begin with ``init_from``.
    """
    given = job.model.init_from
    if not given:
        return job
    try:
        own = set[str]()
        if given == LATEST:  # by now, it may be a run that the same command has started, also with another seed
            same_name = (run for run in find_runs(root) if run.name.rpartition("-")[0] == job.name)
            own = {run.name for run in same_name if run.initial_file.exists()}
        path = Path(given) if given.endswith(".npz") else resolve_run(Path(given), root, own)
        initial = _read_specified(job, path)
    except CnnjobError as error:
        # Once a run has been created, the same command resumes it from its own copy.
        created = _find_runs_from(job, given, root)
        if not created:
            raise type(error)(f"model.init_from: {error}") from error
        path = created[-1].initial_file
        initial = read_initial(job, path)
    model = job.model.model_copy(update={"init_from": str(path), "init_sha256": initial.sha256})
    return job.model_copy(update={"model": model})


def read_initial(job: Job, path: Path | None = None) -> InitialWeights:
    """Read the weights that a job starts from.

    Args:
        job: a job with ``model.init_from``.
        path: the run's folder or the file; by default, ``init_from`` itself, as :func:`find_initial` returns it.

    Raises:
        DataError: the file is missing or damaged or has no weights, or its SHA-256 is not the job's ``init_sha256``.
    """
    file, expected = _weights_file(path or Path(str(job.model.init_from))), job.model.init_sha256
    try:
        initial = _read_weights(file)
    except OSError as error:
        raise DataError(
            f"{file}: cannot be read ({files.reason_of(error)}). Restore it{_advise_instead(file)}"
        ) from error
    except DataError as error:
        raise DataError(f"{error}{_advise_instead(file)}") from error
    if expected and initial.sha256 != expected:
        raise DataError(
            f"{file}: does not match model.init_sha256 (found {short_digest(initial.sha256)}, expected "
            f"{short_digest(expected)}). Restore the file{_advise_instead(file) or ', or omit init_sha256'}"
        )
    return initial


def copy_initial(run: Run, initial: InitialWeights) -> None:
    """Write the weights to a run's ``initial.npz``, unless the file already has this content."""
    with suppress(CnnjobError):
        if files.read_bytes(run.initial_file, MAX_BYTES) == initial.content:
            return
    files.write_whole(run.initial_file, initial.content)


def _weights_file(path: Path) -> Path:
    """Return the weights file that a path refers to: the file itself, or the weights in a run's folder."""
    return Run(path).weights_file if path.is_dir() else path


def _read_specified(job: Job, path: Path) -> InitialWeights:
    """Read the weights at a path that the user has specified.

    Raises:
        DataError: the path is neither a finished run nor an intact file of weights; the message gives the reason.
    """
    if _weights_file(path).exists():
        return read_initial(job, path)
    run = Run(path.parent if Run(path.parent).job_file.exists() else path)  # the path may be a file in a run's folder
    if not run.path.exists():
        raise DataError(f"{path}: no such file. Pass a finished run or an .npz file of weights")
    if not run.job_file.exists():
        raise DataError(f"{path}: not a run folder or an .npz file. Pass one of these")
    if run.result_file.exists():
        raise DataError(f"{run.weights_file}: missing. Restore it, or train the run again")
    # Each epoch may choose other weights: the same command would start another run each time.
    raise DataError(
        f"{path}: not finished, so its weights may still change (found state {run.state()}). Finish training it "
        "first, or pass another run"
    )


def _find_runs_from(job: Job, given: str, root: Path) -> list[Run]:
    """Return the runs of a job, newest last, that were created with the initial weights that ``given`` names.

    The run or file from which the weights were copied may no longer exist. ``latest`` stands for any initial weights.
    """
    runs, path = dict[Run, float](), Path(given)
    for run in find_runs(root):
        with suppress(CnnjobError, OSError):
            if run.name.startswith(f"{job.name}-") and run.initial_file.exists():
                frozen = run.manifest()
                origin = frozen.get("initial")
                if not origin or frozen["job"].get("dataset") != job.dataset:
                    continue
                model = job.model.model_copy(update={"init_sha256": origin["sha256"]})
                digest = job.model_copy(update={"model": model}).digest(frozen["data"]["digest"])
                source = Path(origin["source"])
                is_name = len(path.parts) == 1 and (origin.get("run") or "").startswith(given)
                is_same = given == LATEST or is_name or path.resolve() in {source, source.parent}
                if is_same and digest == frozen["digest"]:
                    runs[run] = run.job_file.stat().st_mtime
    return sorted(runs, key=lambda run: runs[run])


def _advise_instead(file: Path) -> str:
    """Return further advice for a message if a file is a run's own copy of weights; empty for any other file."""
    if file.name != INITIAL or not Run(file.parent).job_file.exists():
        return ""
    return ", or train or submit the job file again while the run or file in its init_from still exists"


def _read_weights(file: Path) -> InitialWeights:
    with files.open_regular(file) as opened:
        size = os.fstat(opened.fileno()).st_size
        if size > MAX_BYTES:
            raise DataError(f"{file}: too large for weights (found {size:,} bytes). Pass another file")
        content = opened.read(size)
    run = Run(file.parent)
    # Inside a run's folder, an unreadable file is a damaged one; elsewhere another program may have written it.
    if npz.has_digest(content) or run.job_file.exists():
        arrays = npz.arrays_from_bytes(content, str(file))
    else:
        arrays = _read_foreign(file)
        content = bytes(npz.arrays_to_bytes(arrays))
    _require_weights(file, arrays)
    sha256 = files.sha256_of(content)
    return InitialWeights(content, sha256, arrays, {**_find_origin(file), "sha256": sha256})


def _read_foreign(file: Path) -> dict[str, np.ndarray]:
    """Read the floating-point arrays in a NumPy file as float32; other arrays are left out."""
    from cnnjob.data.prepare.arrays.numpy_files import array_files  # noqa: PLC0415 - loads h5py

    arrays: dict[str, np.ndarray] = {}
    for member in array_files(file):
        with member.open() as (opened, shape, dtype):
            if dtype.kind != "f" or not member.member:
                continue
            size = prod(shape) * dtype.itemsize
            data = opened.read(size + 1) if size <= MAX_BYTES else b""
            if len(data) != size:
                raise DataError(f"{member.where}: damaged (its size does not match its shape {shape}). Save it again")
            with np.errstate(over="ignore"):  # a number too large for float32 is refused below
                arrays[member.name] = np.frombuffer(data, dtype).reshape(shape).astype(np.float32)
    return arrays


def _require_weights(file: Path, arrays: Arrays) -> None:
    """Refuse a file that does not contain weights.

    Raises:
        DataError: the file is a checkpoint, contains arrays that cannot be weights or no arrays, or contains a number
            that is not finite.
    """
    if "header" in arrays and any(name.startswith("best/") for name in arrays):
        raise DataError(f"{file}: a checkpoint, whose run may still change. Pass a finished run or its weights.npz")
    if any(array.dtype != np.float32 for array in arrays.values()) or not arrays:
        shapes = {name: array.shape for name, array in arrays.items()}
        raise DataError(
            f"{file}: not weights (found {describe_shapes(shapes)}). Pass a finished run or its weights.npz"
        )
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise DataError(f"{file}: {name} is not finite. Pass other weights")


def describe_shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return a short list of arrays with their shapes, for a message."""
    shown = [f"{name} {'×'.join(map(str, shape))}".strip() for name, shape in list(shapes.items())[:_SHOWN_NAMES]]
    more = [f"and {plural(len(shapes) - len(shown), 'other array')}"] if len(shapes) > len(shown) else []
    return ", ".join([*shown, *more]) or "no arrays"


def _find_origin(file: Path) -> dict[str, Any]:
    """Return where a file of weights came from; for a run's copy of initial weights, where the original came from."""
    run, origin = Run(file.parent), {"source": str(file.resolve()), "run": None, "digest": None}
    if not run.job_file.exists():
        return origin
    frozen = run.manifest()
    if file.name == INITIAL and frozen.get("initial"):
        return {key: frozen["initial"].get(key) for key in origin}
    if file.name == run.weights_file.name:
        return {**origin, "run": run.path.resolve().name, "digest": frozen["digest"]}
    return origin
