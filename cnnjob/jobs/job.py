"""Load a job file, apply overrides, check the result, and compute the job's digest.

A job is pure data. Everything in it except its name, ``resources`` and the checkpoint interval determines the result
to the last bit and is part of :meth:`Job.digest`, which names the run folder. The digest covers the dataset's content,
not its path.

Two job files that describe the same training are the same job, as far as this can be decided without the dataset. A key
that cannot have an effect where it is set is refused, and the message shows what to write instead. A key that has no
effect only because of another key's value is dropped when the job is read, so that the other key can be swept:

- early stopping whose patience is too long for the number of epochs;
- augmentation with all settings off;
- dropout at rate 0, if no other dropout block follows;
- an order of operations in a conv block that gives the same results as the usual order;
- alternating flips, if there is only one epoch;
- ``bias_epochs`` that is not less than the number of epochs, and milestones of a schedule that training does not reach.

A setting that cannot have an effect with the given dataset is refused once the dataset is known
(:mod:`cnnjob.training.idle_settings`).
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from cnnjob.errors import DataError, JobError, plural, three_lines
from cnnjob.files import canonical_json, sha256_of
from cnnjob.jobs import json_files, manifest, older, toml
from cnnjob.jobs.assignment import parse_assignment
from cnnjob.jobs.dotted_keys import apply_override, require_no_conflict
from cnnjob.jobs.lookup import named_toml_files
from cnnjob.jobs.model import Model
from cnnjob.jobs.schema import Settings, describe_problems, format_value, is_older, suggest_name
from cnnjob.jobs.settings import DataSettings, ResourceSettings, TrainSettings

FORMAT = 3
"""Version of the job format, in the digest and in ``job.json``; incremented when a key's default or meaning changes.

An unfinished run in an older format is not resumed; :mod:`cnnjob.jobs.older` translates its job."""
# The name becomes part of a folder name: no slash, and no leading dot or dash.
_NAME = re.compile(r"\w[\w .+-]{0,99}")
FROZEN = "job.json"
"""Name of the file that holds the job in a run's folder."""
DefaultJob = Callable[[str], dict[str, Any] | None]
"""Function from a dataset's name to the content of its built-in job; None if there is no such dataset."""


def _require_job_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            "input should have 1 to 100 characters (letters, digits, spaces or any of _.+-) and start with a letter, a "
            f"digit or _, found {format_value(name)}"
        )
    return name


class Job(Settings):
    """A complete description of one training run."""

    name: Annotated[str, AfterValidator(_require_job_name)]
    """First part of the run folder's name, before the digest; by default the job file's name without its suffix."""
    dataset: Annotated[str, Field(min_length=1)]
    """Name of a prepared dataset, or the path of its HDF5 file."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of all random numbers in training: initial weights, image order, augmentation, dropout."""
    data: DataSettings = DataSettings()
    """Preprocessing and augmentation of the images, and the validation split."""
    model: Model
    """The network: its blocks and the classifier."""
    train: TrainSettings
    """Training length, optimiser and evaluation."""
    resources: ResourceSettings = ResourceSettings()
    """Where the job runs; not part of the run's name."""

    def __repr__(self) -> str:
        """Return the job's name, dataset, blocks and the main settings of its training, on three lines."""
        train, blocks = self.train, []
        for block in self.model.model_dump(mode="json")["blocks"]:
            kind, value = next(iter(block.items()))
            blocks.append(kind if isinstance(value, list | dict) else f"{kind} {value}")
        [optimiser] = train.optimiser.model_dump(exclude_none=True)
        return three_lines(
            f"Job {self.name}: dataset {self.dataset}, seed {self.seed}",
            f"  blocks: {', '.join(blocks)}",
            f"  {plural(train.epochs, 'epoch')}, batch size {train.batch_size}, learning rate {train.learning_rate:g}, "
            f"{optimiser}",
        )

    __str__ = __repr__

    @model_validator(mode="after")
    def _require_supported_precision(self, info: ValidationInfo) -> Self:
        if self.resources.backend == "numpy" and self.train.precision != "float32" and not is_older(info):
            raise ValueError(
                f"train.precision: '{self.train.precision}' needs a GPU (found resources.backend = 'numpy'). Set "
                "train.precision = 'float32'"
            )
        if self.train.precision == "float16" and not is_older(info) and not self.model.has_convolutions:
            raise ValueError(
                "train.precision: 'float16' affects convolutions only (found none in model.blocks). Set 'tf32'"
            )
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _without_idle_epochs(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Drop settings that need more epochs: ``bias_epochs``, and alternating flips (random in one epoch)."""
        job = handler(values)
        # Settings are frozen: the change is made on copies.
        job = job.model_copy(update={"model": job.model.without_idle_epochs(job.train.epochs)})
        if job.train.epochs > 1 or not job.data.augment or job.data.augment.flip != "alternating":
            return job
        augment = job.data.augment.model_copy(update={"flip": "random"})
        return job.model_copy(update={"data": job.data.model_copy(update={"augment": augment})})

    @classmethod
    def load(cls, name: str, overrides: Iterable[str] = (), default: DefaultJob | None = None) -> Self:
        """Read a job file, apply the overrides and check the result.

        Args:
            name: the path of a job file; the name of a job in ``./jobs/`` or of one that ships with the package; or a
                run folder, to load the job of that run.
            overrides: ``key=value`` strings, each with a dotted key and a value in TOML (or a bare word).
            default: function called if there is no such job; returns the content of a built-in job, or None.

        Returns:
            The job, with all defaults filled in.

        Raises:
            DataError: there is no such job.
            JobError: the job is not valid; the message lists all problems.
        """
        try:
            path = find_job_file(name)
        except DataError:
            built_in = default(name) if default else None
            if built_in is None:
                raise
            path, content = Path(name), built_in
        else:
            content = _read_frozen(path) if path.name == FROZEN else toml.read_toml(path)
        applied: dict[tuple[str, ...], str] = {}
        for override in overrides:
            key, value = parse_assignment(override)
            require_no_conflict(applied, key, override)
            apply_override(content, key, value, override, applied)
            applied[key] = override
            if key == ("model", "init_from") and ("model", "init_sha256") not in applied:
                content["model"].pop("init_sha256", None)  # it belongs to the weights that have been replaced
        content.setdefault("name", path.stem)
        return cls.checked(content, f"{path} with --set" if applied else str(path))

    @classmethod
    def checked(cls, content: Any, where: str, written_as: int = FORMAT) -> Self:
        """Check the content of a job file and return the job.

        Args:
            content: the parsed file.
            where: the file's path, for the message.
            written_as: the format in which the content was written; keys from an older format are translated.

        Raises:
            JobError: the job is not valid; the message lists all problems.
        """
        is_current = written_as == FORMAT
        content = content if is_current or not isinstance(content, dict) else older.translate(content)
        try:
            return cls.model_validate(content, context={"older": not is_current})
        except ValidationError as error:
            problems = "\n".join(f"  {line}" for line in describe_problems(error, cls, content))
            raise JobError(f"{where}: not a valid job:\n{problems}") from error

    def digest(self, data_digest: str) -> str:
        """Return the SHA-256 of everything that determines the result: the job and the data it reads.

        Args:
            data_digest: :attr:`cnnjob.data.dataset.Dataset.digest` of the job's dataset.

        Returns:
            64 hexadecimal digits, the same on every machine.

        Raises:
            JobError: the weights of ``model.init_from`` have not been found yet; see
                :func:`cnnjob.runs.initial.find_initial`.
        """
        if self.model.init_from and not self.model.init_sha256:
            raise JobError(
                f"model.init_from: the weights have not been read yet, so the run has no name (found "
                f"{format_value(self.model.init_from)} without init_sha256). Pass the job through find_initial first"
            )
        # The backend is left out although it affects the last bits: a run keeps the one that its first attempt chose.
        settings = self.model_dump(
            mode="json",
            exclude={
                "name": True,
                "dataset": True,
                "resources": True,
                "train": {"checkpoint_seconds"},
                "model": {"init_from"},
            },
            exclude_defaults=True,  # so that adding a key to the schema renames no run
        )
        return sha256_of(canonical_json({"format": FORMAT, "job": settings, "data": data_digest}).encode())


def list_jobs() -> dict[str, Path]:
    """Return the file of every named job; jobs in ``./jobs/`` take precedence over the package's."""
    return named_toml_files("jobs")


def find_job_file(name: str) -> Path:
    """Return a job's file, given the file's path, the job's name, or a run folder.

    Raises:
        DataError: no job file was found; the message suggests a similar name if there is one.
    """
    # exists() rather than is_file(): reading a pipe or a folder gives a better message.
    if (path := Path(name)).suffix == ".toml" and path.exists():
        return path
    if path.name == FROZEN and path.is_file():
        return path
    if (path / FROZEN).is_file():  # checked before job names, since a folder may have the same name
        return path / FROZEN
    if path.suffix or "/" in name:
        raise DataError(
            f"{name}: no such file. Pass a .toml file or the name of a job. To list all jobs:\n  cnnjob show"
        )
    jobs = list_jobs()
    if name in jobs:
        return jobs[name]
    raise DataError(
        f"{name}: no such job.{suggest_name(name, jobs)} Pass a .toml file or one of these jobs: {', '.join(jobs)}"
    )


def _read_frozen(path: Path) -> dict[str, Any]:
    """Read the job from a run folder; a job in an older format is refused."""
    frozen = json_files.read_sealed(path, manifest.Manifest)
    if frozen.get("format") != FORMAT:
        raise JobError(
            f"{path.parent}: created by another version of cnnjob (found job format {frozen.get('format')}, expected "
            f"{FORMAT}). Settings have other meanings in this version, so the run cannot be resumed. Pass the "
            "job file instead of the run folder"
        )
    return manifest.job_in(frozen, path.parent)
