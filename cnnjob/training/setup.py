"""A job on a dataset: its network and its split, built once, and known to fit together before anything is written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from cnnjob import nn
from cnnjob.data.dataset import Dataset
from cnnjob.errors import JobError
from cnnjob.jobs.job import Job
from cnnjob.runs.creation import create_run, dataset_of_run
from cnnjob.runs.run import Run
from cnnjob.training.build import build_network, build_schedule
from cnnjob.training.idle_settings import require_acting
from cnnjob.training.split import split, split_counts


@dataclass(frozen=True)
class TrainingSetup:
    """What a training needs besides its run folder and its backend."""

    job: Job
    dataset: Dataset
    network: nn.Network
    training: np.ndarray
    """int64 (n_training,), the training images that are trained on, ascending; empty if the dataset is not prepared."""
    validation: np.ndarray
    """int64 (n_validation,), those that are held out, ascending; empty too where the dataset has a validation split."""
    n_training: int
    n_validation: int

    @classmethod
    def build(cls, job: Job, dataset: Dataset) -> Self:
        """Build the network and split the training images.

        Args:
            job: any job.
            dataset: the job's; of one that is not prepared yet, only the shapes are known and used.

        Returns:
            The setup; :meth:`check` tells whether it can be trained.

        Raises:
            JobError: a block does not fit where it stands.
            DataError: the labels cannot be read.
        """
        network = build_network(job.model, dataset.image_shape, len(dataset.class_names))
        if dataset.array_sha256 or "val" in dataset.splits:
            training, validation = split(job, dataset)
            return cls(job, dataset, network, training, validation, len(training), len(validation))
        none = np.zeros(0, np.int64)
        return cls(job, dataset, network, none, none, *split_counts(job, dataset))

    @classmethod
    def checked(cls, job: Job, dataset: Dataset) -> Self:
        """Build a setup that can be trained.

        Raises:
            JobError: the job and the dataset do not fit together.
            DataError: the labels cannot be read.
        """
        setup = cls.build(job, dataset)
        setup.check()
        return setup

    @classmethod
    def of_run(cls, run: Run, job: Job | None = None, dataset: Dataset | None = None) -> Self:
        """Build what a run is trained with.

        Args:
            run: made before.
            job: the run's job with other resources or another save cadence; as the run's folder has it by default.
            dataset: the run's, wherever it is now; where it was when the run was made by default.

        Returns:
            The setup.

        Raises:
            DataError: the run or its dataset is missing, damaged or not the same.
        """
        return cls.build(job or run.job(), dataset_of_run(run, dataset))

    def create_run(self, root: Path) -> Run:
        """Return the run in a folder of runs, see :func:`cnnjob.runs.creation.create_run`."""
        return create_run(self.job, self.dataset, root)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch; the last batch is dropped where it is not full."""
        return self.n_training // self.job.train.batch_size

    def check(self) -> None:
        """Find what does not fit before anything is written.

        Raises:
            JobError: the job cannot be trained on the dataset.
        """
        job = self.job
        self._check_trainable()
        self._check_translations()
        self._check_counts()
        try:
            nn.require_trainable(self.network, job.train.batch_size)
        except ValueError as error:
            raise JobError(f"model.blocks: {error}; change the block or train.batch_size") from error
        steps = self.steps_per_epoch * job.train.epochs
        if job.train.lookahead and job.train.lookahead.every > steps:
            raise JobError(
                f"train.lookahead.every: {job.train.lookahead.every} is more than the {steps} steps of the training, "
                "so it would not act; lower it, or leave out train.lookahead"
            )
        require_acting(job, self.dataset, self.network, build_schedule(job.train), steps)

    def _check_trainable(self) -> None:
        """Find a network of which nothing is trained, and a weight decay without weights that are."""
        trainable = [one for one in self.network.parameters.values() if one.trainable and one.learning_rate_factor]
        if not trainable:
            raise JobError("model: nothing of it is trained, all of it is frozen; set frozen to false in one block")
        if self.job.train.weight_decay and not any(one.decays for one in trainable):
            raise JobError("train.weight_decay: all weights are frozen, and it acts on nothing else; leave it out")

    def _check_translations(self) -> None:
        """Find a translation by as much as an image is wide: what comes in at an edge is mirrored at it."""
        height, width, _ = self.dataset.image_shape
        augment = self.job.data.augment
        translations = {
            "data.augment.translate": augment.translate if augment else 0,
            "train.test_time_augmentation": int(self.job.train.test_time_augmentation == "flip_translate"),
        }
        for key, pixels in translations.items():
            if pixels >= min(height, width):
                raise JobError(
                    f"{key}: moves images of {height}×{width} pixels by {pixels}, at most {min(height, width) - 1} can "
                    "be mirrored at their edges; ask for less"
                )

    def _check_counts(self) -> None:
        """Find too few images or classes, and name the setting that makes them too few."""
        job, dataset = self.job, self.dataset
        if len(dataset.class_names) == 1:
            raise JobError(
                f"{dataset.path}: it has a single class, '{dataset.class_names[0]}', so there is nothing to tell "
                "apart; prepare a dataset of two or more classes"
            )
        count, batch_size = self.n_training + self.n_validation, job.train.batch_size
        share = f"data.validation_fraction: {job.data.validation_fraction:g} of {count:,} training images"
        if job.train.select_on == "validation" and not self.n_validation and "val" not in dataset.splits:
            raise JobError(f"{share} is none, but train.select_on is 'validation'; set one of the two")
        if count >= batch_size > self.n_training:
            raise JobError(
                f"{share} leaves {self.n_training:,}, fewer than a batch of {batch_size:,}; lower it, or "
                "train.batch_size"
            )
        if batch_size > self.n_training:
            raise JobError(
                f"train.batch_size: {batch_size:,} is more than the {self.n_training:,} training images; lower it"
            )
