"""Choice of the validation images: a fixed fraction of each class's training images, the same for every seed."""

from fractions import Fraction

import numpy as np

from cnnjob.data.dataset import Dataset
from cnnjob.jobs.job import Job
from cnnjob.nn.random import Purpose, permutation
from cnnjob.runs.run import OLDEST_FORMAT, Run, manifest_format


def split_training_images(job: Job, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Split the training images into those to train on and those for validation.

    The choice is the same for every seed, so that seeds are compared on the same images.

    Args:
        job: the job, whose ``data.validation_fraction`` is the fraction of validation images.
        dataset: the dataset; if it has its own validation split, all training images are used for training.

    Returns:
        The indices of the images to train on and of those for validation; int64, ascending.
    """
    count = dataset.shapes["train"][0]
    order = permutation(count, 0, Purpose.VALIDATION)  # seed 0, not the job's
    labels = np.zeros(0, np.int64) if "val" in dataset.splits else dataset.labels("train")[order]
    counts = count_validation_images(
        np.bincount(labels, minlength=len(dataset.class_names)), job.data.validation_fraction
    )
    # The first images of each class, in a random order, are chosen. With a validation split, all arrays are empty.
    by_class = np.argsort(labels, kind="stable")  # positions in the order, grouped by class
    rank = np.arange(len(labels)) - np.searchsorted(labels[by_class], labels[by_class])  # within the class, from 0
    validation = order[by_class[rank < counts[labels[by_class]]]]
    return np.setdiff1d(np.arange(count), validation), np.sort(validation)


def estimate_split_counts(job: Job, dataset: Dataset) -> tuple[int, int]:
    """Estimate the numbers of training and validation images of an unprepared dataset, assuming equal class sizes."""
    count, classes = dataset.shapes["train"][0], len(dataset.class_names)
    class_counts = np.array([len(part) for part in np.array_split(np.arange(count), classes)])
    validation = int(count_validation_images(class_counts, job.data.validation_fraction).sum())
    return count - validation, validation


def count_validation_images(counts: np.ndarray, fraction: float) -> np.ndarray:
    """Return the number of validation images per class.

    The total is the fraction times the number of images, rounded. It is apportioned to the classes by the largest
    remainder method, except that every class with two or more images has at least one image for validation and at least
    one for training. If a class has only one image, that image is used for training.

    Args:
        counts: (K,) number of images per class.
        fraction: the fraction of validation images, in 0..1; 0 means none.

    Returns:
        (K,) int64.
    """
    # Exact fractions, since 0.07 · 100 is 7.000000000000001 in floating point, which could affect the remainders.
    share = Fraction(str(fraction))
    wanted = [share * int(count) for count in counts]
    most = [max(0, int(count) - 1) for count in counts]
    apportioned = [min(max(int(part), 1), limit) if share else 0 for part, limit in zip(wanted, most, strict=True)]
    rest = round(sum(wanted)) - sum(apportioned)
    for label in sorted(range(len(counts)), key=lambda label: apportioned[label] - wanted[label]):
        if rest > 0 and apportioned[label] < most[label]:
            apportioned[label] += 1
            rest -= 1
    return np.array(apportioned, np.int64)


def validation_indices(run: Run, dataset: Dataset) -> np.ndarray:
    """Return the indices of a run's validation images, int64, ascending.

    Runs with manifest format 2 or older chose the images differently, without regard to their classes.
    """
    job = run.job()
    if manifest_format(run.manifest()) > OLDEST_FORMAT or "val" in dataset.splits:
        return split_training_images(job, dataset)[1]
    count = dataset.shapes["train"][0]
    return np.sort(permutation(count, 0, Purpose.VALIDATION)[: round(count * job.data.validation_fraction)])
