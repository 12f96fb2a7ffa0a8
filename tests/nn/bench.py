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
    inputs: Any
    plan: nn.TrainingPlan
    pixels: nn.PixelNormalisation
    backend: nn.NumPyBackend

    @property
    def gradients(self) -> dict[str, Array]:
        return self.state.layout.views(self.state.gradients)

    def step(self) -> float:
        """One step from the epoch's start; the loss."""
        self.inputs.position[0] = 0
        self.plan.step()
        return float(self.inputs.losses[0])


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
    options: nn.TrainingOptions = nn.TrainingOptions(),  # noqa: B008 - it is a tuple
    output_scale: float = 1.0,
) -> Rig:
    """Build it; with learning rate 0 a step only computes."""
    random = np.random.default_rng(seed)
    head = nn.Dense(activation="none", units=classes, output_scale=output_scale)
    network = nn.Network.build([*blocks, head], shape)
    backend = nn.NumPyBackend(nn.Workers(workers), dtype)
    chosen = optimiser or nn.Sgd()
    state = nn.State(network, chosen, backend)
    drawn: dict[str, Array] = {}
    for name, view in state.weights.items():
        if name.endswith(("bias", "shift")):
            drawn[name] = np.asarray(random.normal(size=view.shape)) / 3
        elif name.endswith("scale"):
            drawn[name] = np.asarray(random.uniform(0.5, 1.5, view.shape))
    pictures = random.integers(0, 256, (count, *shape), np.uint8) if images is None else images
    pixels = nn.PixelNormalisation.unit(shape[-1])
    state.initialise(network, seed, pictures, pixels)
    for name, values in drawn.items():
        state.weights[name][...] = values
    inputs = nn.build_step_inputs(backend, pictures, random.integers(0, classes, len(pictures)), 1, len(pictures), seed)
    inputs.order[:], inputs.learning_rates[:] = np.arange(len(pictures)), learning_rate
    inputs.mixup[:] = 0.3
    plan = nn.TrainingPlan(backend, network, state, chosen, inputs, pixels, len(pictures), options)
    return Rig(network, state, inputs, plan, pixels, backend)


def distance(a: Array, b: Array) -> float:
    """max|a−b| / max|b|."""
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


def check_gradients(bench: Rig, seed: int = 0) -> None:
    """Slopes of the loss along random directions, a parameter at a time, against the gradients; in float64.

    (f(w + hd) − f(w − hd)) / 2h for two h: where they differ a kink is near, and another direction is drawn.
    """
    bench.step()
    learning = {name for name, parameter in bench.network.parameters.items() if parameter.trainable}
    gradients = {name: array.copy() for name, array in bench.gradients.items() if name in learning}
    largest = max(float(np.linalg.norm(gradient)) for gradient in gradients.values())
    random = np.random.default_rng(seed)
    for name, gradient in gradients.items():
        near = max(float(np.linalg.norm(gradient)), 1e-4 * largest)
        for _ in range(8):
            direction: Array = np.asarray(random.normal(size=gradient.shape))
            wide, narrow = (_slope(bench, bench.state.weights[name], direction, h) for h in (4e-6, 2e-6))
            if abs(wide - narrow) < 1e-6 * near:
                break
        else:
            raise AssertionError(f"{name}: a kink along every direction")
        assert abs(narrow - (gradient * direction).sum()) <= 2e-6 * near, name


def _slope(bench: Rig, array: Array, direction: Array, h: float) -> float:
    at, losses = array.copy(), []
    for change in (h, -h):
        np.copyto(array, at + change * direction)
        losses.append(bench.step())
    np.copyto(array, at)
    return (losses[0] - losses[1]) / (2 * h)
