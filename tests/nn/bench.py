"""A network on made-up images, one step of it, and what comes out: shared by the tests of nn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cnnjob import nn
from cnnjob.nn.blocks import Block

Array = np.ndarray[Any, Any]
CLASSES = 3
HEAD = nn.Dense(activation="none", units=CLASSES)


@dataclass
class Rig:
    """One network, its training plan, and the images of one epoch."""

    network: nn.Network
    state: nn.State
    feed: Any
    plan: nn.TrainingPlan
    pixels: nn.Pixels
    backend: nn.NumPyBackend

    @property
    def gradients(self) -> dict[str, Array]:
        return self.state.layout.views(self.state.gradients)

    def step(self) -> float:
        """One step from the epoch's start; the loss."""
        self.feed.position[0] = 0
        self.plan.step()
        return float(self.feed.losses[0])


def rig(
    blocks: Sequence[Block],
    shape: tuple[int, int, int] = (6, 5, 2),
    *,
    count: int = 4,
    dtype: Any = np.float64,
    optimiser: nn.Optimiser | None = None,
    learning_rate: float = 0.0,
    workers: int = 1,
    seed: int = 0,
    images: Array | None = None,
    classes: int = CLASSES,
) -> Rig:
    """Build it; with learning rate 0 a step only computes."""
    random = np.random.default_rng(seed)
    head = nn.Dense(activation="none", units=classes)
    network = nn.Network.build([*blocks, head], shape)
    backend = nn.NumPyBackend(nn.Workers(workers), dtype)
    chosen = optimiser or nn.Sgd()
    state = nn.State(network, chosen, backend)
    state.initialise(network, seed)
    for name, view in state.weights.items():
        if name.endswith("bias"):
            view[...] = random.normal(size=view.shape) / 3
    pictures = random.integers(0, 256, (count, *shape), np.uint8) if images is None else images
    feed = nn.training_feed(backend, pictures, random.integers(0, classes, len(pictures)), 1, len(pictures), seed)
    feed.order[:], feed.learning_rates[:] = np.arange(len(pictures)), learning_rate
    pixels = nn.Pixels.unit(shape[-1])
    plan = nn.TrainingPlan(backend, network, state, chosen, feed, pixels, len(pictures))
    return Rig(network, state, feed, plan, pixels, backend)


def distance(a: Array, b: Array) -> float:
    """max|a−b| / max|b|."""
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))
