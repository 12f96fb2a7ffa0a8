"""What each JSON file of a run folder says: its fields, their types and their ranges; and the one reader of them.

A file may be damaged, edited or of another version: a field that is not described here is left alone, one that is
described has the type that the code relies on.
"""

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from cnnjob import files
from cnnjob.errors import DataError

SEAL = "sha256"
"""The key of a record's SHA-256 of all its other content."""
_SHOWN = 60
_FIRST_YEAR, _LAST_YEAR = 1971, 9000
"""Of a time that can be moved to any zone, and compared with any other."""


def _time(text: str) -> str:
    time = datetime.fromisoformat(text)
    if not time.tzinfo or not _FIRST_YEAR <= time.year <= _LAST_YEAR:
        raise ValueError("a time needs a zone, and a year that can be")
    return text


Count = Annotated[int, Field(ge=0, lt=2**53)]
Inode = Annotated[int, Field(ge=0, lt=2**64)]
Number = float
Share = Annotated[float, Field(ge=0, le=1)]
Time = Annotated[str, AfterValidator(_time)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Fields(BaseModel):
    """Strict about the types of what is described; other fields may stand beside it."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False, protected_namespaces=())


class Data(_Fields):
    """What ``job.json`` says of the dataset."""

    path: str
    name: str
    digest: Sha256
    image_shape: Annotated[list[Annotated[int, Field(ge=1, le=2**20)]], Field(min_length=3, max_length=3)] | None = None
    class_names: Annotated[list[str], Field(min_length=1)] | None = None
    mean: list[Number] | None = None
    std: list[Number] | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.image_shape and any(len(by) != self.image_shape[-1] for by in (self.mean, self.std) if by is not None):
            raise ValueError("mean and std need one number per channel of image_shape")
        return self


class _Model(_Fields):
    blocks: list[dict[str, Any]]


class _Train(_Fields):
    epochs: Count
    batch_size: Count


class _Job(_Fields):
    """What is read of a job of any version."""

    name: str
    seed: Count
    model: _Model
    train: _Train


class Frozen(_Fields):
    """``job.json``: the resolved job and its data; nothing else may stand there, so that its seal cannot be renamed."""

    model_config = ConfigDict(extra="forbid")

    job: _Job
    data: Data
    digest: Sha256
    format: Count | None = None
    sha256: Sha256 | None = None
    """Missing in a file that was made before records were sealed, and before their format was written down."""


class Environment(_Fields):
    """``environment.json``."""

    commit: str | None = None
    dirty: bool | None = None
    data_sha256: str | None = None
    device: str | None = None
    backend: str | None = None
    packages: dict[str, str] = Field(default_factory=dict)
    bits: dict[str, Any] = Field(default_factory=dict)


class Attempt(_Fields):
    """``attempts/NNNN.json``."""

    attempt: Count
    host: str
    boot: str
    pid: Count
    pid_started: str | None
    pid_namespace: str | None = None
    uid: Count | None = None
    cluster: str | None = None
    started: Time
    ended: Time | None
    why: str | None
    step: Count | None = None
    job_id: str | None = None
    job_restarts: Count | None = None
    job_step: str | None = None
    folder: str | None = None
    inode: Inode | None = None
    parents: list[Inode] | None = None
    resumed_at_step: Count | None = None
    device: str | None = None


class CheckpointProgress(_Fields):
    """How far a training has come, as a checkpoint's header says it: :class:`cnnjob.checkpoints.Progress`."""

    model_config = ConfigDict(extra="forbid")

    epoch: Count = 0
    epoch_step: Count = 0
    step: Count = 0
    done: bool = False
    best_epoch: Count = 0
    best_accuracy: Number = -1.0
    history: list["Epoch"] = Field(default_factory=list)
    epoch_seconds: Number = 0.0
    train_seconds: Number = 0.0
    cpu_seconds: Number = 0.0
    bits_may_differ_from_step: Count | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if len(self.history) != self.epoch or self.best_epoch > self.epoch:
            raise ValueError(f"{len(self.history)} epochs recorded, {self.epoch} done, the best is {self.best_epoch}")
        return self


class CheckpointHeader(_Fields):
    """What a checkpoint says of itself."""

    format: Count
    digest: Sha256
    progress: CheckpointProgress


class Epoch(_Fields):
    """One line of ``history.jsonl``."""

    epoch: Count
    step: Count
    learning_rate: Number | None = None
    seconds: Number | None = None
    images_per_second: Number | None = None
    train_loss: Number | None = None
    train_accuracy: Share | None = None
    validation_loss: Number | None = None
    validation_accuracy: Share | None = None
    test_loss: Number | None = None
    test_accuracy: Share | None = None


class Result(_Fields):
    """``result.json``."""

    test_accuracy: Share
    test_loss: Number | None = None
    epochs: Count | None = None
    best_epoch: Count | None = None
    steps: Count | None = None
    train_seconds: Number | None = None
    cpu_hours: Number | None = None
    gpu_hours: Number | None = None
    peak_memory_bytes: Count | None = None
    parameters: Count | None = None
    device: str | None = None
    backend: str | None = None
    precision: str | None = None
    selected_on: str | None = None
    test_time_augmentation: str | None = None
    attempts: Count | None = None
    bits_may_differ_from_step: Count | None = None


class Submission(_Fields):
    """``slurm/job.json``: the newest submission."""

    cluster: str | None = None
    job_id: str | None = None
    log: str | None = None
    comment: str | None = None
    shown: str | None = None
    attempt: Count | None = None
    folder: str | None = None
    inode: Inode | None = None
    parents: list[Inode] | None = None
    submitted: Time | None = None


class Restart(_Fields):
    """What was decided after an attempt; a list of them is ``slurm/restarts.json``."""

    step: Count
    cluster: str | None = None
    job_id: str | None = None
    job_restarts: Count | None = None
    ended_by: str | None = None
    code: int | None = None
    restarted: str | None = None
    said: str | None = None


class LocalWait(_Fields):
    """``slurm/local.json``: the process that is going to train a run without SLURM."""

    host: str
    boot: str
    pid: Count
    pid_started: str | None
    pid_namespace: str | None = None
    folder: str | None = None
    inode: Inode | None = None


class Cancelled(_Fields):
    """``slurm/cancelled.json``."""

    by: str | None = None
    cluster: str | None = None
    jobs: list[str] = Field(default_factory=list)
    attempt: Count | None = None
    folder: str | None = None
    inode: Inode | None = None
    parents: list[Inode] | None = None
    time: Time | None = None


class Commit(_Fields):
    """What lies beside a copy of the package."""

    commit: str | None
    dirty: bool | None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def read(path: Path, kind: type[BaseModel]) -> dict[str, Any]:
    """Read a JSON file of a known kind.

    Args:
        path: the file.
        kind: one of this module's, or a table of a job or a profile.

    Returns:
        What the file says, with fields that are not described.

    Raises:
        DataError: it is missing or is no regular file; or damaged, and which field it is.
    """
    content: dict[str, Any] = checked(files.read_json(path), kind, str(path))
    return content


def read_list(path: Path, kind: Any, at_least: int = 0) -> list[Any]:
    """Read a JSON file of a list.

    Args:
        path: the file.
        kind: of each member.
        at_least: how many members it must have.

    Returns:
        What the file says.

    Raises:
        DataError: it is missing or is no regular file; or damaged, and which member it is.
    """
    members: list[Any] = checked(files.read_json(path), list[kind], str(path))
    if len(members) < at_least:
        raise DataError(f"{path}: damaged, it has {len(members)} members, at least {at_least} are needed")
    return members


def read_lines(path: Path, kind: Any, at_most: int) -> list[Any]:
    """Read a file of one JSON object per line.

    Args:
        path: the file.
        kind: of each line.
        at_most: bytes.

    Returns:
        What the lines say.

    Raises:
        DataError: it is missing, is no regular file or is larger; or damaged, and which line it is.
    """
    lines = files.read_text(path, at_most).split("\n")
    return [parse(line, kind, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line]


def parse(text: str, kind: Any, where: str) -> Any:
    """Parse JSON of a known kind; ``where`` names it.

    Raises:
        DataError: it is not JSON, or not of this kind.
    """
    try:
        content = files.parse_json(text)
    except ValueError as error:
        raise DataError(f"{where}: damaged, not readable as JSON ({error})") from error
    return checked(content, kind, where)


def checked(content: Any, kind: Any, where: str) -> Any:
    """Return content that is of a known kind; ``where`` names it.

    Raises:
        DataError: it is not; the first field that is wrong is named.
    """
    try:
        _adapter(kind).validate_python(content)
    except ValidationError as error:
        what = _explain(error.errors()[0])
        raise DataError(
            f"{where}: damaged, {what}. Restore it, or remove the file if nothing trains the run"
        ) from error
    return content


def _explain(problem: Any) -> str:
    """Return what is wrong with a field: ``data.mean is missing``."""
    field = ".".join(map(str, problem["loc"])) or "it"
    if problem["type"] == "missing":
        return f"{field} is missing"
    if problem["type"] in {"model_type", "list_type"}:
        return f"{field} is no {'object' if problem['type'] == 'model_type' else 'list'}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{field}: {message[0].lower()}{message[1:]}, found {repr(problem['input'])[:_SHOWN]}"


def read_sealed(path: Path, kind: type[BaseModel]) -> dict[str, Any]:
    """Read a JSON file that carries a SHA-256 of its other content; one of an older version may lack it.

    Args:
        path: the file.
        kind: one of this module's.

    Returns:
        What the file says.

    Raises:
        DataError: it is missing, damaged or edited.
    """
    content = read(path, kind)
    if content.get(SEAL) is None and "format" in content:
        raise DataError(
            f"{path}: damaged or edited, it lacks its SHA-256. Restore it, or train the changed job in a run folder of "
            "its own"
        )
    if content.get(SEAL) not in {None, seal_of(content)}:
        raise DataError(
            f"{path}: damaged or edited, its SHA-256 does not fit its other content. Restore it, or train the changed "
            "job in a run folder of its own"
        )
    return content


def seal_of(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all of a record's content but its seal."""
    rest = {key: value for key, value in content.items() if key != SEAL}
    return files.sha256_of(files.canonical_json(rest).encode())


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record's content with its seal."""
    return {**content, SEAL: seal_of(content)}
