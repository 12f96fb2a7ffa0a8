"""From a job's words to the network's things, and what they will cost in memory."""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from cnnjob import jobs, nn
from cnnjob.datasets import Dataset
from cnnjob.errors import JobError

EVALUATION_BATCH = 256
LABEL_BYTES = 8


def network_of(model: jobs.Model, image_shape: tuple[int, int, int], classes: int) -> nn.Network:
    """The network of a job on a dataset.

    Args:
        model: the job's.
        image_shape: (H, W, C).
        classes: outputs of the implied classifier.

    Returns:
        The network.

    Raises:
        JobError: a block does not fit where it stands.
    """
    head = model.classifier
    classifier = nn.Dense(head.init, head.bias_init, head.learning_rate_factor, activation="none", units=classes)
    try:
        return nn.Network.build([*(_block_of(block) for block in model.blocks), classifier], image_shape)
    except ValueError as error:
        raise JobError(f"model.blocks: {error}; change the block or its place") from error


def _block_of(block: Any) -> nn.Conv | nn.Dense | nn.Dropout:
    """The same block without its key's name."""
    settings = block.model_dump()
    if isinstance(block, jobs.Conv):
        return nn.Conv(filters=settings.pop("conv"), **settings)
    if isinstance(block, jobs.Dense):
        return nn.Dense(units=settings.pop("dense"), **settings)
    return nn.Dropout(probability=settings["dropout"])


def optimiser_of(train: jobs.Train) -> nn.Sgd:
    """The optimiser that a job asks for."""
    return nn.Sgd(train.momentum, train.weight_decay)


def pixels_of(data: jobs.Data, mean: tuple[float, ...], std: tuple[float, ...]) -> nn.Pixels:
    """How a job wants a dataset's pixels; mean and std are of each channel's 0 … 1 values."""
    return nn.Pixels.standardised(mean, std) if data.pixels == "standardised" else nn.Pixels.unit(len(mean))


@dataclass(frozen=True)
class Memory:
    """The exact bytes of a training's arrays, by what they are for."""

    data: int
    """Images and labels."""
    parameters: int
    """Parameters, gradients and the optimiser's slots; the best parameters beside them."""
    training: int
    """Buffers of a training step."""
    evaluation: int
    """Buffers of an evaluation step."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.data + self.parameters + self.training + self.evaluation


def memory_of(job: jobs.Job, network: nn.Network, dataset: Dataset) -> Memory:
    """Count the memory of a job's training on a dataset without taking it."""
    used = {"train", "val", "test"} if job.train.select_on == "test" else {"train", "val"}
    data_bytes = sum(prod(shape) + shape[0] * LABEL_BYTES for split, shape in dataset.shapes.items() if split in used)
    backend, optimiser = nn.NumPyBackend(nn.Workers(1)), optimiser_of(job.train)
    state = nn.State(network, optimiser, backend.dtype)
    return Memory(
        data_bytes,
        state.size_bytes + state.parameters.nbytes,
        nn.TrainingPlan.count_bytes(backend, network, state, optimiser, job.train.batch_size),
        nn.EvaluationPlan.count_bytes(backend, network, state, EVALUATION_BATCH),
    )


@dataclass(frozen=True)
class Classifier:
    """A trained network that tells the classes of images."""

    backend: nn.NumPyBackend
    network: nn.Network
    state: nn.State
    pixels: nn.Pixels

    def probabilities(self, images: np.ndarray, order: np.ndarray | None = None) -> np.ndarray:
        """The class probabilities of images.

        Args:
            images: uint8 (N, H, W, C).
            order: int64, which of them; all by default.

        Returns:
            (len(order), classes), each row's sum 1.
        """
        return self.plan(images, np.arange(len(images)) if order is None else order).probabilities()

    def plan(self, images: np.ndarray, order: np.ndarray) -> nn.EvaluationPlan:
        """An evaluation of the same images to be asked again and again, while the state learns."""
        return nn.EvaluationPlan(
            self.backend, self.network, self.state, images, order, self.pixels, min(EVALUATION_BATCH, len(order))
        )
