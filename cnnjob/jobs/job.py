"""The job schema: load a job file, check it, apply overrides, and compute the job's digest.

A job is data. Everything in it except its name, ``resources`` and the checkpoint cadence decides the result to the last
bit and enters :meth:`Job.digest`, which names the run's folder; the dataset enters by its content, not by its path.

Two spellings of one training are one job, as far as the job file alone can tell. A key that can have no effect where
it stands is refused, with what to write instead. A key that has no effect only because of the value of another is
dropped when the job is read, so that the other can be swept over: early stopping whose patience the epochs cannot
exhaust, augmentation with all settings off, a dropout of 0 that no other dropout follows, the order of operations that
a convolution does not have, flips that alternate over a single epoch. A setting that can have no effect on the dataset
is refused once the dataset is known (:mod:`cnnjob.training.idle_settings`).
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from cnnjob.errors import JobError
from cnnjob.files import canonical_json, sha256_of
from cnnjob.jobs import assignment, json_files, manifest, older, toml
from cnnjob.jobs.lookup import named_toml_files
from cnnjob.jobs.model import Model
from cnnjob.jobs.schema import Fraction, OneOf, OrFalse, Settings, as_typed, in_one_line, is_older, near, problems_of

FORMAT = 3
"""Version of the job's meaning, in its digest and in a run's ``job.json``; raise it when a default or meaning changes.

An unfinished run of an older format is not resumed; :mod:`cnnjob.jobs.older` translates its job."""
# The name becomes part of a folder's name: no slash, and no dot or dash at its start.
_NAME = re.compile(r"\w[\w .+-]{0,99}")
_COUNT = re.compile(r"[0-9]{1,6}")  # short: int() refuses thousands of digits
FROZEN = "job.json"
"""Name of the file that holds the job in a run's folder."""
KINDS = ("train.optimiser", "train.schedule")
"""Tables that have exactly one of their keys; listed as a setting, the value of such a table is that key."""


DefaultJob = Callable[[str], dict[str, Any] | None]
"""Returns the content of the built-in job of a dataset, given its name; None if there is no such dataset."""


class AugmentSettings(Settings):
    """Random changes of the training images in each epoch; a shifted image is padded by reflection."""

    flip: Literal["none", "random", "alternating"] = "none"
    """Mirror images left to right: ``random`` draws for each image and epoch; ``alternating`` draws once per image and
    mirrors it in every other epoch. Over a single epoch both are the same."""
    translate: Annotated[int, Field(ge=0, le=64)] = 0
    """Largest shift along each axis, in pixels; drawn uniformly for each image and epoch."""


class DataSettings(Settings):
    """Preprocessing and augmentation of the images, and the validation split."""

    pixels: Literal["standardised", "unit"] = "standardised"
    """``unit`` divides pixels by 255; ``standardised`` then subtracts the training images' mean and divides by their
    standard deviation, per channel."""
    validation_fraction: Fraction = 0.1
    """Fraction of each class's training images held out for validation, the same images for every seed. Leave it at its
    default if the dataset has a validation split of its own."""
    augment: Annotated[AugmentSettings | None, OrFalse] = None
    """Augmentation of the training images: a table of its settings; ``false`` is none."""

    @field_validator("augment", mode="after")
    @classmethod
    def _changes_something(cls, augment: AugmentSettings | None, info: ValidationInfo) -> AugmentSettings | None:
        if augment is None or augment != AugmentSettings():
            return augment
        # An empty table is a mistake; one whose settings are spelt out as off may be a point of a sweep.
        if not augment.model_fields_set and not is_older(info):
            raise ValueError("it changes nothing; name what it changes, as { flip = 'random' }, or leave it out")
        return None


class EarlyStoppingSettings(Settings):
    """Stop the training when the accuracy on the split of ``select_on`` no longer rises."""

    patience: Annotated[int, Field(ge=1)]
    """Number of epochs without a higher accuracy on the split of ``select_on`` after which the training stops."""


class LookaheadSettings(Settings):
    """Lookahead: slow weights that follow the trained ones, and to which these are reset (Zhang et al. 2019)."""

    every: Annotated[int, Field(ge=1)] = 5
    """Steps between two updates of the slow weights, at most the steps of the training; the last step is followed by an
    update as well."""
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """The slow weights keep the share decay^n · (step / steps)^power in an update, n steps after the previous one."""
    power: Annotated[float, Field(ge=0, le=10)] = 3.0
    """Exponent of step / steps in the share that the slow weights keep."""


class SgdSettings(Settings):
    """Stochastic gradient descent with momentum (Sutskever et al. 2013, as PyTorch computes it)."""

    momentum: Fraction = 0.9
    """Fraction of the velocity that each step keeps; 0 is no momentum."""
    nesterov: bool = False
    """Use Nesterov's form of momentum; needs ``momentum`` above 0."""
    decoupled_weight_decay: bool = False
    """Shrink weights by the fraction learning_rate · weight_decay instead of adding λw to the gradient, as AdamW always
    does."""

    @model_validator(mode="after")
    def _has_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: it is a form of momentum, found a momentum of 0; set one of the two")
        return self


class AdamWSettings(Settings):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    beta1: Fraction = 0.9
    """Decay rate of the running mean of gradients."""
    beta2: Fraction = 0.999
    """Decay rate of the running mean of squared gradients."""
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Added to the square root of the mean of squared gradients."""


class OptimiserSettings(OneOf):
    """Update rule: ``"sgd"``, ``"adamw"``, or a table with one of these keys."""

    sgd: Annotated[SgdSettings | None, OrFalse] = None
    """Stochastic gradient descent: ``true`` or a table of its settings."""
    adamw: Annotated[AdamWSettings | None, OrFalse] = None
    """Adam with decoupled weight decay: ``true`` or a table of its settings."""


class ConstantSettings(Settings):
    """A learning rate that stays at its peak after the warm-up."""

    warmup: Fraction = 0.0
    """Share of all steps (not epochs) over which the learning rate first rises linearly to its peak."""
    start_factor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Learning rate of the first step of a warm-up, as a fraction of the peak."""

    @model_validator(mode="after")
    def _starts_below(self, info: ValidationInfo) -> Self:
        if is_older(info):
            return self
        if self.start_factor and not self.warmup:
            raise ValueError(
                f"start_factor: it is where a warm-up starts, found {self.start_factor:g} without one; set warmup, or "
                "leave it out"
            )
        # In a decaying schedule it does act: the peak then lasts through the warm-up.
        if self.start_factor == 1 and type(self) is ConstantSettings:
            raise ValueError("start_factor: a warm-up from 1 changes nothing; set a smaller one, or leave out both")
        return self


class DecaySettings(ConstantSettings):
    """A learning rate that falls with every step from its peak to its end, just after the last step."""

    end_factor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Learning rate that is reached one step after the last step of the last epoch, as a fraction of the peak."""

    @model_validator(mode="after")
    def _falls(self, info: ValidationInfo) -> Self:
        if self.end_factor == 1 and not is_older(info):
            raise ValueError("end_factor: a schedule that ends at 1 does not fall; set a smaller one, or 'constant'")
        return self


class ScheduleSettings(OneOf):
    """Learning rate per step: ``"constant"``, ``"cosine"``, ``"triangular"``, or a table with one of these keys."""

    constant: Annotated[ConstantSettings | None, OrFalse] = None
    """Stays at the peak after the warm-up."""
    cosine: Annotated[DecaySettings | None, OrFalse] = None
    """Falls along half a cosine (Loshchilov & Hutter 2017, eq. 5)."""
    triangular: Annotated[DecaySettings | None, OrFalse] = None
    """Falls linearly after the warm-up."""


class TrainSettings(Settings):
    """How the network is trained.

    The ``train_loss`` of an epoch is the mean over its batches while the weights change, with dropout, augmentation and
    label smoothing but without weight decay; all other losses are computed with the weights after the epoch, without
    any of these.
    """

    epochs: Annotated[int, Field(ge=1, le=1_000_000)]
    """Maximum number of passes over the training images, each in a different order."""
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)]
    """Images per step; the last partial batch of an epoch is dropped, which leaves out different images each time."""
    learning_rate: Annotated[float, Field(gt=0, le=1000)]
    """Peak learning rate, for the gradient of the batch's mean loss."""
    schedule: ScheduleSettings = ScheduleSettings(constant=ConstantSettings())
    """Learning rate per step: ``"constant"``, ``"cosine"``, ``"triangular"``, or a table with one of these keys."""
    optimiser: OptimiserSettings = OptimiserSettings(sgd=SgdSettings())
    """Update rule: ``"sgd"``, ``"adamw"``, or a table with one of these keys."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Coefficient λ of weight decay, ½λw² in the loss of SGD; biases and normalisations are not decayed."""
    lookahead: Annotated[LookaheadSettings | None, OrFalse] = None
    """Lookahead around the optimiser: ``true`` or a table of its settings; ``false`` is none."""
    label_smoothing: Fraction = 0.0
    """Fraction of each label that is spread evenly over all classes, in the training loss only."""
    precision: Literal["float32", "tf32", "float16"] = "float32"
    """Precision of matrix products on a GPU: ``tf32`` rounds their factors to 10 bits of mantissa, ``float16`` also
    computes convolutions in float16, where a value above 65504 ends the training. All else is float32, as on a CPU."""
    select_on: Literal["validation", "test", "last"] = "validation"
    """Split whose accuracy selects the epoch whose weights are kept; ``last`` keeps those of the last epoch."""
    test_time_augmentation: Literal["none", "flip", "flip_translate"] = "none"
    """Average the outputs for an image and its mirror image (``flip``), or also for both shifted by one pixel along a
    diagonal, either way (``flip_translate``)."""
    early_stopping: Annotated[EarlyStoppingSettings | None, OrFalse] = None
    """Stop before the last epoch when the accuracy no longer rises: a table of its settings; ``false`` is never."""
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 60.0
    """Seconds between two checkpoints; no influence on the result."""

    @classmethod
    def explain_moved_key(cls, key: str, table: Mapping[str, Any]) -> str:
        """Return the new spelling of a key that was directly in ``train`` up to format 2; empty for other keys."""
        return older.explain_moved_key(key, table)

    @field_validator("early_stopping", mode="after")
    @classmethod
    def _can_stop(cls, stopping: EarlyStoppingSettings | None, info: ValidationInfo) -> EarlyStoppingSettings | None:
        """Drop a patience that cannot run out: the first epoch may be best, and the last one ends training anyway."""
        # pydantic leaves epochs out of info.data if it was not valid itself.
        return stopping if stopping and stopping.patience <= info.data.get("epochs", math.inf) - 2 else None

    @model_validator(mode="after")
    def _fits_together(self, info: ValidationInfo) -> Self:
        if self.early_stopping and self.select_on == "last":
            raise ValueError("early stopping needs a split to watch; set select_on to 'validation' or 'test'")
        decoupled = self.optimiser.sgd and self.optimiser.sgd.decoupled_weight_decay
        if decoupled and not self.weight_decay and not is_older(info):
            raise ValueError(
                "optimiser.sgd.decoupled_weight_decay: there is no weight_decay; set it, or leave this out"
            )
        return self


class ResourceSettings(Settings):
    """Where the job runs; no part of the run's name."""

    backend: Literal["auto", "numpy", "cuda"] = "auto"
    """``auto`` uses a GPU if there is one; a run keeps the backend of its first attempt."""


def _require_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            "input should begin with a letter, a digit or _, and go on with at most 99 of these, spaces and .+-, "
            f"found {as_typed(name)}"
        )
    return name


class Job(Settings):
    """A complete description of one training."""

    name: Annotated[str, AfterValidator(_require_name)]
    """First part of the run folder's name, before the digest; by default the job file's name without its suffix."""
    dataset: Annotated[str, Field(min_length=1)]
    """Name of a prepared dataset, or the path of its HDF5 file."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of all random numbers of the training: initial weights, order of the images, augmentation, dropout."""
    data: DataSettings = DataSettings()
    """Preprocessing and augmentation of the images, and the validation split."""
    model: Model
    """The network: its blocks and the classifier."""
    train: TrainSettings
    """Length, optimiser and evaluation of the training."""
    resources: ResourceSettings = ResourceSettings()
    """Where the job runs; no part of the run's name."""

    @model_validator(mode="after")
    def _computes_as_asked(self, info: ValidationInfo) -> Self:
        if self.resources.backend == "numpy" and self.train.precision != "float32" and not is_older(info):
            raise ValueError(
                f"train.precision: '{self.train.precision}' is for a GPU, found with resources.backend 'numpy', which "
                "computes in float32; set train.precision to 'float32'"
            )
        if self.train.precision == "float16" and not is_older(info) and not self.model.has_convolutions:
            raise ValueError(
                "train.precision: 'float16' is that of convolutions, found none among model.blocks; set 'tf32'"
            )
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _alternates(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Replace alternating flips by random ones if there is a single epoch: both give the same images."""
        job = handler(values)
        # Settings are frozen: the change is made on copies.
        if job.train.epochs > 1 or not job.data.augment or job.data.augment.flip != "alternating":
            return job
        augment = job.data.augment.model_copy(update={"flip": "random"})
        return job.model_copy(update={"data": job.data.model_copy(update={"augment": augment})})

    @classmethod
    def load(cls, name: str, overrides: Iterable[str] = (), default: DefaultJob | None = None) -> Self:
        """Read a job file, apply the overrides and check the result.

        Args:
            name: the path of a job file; the name of a job in ``./jobs/`` or of one that comes with the package; or a
                run's folder, for the run's own job.
            overrides: one ``key=value`` each, with a dotted key and a value in TOML (or a bare word).
            default: gives the content of the job of a name that is no job's, or None.

        Returns:
            The job, with all defaults filled in.

        Raises:
            JobError: there is no such job, or it is not valid; the message lists all problems.
        """
        try:
            path = find(name)
            content = _read_frozen(path) if path.name == FROZEN else toml.read(path)
        except JobError:
            built_in = default(name) if default else None
            if built_in is None:
                raise
            path, content = Path(name), built_in
        done: dict[tuple[str, ...], str] = {}
        for override in overrides:
            key, value = assignment.parse(override)
            _require_kept(done, key, override)
            _apply(content, key, value, override, done)
            done[key] = override
        content.setdefault("name", path.stem)
        return cls.checked(content, f"{path}{' with what was set' * bool(done)}")

    @classmethod
    def checked(cls, content: Any, where: str, written_as: int = FORMAT) -> Self:
        """Check the content of a job file.

        Args:
            content: the parsed file.
            where: the file's path, for the message.
            written_as: the format that the content was written in; keys of an older one are translated.

        Raises:
            JobError: the job is not valid; the message lists all problems.
        """
        is_of_now = written_as == FORMAT
        content = content if is_of_now or not isinstance(content, dict) else older.translate(content)
        try:
            return cls.model_validate(content, context={"older": not is_of_now})
        except ValidationError as error:
            problems = "\n".join(f"  {line}" for line in problems_of(error, cls, content))
            raise JobError(f"{where}: not a valid job:\n{problems}") from error

    def digest(self, data_digest: str) -> str:
        """Return the SHA-256 of everything that decides the result: the job and the data it reads.

        Args:
            data_digest: :attr:`cnnjob.data.dataset.Dataset.digest` of the job's dataset.

        Returns:
            64 hexadecimal digits, the same on every machine.
        """
        # The backend is left out although it decides the last bits: a run keeps the one that its first attempt chose.
        says = self.model_dump(
            mode="json",
            exclude={"name": True, "dataset": True, "resources": True, "train": {"checkpoint_seconds"}},
            exclude_defaults=True,  # so that adding a key to the schema later renames no run
        )
        return sha256_of(canonical_json({"format": FORMAT, "job": says, "data": data_digest}).encode())


def known() -> dict[str, Path]:
    """Return every job that has a name, with its file; jobs in ``./jobs/`` take precedence over the package's."""
    return named_toml_files("jobs")


def find(name: str) -> Path:
    """Return the file of a job, given its path, its name, or the folder of a run.

    Raises:
        JobError: there is no such job; the message suggests a similar name.
    """
    # exists() and not is_file(): for a pipe or a folder the reader has the better message.
    if (path := Path(name)).suffix == ".toml" and path.exists():
        return path
    if path.name == FROZEN and path.is_file():
        return path
    if (path / FROZEN).is_file():  # before the names: a folder in the working directory may have one
        return path / FROZEN
    if path.suffix or "/" in name:
        raise JobError(f"{name}: no such file; a job is a .toml file, or one of the names that `cnnjob show` lists")
    jobs = known()
    if name in jobs:
        return jobs[name]
    raise JobError(f"{name}: no such job{near(name, jobs)}; the jobs are {', '.join(jobs)}, or give a .toml file")


def _read_frozen(path: Path) -> dict[str, Any]:
    """Read the job of a run's folder; one of an older format is refused."""
    frozen = json_files.read_sealed(path, manifest.Manifest)
    if frozen.get("format") != FORMAT:
        raise JobError(
            f"{path.parent}: another version of cnnjob began this run, and its settings do not mean the same now, so "
            "it is not resumed. Name its job instead of its folder"
        )
    job: dict[str, Any] = frozen["job"]
    return job


def settings_of(table: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every setting of a job with its dotted key.

    Args:
        table: the job, as returned by :meth:`Job.model_dump`.
        above: prefix of the keys, ending in a dot.

    Yields:
        Keys and values; a list is one value. A table of :data:`KINDS` is preceded by its kind, such as
        ``train.optimiser`` and ``"sgd"``.
    """
    for key, value in table.items():
        name = above + key
        if name in KINDS and isinstance(value, dict) and len(value) == 1:
            yield name, next(iter(value))
        if isinstance(value, dict):
            yield from settings_of(value, f"{name}.")
        else:
            yield name, value


def is_of_its_kind(key: str, settings: Mapping[str, Any]) -> bool:
    """Return whether a key belongs to the optimiser or schedule in use; ``sgd.momentum`` does not with AdamW."""
    kinds = (f"{table}.{settings[table]}." for table in KINDS if table in settings and key.startswith(f"{table}."))
    return all(key.startswith(kind) or key == kind[:-1] for kind in kinds)


def _require_kept(done: Mapping[tuple[str, ...], str], key: tuple[str, ...], override: str) -> None:
    """Refuse an assignment that would undo an earlier one, because it replaces the table that the other changed."""
    for before, text in done.items():
        if len(before) > len(key) and before[: len(key)] == key:
            raise JobError(
                f"--set {in_one_line(text)}: {in_one_line(override)} comes after it and sets the whole of "
                f"{assignment.written(key)}; give it behind that, or within its value"
            )
        table, kind, earlier = key[:2], key[2:3], before[2:3]
        if before[:2] == table and ".".join(table) in KINDS and kind and earlier and kind != earlier:
            raise JobError(
                f"--set {in_one_line(text)}: {in_one_line(override)} comes after it and makes "
                f"{assignment.written(table)} another kind; give one of the two"
            )


def _apply(
    content: dict[str, Any], key: tuple[str, ...], value: Any, override: str, done: Mapping[tuple[str, ...], str]
) -> None:
    """Set one key in a job file's content; a key of another optimiser or schedule than the file's also selects that."""
    table: Any = content
    for number, name in enumerate(key[:-1], start=1):
        # A kind that an earlier assignment chose is kept, and a key of another kind is refused.
        is_kind = ".".join(key[:number]) in KINDS and key[:number] not in done
        if is_kind and isinstance(table, dict):
            setting = table.get(name)
            selected = setting if isinstance(setting, dict) else [setting]
            if key[number] not in selected:
                table[name] = key[number]
        table = _child(table, name, key[number], override)
    if (index := _index(table, key[-1])) is not None:
        table[index] = value
    elif isinstance(table, dict):
        table[key[-1]] = value
    else:
        raise _leads_nowhere(override, assignment.written(key))


def _child(table: Any, name: str, following: str, override: str) -> Any:
    """Return the table of a name; a shorthand for one (``true``, or the name of a kind) is expanded first."""
    index: Any = _index(table, name)
    if index is None and not isinstance(table, dict):
        raise _leads_nowhere(override, name)
    if index is None:
        index = name
        table.setdefault(name, {})
    if isinstance(table[index], bool):
        table[index] = {}
    elif table[index] == following:
        table[index] = {following: {}}
    return table[index]


def _index(table: Any, name: str) -> int | None:
    """Return the list index that a name stands for; None if the table is no list or has no such index."""
    found = int(name) if isinstance(table, list) and _COUNT.fullmatch(name) else math.inf
    return int(found) if isinstance(table, list) and found < len(table) else None


def _leads_nowhere(override: str, name: str) -> JobError:
    return JobError(
        f"--set {in_one_line(override)}: '{in_one_line(name)}' leads nowhere; `cnnjob show JOB` prints every key"
    )
