"""The setup of a run: a job with its dataset, network and split, built once and checked before anything is written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from cnnjob import nn
from cnnjob.data.dataset import Dataset
from cnnjob.errors import JobError
from cnnjob.jobs.job import Job
from cnnjob.nn.arena import BufferLayout
from cnnjob.nn.optimisers import split_segments, trainable_segments
from cnnjob.runs.creation import create_run, open_run_dataset
from cnnjob.runs.run import Run
from cnnjob.training.build import InitialLayers, build_network, build_optimiser, build_schedule
from cnnjob.training.idle_settings import find_idle_settings
from cnnjob.training.split import estimate_split_counts, split_training_images


@dataclass(frozen=True)
class TrainingSetup:
    """Everything needed for training except the run folder and the backend."""

    job: Job
    dataset: Dataset
    network: nn.Network
    training: np.ndarray
    """int64 (n_training,), ascending indices of the images to train on; empty if the dataset is not prepared."""
    validation: np.ndarray
    """int64 (n_validation,), ascending indices of the training images set aside for validation; empty if the dataset is
    not prepared or has its own validation split."""
    n_training: int
    """Number of images to train on; an estimate if the dataset is not prepared."""
    n_validation: int
    """Number of training images set aside for validation; an estimate if the dataset is not prepared."""

    @classmethod
    def build(cls, job: Job, dataset: Dataset) -> Self:
        """Build the network and split the training images.

        Args:
            job: the job, which need not be trainable.
            dataset: the job's dataset; if it has not been prepared yet, only its shapes are known and used.

        Returns:
            The setup; use :meth:`check` to verify that it can be trained.

        Raises:
            JobError: a block does not match the output of the preceding block.
            DataError: the labels cannot be read.
        """
        network = build_network(job.model, dataset.image_shape, len(dataset.class_names))
        if dataset.array_sha256 or "val" in dataset.splits:
            training, validation = split_training_images(job, dataset)
            return cls(job, dataset, network, training, validation, len(training), len(validation))
        none = np.zeros(0, np.int64)
        return cls(job, dataset, network, none, none, *estimate_split_counts(job, dataset))

    @classmethod
    def checked(cls, job: Job, dataset: Dataset) -> Self:
        """Build a setup, and check that the job can be trained on the dataset.

        Raises:
            JobError: the job cannot be trained on the dataset.
            DataError: the labels or the initial weights cannot be read.
        """
        setup = cls.build(job, dataset)
        setup.check()
        return setup

    @classmethod
    def of_run(cls, run: Run, job: Job | None = None, dataset: Dataset | None = None) -> Self:
        """Build the setup of an existing run.

        Args:
            run: a run that has been created.
            job: the run's job, possibly with different resources or a different checkpoint interval; by default, the
                job stored in the run.
            dataset: the run's dataset; by default, it is opened at the path recorded in the run.

        Returns:
            The setup.

        Raises:
            DataError: the run or its dataset is missing or damaged, or the dataset is not the run's dataset.
        """
        return cls.build(job or run.job(), open_run_dataset(run, dataset))

    def initial_layers(self) -> InitialLayers | None:
        """Return which layers take initial weights from another run or file; None without ``model.init_from``.

        Raises:
            DataError: the weights are missing or damaged.
            JobError: the weights do not fit any layer, or they do not fit a frozen layer.
        """
        return InitialLayers.of(self.job, self.network)

    def describe_initial(self) -> list[str]:
        """Return lines on the initial weights for the user; none without ``model.init_from``."""
        initial = self.initial_layers()
        return list(initial.describe()) if initial else []

    def create_run(self, root: Path) -> Run:
        """Create or find the run in a runs folder, as :func:`cnnjob.runs.creation.create_run` does."""
        return create_run(self.job, self.dataset, root)

    @property
    def steps_per_epoch(self) -> int:
        """The number of optimiser steps per epoch; the images of an incomplete last batch are left out."""
        return self.n_training // self.job.train.batch_size

    def check(self) -> None:
        """Refuse a job that cannot be trained on the dataset, before anything is written.

        Raises:
            JobError: the job cannot be trained on the dataset.
        """
        job = self.job
        self.initial_layers()
        self._check_trainable()
        self._check_muon()
        self._check_augmentation()
        self._check_counts()
        try:
            nn.require_trainable(self.network, job.train.batch_size)
        except ValueError as error:
            raise JobError(f"model.blocks: {error}. Change the block or train.batch_size") from error
        steps = self.steps_per_epoch * job.train.epochs
        if job.train.lookahead and job.train.lookahead.every > steps:
            raise JobError(
                f"train.lookahead.every: {job.train.lookahead.every} is more than the {steps} training steps, so "
                "lookahead has no effect. Lower it, or leave out train.lookahead"
            )
        for message in find_idle_settings(job, self.dataset, self.network, build_schedule(job.train), steps):
            raise JobError(message)

    def _check_trainable(self) -> None:
        """Refuse a network without trainable parameters, and weight decay without trainable weights."""
        # A trainable parameter with a learning rate factor of 0 never changes.
        trainable = [
            parameter
            for parameter in self.network.parameters.values()
            if parameter.trainable and parameter.learning_rate_factor
        ]
        if not trainable:
            raise JobError("model: all parameters are frozen, so nothing is trained. Set frozen = false in a block")
        if self.job.train.weight_decay and not any(parameter.decays for parameter in trainable):
            raise JobError("train.weight_decay: has no effect, since all weights are frozen. Leave it out")

    def _check_muon(self) -> None:
        """Refuse Muon if it would update no weights, and settings of Muon that have no effect."""
        optimiser, muon = build_optimiser(self.job.train), self.job.train.optimiser.muon
        if not muon or not isinstance(optimiser, nn.Muon):
            return
        shapes = {name: parameter.shape for name, parameter in self.network.parameters.items()}
        segments = trainable_segments(self.network, BufferLayout.of(shapes, itemsize=4))
        trained = [segment for segment in segments if segment.learning_rate_factor]
        matrices, others = split_segments(optimiser, trained)
        kinds = {segment.kind for segment in trained}
        if not matrices:
            raise JobError(
                "train.optimiser.muon: there are no weights that it updates (found none trained except those of the "
                "first layer and the classifier). Add a block, set first_layer or classifier, or use another optimiser"
            )
        idle = {
            "first_layer": muon.first_layer and "first" not in kinds and "its weights are not trained",
            "classifier": muon.classifier and "classifier" not in kinds and "its weights are not trained",
            f"others.{muon.others.kind}.weight_decay": optimiser.others.weight_decay
            and not any(segment.decays for segment in others)
            and "Muon updates all weights that decay",
            "adjust_learning_rate": muon.adjust_learning_rate == "none"
            and all(columns <= rows for rows, columns in (segment.shape for segment in matrices))
            and "no matrix has more outputs than inputs, so 'original' is the same",
        }
        for key, reason in idle.items():
            if reason:
                raise JobError(f"train.optimiser.muon.{key}: has no effect, since {reason}. Leave it out")

    def _check_augmentation(self) -> None:
        """Refuse augmentation that the size of the images or of the batches does not allow."""
        height, width, _ = self.dataset.image_shape
        augment = self.job.data.augment
        if augment and augment.crop >= min(height, width):
            raise JobError(
                f"data.augment.crop: moves images of {height}×{width} pixels by up to {augment.crop}, so that nothing "
                "of them may be left. Lower it, or leave it out"
            )
        if augment and augment.cutout > max(height, width):
            raise JobError(
                f"data.augment.cutout: the square of {augment.cutout} pixels is larger than the images of "
                f"{height}×{width} pixels. Lower it, or leave it out"
            )
        if augment and augment.mixup and self.job.train.batch_size == 1:
            raise JobError(
                "data.augment.mixup: needs two images per batch (found train.batch_size = 1). Set a larger batch, or "
                "leave mixup out"
            )
        translations = {
            "data.augment.translate": augment.translate if augment else 0,
            "train.test_time_augmentation": int(self.job.train.test_time_augmentation == "flip_translate"),
        }
        for key, pixels in translations.items():
            if pixels >= min(height, width):
                raise JobError(
                    f"{key}: translates images of {height}×{width} pixels by {pixels}, but at "
                    f"most {min(height, width) - 1} pixels can be mirrored at the edges. Lower it, or leave it out"
                )

    def _check_counts(self) -> None:
        """Refuse a dataset with too few images or classes; the error names the setting to change."""
        job, dataset = self.job, self.dataset
        if len(dataset.class_names) == 1:
            raise JobError(
                f"{dataset.path}: training needs two or more classes (found one, '{dataset.class_names[0]}'). "
                "Prepare a dataset with more classes"
            )
        count, batch_size = self.n_training + self.n_validation, job.train.batch_size
        share = f"data.validation_fraction: {job.data.validation_fraction:g} of {count:,} training images"
        if job.train.select_on == "validation" and not self.n_validation and "val" not in dataset.splits:
            raise JobError(
                f"{share} gives no validation images, but train.select_on is 'validation'. Change one of the two"
            )
        if count >= batch_size > self.n_training:
            raise JobError(
                f"{share} leaves {self.n_training:,} to train on, fewer than a batch of {batch_size:,}. Lower "
                "the fraction or train.batch_size"
            )
        if batch_size > self.n_training:
            raise JobError(
                f"train.batch_size: {batch_size:,} is more than the {self.n_training:,} training images. Lower it"
            )
