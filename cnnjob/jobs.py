"""What a job file may say: load it, check it, override it, name it.

A job is data. Everything in it but ``resources`` and the checkpoint cadence decides the
result to the last bit and enters :meth:`Job.digest`, which names the run's folder.
"""

import tomllib
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from cnnjob.errors import JobError
from cnnjob.files import canonical_json, sha256_of
from cnnjob.shelves import shelf

LARGEST_SIGMA = 10


def _initialiser(value: Any) -> Any:
    """``"he"`` or a standard deviation; one message for both."""
    if value == "he":
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LARGEST_SIGMA:
        return float(value)
    raise ValueError(f"neither 'he' nor a standard deviation from 0 to {LARGEST_SIGMA}, found {value!r}")


Initialiser = Annotated[Literal["he"] | float, BeforeValidator(_initialiser)]
"""``"he"``, or the standard deviation of a centred normal distribution."""

Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A table of the job file: frozen, and strict about names and types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Conv(Section):
    """A convolution, its bias, activation and max-pooling: one block."""

    conv: Annotated[int, Field(ge=1, le=65536)]
    """Number of filters."""
    kernel: Annotated[int, Field(ge=1, le=64)] = 3
    """Side of the square kernel, in pixels."""
    stride: Annotated[int, Field(ge=1, le=64)] = 1
    """Step of the kernel, in pixels."""
    pad: Annotated[int, Field(ge=0, le=64)] | None = None
    """Zeros around the image, in pixels; the default, kernel // 2, keeps the size of odd kernels."""
    pool: Annotated[int, Field(ge=1, le=64)] = 1
    """Side and step of the max-pooling; 1 is none."""
    activation: Literal["relu", "none"] = "relu"
    """What follows the bias."""
    init: Initialiser = "he"
    """Initial weights."""
    bias_init: Annotated[float, Field(ge=-10, le=10)] = 0.0
    """Initial bias."""
    learning_rate_factor: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """Factor on the learning rate of this block."""

    @model_validator(mode="before")
    @classmethod
    def _resolve_pad(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("pad") is None and isinstance(values.get("kernel", 3), int):
            return {**values, "pad": values.get("kernel", 3) // 2}
        return values


class Dense(Section):
    """A fully connected layer, its bias and activation: one block."""

    dense: Annotated[int, Field(ge=1, le=1_000_000)]
    """Number of units."""
    activation: Literal["relu", "none"] = "relu"
    """What follows the bias."""
    init: Initialiser = "he"
    """Initial weights."""
    bias_init: Annotated[float, Field(ge=-10, le=10)] = 0.0
    """Initial bias."""
    learning_rate_factor: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """Factor on the learning rate of this block."""


class Dropout(Section):
    """Sets a share of the values to zero while training (Srivastava et al. 2014)."""

    dropout: Fraction
    """Probability of setting a value to zero."""


class Classifier(Section):
    """The implied last layer: one unit a class, no activation."""

    init: Initialiser = "he"
    """Initial weights."""
    bias_init: Annotated[float, Field(ge=-10, le=10)] = 0.0
    """Initial bias."""
    learning_rate_factor: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """Factor on the learning rate of this layer."""


_KINDS: dict[str, type[Section]] = {"conv": Conv, "dense": Dense, "dropout": Dropout}


def _kind_of(block: Any) -> str | None:
    """Tell a block's kind by the key that only it has."""
    if isinstance(block, Section):
        return next((kind for kind, section in _KINDS.items() if isinstance(block, section)), None)
    return next((kind for kind in _KINDS if isinstance(block, dict) and kind in block), None)


Block = Annotated[
    Annotated[Conv, Tag("conv")] | Annotated[Dense, Tag("dense")] | Annotated[Dropout, Tag("dropout")],
    Discriminator(_kind_of, custom_error_type="kind", custom_error_message="no such block"),
]


class Model(Section):
    """The network: its blocks in order; the classifier layer is implied."""

    blocks: Annotated[tuple[Block, ...], Field(strict=False)] = ()
    """From the image on."""
    classifier: Classifier = Classifier()
    """How the last layer starts and learns."""


class Data(Section):
    """What the network sees of the dataset."""

    pixels: Literal["standardised", "unit"] = "standardised"
    """``unit`` divides by 255; ``standardised`` then takes the training images' mean and
    standard deviation of each channel away."""
    validation_fraction: Fraction = 0.1
    """Share of the training images held out, unless the dataset has a validation split of its own."""


class EarlyStopping(Section):
    """Stop when the selected split's accuracy has not risen for a while."""

    patience: Annotated[int, Field(ge=1)]
    """Epochs without a new best before stopping."""


def _unless_false(value: Any) -> Any:
    """TOML has no null, so false says that there is none."""
    return None if value is False else value


class Train(Section):
    """The training."""

    epochs: Annotated[int, Field(ge=1, le=1_000_000)]
    """At most so many passes over the training images."""
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)]
    """Images a step; the last partial batch of an epoch is dropped."""
    learning_rate: Annotated[float, Field(gt=0, le=1000)]
    """Of the first step."""
    schedule: Literal["constant", "cosine"] = "constant"
    """``cosine`` falls to zero at the last epoch's end (Loshchilov & Hutter 2017, eq. 5)."""
    momentum: Fraction = 0.9
    """Of stochastic gradient descent; 0 is none."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Coefficient of the L2 penalty on weights (biases are not decayed)."""
    precision: Literal["float32", "tf32"] = "float32"
    """Of a GPU's matrix products: ``tf32`` rounds their factors to 10 bits of mantissa, for the tensor cores.
    NumPy computes in float32 for both."""
    select_on: Literal["validation", "test", "last"] = "validation"
    """The split whose accuracy chooses the epoch whose weights are kept; ``last`` keeps the last."""
    early_stopping: Annotated[EarlyStopping | None, BeforeValidator(_unless_false)] = None
    """When to stop before the last epoch; ``false`` is never."""
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 60.0
    """Time between two checkpoints; it has no influence on the result."""

    @model_validator(mode="after")
    def _has_something_to_stop_on(self) -> Self:
        if self.early_stopping and self.select_on == "last":
            raise ValueError("early stopping needs a split to watch; set select_on to 'validation' or 'test'")
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
        return cls.checked(content, str(path))

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
        )
        return sha256_of(canonical_json({"format": 1, "job": says, "data": data_digest}).encode())


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
    raise JobError(f"{name}: no such job{_near(name, jobs)}; the jobs are {', '.join(jobs)}, or give a .toml file")


def _near(name: str, names: Iterable[str]) -> str:
    """Suggest the name that was probably meant."""
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    return f", did you mean '{close[0]}'?" if close else ""


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
        table[int(last)] = _value(text)
    elif isinstance(table, dict):
        table[last] = _value(text)
    else:
        raise JobError(f"--set {override}: '{key}' leads nowhere; `cnnjob show JOB` prints every key")


def _child(table: Any, name: str, override: str) -> Any:
    if isinstance(table, list) and name.isdecimal() and int(name) < len(table):
        return table[int(name)]
    if isinstance(table, dict):
        return table.setdefault(name, {})
    raise JobError(f"--set {override}: '{name}' leads nowhere; `cnnjob show JOB` prints every key")


def _value(text: str) -> Any:
    """A value as TOML writes it; anything else is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def problems_of(error: ValidationError, root: type[BaseModel]) -> Iterator[str]:
    """One line a problem of a table of the given kind: its dotted name, what is wrong, what was found."""
    for problem in error.errors():
        place = [part for part in problem["loc"] if part not in _KINDS or part == problem["loc"][-1]]
        where = ".".join(str(part) for part in place)
        yield f"{where}: {_explain(problem, root)}" if where else _explain(problem, root)


def _explain(problem: Any, root: type[BaseModel]) -> str:
    kind, loc = problem["type"], problem["loc"]
    if kind == "extra_forbidden":
        return f"no such key{_near(str(loc[-1]), _keys_at(loc[:-1], root))}"
    if kind == "missing":
        return "missing"
    if kind == "kind":
        keys = problem["input"] if isinstance(problem["input"], dict) else {}
        near = next((near for key in keys if (near := _near(key, _KINDS))), "")
        return f"no such block{near}; a block has one of the keys {', '.join(_KINDS)}"
    if kind == "value_error":
        return str(problem["ctx"]["error"])
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{message}, found {problem['input']!r}"


def _keys_at(loc: tuple[int | str, ...], root: type[BaseModel]) -> Iterable[str]:
    """The keys that the table at a place may have."""
    section = root
    for part in loc:
        if part in _KINDS:
            section = _KINDS[str(part)]
        elif isinstance(part, str) and part != "blocks":
            section = _SECTIONS[part]
    return section.model_fields


_SECTIONS: dict[str, type[Section]] = {
    "data": Data,
    "model": Model,
    "classifier": Classifier,
    "train": Train,
    "early_stopping": EarlyStopping,
    "resources": Resources,
}
