"""Requests: the resources of a SLURM job under sbatch's own option names, checked before sbatch is called."""

import re
from typing import Annotated, Any, Literal, Self
from unicodedata import category

from pydantic import Field, model_validator

from cnnjob.errors import format_seconds, plural
from cnnjob.jobs.schema import Settings
from cnnjob.slurm.scheduler.times import parse_duration

MINUTES = {"m": 1, "h": 60, "d": 1440}
"""Minutes per unit of time."""
_MEMORY = re.compile(r"[0-9]{1,18}[KMGT]?B?", re.IGNORECASE)
_GPUS = re.compile(r"(?:(?P<type>[A-Za-z][\w.-]*):)?(?P<count>[0-9]{1,9})")
_GPU_OPTION = re.compile(r"(?:^|-)gpus?(?:-|$)")
"""Pattern of the long sbatch options that concern GPUs, such as ``gpus-per-task`` or ``cpus-per-gpu``."""
_OPTION = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
MOST_CORES = 65_533
"""Maximum number of cores per node that SLURM supports."""
MOST_NUMBER = 10**18
_GRES_GPU = re.compile(r"(?:^|,)gpu(?::(?P<type>[A-Za-z][\w.-]*))?(?::(?P<count>[0-9]{1,9}))?(?=,|$)")
DIRECT = (
    *("partition", "account", "qos", "constraint", "nodelist", "exclude", "dependency"),
    *("mem", "mem_per_cpu", "mem_per_gpu"),
)
"""Options for which submitit has parameters with the same names."""
OWN = {
    "output": "the log is in the run's folder",
    "error": "the log is in the run's folder",
    "open-mode": "a requeued job appends to its log",
    "comment": "cnnjob finds the run's job in the queue by its comment",
    "array": "use --sweep, --seeds and --parallel",
    "signal": "set signal_seconds in the profile",
    "wait": "use --wait",
    "wrap": "cnnjob writes the script",
    "parsable": "cnnjob parses sbatch's output",
    "quiet": "cnnjob parses sbatch's output",
    "test-only": "use --dry-run",
    "no-requeue": "use --no-requeue",
    "nodes": "a run is one task on one node",
    "ntasks": "a run is one task on one node",
    "ntasks-per-node": "a run is one task on one node",
    "tasks-per-node": "a run is one task on one node",
    "ntasks-per-gpu": "a run is one task on one node",
    "help": "run sbatch --help",
    "usage": "run sbatch --usage",
    "version": "run sbatch --version",
    "wckey": "set it in a setup line of the profile: export SBATCH_WCKEY=…",
}
"""sbatch options that ``--sbatch`` cannot set, and the reason or the alternative."""


class Request(Settings):
    """The resources of one SLURM job. The fields are named after sbatch's options; None means the site's default."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | None = None
    """Time limit in SLURM's formats (``90``, ``1:30:00``, ``1-12``) or, for example, ``90m``, ``2h`` or ``1d12h``."""
    cpus_per_task: Annotated[int, Field(ge=1, le=MOST_CORES)] = 2
    """Number of cores; training uses all of them."""
    mem: str | None = None
    """Memory per node, such as ``4G``; a number without a unit is in MB."""
    mem_per_cpu: str | None = None
    mem_per_gpu: str | None = None
    gpus: int | str | None = None
    """GPUs, such as ``2`` or ``a100:2``, requested through the ``gpu_request`` option; by default 1, or 0 for NumPy."""
    gpus_per_node: int | str | None = None
    """GPUs, such as ``2`` or ``a100:2``, requested through this sbatch option, regardless of ``gpu_request``."""
    gres: str | None = None
    """Generic resources, such as ``gpu:a100:1``."""
    gpu_request: Literal["gpus-per-node", "gres", "gpus"] = "gpus-per-node"
    """The sbatch option through which GPUs are requested at this site."""
    gpu_type: str | None = None
    """Type of GPU, unless ``gpus`` specifies one."""
    job_name: str | None = None
    """Name of the job in the queue; None for the run's name."""
    constraint: str | None = None
    nodelist: str | None = None
    exclude: str | None = None
    dependency: str | None = None
    requeue: bool | None = None
    signal_seconds: Annotated[int, Field(ge=1, le=65535)] = 90
    """Number of seconds before the time limit at which SLURM signals the job."""
    setup: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Shell lines run before training, such as ``module load cuda``, one per string. If a line fails, the job ends."""
    stage: bool | None = None
    """True to copy the dataset to the node's local disk before training."""
    backend: Literal["auto", "numpy", "cuda"] | None = None
    """Backend to use instead of the one in the job file."""
    sbatch: dict[str, str | int | bool] = Field(default_factory=dict)
    """Other sbatch options, by their long names."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """Check the options for errors and contradictions before sbatch does.

        Raises:
            ValueError: two options are mutually exclusive, or a value is invalid.
        """
        _require_lines(self)
        _only_one(self, "mem", "mem_per_cpu", "mem_per_gpu")
        _only_one(self, "gpus", "gpus_per_node", "gres" if _GRES_GPU.search(self.gres or "") else "")
        for name in ("mem", "mem_per_cpu", "mem_per_gpu"):
            if not _MEMORY.fullmatch(getattr(self, name) or "0"):
                raise ValueError(
                    f"{name}: not an amount of memory (found {getattr(self, name)!r}). Use a value such as 4G or 500M"
                )
        for name in ("gpus", "gpus_per_node"):
            if not _GPUS.fullmatch(str(getattr(self, name) or 0)):
                raise ValueError(
                    f"{name}: not a number of GPUs (found {getattr(self, name)!r}). Use a value such as 1 or a100:1"
                )
        if self.time is not None:
            parse_minutes(self.time)
        for key in self.sbatch:
            _require_settable(key.lstrip("-").replace("_", "-"))
        return self

    @property
    def time_minutes(self) -> int | None:
        """The time limit in minutes; None for the site's limit."""
        return None if self.time is None else parse_minutes(self.time)

    @property
    def asks_for_gpus(self) -> bool:
        """True if the request specifies a number of GPUs, even zero."""
        return self.gpus is not None or self.gpus_per_node is not None or bool(_GRES_GPU.search(self.gres or ""))

    @property
    def gpu_count(self) -> int:
        """The number of GPUs requested."""
        return self._gpu_type_and_count()[1]

    def with_gpus(self, backend: str, *, explicit: bool = False) -> Self:
        """Return the request with the GPUs that a backend needs.

        NumPy needs none. For any other backend, the requested GPUs are kept; if the request does not specify any, one
        is added.

        Args:
            backend: the job's backend.
            explicit: whether the command line requests GPUs; if so, they are kept for every backend.
        """
        if backend == "numpy" and not explicit:
            return self._without_gpus()
        return self if self.asks_for_gpus else self.model_copy(update={"gpus": int(backend != "numpy")})

    def _without_gpus(self) -> Self:
        """Return the request without a profile's GPU options; memory per GPU becomes memory per node."""
        gres = [part for part in (self.gres or "").split(",") if part and not re.match(r"(gres/)?gpu(?![\w-])", part)]
        sbatch = {
            key: value for key, value in self.sbatch.items()
            if not _GPU_OPTION.search(name := key.lstrip("-").replace("_", "-"))
            and not (name.startswith("tres-") and "gpu" in str(value))
        }  # fmt: skip
        changes = {"gpus": 0, "gpus_per_node": None, "gres": ",".join(gres) or None, "sbatch": sbatch}
        memory = {"mem": self.mem_per_gpu, "mem_per_gpu": None} if self.mem_per_gpu else {}
        return self.model_copy(update={**changes, **memory})

    def idle_gpus(self, backend: str) -> str:
        """Return a warning if a run would reserve more GPUs than it uses; otherwise an empty string."""
        used = int(backend != "numpy")
        if self.gpu_count <= used:
            return ""
        usage = "a run uses one GPU" if used else "a run on NumPy uses no GPU"
        return f"{usage}, so {self.gpu_count - used} of {self.gpu_count} will be idle. Use --gpus {used}"

    def _gpu_type_and_count(self) -> tuple[str, int]:
        """Return the GPU type, ``""`` if not specified, and the number of GPUs."""
        if match := _GRES_GPU.search(self.gres or ""):
            return match["type"] or "", int(match["count"] or 1)
        match = _GPUS.fullmatch(str(self.gpus_per_node or self.gpus or 0))
        assert match is not None  # noqa: S101 - checked by the validator
        return match["type"] or self.gpu_type or "", int(match["count"])

    def describe(self) -> str:
        """Return a description of the request, such as ``1 node, 1 task, 1 GPU, 4 cores, 16 G, 2 h on gpu``."""
        time = "the site's time limit" if self.time_minutes is None else format_seconds(60 * self.time_minutes)
        memory = (
            self.mem or (self.mem_per_cpu and f"{self.mem_per_cpu} per core") or self.mem_per_gpu or "default memory"
        )
        kind, count = self._gpu_type_and_count()
        gpus = [plural(count, f"{kind} GPU" if kind else "GPU")] if count else []
        memory = re.sub(r"(\d)([A-Za-z])", r"\1 \2", memory)
        parts = ["1 node", "1 task", *gpus, plural(self.cpus_per_task, "core"), memory, time]
        return f"{', '.join(parts)} on {self.partition or 'the default partition'}"

    def parameters(self) -> dict[str, Any]:
        """Return the request as parameters of :class:`submitit.SlurmExecutor`."""
        direct = {name: getattr(self, name) for name in DIRECT if getattr(self, name) is not None}
        extra: dict[str, Any] = {key.lstrip("-").replace("_", "-"): value for key, value in self.sbatch.items()}
        if self.requeue is not None:
            extra["requeue" if self.requeue else "no-requeue"] = True
        return {
            **direct,
            "time": self.time_minutes,
            "cpus_per_task": self.cpus_per_task,
            "signal_delay_s": self.signal_seconds,
            "additional_parameters": {**extra, **self._gpu_options()},
        }

    def _gpu_options(self) -> dict[str, str]:
        if self.gpus_per_node:
            return {"gpus-per-node": str(self.gpus_per_node), **({"gres": self.gres} if self.gres else {})}
        kind, count = self._gpu_type_and_count()
        if self.gres or not count:
            return {"gres": self.gres} if self.gres else {}
        gpus = f"{kind}:{count}" if kind else str(count)
        return {self.gpu_request: f"gpu:{gpus}" if self.gpu_request == "gres" else gpus}


def _require_lines(request: Request) -> None:
    """Check that every value fits on a single line of a batch script.

    A line break in a value would start a new line of the script, which could contain any option or command.

    Raises:
        ValueError: a key is not an option name, or a value contains a line break or another control character.
    """
    for name, value in request:
        for part in value if isinstance(value, tuple) else () if isinstance(value, dict) else (value,):
            _require_line(name, part)
    for key, value in request.sbatch.items():
        if not _OPTION.fullmatch(key.lstrip("-").replace("_", "-")):
            raise ValueError(f"sbatch: not an option name (found {key!r}). Use letters, digits and -")
        _require_line(f"sbatch.{key}", value)


def _require_line(name: str, value: Any) -> None:
    """Check that a value fits on a single line.

    Raises:
        ValueError: the value contains a control character or a surrogate, or is a number with more than 18 digits.
    """
    if isinstance(value, str) and any(category(letter) in {"Cc", "Cs"} for letter in value):
        raise ValueError(
            f"{name}: contains a line break or control character (found {value[:80]!r}). Write it on one line"
        )
    if isinstance(value, int) and abs(value) >= MOST_NUMBER:
        raise ValueError(f"{name}: the number is too large. Use at most 18 digits")


def _only_one(request: Request, *names: str) -> None:
    """Check that at most one of several options is set.

    Raises:
        ValueError: more than one is set.
    """
    given = [name for name in names if name and getattr(request, name) is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are mutually exclusive. Keep only one")


def _require_settable(key: str) -> None:
    """Check that an option may be set through ``sbatch``.

    An option may not be set through ``sbatch`` if cnnjob sets it, or if it has a field in :class:`Request`, since the
    two values could contradict each other.

    Raises:
        ValueError: ``key`` is the name of an option that may not be set, or an abbreviation of the name.
    """
    reserved = {name.replace("_", "-") for name in Request.model_fields} | OWN.keys()
    if key in OWN:
        raise ValueError(f"sbatch: {key} cannot be set here: {OWN[key]}")
    if key in reserved:
        raise ValueError(f"sbatch: {key} has its own option. Use --{key}, or {key.replace('-', '_')} in the profile")
    # sbatch accepts abbreviations, so `--outp` would replace the path of the log
    if matches := sorted(name for name in reserved if name.startswith(key)):
        raise ValueError(f"sbatch: {key} is short for {matches[0]}. Write option names in full")


def parse_minutes(text: str) -> int:
    """Convert a time limit to minutes, rounded up.

    Args:
        text: SLURM's ``M``, ``M:S``, ``H:M:S``, ``D-H``, ``D-H:M``, ``D-H:M:S``, or a format such as ``90m``, ``2h``
            or ``1d12h``.

    Returns:
        The number of minutes, at least 1.

    Raises:
        ValueError: the text is in none of these formats, or the time is zero.
    """
    if re.fullmatch(r"(?:[0-9]{1,9}[dhm])+", text):
        seconds: int | None = 60 * sum(
            int(number) * MINUTES[unit] for number, unit in re.findall(r"([0-9]+)([dhm])", text)
        )
    else:
        seconds = parse_duration(text)
    if seconds is None:
        raise ValueError(f"time: not a time limit (found {text!r}). Use 90m, 2h, 1d12h or a SLURM format such as H:M:S")
    if seconds == 0:
        raise ValueError(f"time: the limit is zero (found {text!r}). Request at least one minute")
    return -(-seconds // 60)  # SLURM also rounds up to whole minutes
