"""Expansion of a sweep into one job per combination of swept values and seeds."""

import math
from collections.abc import Iterable, Sequence
from itertools import chain, product

from cnnjob.errors import JobError
from cnnjob.jobs.assignment import format_key, split_assignment, split_values
from cnnjob.jobs.dotted_keys import belongs_to_selected_kind, iterate_settings
from cnnjob.jobs.job import DefaultJob, Job

MOST_RUNS = 10_000
"""Maximum number of runs in one sweep."""


def expand(
    name: str,
    overrides: Iterable[str],
    sweeps: Iterable[str],
    seeds: int | None = None,
    default: DefaultJob | None = None,
) -> list[Job]:
    """Return one job per point of a grid.

    Args:
        name: the job, as in :meth:`cnnjob.jobs.job.Job.load`.
        overrides: ``key=value`` strings, the same for every point.
        sweeps: ``key=value,value,…`` strings; the last one varies fastest.
        seeds: number of seeds, counting up from the job's own; they vary faster than all sweeps.
        default: as in :meth:`cnnjob.jobs.job.Job.load`.

    Returns:
        The jobs without duplicates, in grid order.

    Raises:
        JobError: the job is not valid at some point of the grid, a key is swept twice, there are too many points, or a
            sweep cannot be parsed.
    """
    always, axes = list(overrides), list[tuple[str, list[str]]]()
    for text in sweeps:
        key, values = split_assignment(text, "--sweep", "KEY=A,B; for example --sweep train.learning_rate=0.01,0.05")
        axes.append((format_key(key), split_values(values)))
    if (count := math.prod(len(values) for _, values in axes) * (seeds or 1)) > MOST_RUNS:
        raise JobError(f"--sweep, --seeds: too many runs (found {count:,}, at most {MOST_RUNS:,}). Use fewer values")
    if seeds is not None:
        first = Job.load(name, always, default).seed
        axes.append(("seed", [str(first + count) for count in range(seeds)]))
    keys = [key for key, _ in axes]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise JobError(
            f"{twice}: swept twice. Pass all its values in one --sweep; for seed, use either --sweep or --seeds"
        )
    points = product(*([f"{key}={value}" for value in values] for key, values in axes))
    return list(
        {
            job.model_dump_json(): job for job in (Job.load(name, [*always, *point], default) for point in points)
        }.values()
    )


def job_differences(jobs: Sequence[Job]) -> list[str]:
    """Return one string per job, such as ``train.learning_rate=0.1, seed=2``: the settings in which the jobs differ.

    If there is only one job, its string is empty.
    """
    settings = [dict(iterate_settings(job.model_dump(mode="json"))) for job in jobs]
    # A setting of an unused kind (beta2 with SGD) is not a separate difference, nor is the digest of weights beside
    # their location; ``...`` stands for a missing key.
    keys = [
        key for key in dict.fromkeys(chain(*settings))
        if len({repr(values.get(key, ...)) for values in settings if belongs_to_selected_kind(key, values)}) > 1
        and key != "model.init_sha256"
    ]  # fmt: skip
    return [", ".join(f"{key}={values[key]}" for key in keys if key in values) for values in settings]
