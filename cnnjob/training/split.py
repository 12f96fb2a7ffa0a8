"""Which training images are held out for validation: a fixed share of each class, the same for every seed."""

from fractions import Fraction

import numpy as np

from cnnjob.data.dataset import Dataset
from cnnjob.jobs.job import Job
from cnnjob.nn.random import Purpose, permutation
from cnnjob.runs.run import OLDEST_FORMAT, Run, format_of


def split(job: Job, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return which training images are trained on, and which are held out for validation.

    The choice is the same for every seed, so that seeds are compared on the same images.

    Args:
        job: how large a share is held out.
        dataset: where it has a validation split of its own, nothing is held out.

    Returns:
        int64 indices of both, ascending.
    """
    count = dataset.shapes["train"][0]
    order = permutation(count, 0, Purpose.VALIDATION)
    labels = np.zeros(0, np.int64) if "val" in dataset.splits else dataset.labels("train")[order]
    held_out = held_out_counts(np.bincount(labels, minlength=len(dataset.class_names)), job.data.validation_fraction)
    by_class = np.argsort(labels, kind="stable")  # positions in the order, grouped by class
    rank = np.arange(len(labels)) - np.searchsorted(labels[by_class], labels[by_class])  # within the class
    validation = order[by_class[rank < held_out[labels[by_class]]]]
    return np.setdiff1d(np.arange(count), validation), np.sort(validation)


def split_counts(job: Job, dataset: Dataset) -> tuple[int, int]:
    """Estimate how many images of an unprepared dataset are trained on and held out, as if its classes were equal."""
    count, classes = dataset.shapes["train"][0], len(dataset.class_names)
    equal = np.array([len(part) for part in np.array_split(np.arange(count), classes)])
    validation = int(held_out_counts(equal, job.data.validation_fraction).sum())
    return count - validation, validation


def held_out_counts(counts: np.ndarray, fraction: float) -> np.ndarray:
    """Return how many images of each class are held out.

    Of all images together it is their share, given to the classes by the largest remainder; a class of two or more
    gives at least one and keeps at least one, and a single one is trained on.

    Args:
        counts: (K,) images of each class.
        fraction: the share that is held out; of 0 nothing is.

    Returns:
        (K,) int64.
    """
    share = Fraction(str(fraction))
    wanted = [share * int(count) for count in counts]
    most = [max(0, int(count) - 1) for count in counts]
    given = [min(max(int(part), 1), limit) if share else 0 for part, limit in zip(wanted, most, strict=True)]
    left = round(sum(wanted)) - sum(given)
    for label in sorted(range(len(counts)), key=lambda label: given[label] - wanted[label]):
        more = int(left > 0 and given[label] < most[label])
        given[label], left = given[label] + more, left - more
    return np.array(given, np.int64)


def validation_indices(run: Run, dataset: Dataset) -> np.ndarray:
    """Return the training images that a run held out, int64 indices; up to format 2 they were not chosen by class."""
    job = run.job()
    if format_of(run.manifest()) > OLDEST_FORMAT or "val" in dataset.splits:
        return split(job, dataset)[1]
    count = dataset.shapes["train"][0]
    return np.sort(permutation(count, 0, Purpose.VALIDATION)[: round(count * job.data.validation_fraction)])
