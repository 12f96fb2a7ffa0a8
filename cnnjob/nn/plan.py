"""Plan, then run: a network walked once for a batch size, as lists of argument-free functions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Protocol

import numpy as np

from cnnjob.nn.blocks import Block, Conv, Dropout, Layer, Network, Parameter, Shape
from cnnjob.nn.memory import Arena, Array, HostMemory, Layout, Memory, hollow_array
from cnnjob.nn.optimisers import Segment, Sgd, segments
from cnnjob.nn.random import Purpose, generator
from cnnjob.nn.signals import Feed, Signal, Step, Task
from cnnjob.nn.workers import run_all


class Backend(Memory, Protocol):
    """What a plan asks of the arrays' library: memory, and a task for each part of a step."""

    name: str
    dtype: np.dtype[np.floating]
    synchronous: bool
    """Whether what a task computes is there when it returns."""

    def gather(self, arena: Arena, feed: Feed, x: Signal, scale: Array, shift: Array) -> Task:
        """The batch, normalised."""

    def block(
        self,
        arena: Arena,
        block: Block,
        x: Signal,
        y: Signal,
        parameters: tuple[dict[str, Array], dict[str, Array]],
        feed: Feed,
        place: int,
    ) -> Step:
        """One block; its gradients are empty in an evaluation."""

    def loss(self, arena: Arena, feed: Feed, logits: Signal) -> Task:
        """Loss, hits, and the logits' gradient."""

    def probabilities(self, arena: Arena, logits: Signal) -> tuple[Array, Task]:
        """The softmax."""

    def update(
        self, arena: Arena, optimiser: Sgd, segments: Sequence[Segment], buffers: tuple[Array, Array, Array], feed: Feed
    ) -> Task:
        """Parameters, gradients and velocity, as the optimiser says."""

    def advance(self, feed: Feed) -> Task:
        """The position moves on by a step."""


@dataclass(frozen=True)
class Pixels:
    """How a pixel 0 … 255 becomes a number: pixel·scale + shift, for each channel."""

    scale: Array
    shift: Array

    @classmethod
    def unit(cls, channels: int) -> "Pixels":
        """0 … 1."""
        return cls(np.full(channels, 1 / 255), np.zeros(channels))

    @classmethod
    def standardised(cls, mean: tuple[float, ...], std: tuple[float, ...]) -> "Pixels":
        """Mean 0 and standard deviation 1, given those of the 0 … 1 pixels; a constant channel stays 0."""
        deviation = np.array([value or 1.0 for value in std])
        return cls(1 / (255 * deviation), -np.asarray(mean) / deviation)


class State:
    """What learns: flat buffers of parameters, gradients and velocity, with named views."""

    def __init__(self, network: Network, optimiser: Sgd, backend: Backend, *, hollow: bool = False) -> None:
        """Zeroes everywhere, see :meth:`initialise`; or no memory at all, to count with."""
        self._backend, dtype = backend, backend.dtype
        shapes = {name: parameter.shape for name, parameter in network.parameters.items()}
        self.layout = Layout.of(shapes, dtype.itemsize)
        take = hollow_array if hollow else backend.zeros
        self.parameters: Array = take((self.layout.size,), dtype)
        self.gradients: Array = take((self.layout.size,), dtype)
        self.velocity: Array = take((self.layout.size if optimiser.slots else 0,), dtype)

    @property
    def weights(self) -> dict[str, Array]:
        """Parameters by name."""
        return self.layout.views(self.parameters)

    @property
    def slots(self) -> dict[str, Array]:
        """The optimiser's arrays by parameter name."""
        return self.layout.views(self.velocity) if self.velocity.size else {}

    @property
    def size_bytes(self) -> int:
        """Memory of all buffers."""
        return self.parameters.nbytes + self.gradients.nbytes + self.velocity.nbytes

    def read(self, flat: Array) -> dict[str, Array]:
        """The named arrays of one of the buffers, where NumPy can read them."""
        return self.layout.views(self._backend.host(flat))

    def write(self, arrays: Mapping[str, Array], flat: Array) -> None:
        """Fill one of the buffers with named arrays of NumPy."""
        self._backend.copy(self.layout.filled(arrays, flat.dtype), flat)

    def initialise(self, network: Network, seed: int) -> None:
        """Draw the initial parameters, with NumPy for every backend.

        Each parameter's numbers depend on the seed and its place in the network only.
        """
        drawn = {
            name: _initial(parameter, seed, place) for place, (name, parameter) in enumerate(network.parameters.items())
        }
        self.write(drawn, self.parameters)


def _initial(parameter: Parameter, seed: int, place: int) -> Array:
    """A parameter's first values (He et al. 2015, eq. 10, where not told otherwise)."""
    if parameter.constant is not None:
        return np.full(parameter.shape, parameter.constant)
    sigma = sqrt(2 / parameter.fan_in) if parameter.init == "he" else parameter.init
    values: Array = generator(seed, Purpose.INIT, place).standard_normal(parameter.shape) * sigma
    return values


class TrainingPlan:
    """Training steps of one network on one batch size."""

    def __init__(
        self,
        backend: Backend,
        network: Network,
        state: State,
        optimiser: Sgd,
        feed: Feed,
        pixels: Pixels,
        batch_size: int,
    ) -> None:
        """Plan; nothing runs yet."""
        self.feed = feed

        def build(arena: Arena) -> list[Task]:
            return list(_training(arena, backend, network, state, optimiser, feed, pixels, batch_size))

        self._tasks = Arena.filled(backend, build)

    @staticmethod
    def count_bytes(backend: Backend, network: Network, state: State, optimiser: Sgd, batch_size: int) -> int:
        """The exact memory of the plan's buffers, without taking it."""
        feed, pixels = empty_feed(network.image_shape), Pixels.unit(network.image_shape[-1])
        return Arena.count_bytes(
            lambda arena: list(_training(arena, backend, network, state, optimiser, feed, pixels, batch_size))
        )

    def step(self) -> None:
        """One step: forward, loss, backward, update; the position moves on."""
        run_all(self._tasks)


class EvaluationPlan:
    """Class probabilities of images, by the parameters that a state holds when asked."""

    def __init__(self, backend: Backend, network: Network, state: State, pixels: Pixels, batch_size: int) -> None:
        """Plan; nothing runs yet."""
        self._backend, self._batch_size = backend, batch_size
        self._feed = empty_feed(network.image_shape, backend)
        self._nothing = self._feed.images

        def build(arena: Arena) -> tuple[Array, list[Task]]:
            return _evaluation(arena, backend, network, state, self._feed, pixels, batch_size)

        self._batch, self._tasks = Arena.filled(backend, build)

    @staticmethod
    def count_bytes(backend: Backend, network: Network, state: State, batch_size: int) -> int:
        """The exact memory of the plan's buffers, without taking it."""
        feed, pixels = empty_feed(network.image_shape), Pixels.unit(network.image_shape[-1])
        return Arena.count_bytes(lambda arena: _evaluation(arena, backend, network, state, feed, pixels, batch_size))

    def probabilities(self, images: Array, order: Array) -> Array:
        """The softmax of the outputs for the images that ``order`` names.

        Args:
            images: uint8 (N, H, W, C), of the backend or of NumPy.
            order: int64, indices of images.

        Returns:
            (len(order), classes), float32 or float64.
        """
        steps = -(-len(order) // self._batch_size)
        found = np.empty((steps, *self._batch.shape), self._batch.dtype)
        self._feed.images = self._backend.resident(images)
        self._feed.order = self._backend.resident(np.resize(order, steps * self._batch_size))
        self._backend.copy(np.zeros(2, np.int64), self._feed.position)
        for step in range(steps):
            run_all(self._tasks)
            self._backend.copy(self._batch, found[step])
        self._feed.images = self._nothing  # those are not to be kept alive
        return found.reshape(-1, self._batch.shape[1])[: len(order)]


def training_feed(memory: Memory, images: Array, labels: Array, steps: int, batch_size: int, seed: int) -> Feed:
    """A feed for epochs of so many steps; order and learning rates are to be copied in at each epoch.

    Args:
        memory: where it is to lie.
        images: uint8 (images, H, W, C), there or in NumPy's.
        labels: int64 (images,), likewise.
        steps: of an epoch.
        batch_size: images of a step.
        seed: the job's.

    Returns:
        The feed, at step 0.
    """
    return Feed(
        memory.resident(images),
        memory.resident(labels),
        order=memory.zeros((steps * batch_size,), np.int64),
        learning_rates=memory.zeros((steps,), np.float64),
        losses=memory.zeros((steps,), np.float64),
        hits=memory.zeros((steps,), np.int64),
        position=memory.zeros((2,), np.int64),
        seed=seed,
    )


def empty_feed(image_shape: Shape, memory: Memory | None = None) -> Feed:
    """A feed of no images; without memory, to count with."""
    return training_feed(memory or HostMemory(), np.zeros((0, *image_shape), np.uint8), np.zeros(0, np.int64), 0, 0, 0)


def _signals(
    arena: Arena, backend: Backend, layers: tuple[Layer, ...], batch_size: int, *, learns: bool
) -> list[Signal]:
    """The arrays before, between and after the layers; the images themselves need no gradient."""
    shapes = [layers[0].input_shape, *(layer.output_shape for layer in layers)]
    borders = [layer.block.pad if isinstance(layer.block, Conv) else 0 for layer in layers]
    return [
        Signal.take(arena, (batch_size, *shape), backend.dtype, border=border, learns=learns and number > 0)
        for number, (shape, border) in enumerate(zip(shapes, [*borders, 0], strict=True))
    ]


def _steps(
    arena: Arena,
    backend: Backend,
    weights: dict[str, Array],
    gradients: dict[str, Array],
    feed: Feed,
    layers: tuple[Layer, ...],
    signals: list[Signal],
) -> Iterator[Step]:
    for place, (layer, x, y) in enumerate(zip(layers, signals[:-1], signals[1:], strict=True)):
        own = [
            {name: arrays[f"{layer.name}/{name}"] for name in layer.block.parameters(layer.input_shape) if arrays}
            for arrays in (weights, gradients)
        ]
        yield backend.block(arena, layer.block, x, y, (own[0], own[1]), feed, place)


def _training(
    arena: Arena,
    backend: Backend,
    network: Network,
    state: State,
    optimiser: Sgd,
    feed: Feed,
    pixels: Pixels,
    batch_size: int,
) -> Iterator[Task]:
    """The tasks of one training step, in order."""
    signals = _signals(arena, backend, network.layers, batch_size, learns=True)
    gradients = state.layout.views(state.gradients)
    steps = list(_steps(arena, backend, state.weights, gradients, feed, network.layers, signals))
    yield backend.gather(arena, feed, signals[0], pixels.scale, pixels.shift)
    yield from (step.forward for step in steps)
    yield backend.loss(arena, feed, signals[-1])
    yield from (step.backward for step in reversed(steps))
    buffers = state.parameters, state.gradients, state.velocity
    yield backend.update(arena, optimiser, segments(network, state.layout), buffers, feed)
    yield backend.advance(feed)


def _evaluation(
    arena: Arena, backend: Backend, network: Network, state: State, feed: Feed, pixels: Pixels, batch_size: int
) -> tuple[Array, list[Task]]:
    """The probabilities of a batch, and the tasks that fill them."""
    layers = tuple(layer for layer in network.layers if not isinstance(layer.block, Dropout))
    signals = _signals(arena, backend, layers, batch_size, learns=False)
    steps = _steps(arena, backend, state.weights, {}, feed, layers, signals)
    gather = backend.gather(arena, feed, signals[0], pixels.scale, pixels.shift)
    probabilities, softmax = backend.probabilities(arena, signals[-1])
    return probabilities, [gather, *(step.forward for step in steps), softmax, backend.advance(feed)]
