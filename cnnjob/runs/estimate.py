"""Estimates of training time, from finished runs with the same data, blocks and batch size, and from nothing else."""

from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from cnnjob.data.dataset import Dataset
from cnnjob.errors import DataError, format_seconds, plural
from cnnjob.jobs.job import Job
from cnnjob.runs.run import Run


def estimate_training_seconds(job: Job, dataset: Dataset, root: Path) -> dict[str, list[float]]:
    """Estimate how long a job would train, by the time per epoch of each comparable finished run.

    Args:
        job: the job.
        dataset: its data.
        root: the folder of the runs to compare with.

    Returns:
        Seconds by device name, one value per run; empty if there is no such run.
    """
    found: defaultdict[str, list[float]] = defaultdict(list)
    for run in Run.all(root):
        try:
            if run.result_file.exists() and _shape(run.manifest()) == _shape_of(job, dataset):
                result = run.result()
                found[str(result["device"])].append(result["train_seconds"] / result["epochs"] * job.train.epochs)
        except (DataError, OSError, LookupError, TypeError, ZeroDivisionError):
            continue  # a run that is damaged, or too old to have these fields, gives no estimate
    return dict(found)


def describe_estimate(job: Job, dataset: Dataset, root: Path) -> str:
    """Return the estimate as text: the median for each device, or that it is unknown."""
    found = estimate_training_seconds(job, dataset, root)
    return "; ".join(_of_device(device, seconds) for device, seconds in found.items()) or (
        f"unknown, no run of this shape has finished in {root}"
    )


def _of_device(device: str, seconds: list[float]) -> str:
    runs = plural(len(seconds), "finished run")
    return f"{format_seconds(median(seconds))} of training on {device}, by {runs} of this shape"


def _shape_of(job: Job, dataset: Dataset) -> Any:
    return _shape({"job": job.model_dump(mode="json"), "data": {"digest": dataset.digest}})


def _shape(frozen: dict[str, Any]) -> Any:
    """Return what the time of a step depends on: data, blocks and batch size."""
    job = frozen["job"]
    # Initialisers act before the first step only.
    return frozen["data"]["digest"], _without_initialisers(job["model"]["blocks"]), job["train"]["batch_size"]


def _without_initialisers(value: Any) -> Any:
    """Return blocks, also those inside of residual blocks, without the keys of their initialisers."""
    if isinstance(value, list):
        return [_without_initialisers(one) for one in value]
    if isinstance(value, dict):
        return {key: _without_initialisers(one) for key, one in value.items() if "init" not in key}
    return value
