"""Trainings in halves, simulated with NumPy: rounded where the CUDA kernels round, beside float32, over several seeds.

    python -m tests.nn.halves JOB DATA [SEEDS] [--width 0.5] [--share 1] [--epochs N]

Prints the test accuracies of both, and how many scaled gradients are too small for halves or too large. With a width
and a share below 1, it takes so much of each layer's filters and of the training images. It takes an hour or more.
"""

# ruff: noqa: T201 - it is a command

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from cnnjob import nn
from cnnjob.data.dataset import Dataset
from cnnjob.jobs.job import Job
from cnnjob.nn.arena import Arena
from cnnjob.nn.blocks import Block, Conv, Residual
from cnnjob.nn.cuda.tiled.plan import loss_scale
from cnnjob.nn.operations import Norm, Operation
from cnnjob.nn.random import Purpose, permutation
from cnnjob.nn.tensors import ForwardBackward, StepInputs, Tensor
from cnnjob.training.build import build_network, build_optimiser, build_pixels, build_schedule, build_training_options

Array = np.ndarray[Any, Any]
SMALLEST_NORMAL, TOO_LARGE = 2.0**-14, 65520


class HalvesBackend(nn.NumPyBackend):
    """NumPy in float32, with the arrays between convolutions and the factors of convolutions rounded to halves."""

    def __init__(self, workers: nn.Workers, batch_size: int) -> None:
        super().__init__(workers)
        self.loss_scale = loss_scale(batch_size)
        self.largest = 0.0
        """Largest scaled gradient."""
        self.counts: Counter[str] = Counter()
        """Gradients that were rounded: all that are not zero, those below the smallest normal half, those too large."""

    def plan_operation(
        self,
        arena: Arena,
        operation: Operation,
        x: Tensor,
        y: Tensor,
        parameters: tuple[dict[str, Array], dict[str, Array]],
        inputs: StepInputs,
        layer_index: int,
    ) -> ForwardBackward:
        step = super().plan_operation(arena, operation, x, y, parameters, inputs, layer_index)
        if isinstance(operation, Norm):
            return self._rounded_norm(step, x, y)
        return self._rounded_conv(arena, step, x, y, parameters[0]["weights"]) if isinstance(operation, Conv) else step

    def _rounded_norm(self, step: ForwardBackward, x: Tensor, y: Tensor) -> ForwardBackward:
        def forward() -> None:
            step.forward()
            round_to_halves(y.value)

        def backward() -> None:
            step.backward()
            self._round_gradient(x.gradient)

        return ForwardBackward(forward, backward)

    def _rounded_conv(
        self, arena: Arena, step: ForwardBackward, x: Tensor, y: Tensor, weights: Array
    ) -> ForwardBackward:
        exact = arena.take(weights.shape, weights.dtype)

        def with_rounded_weights(task: Any) -> None:
            np.copyto(exact, weights)
            round_to_halves(weights)
            task()
            np.copyto(weights, exact)

        def forward() -> None:
            round_to_halves(x.value)
            with_rounded_weights(step.forward)
            round_to_halves(y.value)

        def backward() -> None:
            self._round_gradient(y.gradient)
            with_rounded_weights(step.backward)
            if x.trainable:
                self._round_gradient(x.gradient)

        return ForwardBackward(forward, backward)

    def _round_gradient(self, gradient: Array) -> None:
        """Round a gradient to what its scaled value is in halves, and count."""
        scaled = np.abs(gradient) * self.loss_scale
        self.counts["all"] += int(np.count_nonzero(scaled))
        self.counts["small"] += int(np.count_nonzero((scaled > 0) & (scaled < SMALLEST_NORMAL)))
        self.counts["large"] += int(np.count_nonzero(scaled >= TOO_LARGE))
        self.largest = max(self.largest, float(scaled.max()))
        round_to_halves(gradient, self.loss_scale)


def round_to_halves(values: Array, scale: float = 1) -> None:
    """Round values to halves, in place; ``scale`` is a power of two by which they are multiplied before."""
    for image in values:
        image[...] = (image * np.float32(scale)).astype(np.float16) * np.float32(1 / scale)


def narrower(blocks: tuple[Block, ...], width: float) -> tuple[Block, ...]:
    """The blocks with so much of their filters, in multiples of 8; a whitening layer stays."""
    found: list[Block] = []
    for block in blocks:
        if isinstance(block, Residual):
            block = replace(block, blocks=narrower(block.blocks, width))  # type: ignore[arg-type]  # noqa: PLW2901
        elif isinstance(block, Conv) and not block.frozen:
            block = replace(block, filters=max(8, round(block.filters * width / 8) * 8))  # noqa: PLW2901
        found.append(block)
    return tuple(found)


def accuracy_of(job: Job, dataset: Dataset, backend: nn.NumPyBackend, seed: int, options: argparse.Namespace) -> float:
    """Train a job's network, and return its test accuracy."""
    train, (images, labels) = job.train, dataset.load("train")
    count = round(len(images) * options.share)
    images, labels = images[:count], labels[:count]
    whole = build_network(job.model, dataset.image_shape, len(dataset.class_names))
    blocks = [layer.block for layer in whole.layers]
    network = nn.Network.build([*narrower(tuple(blocks[:-1]), options.width), blocks[-1]], dataset.image_shape)
    optimiser, pixels = build_optimiser(train), build_pixels(job.data, dataset.mean, dataset.std)
    state = nn.State(network, optimiser, backend)
    state.initialise(network, seed, images[: nn.count_whitening_images(images.shape[1:])], pixels)
    steps, epochs = count // train.batch_size, options.epochs or train.epochs
    inputs = nn.build_step_inputs(backend, images, labels, steps, train.batch_size, seed)
    plan = nn.TrainingPlan(
        backend, network, state, optimiser, inputs, pixels, train.batch_size, build_training_options(job)
    )
    for epoch in range(epochs):
        inputs.order[:] = permutation(count, seed, Purpose.ORDER, epoch)[: len(inputs.order)]
        span = range(epoch * steps, (epoch + 1) * steps)
        inputs.learning_rates[:] = build_schedule(train).rates(span, steps * epochs)
        inputs.lookahead[:] = optimiser.lookahead.alphas(span, steps * epochs) if optimiser.lookahead else -1
        inputs.position[0] = 0
        for _ in range(steps):
            plan.step()
    test_images, test_labels = dataset.load("test")
    evaluation = nn.EvaluationPlan(backend, network, state, pixels, 500, train.test_time_augmentation)
    probabilities = evaluation.probabilities(test_images, np.arange(len(test_images)))
    return float((probabilities.argmax(1) == test_labels).mean())


def main() -> None:
    """Train with all seeds in float32 and in halves, and compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job")
    parser.add_argument("data", type=Path)
    parser.add_argument("seeds", type=int, nargs="?", default=5)
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--epochs", type=int, default=0)
    options = parser.parse_args()
    job, dataset = Job.load(options.job), Dataset.open(options.data)
    found: list[tuple[float, float]] = []
    with nn.Workers(nn.available_cores()) as workers, threadpool_limits(1):
        for seed in range(options.seeds):
            halves = HalvesBackend(workers, job.train.batch_size)
            exact = accuracy_of(job, dataset, nn.NumPyBackend(workers), seed, options)
            found.append((exact, accuracy_of(job, dataset, halves, seed, options)))
            small, large = (halves.counts[key] / max(1, halves.counts["all"]) for key in ("small", "large"))
            print(f"seed {seed}: float32 {found[-1][0]:.2%}, halves {found[-1][1]:.2%}")
            print(
                f"  scaled gradients that are not 0: {small:.2%} below the smallest normal half, {large:.2%} too large"
            )
            print(f"  the largest: {halves.largest:.3g}", flush=True)
    exact, rounded = np.array(found).T
    spread = exact.std(ddof=1) if len(exact) > 1 else 0.0
    print(f"mean: float32 {exact.mean():.2%}, halves {rounded.mean():.2%}; float32's seeds spread by {spread:.2%}")


if __name__ == "__main__":
    main()
