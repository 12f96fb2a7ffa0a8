"""What is asked of SLURM: sbatch's own option names, a profile's values under those of the command line."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from cnnjob.errors import JobError
from cnnjob.jobs import Section, problems_of

MINUTES = {"m": 1, "h": 60, "d": 1440}
_CLOCK = re.compile(r"(?:(?P<days>\d+)-)?(?P<numbers>\d+(?::\d+){0,2})")
_MEMORY = re.compile(r"\d+[KMGT]?B?", re.IGNORECASE)


class Request(Section):
    """One job's resources. Names are sbatch's; what is None is left to the site."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | None = None
    """In SLURM's forms (``90``, ``1:30:00``, ``1-12``) or as ``90m``, ``2h``, ``1d12h``."""
    cpus_per_task: Annotated[int, Field(ge=1)] = 2
    """Cores, all used."""
    mem: str | None = None
    """Of the node, as ``4G``; a number alone is MB."""
    mem_per_cpu: str | None = None
    mem_per_gpu: str | None = None
    gpus: Annotated[int, Field(ge=0)] | None = None
    """GPUs; one unless the backend is NumPy."""
    gpu_request: Literal["gpus-per-node", "gres", "gpus"] = "gpus-per-node"
    """How this site wants GPUs asked for."""
    gpu_type: str | None = None
    constraint: str | None = None
    nodelist: str | None = None
    exclude: str | None = None
    dependency: str | None = None
    requeue: bool | None = None
    signal_seconds: Annotated[int, Field(ge=1, le=65535)] = 90
    """How long before the time limit SLURM says so."""
    setup: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Shell lines before the job, as ``module load cuda``; one that fails ends the job."""
    backend: Literal["auto", "numpy", "cuda"] | None = None
    """Overrides the job's."""
    sbatch: dict[str, str | int | bool] = Field(default_factory=dict)
    """Any other option of sbatch, by its long name."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """Find contradictions before sbatch does.

        Raises:
            ValueError: two options exclude each other, or one cannot be read.
        """
        memory = [name for name in ("mem", "mem_per_cpu", "mem_per_gpu") if getattr(self, name) is not None]
        if len(memory) > 1:
            raise ValueError(f"{' and '.join(memory)} exclude each other; keep one")
        for name in memory:
            if not _MEMORY.fullmatch(getattr(self, name)):
                raise ValueError(f"{name}: {getattr(self, name)!r} is no memory; write 4G or 500M")
        if self.time is not None:
            minutes(self.time)
        return self

    @property
    def time_minutes(self) -> int | None:
        """The time limit, or None for the site's."""
        return None if self.time is None else minutes(self.time)

    def sentence(self) -> str:
        """The request for people: ``1 node, 1 task, 1 GPU, 4 cores, 16 G, 2 h 0 min on gpu``."""
        time = "the site's time limit" if self.time_minutes is None else duration(self.time_minutes)
        memory = self.mem or (self.mem_per_cpu and f"{self.mem_per_cpu} a core") or self.mem_per_gpu or "default memory"
        graphics = (
            []
            if not self.gpus
            else [f"{self.gpus} {self.gpu_type or ''} GPU{'s' * (self.gpus > 1)}".replace("  ", " ")]
        )
        cores = f"{self.cpus_per_task} core{'s' * (self.cpus_per_task > 1)}"
        parts = ["1 node", "1 task", *graphics, cores, re.sub(r"(\d)([A-Za-z])", r"\1 \2", memory), time]
        return f"{', '.join(parts)} on {self.partition or 'the default partition'}"

    def parameters(self) -> dict[str, Any]:
        """The same for :class:`submitit.SlurmExecutor`."""
        direct = (
            "partition",
            "account",
            "qos",
            "mem",
            "mem_per_cpu",
            "mem_per_gpu",
            "constraint",
            "nodelist",
            "exclude",
        )
        found = {name: getattr(self, name) for name in (*direct, "dependency") if getattr(self, name) is not None}
        extra: dict[str, Any] = dict(self.sbatch)
        if self.requeue is not None:
            extra["requeue" if self.requeue else "no-requeue"] = True
        if self.gpus:
            wanted = f"{self.gpu_type}:{self.gpus}" if self.gpu_type else str(self.gpus)
            extra[self.gpu_request] = f"gpu:{wanted}" if self.gpu_request == "gres" else wanted
        return {
            **found,
            "time": self.time_minutes,
            "cpus_per_task": self.cpus_per_task,
            "signal_delay_s": self.signal_seconds,
            "additional_parameters": extra,
        }


def minutes(text: str) -> int:
    """A time limit in minutes, rounded up.

    Args:
        text: SLURM's ``M``, ``M:S``, ``H:M:S``, ``D-H``, ``D-H:M``, ``D-H:M:S``, or as ``90m``, ``2h``, ``1d12h``.

    Returns:
        At least 1.

    Raises:
        ValueError: it is none of these, or zero.
    """
    units = re.fullmatch(r"(?:\d+[dhm])+", text)
    clock = _CLOCK.fullmatch(text)
    if units:
        total = 60 * sum(int(number) * MINUTES[unit] for number, unit in re.findall(r"(\d+)([dhm])", text))
    elif clock:
        total = _clock_seconds(clock)
    else:
        raise ValueError(f"time: {text!r} is no time; write 90m, 2h, 1d12h, or SLURM's M, H:M:S, D-H")
    if total == 0:
        raise ValueError(f"time: {text!r} is no time at all")
    return -(-total // 60)


def _clock_seconds(clock: re.Match[str]) -> int:
    numbers = [int(number) for number in clock["numbers"].split(":")]
    if clock["days"] is not None:
        hours, mins, seconds = (*numbers, 0, 0)[:3]
        return ((int(clock["days"]) * 24 + hours) * 60 + mins) * 60 + seconds
    if len(numbers) == 3:  # noqa: PLR2004 - H:M:S
        return (numbers[0] * 60 + numbers[1]) * 60 + numbers[2]
    return numbers[0] * 60 + (numbers[1] if numbers[1:] else 0)


def duration(total: int) -> str:
    """Minutes for people: ``2 h 0 min``, ``1 d 12 h 0 min``."""
    days, rest = divmod(total, MINUTES["d"])
    hours, left = divmod(rest, 60)
    return " ".join([*[f"{days} d"] * (days > 0), *[f"{hours} h"] * (days > 0 or hours > 0), f"{left} min"])


def profiles() -> dict[str, Path]:
    """The profiles that can be named, with their files: ``slurm/`` here, then those of the package."""
    package = Path(__file__).parent.parent
    found: dict[str, Path] = {}
    for folder in (Path("slurm"), package / "share" / "slurm", package.parent / "slurm"):
        for path in sorted(folder.glob("*.toml")):
            found.setdefault(path.stem, path)
    return found


def load(profile: str | None, options: Mapping[str, Any], extra: Iterable[str] = ()) -> Request:
    """Build a request: built-in values, under a profile's, under the command line's.

    Args:
        profile: a name or a path; None for built-in values only.
        options: of the command line; None is not given.
        extra: ``KEY=VALUE`` each, any other option of sbatch.

    Returns:
        The request.

    Raises:
        JobError: the profile is missing or not valid, or options contradict each other.
    """
    content = {} if profile is None else _read(profile)
    content |= {key: value for key, value in options.items() if value is not None}
    content["sbatch"] = {**content.get("sbatch", {}), **dict(map(_pair, extra))}
    try:
        return Request.model_validate(content)
    except ValidationError as error:
        where = f"profile {profile}" if profile else "submit"
        lines = "\n".join(f"  {line}" for line in problems_of(error, Request))
        raise JobError(f"{where}: not a valid request:\n{lines}") from error


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise JobError(f"--sbatch {text}: not of the form KEY=VALUE; for example --sbatch reservation=course")
    return key.lstrip("-"), value


def _read(name: str) -> dict[str, Any]:
    known = profiles()
    path = Path(name) if name.endswith(".toml") else known.get(name)
    if path is None or not path.is_file():
        near = get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known) or 'none'}"
        raise JobError(f"--profile {name}: no such profile; {hint}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise JobError(f"{path}: not readable as TOML, {error}") from error
