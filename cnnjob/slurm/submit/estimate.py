"""Estimates of training time, based only on finished runs with the same data, blocks and batch size."""

from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from cnnjob.errors import DataError, format_seconds, plural
from cnnjob.jobs.job import Job
from cnnjob.runs.run import Run


def estimate_training_seconds(job: Job, data_digest: str, root: Path) -> dict[str, list[float]]:
    """Estimate a job's training time from the time per epoch of each comparable finished run.

    Args:
        job: the job.
        data_digest: digest of the job's dataset.
        root: the folder that contains the runs to compare with.

    Returns:
        Lists of seconds by device name, with one value per run; empty if there is no comparable run.
    """
    estimates: defaultdict[str, list[float]] = defaultdict(list)
    shape = _shape({"job": job.model_dump(mode="json"), "data": {"digest": data_digest}})
    for run in Run.all(root):
        try:
            if run.result_file.exists() and _shape(run.manifest()) == shape:
                result = run.result()
                estimates[str(result["device"])].append(result["train_seconds"] / result["epochs"] * job.train.epochs)
        except (DataError, OSError, LookupError, TypeError, ZeroDivisionError):
            continue  # a run that is damaged, or too old to have these fields, provides no estimate
    return dict(estimates)


def describe_estimate(job: Job, data_digest: str, root: Path) -> str:
    """Return the estimate as text: the median for each device, or the reason why it is unknown."""
    estimates = []
    for device, seconds in estimate_training_seconds(job, data_digest, root).items():
        runs = plural(len(seconds), "finished run")
        duration = format_seconds(median(seconds))
        estimates.append(
            f"{duration} of training on {device}, based on {runs} with the same data, blocks and batch size"
        )
    return "; ".join(estimates) or (f"unknown: no run with the same data, blocks and batch size has finished in {root}")


def _shape(frozen: dict[str, Any]) -> Any:
    """Return what the time per step depends on: data, blocks and batch size."""
    job = frozen["job"]
    # Initialisers do not count, as they run only before the first step.
    return frozen["data"]["digest"], _without_initialisers(job["model"]["blocks"]), job["train"]["batch_size"]


def _without_initialisers(value: Any) -> Any:
    """Return blocks, including those inside residual blocks, without their initialiser keys."""
    if isinstance(value, list):
        return [_without_initialisers(block) for block in value]
    if isinstance(value, dict):
        return {key: _without_initialisers(member) for key, member in value.items() if "init" not in key}
    return value
