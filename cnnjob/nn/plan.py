"""Plan, then run: a network walked once for a batch size, as lists of argument-free functions."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cnnjob.nn.backend import Backend
from cnnjob.nn.blocks import Network, Shape
from cnnjob.nn.chains import Chain
from cnnjob.nn.memory import Arena, Array, HostMemory, Memory
from cnnjob.nn.optimisers import Optimiser, segments
from cnnjob.nn.pixels import VIEWS, Augmentation, Pixels
from cnnjob.nn.signals import Feed, Task
from cnnjob.nn.state import State
from cnnjob.nn.workers import run_all


class Lesson(NamedTuple):
    """What a step teaches beside the images themselves."""

    augmentation: Augmentation | None = None
    label_smoothing: float = 0.0
    """ε: the share of each label that is spread over all classes (Szegedy et al. 2016, §7)."""


class TrainingPlan:
    """Training steps of one network on one batch size."""

    def __init__(
        self,
        backend: Backend,
        network: Network,
        state: State,
        optimiser: Optimiser,
        feed: Feed,
        pixels: Pixels,
        batch_size: int,
        lesson: Lesson = Lesson(),  # noqa: B008 - it is a tuple
    ) -> None:
        """Plan; nothing runs yet."""
        self.feed = feed

        def build(arena: Arena) -> list[Task]:
            return list(_training(arena, backend, network, state, optimiser, feed, pixels, batch_size, lesson))

        self._tasks = Arena.filled(backend, build)

    @staticmethod
    def count_bytes(
        backend: Backend,
        network: Network,
        state: State,
        optimiser: Optimiser,
        batch_size: int,
        lesson: Lesson = Lesson(),  # noqa: B008 - it is a tuple
    ) -> int:
        """The exact memory of the plan's buffers, without taking it."""
        feed, pixels = empty_feed(network.image_shape), Pixels.unit(network.image_shape[-1])
        return Arena.count_bytes(
            lambda arena: list(_training(arena, backend, network, state, optimiser, feed, pixels, batch_size, lesson))
        )

    def step(self) -> None:
        """One step: forward, loss, backward, update; the position moves on."""
        run_all(self._tasks)


class EvaluationPlan:
    """Class probabilities of images, by the parameters that a state holds when asked."""

    def __init__(
        self, backend: Backend, network: Network, state: State, pixels: Pixels, batch_size: int, views: str = "none"
    ) -> None:
        """Plan; nothing runs yet. The outputs are the mean over some :data:`cnnjob.nn.pixels.VIEWS` of an image."""
        self._backend, self._batch_size = backend, batch_size
        self._feed = empty_feed(network.image_shape, backend)
        self._nothing = self._feed.images

        def build(arena: Arena) -> tuple[Array, list[Task]]:
            return _evaluation(arena, backend, network, state, self._feed, pixels, batch_size, views)

        self._batch, self._tasks = Arena.filled(backend, build)

    @staticmethod
    def count_bytes(backend: Backend, network: Network, state: State, batch_size: int, views: str = "none") -> int:
        """The exact memory of the plan's buffers, without taking it."""
        feed, pixels = empty_feed(network.image_shape), Pixels.unit(network.image_shape[-1])
        return Arena.count_bytes(
            lambda arena: _evaluation(arena, backend, network, state, feed, pixels, batch_size, views)
        )

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
    """A feed for epochs of so many steps; order, learning rates and lookahead are to be copied in at each epoch.

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
        lookahead=memory.zeros((steps,), np.float64),
        losses=memory.zeros((steps,), np.float64),
        hits=memory.zeros((steps,), np.int64),
        position=memory.zeros((2,), np.int64),
        seed=seed,
    )


def empty_feed(image_shape: Shape, memory: Memory | None = None) -> Feed:
    """A feed of no images; without memory, to count with."""
    return training_feed(memory or HostMemory(), np.zeros((0, *image_shape), np.uint8), np.zeros(0, np.int64), 0, 0, 0)


def _training(
    arena: Arena,
    backend: Backend,
    network: Network,
    state: State,
    optimiser: Optimiser,
    feed: Feed,
    pixels: Pixels,
    batch_size: int,
    lesson: Lesson,
) -> Iterator[Task]:
    """The tasks of one training step, in order."""
    learning = {name for name, parameter in network.parameters.items() if parameter.learns}
    gradients = {name: view for name, view in state.layout.views(state.gradients).items() if name in learning}
    chain = Chain(arena, backend, feed, state.weights, gradients, batch_size, learns=True)
    x, logits, steps = chain.network(network)
    yield backend.gather(arena, feed, x, pixels, lesson.augmentation)
    yield from (step.forward for step in steps)
    yield backend.loss(arena, feed, logits, lesson.label_smoothing)
    yield from (step.backward for step in reversed(steps))
    buffers = state.parameters, state.gradients, state.slots
    yield backend.update(arena, optimiser, segments(network, state.layout), buffers, feed)
    yield backend.advance(feed)


def _evaluation(
    arena: Arena,
    backend: Backend,
    network: Network,
    state: State,
    feed: Feed,
    pixels: Pixels,
    batch_size: int,
    views: str,
) -> tuple[Array, list[Task]]:
    """The probabilities of a batch, and the tasks that fill them."""
    chain = Chain(arena, backend, feed, state.weights, {}, batch_size, learns=False)
    x, logits, steps = chain.network(network)
    tasks: list[Task] = []
    probabilities, add, softmax = backend.mean_outputs(arena, logits, list(VIEWS[views].values()))
    for view, added in zip(VIEWS[views], add, strict=True):
        change = view if any(view) else None
        tasks += [backend.gather(arena, feed, x, pixels, change), *(step.forward for step in steps), added]
    return probabilities, [*tasks, softmax, backend.advance(feed)]
