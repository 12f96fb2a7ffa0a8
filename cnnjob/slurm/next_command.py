"""Commands to type next for a run, with the options that it was created with."""

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

from cnnjob.errors import CnnjobError
from cnnjob.jobs import json_files
from cnnjob.jobs.job import Job, is_of_its_kind, settings_of
from cnnjob.runs.run import Run
from cnnjob.slurm.submit.request import Request

_MEMORY_OPTIONS = ("mem", "mem_per_cpu", "mem_per_gpu")
_ASKED = (
    *("partition", "account", "qos", "time", "cpus_per_task", *_MEMORY_OPTIONS, "gpus", "gpus_per_node", "gres"),
    *("constraint", "nodelist", "exclude", "dependency"),
)
"""Options of the request that the command repeats, unless they have their defaults."""
_USUAL_GPUS = (0, 1)
"""Numbers of GPUs that follow from the backend."""
_LEFT_OUT = ("name", "train.checkpoint_seconds")
"""Settings that the digest of a run does not cover, so that the command need not repeat them."""
_MEMORY = re.compile(r"([0-9]{1,18})([A-Za-z]*)")


def quoted_path(run: Run) -> str:
    """Return the path of a run's folder, quoted for a shell."""
    return shlex.quote(str(run.path))


def logs_command(run: Run, *, follow: bool = False) -> str:
    """Return ``cnnjob logs RUN``."""
    return f"cnnjob logs {quoted_path(run)}{' -f' * follow}"


def cancel_command(run: Run) -> str:
    """Return ``cnnjob cancel RUN``."""
    return f"cnnjob cancel {quoted_path(run)}"


def continue_command(run: Run, change: str = "") -> str:
    """Return the command that resumes exactly this run.

    Args:
        run: its folder holds the job and the request to SLURM.
        change: what to change: an option of the request (``--mem``), or a key of the job (``train.learning_rate``, with
            which it is another run). The command contains a first guess at a better value.

    Returns:
        ``cnnjob submit NAME …``, or ``cnnjob train NAME …`` for a run that was never submitted.
    """
    try:
        job = run.job()
    except CnnjobError:
        return "cnnjob submit JOB"
    name, changes = _named(job, run)
    if change and not change.startswith("-"):
        changes = {**changes, change: _smaller(job, change)}
    sets = [f"--set {shlex.quote(f'{key}={_toml(value)}')}" for key, value in changes.items()]
    asked = _request(run)
    if change.startswith("-"):
        if change == "--mem":  # one of the three memory options excludes the others
            change = next((option for name in _MEMORY_OPTIONS if (option := _option(name)) in asked), change)
        asked = {**asked, change: _more(change, asked.get(change))}
    options = [f"{option} {shlex.quote(str(value))}" for option, value in asked.items()]
    options += _other_options(run)
    root = [] if run.path.parent == Path("runs") else [f"--runs {shlex.quote(str(run.path.parent))}"]
    root += _data_option(run, job)
    verb = "submit" if _was_submitted(run) else "train"
    return " ".join([f"cnnjob {verb} {shlex.quote(name)}", *sets, *(options if verb == "submit" else []), *root])


def _data_option(run: Run, job: Job) -> list[str]:
    """Return the option ``--data`` if the dataset that the job names is not in ``data/``."""
    try:
        lies = Path(run.data()["path"]).parent
    except CnnjobError:
        return []
    is_elsewhere = lies != Path("data").resolve() and Path(job.dataset).suffix not in {".h5", ".hdf5"}
    here = lies.relative_to(Path.cwd()) if lies.is_relative_to(Path.cwd()) else lies
    return [f"--data {shlex.quote(str(here))}"] * is_elsewhere


def _named(job: Job, run: Run) -> tuple[str, dict[str, Any]]:
    """Return the name of a job for the command line, and the settings in which the run differs from that job.

    If no job of that name can be loaded here, the run's folder takes its place.
    """
    for name in (job.name, f"{job.name}.toml"):
        try:
            return name, _differences(job, Job.load(name))
        except CnnjobError:
            continue
    return "JOB" if run.is_older() else str(run.path), {}


def _differences(job: Job, base: Job) -> dict[str, Any]:
    wanted, there = (dict(settings_of(one.model_dump(mode="json"))) for one in (job, base))
    short = dict(settings_of(job.model_dump(mode="json", exclude_defaults=True)))  # blocks without their defaults
    changed = [
        key for key in wanted
        if there.get(key, ...) != wanted[key] and not key.startswith(_LEFT_OUT)
        and (key in short or is_of_its_kind(key, there))
    ]  # fmt: skip
    return {key: short.get(key, wanted[key]) for key in changed}


def _toml(value: Any) -> str:
    """Return a value as TOML on one line."""
    if isinstance(value, dict):
        pairs = (f"{key} = {_toml(one)}" for key, one in value.items() if one is not None)
        return f"{{ {', '.join(pairs)} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return "false" if value is None else json.dumps(value)  # TOML has no null; a job file reads false as none


def _request(run: Run) -> dict[str, Any]:
    """Return the request to SLURM as options and values."""
    asked, defaults = _asked(run), Request()
    changed = {key: asked[key] for key in _ASKED if key in asked and asked[key] != getattr(defaults, key)}
    if changed.get("gpus") in _USUAL_GPUS:
        del changed["gpus"]
    return {_option(key): value for key, value in changed.items()}


def _other_options(run: Run) -> list[str]:
    """Return the options of the request that are not a name and a value."""
    asked = _asked(run)
    given = asked.get("requeue")
    requeue = [] if given is None else ["--requeue" if given else "--no-requeue"]
    pairs = (key if value is True else f"{key}={value}" for key, value in asked.get("sbatch", {}).items())
    return [*requeue, *(f"--sbatch {shlex.quote(pair)}" for pair in pairs)]


def _asked(run: Run) -> dict[str, Any]:
    try:
        return json_files.read(run.slurm_folder / "request.json", Request)
    except CnnjobError:
        return {}


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _was_submitted(run: Run) -> bool:
    names = ("job.json", "request.json")
    return any(os.path.exists(run.slurm_folder / name) for name in names)  # noqa: PTH110 - Path's raises where it may not look


def _smaller(job: Job, key: str) -> Any:
    section, _, name = key.partition(".")
    value = getattr(getattr(job, section), name)
    return max(1, value // 2) if isinstance(value, int) else value / 10


def _more(option: str, asked: Any) -> str:
    """Return a first guess at a sufficient value, or a placeholder in capitals."""
    if option in map(_option, _MEMORY_OPTIONS):
        found = _MEMORY.fullmatch(str(asked))
        return f"{2 * int(found[1])}{found[2]}" if found else "8G"
    return option.lstrip("-").upper().replace("-", "_")
