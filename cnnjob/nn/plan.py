"""Training and evaluation plans: a network laid out once for a batch size, then run step by step."""

from typing import NamedTuple

import numpy as np

from cnnjob.nn.backend import Backend
from cnnjob.nn.blocks import Network, Shape
from cnnjob.nn.chains import Chain
from cnnjob.nn.memory import Arena, Array, ArrayStore, HostMemory
from cnnjob.nn.operations import require_trainable
from cnnjob.nn.optimisers import Optimiser, segments
from cnnjob.nn.pixels import VIEWS, Augmentation, PixelNormalisation
from cnnjob.nn.state import State
from cnnjob.nn.streaming import ImageSource, ImageStream
from cnnjob.nn.tensors import StepInputs, Task


class TrainingOptions(NamedTuple):
    """Settings of a training step that depend on neither the network nor the optimiser."""

    augmentation: Augmentation | None = None
    label_smoothing: float = 0.0
    """ε: share of each target that is spread over all classes (Szegedy et al. 2016, §7)."""


EVALUATED = 1 << 14
"""Number of images whose probabilities are collected in the backend's memory before they are copied to the host."""


class TrainingPlan:
    """Training steps of one network at one batch size."""

    def __init__(
        self,
        backend: Backend,
        network: Network,
        state: State,
        optimiser: Optimiser,
        feed: StepInputs,
        pixels: PixelNormalisation,
        batch_size: int,
        lesson: TrainingOptions = TrainingOptions(),  # noqa: B008 - it is a tuple
    ) -> None:
        """Plan the step and allocate its buffers; nothing runs yet.

        Raises:
            ValueError: a block cannot learn, see :func:`cnnjob.nn.operations.require_trainable`.
        """
        require_trainable(network, batch_size)
        self.feed = feed

        def build(arena: Arena) -> Task:
            return _training(arena, backend, network, state, optimiser, feed, pixels, batch_size, lesson)

        self._step = Arena.filled(backend, build)

    @staticmethod
    def count_bytes(
        backend: Backend,
        network: Network,
        state: State,
        optimiser: Optimiser,
        batch_size: int,
        lesson: TrainingOptions = TrainingOptions(),  # noqa: B008 - it is a tuple
    ) -> int:
        """Return the exact size of the plan's buffers in bytes, without allocating them."""
        feed, pixels = empty_feed(network.image_shape), PixelNormalisation.unit(network.image_shape[-1])
        return Arena.count_bytes(
            lambda arena: _training(arena, backend, network, state, optimiser, feed, pixels, batch_size, lesson)
        )

    def step(self) -> None:
        """Run one step: forward, loss, backward, update; the position advances by one."""
        self._step()


class EvaluationPlan:
    """Class probabilities of images, computed with the current parameters of a state."""

    def __init__(
        self,
        backend: Backend,
        network: Network,
        state: State,
        pixels: PixelNormalisation,
        batch_size: int,
        views: str = "none",
        stream: ImageStream | None = None,
    ) -> None:
        """Plan a batch; nothing runs yet.

        Args:
            backend: what computes.
            network: the network.
            state: its parameters.
            pixels: normalisation of the images.
            batch_size: images per step.
            views: the :data:`cnnjob.nn.pixels.VIEWS` over which the logits are averaged.
            stream: reads the images; by default they lie in memory.
        """
        self._backend, self._batch_size, self._stream = backend, batch_size, stream
        self._classes, self._feed = network.classes, empty_feed(network.image_shape, backend)

        def build(arena: Arena) -> Task:
            return _evaluation(
                arena, backend, network, state, self._feed, pixels, batch_size, views, streams=stream is not None
            )

        self._step = Arena.filled(backend, build)

    @staticmethod
    def count_bytes(
        backend: Backend, network: Network, state: State, batch_size: int, views: str = "none", *, streams: bool = False
    ) -> int:
        """Return the exact size of the plan's buffers in bytes, without allocating them."""
        feed, pixels = empty_feed(network.image_shape), PixelNormalisation.unit(network.image_shape[-1])
        return Arena.count_bytes(
            lambda arena: _evaluation(arena, backend, network, state, feed, pixels, batch_size, views, streams=streams)
        )

    def probabilities(self, images: Array | ImageSource, order: Array) -> Array:
        """Return the softmax outputs for the images with the indices ``order``.

        Args:
            images: uint8 (N, H, W, C), in the backend's memory or NumPy's; a source if the plan has a stream.
            order: indices of images, int64 (n,).

        Returns:
            Probabilities, NumPy array (n, classes) of the backend's dtype, float32 or float64.
        """
        self._feed.images = self._stream.images if self._stream else self._backend.resident(images)  # type: ignore[arg-type]
        found = np.empty((len(order), self._classes), self._backend.dtype)
        for first in range(0, len(order), len(self._feed.order)):
            part = slice(first, first + len(self._feed.order))
            self._fill(images, order[part], found[part])
        return found

    def _fill(self, images: Array | ImageSource, order: Array, found: Array) -> None:
        """Evaluate as many images as fit into the feed, and copy their probabilities to ``found`` at once."""
        backend, feed = self._backend, self._feed
        steps = -(-len(order) // self._batch_size)
        # np.resize repeats the indices until the last batch is full; the rows of the repeated ones are not copied.
        chosen = np.resize(order, steps * self._batch_size)
        backend.copy(chosen, feed.order[: len(chosen)])
        backend.copy(np.zeros(2, np.int64), feed.position)
        if self._stream:
            rows = self._stream.start(images, chosen, self._batch_size)  # type: ignore[arg-type]
            backend.copy(rows, feed.rows[: len(rows)])
        for _ in range(steps):
            if self._stream:
                self._stream.next()
            self._step()
        backend.copy(feed.probabilities[: len(order)], found)


def training_feed(
    memory: ArrayStore,
    images: Array,
    labels: Array,
    steps: int,
    batch_size: int,
    seed: int,
    *,
    streams: bool = False,
) -> StepInputs:
    """Return the inputs for epochs of ``steps`` steps; the caller fills in order and rates before each epoch.

    These are ``order``, ``learning_rates`` and ``lookahead``, which are zeros at first, and ``rows`` of a stream.

    Args:
        memory: the memory to allocate them in.
        images: uint8 (images, H, W, C), in that memory or NumPy's; all of them, or those of a stream.
        labels: int64 (images,), likewise.
        steps: steps per epoch.
        batch_size: images per step.
        seed: seed of the job.
        streams: True if the images are those of a stream.

    Returns:
        The inputs, at step 0.
    """
    order = memory.zeros((steps * batch_size,), np.int64)
    return StepInputs(
        memory.resident(images),
        memory.resident(labels),
        order=order,
        rows=memory.zeros(order.shape, np.int64) if streams else order,
        learning_rates=memory.zeros((steps,), np.float64),
        lookahead=memory.zeros((steps,), np.float64),
        losses=memory.zeros((steps,), np.float64),
        hits=memory.zeros((steps,), np.int64),
        probabilities=memory.zeros((0, 0), np.float32),
        position=memory.zeros((2,), np.int64),
        seed=seed,
    )


def empty_feed(image_shape: Shape, memory: ArrayStore | None = None) -> StepInputs:
    """Return inputs without images; without ``memory`` in NumPy's, to count with."""
    return training_feed(memory or HostMemory(), np.zeros((0, *image_shape), np.uint8), np.zeros(0, np.int64), 0, 0, 0)


def _training(
    arena: Arena,
    backend: Backend,
    network: Network,
    state: State,
    optimiser: Optimiser,
    feed: StepInputs,
    pixels: PixelNormalisation,
    batch_size: int,
    lesson: TrainingOptions,
) -> Task:
    """Plan one training step."""
    learning = {name for name, parameter in network.parameters.items() if parameter.trainable}
    gradients = {name: view for name, view in state.layout.views(state.gradients).items() if name in learning}
    chain = Chain(arena, backend, feed, state.weights, gradients, batch_size, trainable=True)
    x, logits, steps = chain.network(network)
    # Planned in the order in which they run: a backend that fuses neighbours recognises them by it.
    tasks = [
        backend.gather(arena, feed, x, pixels, lesson.augmentation),
        *(step.forward for step in steps),
        backend.loss(arena, feed, logits, lesson.label_smoothing),
        *(step.backward for step in reversed(steps)),
    ]
    buffers = state.parameters, state.gradients, state.slots
    update = backend.update(arena, optimiser, segments(network, state.layout), buffers, feed)
    return backend.whole(arena, feed, [*tasks, update])


def _evaluation(
    arena: Arena,
    backend: Backend,
    network: Network,
    state: State,
    feed: StepInputs,
    pixels: PixelNormalisation,
    batch_size: int,
    views: str,
    *,
    streams: bool,
) -> Task:
    """Plan the probabilities of a batch, which go to the feed."""
    # Whole batches, so that the padded last one has its rows too.
    room = max(1, EVALUATED // batch_size) * batch_size
    feed.order = arena.take((room,), np.int64)
    feed.rows = arena.take((room,), np.int64) if streams else feed.order
    feed.probabilities = arena.take((room, network.classes), backend.dtype)
    chain = Chain(arena, backend, feed, state.weights, {}, batch_size, trainable=False)
    x, logits, steps = chain.network(network)
    tasks: list[Task] = []
    add, last = backend.mean_outputs(arena, feed, logits, list(VIEWS[views].values()))
    for view, added in zip(VIEWS[views], add, strict=True):
        change = view if any(view) else None  # the identity needs no table of source pixels
        tasks += [backend.gather(arena, feed, x, pixels, change), *(step.forward for step in steps), added]
    return backend.whole(arena, feed, [*tasks, last])
