"""What a job file may say: load it, check it, override it, name it.

A job is data. Everything in it but ``resources`` and the checkpoint cadence decides the
result to the last bit and enters :meth:`Job.digest`, which names the run's folder.

Two spellings of one training are one job, as far as the job alone tells. A key that cannot act where it stands is
refused, with what to write instead. What only happens not to act beside another value is left out when the job is
read, so that such values can be swept over: an early stopping that so few epochs never reach, an augmentation whose
settings are all off, a dropout of 0 that no other dropout follows, the order of what a convolution does not have, flips
that alternate over one epoch. What cannot act on a dataset is refused with it (:mod:`cnnjob.training.idle_settings`).
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
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
"""Of what a digest is taken of, and of a run's ``job.json``; to be raised when a default or a meaning changes.

An unfinished run of an older format is not resumed; :mod:`cnnjob.jobs.older` reads its job."""
_NAME = re.compile(r"\w[\w .+-]{0,99}")
_COUNT = re.compile(r"[0-9]{1,6}")
FROZEN = "job.json"
"""Where a run's folder holds its job."""
KINDS = ("train.optimiser", "train.schedule")
"""Tables with exactly one of their keys; as a setting, each has its key as its value."""


class AugmentSettings(Settings):
    """How training images are changed anew in each epoch; moved images are mirrored at their edges."""

    flip: Literal["none", "random", "alternating"] = "none"
    """Mirroring left to right: ``random`` draws it for each image and epoch, ``alternating`` is every other epoch; over
    one epoch they are the same."""
    translate: Annotated[int, Field(ge=0, le=64)] = 0
    """Pixels by which an image is moved at most, along each axis, uniformly drawn."""


class DataSettings(Settings):
    """What the network sees of the dataset."""

    pixels: Literal["standardised", "unit"] = "standardised"
    """``unit`` divides by 255; ``standardised`` then subtracts the training images' mean and divides by their standard
    deviation, per channel."""
    validation_fraction: Fraction = 0.1
    """Share of each class's training images that is held out for validation, the same for every seed; only of a dataset
    without a validation split of its own."""
    augment: Annotated[AugmentSettings | None, OrFalse] = None
    """How training images are changed anew in each epoch: a table of its settings; ``false`` is none."""

    @field_validator("augment", mode="after")
    @classmethod
    def _changes_something(cls, augment: AugmentSettings | None, info: ValidationInfo) -> AugmentSettings | None:
        if augment is None or augment != AugmentSettings():
            return augment
        if not augment.model_fields_set and not is_older(info):
            raise ValueError("it changes nothing; name what it changes, as { flip = 'random' }, or leave it out")
        return None


class EarlyStoppingSettings(Settings):
    """Stop when the selected split's accuracy has not risen for a while."""

    patience: Annotated[int, Field(ge=1)]
    """Epochs without a higher accuracy on the split of ``select_on`` after which the training stops."""


class LookaheadSettings(Settings):
    """A slow copy of the weights, which the fast ones go back to (Zhang et al. 2019)."""

    every: Annotated[int, Field(ge=1)] = 5
    """Steps between two times; after the last step it acts as well, by the steps since. At most the steps of the
    training."""
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """The slow weights' share is decay^n · (step / steps)^power, with n steps since the time before."""
    power: Annotated[float, Field(ge=0, le=10)] = 3.0
    """Exponent of step / steps in the slow weights' share."""


class SgdSettings(Settings):
    """Stochastic gradient descent (Sutskever et al. 2013, in torch's form)."""

    momentum: Fraction = 0.9
    """Share of the last step's velocity in the next; 0 is none."""
    nesterov: bool = False
    """Whether the momentum is Nesterov's; it needs one."""
    decoupled_weight_decay: bool = False
    """Whether weights shrink by learning_rate · weight_decay beside the gradient's step, as AdamW's always do."""

    @model_validator(mode="after")
    def _has_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: it is a form of momentum, found a momentum of 0; set one of the two")
        return self


class AdamWSettings(Settings):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    beta1: Fraction = 0.9
    """Share of the last mean of gradients in the next."""
    beta2: Fraction = 0.999
    """Share of the last mean of squared gradients in the next."""
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Added to the root of the mean of squared gradients."""


class OptimiserSettings(OneOf):
    """How a step changes the weights: ``"sgd"``, ``"adamw"``, or a table with one of these keys."""

    sgd: Annotated[SgdSettings | None, OrFalse] = None
    """Stochastic gradient descent."""
    adamw: Annotated[AdamWSettings | None, OrFalse] = None
    """Adam with decoupled weight decay."""


class ConstantSettings(Settings):
    """The highest learning rate to the end."""

    warmup: Fraction = 0.0
    """Share of all steps (not epochs) over which the learning rate first rises in a straight line to the highest."""
    start_factor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the highest learning rate at which the warm-up starts, in the first step."""

    @model_validator(mode="after")
    def _starts_below(self, info: ValidationInfo) -> Self:
        if is_older(info):
            return self
        if self.start_factor and not self.warmup:
            raise ValueError(
                f"start_factor: it is where a warm-up starts, found {self.start_factor:g} without one; set warmup, or "
                "leave it out"
            )
        if self.start_factor == 1 and type(self) is ConstantSettings:
            raise ValueError("start_factor: a warm-up from 1 changes nothing; set a smaller one, or leave out both")
        return self


class DecaySettings(ConstantSettings):
    """A learning rate that falls from the highest, by step, to its end after the last step."""

    end_factor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the highest learning rate that is reached one step after the last step of the last epoch."""

    @model_validator(mode="after")
    def _falls(self, info: ValidationInfo) -> Self:
        if self.end_factor == 1 and not is_older(info):
            raise ValueError("end_factor: a schedule that ends at 1 does not fall; set a smaller one, or 'constant'")
        return self


class ScheduleSettings(OneOf):
    """How the learning rate goes, by step: ``"constant"``, ``"cosine"``, ``"triangular"``, or a table with one."""

    constant: Annotated[ConstantSettings | None, OrFalse] = None
    """It stays at the highest after the warm-up."""
    cosine: Annotated[DecaySettings | None, OrFalse] = None
    """It falls as half a cosine (Loshchilov & Hutter 2017, eq. 5)."""
    triangular: Annotated[DecaySettings | None, OrFalse] = None
    """It falls in a straight line."""


class TrainSettings(Settings):
    """How the network is trained.

    The ``train_loss`` of an epoch is the mean over its batches while the weights change, with dropout, augmentation and
    label smoothing, without weight decay; other losses are of the weights after the epoch, without these.
    """

    epochs: Annotated[int, Field(ge=1, le=1_000_000)]
    """Passes over the training images, at most; each in another order."""
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)]
    """Images per step; the last partial batch of an epoch is dropped, other images in each epoch."""
    learning_rate: Annotated[float, Field(gt=0, le=1000)]
    """The highest learning rate, per step, of the batch's mean loss."""
    schedule: ScheduleSettings = ScheduleSettings(constant=ConstantSettings())
    """How the learning rate goes, by step: ``"constant"``, ``"cosine"``, ``"triangular"``, or a table with one."""
    optimiser: OptimiserSettings = OptimiserSettings(sgd=SgdSettings())
    """How a step changes the weights: ``"sgd"``, ``"adamw"``, or a table with one of these keys."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Factor λ of the decay of weights, ½λw² in the loss of SGD; biases and normalisations are not decayed."""
    lookahead: Annotated[LookaheadSettings | None, OrFalse] = None
    """A slow copy of the weights: ``true`` or a table of its settings; ``false`` is none."""
    label_smoothing: Fraction = 0.0
    """Share of each label that is spread evenly over all classes, in the training's loss alone."""
    precision: Literal["float32", "tf32", "float16"] = "float32"
    """Precision of a GPU's matrix products: ``tf32`` rounds their factors to 10 bits of mantissa, ``float16`` also
    computes convolutions in float16, where a number above 65504 ends the training; all else is float32, as on a CPU."""
    select_on: Literal["validation", "test", "last"] = "validation"
    """The split whose accuracy chooses the epoch whose weights are kept; ``last`` keeps the last."""
    test_time_augmentation: Literal["none", "flip", "flip_translate"] = "none"
    """Evaluate the mean output of an image and its mirror image, or also of both moved one pixel up and down a
    diagonal."""
    early_stopping: Annotated[EarlyStoppingSettings | None, OrFalse] = None
    """Stop before the last epoch, when the accuracy no longer rises: a table of its settings; ``false`` is never."""
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 60.0
    """Seconds between two checkpoints, which have no influence on the result."""

    @classmethod
    def place_now(cls, key: str, table: Mapping[str, Any]) -> str:
        """Return where a key stands now that lay flat up to format 2."""
        return older.place_now(key, table)

    @field_validator("early_stopping", mode="after")
    @classmethod
    def _can_stop(cls, stopping: EarlyStoppingSettings | None, info: ValidationInfo) -> EarlyStoppingSettings | None:
        """Leave out what so few epochs never reach: the first may be the best, and the last ends by itself."""
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
    """Where and with what the job runs; none of it has an influence on its name."""

    backend: Literal["auto", "numpy", "cuda"] = "auto"
    """``auto`` takes a GPU where there is one; a run keeps the backend of its first start."""


def _require_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            "input should begin with a letter, a digit or _, and go on with at most 99 of these, spaces and .+-, "
            f"found {as_typed(name)}"
        )
    return name


class Job(Settings):
    """One training, wholly described."""

    name: Annotated[str, AfterValidator(_require_name)]
    """Names the run's folder, with a digest; the stem of the job file's name by default."""
    dataset: Annotated[str, Field(min_length=1)]
    """A prepared dataset's name, or the path of its HDF5 file."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of every random number of the training: initial weights, order, augmentation, dropout."""
    data: DataSettings = DataSettings()
    """What the network sees of the dataset."""
    model: Model
    """The network."""
    train: TrainSettings
    """The training."""
    resources: ResourceSettings = ResourceSettings()
    """Where the job runs."""

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
        """Take flips that alternate between epochs for random ones where there is one epoch: they are the same."""
        job = handler(values)
        if job.train.epochs > 1 or not job.data.augment or job.data.augment.flip != "alternating":
            return job
        augment = job.data.augment.model_copy(update={"flip": "random"})
        return job.model_copy(update={"data": job.data.model_copy(update={"augment": augment})})

    @classmethod
    def load(cls, name: str, overrides: Iterable[str] = ()) -> Self:
        """Read a job file and check all of it.

        Args:
            name: a path, or the name of a job in ``jobs/`` here or of those that come with the package; or the folder
                of a run, whose job it is then.
            overrides: ``key=value`` each, the key dotted, the value as in TOML (or a bare word).

        Returns:
            The job, every default filled in.

        Raises:
            JobError: there is no such job, or it is not valid; every problem is named at once.
        """
        path = find(name)
        content = _read_frozen(path) if path.name == FROZEN else toml.read(path)
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
        """Check a job's content, as read from a file.

        Args:
            content: the file's.
            where: the file, for the message.
            written_as: the format it was written in; a key of an older one is read as what it means now.

        Raises:
            JobError: it is not valid; every problem is named at once.
        """
        is_of_now = written_as == FORMAT
        content = content if is_of_now or not isinstance(content, dict) else older.translate(content)
        try:
            return cls.model_validate(content, context={"older": not is_of_now})
        except ValidationError as error:
            problems = "\n".join(f"  {line}" for line in problems_of(error, cls, content))
            raise JobError(f"{where}: not a valid job:\n{problems}") from error

    def digest(self, data_digest: str) -> str:
        """SHA-256 of all that decides the result: the job and the data it reads.

        Args:
            data_digest: :attr:`cnnjob.data.dataset.Dataset.digest` of its dataset.

        Returns:
            64 hexadecimal digits, the same on every machine.
        """
        says = self.model_dump(
            mode="json",
            exclude={"name": True, "dataset": True, "resources": True, "train": {"checkpoint_seconds"}},
            exclude_defaults=True,  # so that a key which is added later renames no run
        )
        return sha256_of(canonical_json({"format": FORMAT, "job": says, "data": data_digest}).encode())


def known() -> dict[str, Path]:
    """Every job that can be named, with its file: those in ``jobs/`` here, over those of the package."""
    return named_toml_files("jobs")


def find(name: str) -> Path:
    """The file of a job, given its path, its name, or the folder of a run.

    Raises:
        JobError: there is none; near names are said.
    """
    if (path := Path(name)).suffix == ".toml" and path.exists():
        return path
    if (path / FROZEN).is_file():
        return path / FROZEN
    if path.suffix or "/" in name:
        raise JobError(f"{name}: no such file; a job is a .toml file, or one of the names that `cnnjob show` lists")
    jobs = known()
    if name in jobs:
        return jobs[name]
    raise JobError(f"{name}: no such job{near(name, jobs)}; the jobs are {', '.join(jobs)}, or give a .toml file")


def _read_frozen(path: Path) -> dict[str, Any]:
    """Read the job of a run folder."""
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
        table: the job, as :meth:`Job.model_dump` gives it.
        above: what stands before the keys.

    Yields:
        Keys and values; a list is one value. Of ``KINDS`` the kind first, as ``train.optimiser`` and ``"sgd"``.
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
    """Return whether a dotted key is one of the kind that some settings have, as ``sgd.momentum`` is not of AdamW."""
    kinds = (f"{table}.{settings[table]}." for table in KINDS if table in settings and key.startswith(f"{table}."))
    return all(key.startswith(kind) or key == kind[:-1] for kind in kinds)


def _require_kept(done: Mapping[tuple[str, ...], str], key: tuple[str, ...], override: str) -> None:
    """Refuse an assignment that would undo one before it, of which it sets the whole table."""
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
    """Set one key in the content of a job file; a key of another optimiser or schedule than the file's chooses that."""
    table: Any = content
    for number, name in enumerate(key[:-1], start=1):
        is_kind = ".".join(key[:number]) in KINDS and key[:number] not in done
        if is_kind and isinstance(table, dict) and not _is_of_kind(table.get(name), key[number]):
            table[name] = key[number]
        table = _child(table, name, key[number], override)
    if (index := _index(table, key[-1])) is not None:
        table[index] = value
    elif isinstance(table, dict):
        table[key[-1]] = value
    else:
        raise _leads_nowhere(override, assignment.written(key))


def _child(table: Any, name: str, following: str, override: str) -> Any:
    """Return the table of a name; one that is said in short, as ``true`` or by its kind's name, is written out."""
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


def _is_of_kind(setting: Any, name: str) -> bool:
    """Return whether an optimiser or schedule is of this kind."""
    return setting == name or (isinstance(setting, dict) and name in setting)


def _index(table: Any, name: str) -> int | None:
    """Return the place that a name counts in a list; None where it is none."""
    found = int(name) if isinstance(table, list) and _COUNT.fullmatch(name) else math.inf
    return int(found) if isinstance(table, list) and found < len(table) else None


def _leads_nowhere(override: str, name: str) -> JobError:
    return JobError(
        f"--set {in_one_line(override)}: '{in_one_line(name)}' leads nowhere; `cnnjob show JOB` prints every key"
    )
