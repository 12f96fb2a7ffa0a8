"""What a job file may say: load it, check it, override it, name it.

A job is data. Everything in it but ``resources`` and the checkpoint cadence decides the
result to the last bit and enters :meth:`Job.digest`, which names the run's folder.
"""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from cnnjob.errors import JobError
from cnnjob.files import canonical_json, sha256_of
from cnnjob.models import Model
from cnnjob.sections import Fraction, OrFalse, Section, near, problems_of
from cnnjob.shelves import shelf

FORMAT = 2
"""Of what a digest is taken of; to be raised when a default or a meaning changes."""


class Augment(Section):
    """How training images are changed anew in each epoch; what comes in at an edge is mirrored at it."""

    flip: Literal["none", "random", "alternating"] = "none"
    """Left to right: by chance, or every other epoch, which of them by chance."""
    translate: Annotated[int, Field(ge=0, le=64)] = 0
    """Moved by so many pixels at most, down or up and right or left."""


class Data(Section):
    """What the network sees of the dataset."""

    pixels: Literal["standardised", "unit"] = "standardised"
    """``unit`` divides by 255; ``standardised`` then takes the training images' mean and
    standard deviation of each channel away."""
    validation_fraction: Fraction = 0.1
    """Share of the training images held out, unless the dataset has a validation split of its own."""
    augment: Annotated[Augment | None, OrFalse] = None
    """A table of its settings; none by default."""


class EarlyStopping(Section):
    """Stop when the selected split's accuracy has not risen for a while."""

    patience: Annotated[int, Field(ge=1)]
    """Epochs without a new best before stopping."""


class Lookahead(Section):
    """A slow copy of the weights, which the fast ones go back to (Zhang et al. 2019)."""

    every: Annotated[int, Field(ge=1)] = 5
    """Steps between two times; after the last step it acts as well, by the steps since. At most the steps of the
    training."""
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """The slow weights' share is decay^every · (step / steps)^power."""
    power: Annotated[float, Field(ge=0, le=10)] = 3.0
    """See ``decay``."""


class Train(Section):
    """The training."""

    epochs: Annotated[int, Field(ge=1, le=1_000_000)]
    """At most so many passes over the training images."""
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)]
    """Images a step; the last partial batch of an epoch is dropped."""
    learning_rate: Annotated[float, Field(gt=0, le=1000)]
    """The highest; of the first step where there is no warm-up."""
    schedule: Literal["constant", "cosine", "triangular"] = "constant"
    """From the highest on: ``cosine`` (Loshchilov & Hutter 2017, eq. 5) and ``triangular``, a straight line, fall to
    ``end_factor`` at the last epoch's end."""
    warmup: Fraction = 0.0
    """Share of all steps over which the learning rate first rises in a straight line."""
    start_factor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Of the highest learning rate, where the warm-up starts."""
    end_factor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Of the highest learning rate, where the schedule ends."""
    optimiser: Literal["sgd", "adamw"] = "sgd"
    """Stochastic gradient descent, or Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""
    momentum: Fraction = 0.9
    """Of stochastic gradient descent, 0 is none; β₁ of AdamW."""
    nesterov: bool = False
    """Whether the momentum is Nesterov's."""
    beta2: Fraction = 0.999
    """β₂ of AdamW."""
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Of AdamW."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Coefficient of the L2 penalty on weights (biases and normalisations are not decayed)."""
    decoupled_weight_decay: bool = False
    """Whether weights shrink by learning_rate · weight_decay beside the gradient's step; AdamW's always do."""
    lookahead: Annotated[Lookahead | None, OrFalse] = None
    """``true`` or a table of its settings."""
    label_smoothing: Fraction = 0.0
    """Share of each label that is spread over all classes (Szegedy et al. 2016)."""
    precision: Literal["float32", "tf32", "float16"] = "float32"
    """Of a GPU's matrix products: ``tf32`` rounds their factors to 10 bits of mantissa, for the tensor cores;
    ``float16`` has those of convolutions in float16 too, in half the memory, and a number above 65504 ends the
    training. Weights, sums and all else are float32. NumPy computes in float32 whatever it says."""
    select_on: Literal["validation", "test", "last"] = "validation"
    """The split whose accuracy chooses the epoch whose weights are kept; ``last`` keeps the last."""
    test_time_augmentation: Literal["none", "flip", "flip_translate"] = "none"
    """Whether an evaluation takes the mean of the outputs for an image and its mirror image, or those and both moved
    by a pixel up and down a diagonal."""
    early_stopping: Annotated[EarlyStopping | None, OrFalse] = None
    """When to stop before the last epoch; ``false`` is never."""
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 60.0
    """Time between two checkpoints; it has no influence on the result."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.early_stopping and self.select_on == "last":
            raise ValueError("early stopping needs a split to watch; set select_on to 'validation' or 'test'")
        if self.optimiser == "adamw" and self.nesterov:
            raise ValueError("nesterov: AdamW has no such form; set optimiser to 'sgd'")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: it is a form of momentum, found a momentum of 0; set one of the two")
        return self


class Resources(Section):
    """Where and with what the job runs; none of it has an influence on its name."""

    backend: Literal["auto", "numpy", "cuda"] = "auto"
    """``auto`` takes a GPU where there is one."""


class Job(Section):
    """One training, wholly described."""

    name: Annotated[str, Field(pattern=r"^\w[\w .+-]{0,99}$")]
    """The stem of the job file's name; it names the run's folder."""
    dataset: Annotated[str, Field(min_length=1)]
    """A prepared dataset's name, or the path of its HDF5 file."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Every random number is a function of it, its purpose and its place."""
    data: Data = Data()
    model: Model
    train: Train
    resources: Resources = Resources()

    @classmethod
    def load(cls, name: str, overrides: Iterable[str] = ()) -> Self:
        """Read a job file and check all of it.

        Args:
            name: a path, or the name of a job in ``jobs/`` here or of those that come with the package.
            overrides: ``key=value`` each, the key dotted, the value as in TOML (or a bare word).

        Returns:
            The job, every default filled in.

        Raises:
            JobError: there is no such job, or it is not valid; every problem is named at once.
        """
        path = find(name)
        content = _read_toml(path)
        for override in overrides:
            _apply(content, override)
        content.setdefault("name", path.stem)
        return cls.checked(content, f"{path}{' with what was set' * bool(overrides)}")

    @classmethod
    def checked(cls, content: Any, where: str) -> Self:
        """Check a job's content, as read from a file.

        Raises:
            JobError: it is not valid; every problem is named at once.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            problems = "\n".join(f"  {line}" for line in problems_of(error, cls))
            raise JobError(f"{where}: not a valid job:\n{problems}") from error

    def digest(self, data_digest: str) -> str:
        """SHA-256 of all that decides the result: the job and the data it reads.

        Args:
            data_digest: :attr:`cnnjob.datasets.Dataset.digest` of its dataset.

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
    return shelf("jobs")


def find(name: str) -> Path:
    """The file of a job, given its path or its name.

    Raises:
        JobError: there is none; near names are said.
    """
    if (path := Path(name)).suffix == ".toml" and path.is_file():
        return path
    if path.suffix or "/" in name:
        raise JobError(f"{name}: no such file; a job is a .toml file, or one of the names that `cnnjob show` lists")
    jobs = known()
    if name in jobs:
        return jobs[name]
    raise JobError(f"{name}: no such job{near(name, jobs)}; the jobs are {', '.join(jobs)}, or give a .toml file")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:  # a number of 5,000 digits, tables a thousand deep
        raise JobError(f"{path}: not readable as TOML, {error}") from error


def _apply(content: dict[str, Any], override: str) -> None:
    """Set one ``key=value`` in the content of a job file."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise JobError(f"--set {override}: not of the form key=value; for example --set train.epochs=3")
    *parents, last = key.split(".")
    table: Any = content
    for parent in parents:
        table = _child(table, parent, override)
    if isinstance(table, list) and last.isdecimal() and int(last) < len(table):
        table[int(last)] = _value(text, override)
    elif isinstance(table, dict):
        table[last] = _value(text, override)
    else:
        raise JobError(f"--set {override}: '{key}' leads nowhere; `cnnjob show JOB` prints every key")


def _child(table: Any, name: str, override: str) -> Any:
    if isinstance(table, list) and name.isdecimal() and int(name) < len(table):
        return table[int(name)]
    if isinstance(table, dict):
        return table.setdefault(name, {})
    raise JobError(f"--set {override}: '{name}' leads nowhere; `cnnjob show JOB` prints every key")


def _value(text: str, override: str) -> Any:
    """A value as TOML writes it; anything else is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError) as error:
        if text.startswith(("[", "{")):
            raise JobError(f"--set {override}: not readable as TOML, {error}; quote it, close its brackets") from error
        return text
