"""The built-in job for datasets without a job file; it depends on the size and number of the images."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cnnjob.data.dataset import SUFFIXES, Dataset
from cnnjob.errors import DataError, closest_name
from cnnjob.jobs.job import Job, list_jobs
from cnnjob.runs.initial import find_initial
from cnnjob.training.split import count_validation_images

_VALIDATION_FRACTION = 0.1
_MIN_SIDE = 6
"""Images are pooled until a side is shorter than this number of pixels."""
_FILTERS = (16, 128)
"""Number of filters in the first convolution, and the maximum number; the number doubles with each convolution."""
_MAX_FEATURES = 1 << 16
"""Maximum number of values per image before the dense block; if there are more, global pooling reduces them."""
_BATCH_SIZES = (128, 64, 32, 16, 8, 4, 2, 1)
_MIN_STEPS = 4
"""Minimum number of steps per epoch, if there are enough images."""
_STEPS = 3000
"""Target for the total number of steps; the limits on the number of epochs take precedence."""
_EPOCHS = (10, 100)
"""Minimum and maximum number of epochs."""


def load_job(name: str, overrides: Any = (), data: Path = Path("data"), runs: Path = Path("runs")) -> Job:
    """Load a job by its name or file, or else the built-in job for a prepared dataset, and find its initial weights.

    Args:
        name: a job's name or file, as in :meth:`cnnjob.jobs.job.Job.load`; or a prepared dataset's name or file.
        overrides: ``key=value`` strings.
        data: the folder with the datasets.
        runs: the folder in which the run of ``model.init_from`` is looked up by name.

    Raises:
        DataError: neither a job nor a dataset with this name was found, or the dataset or the initial weights are
            damaged or missing.
        JobError: the job is not valid.
    """
    return find_initial(Job.load(name, overrides, default=DefaultJobs(data)), runs)


class DefaultJobs:
    """The built-in jobs for the datasets in a folder."""

    def __init__(self, data: Path) -> None:
        """Store the path of the folder that contains the datasets."""
        self.data = data

    def __call__(self, name: str) -> dict[str, Any] | None:
        """Return the content of the built-in job for a dataset, given by name or file.

        Returns:
            The content; None if no dataset has this name or a similar name.

        Raises:
            DataError: the dataset is damaged, or no dataset has this name but one has a similar name.
        """
        path = Path(name) if Path(name).suffix in SUFFIXES else self.data / f"{name}.h5"
        if path.exists():
            return default_job(Dataset.open(path), name)
        prepared = {path.stem for path in self.data.glob("*.h5")}
        if (near := closest_name(name, prepared | list_jobs().keys())) in prepared:
            raise DataError(f"{name}: no such job or dataset. Did you mean {near}?")
        return None


def default_job(dataset: Dataset, name: str) -> dict[str, Any]:
    """Return the content of a job file for a dataset, even one with only a few images.

    Args:
        dataset: the dataset.
        name: the dataset's name or the path of its file, which becomes the value of the key ``dataset``.
    """
    counts = np.array(dataset.counts("train"))
    has_val = "val" in dataset.splits
    n_validation = 0 if has_val else int(count_validation_images(counts, _VALIDATION_FRACTION).sum())
    n_training = int(counts.sum()) - n_validation
    batch_size = next((size for size in _BATCH_SIZES if size * _MIN_STEPS <= n_training), 1)
    epochs = min(max(_STEPS // (n_training // batch_size), _EPOCHS[0]), _EPOCHS[1])
    # With one image per class, none can be set aside for validation, so the best epoch cannot be chosen.
    is_validated = has_val or n_validation > 0
    stem = Path(name).stem if Path(name).suffix in SUFFIXES else name  # a dataset may be called v1.0
    content: dict[str, Any] = {
        "name": re.sub(r"[^\w .+-]", "_", stem.lstrip(" .+-"))[:100] or "job",
        "dataset": name,
        "data": {"validation_fraction": 0.0} if not is_validated else {},
        "model": {"blocks": list(_blocks(*dataset.image_shape[:2]))},
        "train": {
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": 0.001,
            "schedule": "cosine",
            "optimiser": "adamw",
            **({} if is_validated else {"select_on": "last"}),
        },
    }
    return {key: value for key, value in content.items() if value != {}}


def _blocks(height: int, width: int) -> Iterator[dict[str, Any]]:
    """Yield convolutions with pooling until only a few pixels are left, then a dense block."""
    filters, limit = _FILTERS
    features = height * width
    while min(height, width) >= _MIN_SIDE:
        yield {"conv": filters, "kernel": 3, "pool": 2}
        height, width = height // 2, width // 2
        features = height * width * filters
        filters = min(2 * filters, limit)
    if features > _MAX_FEATURES:  # a long and narrow image
        yield {"global_pool": "max"}
    yield {"dropout": 0.3}
    yield {"dense": 128}
