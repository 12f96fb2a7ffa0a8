"""A grid over a job: every combination of the values given for its keys, and of its seeds."""

import tomllib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, product
from typing import Any

from cnnjob.errors import JobError
from cnnjob.jobs import Job


def expand(name: str, overrides: Iterable[str], sweeps: Iterable[str], seeds: int | None = None) -> list[Job]:
    """Load a job once for each point of a grid.

    Args:
        name: of the job, as :meth:`Job.load` takes it.
        overrides: ``key=value`` each, the same for every point.
        sweeps: ``key=value,value,…`` each; the last one varies fastest.
        seeds: so many seeds from the job's own upwards, faster than all others.

    Returns:
        The jobs, each once, whatever is repeated among the values.

    Raises:
        JobError: the job is not valid at some point, a key is swept twice, or a sweep cannot be read.
    """
    always, axes = list(overrides), [_axis(text) for text in sweeps]
    if seeds is not None:
        axes.append(("seed", [str(Job.load(name, always).seed + count) for count in range(seeds)]))
    keys = [key for key, _ in axes]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise JobError(f"{twice}: swept twice; give all its values in one --sweep, or --seeds")
    points = product(*([f"{key}={value}" for value in values] for key, values in axes))
    return list(
        {job.model_dump_json(): job for job in (Job.load(name, [*always, *point]) for point in points)}.values()
    )


def differences(jobs: Sequence[Job]) -> list[str]:
    """What tells each job from the others, as ``train.learning_rate=0.1, seed=2``; nothing for a single one."""
    flat = [dict(_settings(job.model_dump(mode="json"))) for job in jobs]
    keys = [key for key in dict.fromkeys(chain(*flat)) if len({repr(one.get(key, ...)) for one in flat}) > 1]
    return [", ".join(f"{key}={one[key]}" for key in keys if key in one) for one in flat]


def _settings(table: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with its dotted key."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _settings(value, f"{above}{key}.")
        else:
            yield above + key, value


def _axis(text: str) -> tuple[str, list[str]]:
    """A key and its values, each as ``--set`` takes it."""
    key, equals, values = text.partition("=")
    if not equals or not key or not values:
        raise JobError(f"--sweep {text}: not of the form KEY=A,B; for example --sweep train.learning_rate=0.01,0.05")
    return key, _split(values)


def _split(text: str) -> list[str]:
    """Cut at the commas, but not at those inside of brackets, braces or quotes: a value is a whole one of TOML."""
    found: list[str] = []
    for part in text.split(","):
        if found and not _whole(found[-1]):
            found[-1] += f",{part}"
        else:
            found.append(part)
    return [value.strip() for value in found]


def _whole(text: str) -> bool:
    if not text.strip().startswith(("[", "{", '"', "'")):
        return True
    try:
        tomllib.loads(f"value = {text}")
    except ValueError:
        return False
    return True
