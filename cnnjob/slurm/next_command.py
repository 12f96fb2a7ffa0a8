"""The next command to type for a run, including the options that the run was created with."""

import json
import os
import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

from cnnjob.errors import CnnjobError
from cnnjob.jobs import json_files
from cnnjob.jobs.dotted_keys import belongs_to_selected_kind, iterate_settings
from cnnjob.jobs.job import Job
from cnnjob.runs.run import Run
from cnnjob.slurm.submit.request import Request

_MEMORY_OPTIONS = ("mem", "mem_per_cpu", "mem_per_gpu")
_REPEATED_OPTIONS = (
    *("partition", "account", "qos", "time", "cpus_per_task", *_MEMORY_OPTIONS, "gpus", "gpus_per_node", "gres"),
    *("constraint", "nodelist", "exclude", "dependency"),
)
"""Request options that the command repeats unless they have their default values."""
_DEFAULT_GPUS = (0, 1)
"""Numbers of GPUs that the backend implies, so the command need not repeat them."""
_OUTSIDE_DIGEST = ("name", "train.checkpoint_seconds")
"""Settings that a run's digest does not cover, so the command need not repeat them."""
_MEMORY = re.compile(r"([0-9]{1,18})([A-Za-z]*)")


def quoted_path(run: Run) -> str:
    """Return the path of a run's folder, quoted for the shell."""
    return shlex.quote(str(run.path))


def logs_command(run: Run, *, follow: bool = False) -> str:
    """Return ``cnnjob logs RUN``."""
    return f"cnnjob logs {quoted_path(run)}{' -f' if follow else ''}"


def cancel_command(run: Run) -> str:
    """Return ``cnnjob cancel RUN``."""
    return f"cnnjob cancel {quoted_path(run)}"


def continue_command(run: Run, change: str = "") -> str:
    """Return the command that resumes a run, optionally with one setting changed.

    Args:
        run: the run, whose folder contains the job and the SLURM request.
        change: the setting to change, if any: an option of the SLURM request, such as ``--mem``, or a key of the job
            file, such as ``train.learning_rate``. If a key of the job file is changed, the command starts a different
            run. If a better value can be guessed, the command contains this value.

    Returns:
        ``cnnjob submit NAME …``, or ``cnnjob train NAME …`` for a run that was never submitted.
    """
    try:
        job = run.job()
    except CnnjobError:
        return "cnnjob submit JOB"
    name, changes = _name_and_changes(job, run)
    if change and not change.startswith("-"):
        section, _, key = change.partition(".")
        value = getattr(getattr(job, section), key)
        if value != 1:  # a batch of one image cannot become smaller
            changes = {**changes, change: value // 2 if isinstance(value, int) else value / 10}
    settings = [f"--set {shlex.quote(f'{key}={_toml(value)}')}" for key, value in changes.items()]
    options = _request_options(run)
    if change.startswith("-"):
        if change == "--mem":  # one of the three memory options excludes the others
            names = map(_option, _MEMORY_OPTIONS)
            change = next((option for option in names if option in options), change)
        options = {**options, change: _larger_value(change, options.get(change))}
    request = [f"{option} {shlex.quote(str(value))}" for option, value in options.items()] + _other_options(run)
    folders = [] if run.path.parent == Path("runs") else [f"--runs {shlex.quote(str(run.path.parent))}"]
    folders += _data_option(run, job)
    # a run with a record of a submission, even an incomplete one, is submitted again
    records = (run.slurm_folder / "job.json", run.slurm_folder / "request.json")
    if not any(os.path.exists(record) for record in records):  # noqa: PTH110 - Path.exists raises if access is denied
        return " ".join([f"cnnjob train {shlex.quote(name)}", *settings, *folders])
    return " ".join([f"cnnjob submit {shlex.quote(name)}", *settings, *request, *folders])


def _data_option(run: Run, job: Job) -> list[str]:
    """Return the ``--data`` option if the job names a dataset outside ``data/``; otherwise return an empty list."""
    try:
        folder = Path(run.data()["path"]).parent
    except CnnjobError:
        return []
    if folder == Path("data").resolve() or Path(job.dataset).suffix in {".h5", ".hdf5"}:
        return []
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    return [f"--data {shlex.quote(str(shown))}"]


def _name_and_changes(job: Job, run: Run) -> tuple[str, dict[str, Any]]:
    """Return a job's name for the command line, and the settings in which the run differs from the job with that name.

    The run's folder is returned instead of the name if no job with that name can be loaded here; if that job has other
    blocks, and so is a different one; or if the job has initial weights, since the folder contains a copy of them.
    """
    if job.model.init_from:
        return str(run.path), {}
    for name in (job.name, f"{job.name}.toml"):
        with suppress(CnnjobError):
            changes = _differences(job, Job.load(name))
            if "model.blocks" not in changes:
                return name, changes
    return "JOB" if run.is_older() else str(run.path), {}


def _differences(job: Job, base: Job) -> dict[str, Any]:
    """Return, by key, the settings in which a job differs from a base job."""
    settings, base_settings = (dict(iterate_settings(each.model_dump(mode="json"))) for each in (job, base))
    short = dict(iterate_settings(job.model_dump(mode="json", exclude_defaults=True)))  # blocks without default values
    changed = [
        key for key in settings
        if base_settings.get(key, ...) != settings[key] and not key.startswith(_OUTSIDE_DIGEST)
        and (key in short or belongs_to_selected_kind(key, base_settings))
    ]  # fmt: skip
    return {key: short.get(key, settings[key]) for key in changed}


def _toml(value: Any) -> str:
    """Return a value formatted as TOML on one line."""
    if isinstance(value, dict):
        pairs = (f"{key} = {_toml(item)}" for key, item in value.items() if item is not None)
        return f"{{ {', '.join(pairs)} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return "false" if value is None else json.dumps(value)  # TOML has no null; in a job file, false means none


def _request_options(run: Run) -> dict[str, Any]:
    """Return the run's SLURM request as a dict of options and values."""
    request, defaults = _read_request(run), Request()
    changed = {
        key: request[key] for key in _REPEATED_OPTIONS if key in request and request[key] != getattr(defaults, key)
    }
    if changed.get("gpus") in _DEFAULT_GPUS:
        del changed["gpus"]
    return {_option(key): value for key, value in changed.items()}


def _other_options(run: Run) -> list[str]:
    """Return the options of the request that :func:`_request_options` leaves out: flags and ``--sbatch``."""
    request = _read_request(run)
    requeue = request.get("requeue")
    flags = [] if requeue is None else ["--requeue" if requeue else "--no-requeue"]
    flags += ["--stage"] if request.get("stage") else []
    pairs = (key if value is True else f"{key}={value}" for key, value in request.get("sbatch", {}).items())
    return [*flags, *(f"--sbatch {shlex.quote(pair)}" for pair in pairs)]


def _read_request(run: Run) -> dict[str, Any]:
    try:
        return json_files.read_checked(run.slurm_folder / "request.json", Request)
    except CnnjobError:
        return {}


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _larger_value(option: str, value: Any) -> str:
    """Return a first guess at a sufficient value for an option, or a placeholder in capitals."""
    if option in map(_option, _MEMORY_OPTIONS):
        match = _MEMORY.fullmatch(str(value))
        return f"{2 * int(match[1])}{match[2]}" if match else "8G"
    return option.lstrip("-").upper().replace("-", "_")
