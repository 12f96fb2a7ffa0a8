"""Profiles: default resource requests of a site or a user, which command-line options override."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cnnjob.errors import DataError, JobError, closest_name
from cnnjob.jobs import toml
from cnnjob.jobs.lookup import named_toml_files
from cnnjob.jobs.schema import describe_problems, format_value
from cnnjob.slurm.submit.request import Request

GPU_OPTIONS = ("gpus", "gpus_per_node", "gres")
"""Options that request GPUs; if a later layer sets one of them, all those in earlier layers are dropped."""
INPUT_VARIABLES = {
    "SBATCH_PARTITION": "partition", "SBATCH_ACCOUNT": "account", "SBATCH_QOS": "qos", "SBATCH_TIMELIMIT": "time",
    "SBATCH_MEM_PER_NODE": "mem", "SBATCH_CONSTRAINT": "constraint",
}  # fmt: skip
"""sbatch's environment variables and the options that they set.

They are applied here, so that the options appear in the batch script, and removed from the environment of sbatch itself
(:func:`cnnjob.slurm.scheduler.client.clean_environment`).
"""


def profiles() -> dict[str, Path]:
    """Return the paths of the available profiles by name: those in the folder ``./slurm``, then the package's own."""
    return named_toml_files("slurm")


def load_request(profile: str | None, options: Mapping[str, Any], extra: Iterable[str] = ()) -> Request:
    """Build a request from layers, each of which overrides those before it.

    The layers are the built-in defaults, the user's configuration, the profile, sbatch's environment variables, and the
    command line.

    Args:
        profile: a name or a path; None for the profile set in the user's configuration, if any.
        options: command-line options; None for options that are not given.
        extra: any other sbatch options, each as ``KEY=VALUE`` or ``KEY``.

    Returns:
        The request.

    Raises:
        JobError: the profile is missing or invalid, or options contradict each other.
    """
    users = toml.read_toml(config_file()) if config_file().is_file() else {}
    usual = users.pop("profile", None)
    if not isinstance(usual, str | None):
        raise JobError(f'{config_file()}: profile is not a name (found {format_value(usual)}). Write profile = "NAME"')
    name = profile or usual
    variables = {key: os.environ[variable] for variable, key in INPUT_VARIABLES.items() if os.environ.get(variable)}
    layers = [
        users,
        _read_profile(name) if name else {},
        variables,
        {k: v for k, v in options.items() if v is not None},
    ]
    try:
        content = _merge_layers(layers)
        content["sbatch"] |= dict(map(_parse_option, extra))
        return Request.model_validate(content)
    except ValidationError as error:
        sources = [str(config_file())] if users else []
        if name:
            sources.append(f"profile {name}")
        where = " and ".join(sources) or "submit"
        lines = "\n".join(f"  {line}" for line in describe_problems(error, Request))
        raise JobError(f"{where}: not a valid request:\n{lines}") from error


def requests_gpus(options: Mapping[str, Any], extra: Iterable[str] = ()) -> bool:
    """Return whether the command line, rather than a profile, requests GPUs."""
    return any(options.get(key) is not None for key in GPU_OPTIONS) or any("gpu" in text for text in extra)


def config_file() -> Path:
    """Return the path of the user's configuration file.

    The file may set any key of a profile; its key ``profile`` sets the name of the default profile.
    """
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "cnnjob" / "config.toml"


def _merge_layers(layers: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Merge layers; an option in a later layer overrides the same option in earlier layers.

    If two options are mutually exclusive, the option in the later layer replaces the option in the earlier layer.

    Raises:
        JobError: ``sbatch`` is not a table.
    """
    merged: dict[str, Any] = {"sbatch": {}}
    for layer in layers:
        # without this, --mem-per-cpu on the command line would contradict mem in a profile
        for group in (("mem", "mem_per_cpu", "mem_per_gpu"), GPU_OPTIONS):
            if layer.keys() & set(group):
                merged = {key: value for key, value in merged.items() if key not in group}
        options = layer.get("sbatch", {})
        if not isinstance(options, dict):
            raise JobError(
                f"sbatch: not a table of options (found {format_value(options)}). Write the options under [sbatch]"
            )
        merged |= {**layer, "sbatch": {**merged["sbatch"], **options}}
    return merged


def _parse_option(text: str) -> tuple[str, str | bool]:
    key, equals, value = text.partition("=")
    if not key.strip("-"):
        raise JobError(f"--sbatch {text}: not of the form KEY=VALUE. Write, for example, --sbatch reservation=course")
    return key.lstrip("-"), value if equals else True


def _read_profile(name: str) -> dict[str, Any]:
    known = profiles()
    path = Path(name) if name.endswith(".toml") else known.get(name)
    if path is None or not path.is_file():
        near = closest_name(name, known)
        hint = f"Did you mean {near!r}?" if near else f"Known profiles: {', '.join(known) or 'none'}"
        raise DataError(f"--profile {name}: no such profile. {hint}")
    return toml.read_toml(path)
