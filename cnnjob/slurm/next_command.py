"""The command to type next for a run, with the options that it was made with."""

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

_ASKED = ("partition", "account", "qos", "time", "mem", "mem_per_cpu", "mem_per_gpu", "constraint", "dependency")
_LEFT_OUT = ("name", "train.checkpoint_seconds")
_MEMORY = re.compile(r"([0-9]{1,18})([A-Za-z]*)")


def quoted_path(run: Run) -> str:
    """The run's folder as a word of a command."""
    return shlex.quote(str(run.path))


def logs_command(run: Run, *, follow: bool = False) -> str:
    """``cnnjob logs RUN``."""
    return f"cnnjob logs {quoted_path(run)}{' -f' * follow}"


def cancel_command(run: Run) -> str:
    """``cnnjob cancel RUN``."""
    return f"cnnjob cancel {quoted_path(run)}"


def continue_command(run: Run, change: str = "") -> str:
    """The command that goes on with exactly this run.

    Args:
        run: its folder says the job and what was asked of SLURM.
        change: an option of the request (``--mem``), or a key of the job (``train.learning_rate``, which
            makes it another run), that should be another; a first guess stands in its place.

    Returns:
        ``cnnjob submit NAME …``, or ``cnnjob train NAME …`` for a run that SLURM never had.
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
        asked = {**asked, change: _more(change, asked.get(change))}
    options = [f"{option} {shlex.quote(str(value))}" for option, value in asked.items()]
    root = [] if run.path.parent == Path("runs") else [f"--runs {shlex.quote(str(run.path.parent))}"]
    root += _data_option(run, job)
    verb = "submit" if _was_submitted(run) else "train"
    return " ".join([f"cnnjob {verb} {shlex.quote(name)}", *sets, *(options if verb == "submit" else []), *root])


def _data_option(run: Run, job: Job) -> list[str]:
    """``--data``, where the dataset that the job names does not lie in ``data/``."""
    try:
        lies = Path(run.data()["path"]).parent
    except CnnjobError:
        return []
    is_elsewhere = lies != Path("data").resolve() and Path(job.dataset).suffix not in {".h5", ".hdf5"}
    here = lies.relative_to(Path.cwd()) if lies.is_relative_to(Path.cwd()) else lies
    return [f"--data {shlex.quote(str(here))}"] * is_elsewhere


def _named(job: Job, run: Run) -> tuple[str, dict[str, Any]]:
    """Name a job on the command line, else its run's folder, and the settings in which the run differs from it."""
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
    """A value as TOML writes it in one line."""
    if isinstance(value, dict):
        pairs = (f"{key} = {_toml(one)}" for key, one in value.items() if one is not None)
        return f"{{ {', '.join(pairs)} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return "false" if value is None else json.dumps(value)


def _request(run: Run) -> dict[str, Any]:
    """What was asked of SLURM, as options."""
    try:
        asked = json_files.read(run.slurm_folder / "request.json", Request)
    except CnnjobError:
        return {}
    return {f"--{key.replace('_', '-')}": asked[key] for key in _ASKED if asked.get(key) is not None}


def _was_submitted(run: Run) -> bool:
    names = ("job.json", "request.json")
    return any(os.path.exists(run.slurm_folder / name) for name in names)  # noqa: PTH110 - Path's raises where it may not look


def _smaller(job: Job, key: str) -> Any:
    section, _, name = key.partition(".")
    value = getattr(getattr(job, section), name)
    return max(1, value // 2) if isinstance(value, int) else value / 10


def _more(option: str, asked: Any) -> str:
    """A first guess at what suffices; a word in capitals where nothing can be guessed."""
    if option == "--mem":
        found = _MEMORY.fullmatch(str(asked))
        return f"{2 * int(found[1])}{found[2]}" if found else "8G"
    return option.lstrip("-").upper().replace("-", "_")
