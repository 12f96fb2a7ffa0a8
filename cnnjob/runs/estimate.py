"""How long a training will take: what finished runs of the same shape took, and nothing else."""

from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from cnnjob.data.dataset import Dataset
from cnnjob.errors import DataError
from cnnjob.jobs.job import Job
from cnnjob.runs.run import Run


def training_seconds(job: Job, dataset: Dataset, root: Path) -> dict[str, list[float]]:
    """What the epochs of a job would take, judged by each finished run with equal data, blocks and batch.

    Args:
        job: the job.
        dataset: its data.
        root: the folder of the runs that are looked at.

    Returns:
        Seconds by device, a value a run; empty where there is no such run.
    """
    found: defaultdict[str, list[float]] = defaultdict(list)
    for run in Run.all(root):
        try:
            if run.result_file.exists() and _shape(run.manifest()) == _shape_of(job, dataset):
                result = run.result()
                found[str(result["device"])].append(result["train_seconds"] / result["epochs"] * job.train.epochs)
        except (DataError, OSError, LookupError, TypeError, ZeroDivisionError):
            continue  # an old or damaged run tells nothing
    return dict(found)


def sentence(job: Job, dataset: Dataset, root: Path) -> str:
    """The same for people: the median of each device, or that it is not known."""
    found = training_seconds(job, dataset, root)
    return "; ".join(_of_device(device, seconds) for device, seconds in found.items()) or (
        f"unknown, no run of this shape has finished in {root}"
    )


def _of_device(device: str, seconds: list[float]) -> str:
    minutes, rest = divmod(round(median(seconds)), 60)
    runs = f"{len(seconds)} finished run{'s' * (len(seconds) > 1)}"
    return f"{minutes} min {rest} s of training on {device}, by {runs} of this shape"


def _shape_of(job: Job, dataset: Dataset) -> Any:
    return _shape({"job": job.model_dump(mode="json"), "data": {"digest": dataset.digest}})


def _shape(frozen: dict[str, Any]) -> Any:
    """What a step's time depends on."""
    job = frozen["job"]
    blocks = [{key: value for key, value in block.items() if "init" not in key} for block in job["model"]["blocks"]]
    return frozen["data"]["digest"], blocks, job["train"]["batch_size"]
