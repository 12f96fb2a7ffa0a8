"""Benchmark workloads: the training steps of several jobs, and a single convolution."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cnnjob import nn
from cnnjob.jobs.job import Job
from cnnjob.nn.blocks import Layer
from cnnjob.training.build import build_network, build_optimiser

CLASSES = 10
SINGLE_CONVOLUTION = "conv-64-128"
IMAGES = {
    "mnist-baseline": ((28, 28, 1), 60_000),
    "cifar10-baseline": ((32, 32, 3), 50_000),
    "cifar10": ((32, 32, 3), 50_000),
    "cifar10-small": ((32, 32, 3), 49_000),
    "cifar10-fast": ((32, 32, 3), 50_000),
    "cifar10-resnet": ((32, 32, 3), 49_000),
}
"""Image shape (H, W, C) and number of training images, by job name."""
CPU_BATCH_SIZES = {"cifar10-fast": 64, "cifar10-resnet": 64}
"""Batch sizes used on a CPU, instead of those of jobs that are meant for a GPU."""
NAMES = (*IMAGES, SINGLE_CONVOLUTION)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Workload:
    """A network's training step, or the forward and backward passes of one block, including the input gradient."""

    name: str
    layers: tuple[Layer, ...]
    batch_size: int
    steps: int
    """Steps per epoch; 0 for a single block."""
    optimiser: nn.Optimiser
    learning_rate: float

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape (H, W, C) of one image."""
        return self.layers[0].input_shape

    @property
    def needs_input_gradient(self) -> bool:
        """True if the gradient with respect to the images is computed too."""
        return not self.steps

    @cached_property
    def images(self) -> Array:
        """Random images, uint8 (N, H, W, C)."""
        return np.random.default_rng(0).integers(0, 256, (self.batch_size, *self.image_shape), np.uint8)

    @cached_property
    def labels(self) -> Array:
        """Random labels, int64 (N,)."""
        return np.random.default_rng(1).integers(0, CLASSES, self.batch_size)


def find_workload(name: str, *, on_gpu: bool = False) -> Workload:
    """Return the workload with the given name: ``conv-64-128`` or a job name; its batch size depends on the device."""
    if name == SINGLE_CONVOLUTION:  # 3×3 kernel, 64 → 128 channels, 16×16 pixels, 64 images
        block, shape = nn.Conv(filters=128, activation="none"), (16, 16, 64)
        return Workload(name, (Layer("conv1", block, shape, block.output_shape(shape)),), 64, 0, nn.Sgd(), 0.0)
    job, (image_shape, images) = Job.load(name), IMAGES[name]
    layers, train = build_network(job.model, image_shape, CLASSES).layers, job.train
    batch_size = train.batch_size if on_gpu else CPU_BATCH_SIZES.get(name, train.batch_size)
    return Workload(name, layers, batch_size, images // batch_size, build_optimiser(train), train.learning_rate)
