"""Training and evaluation plans: a network laid out once for a batch size, then run step by step."""

from typing import Any, NamedTuple

import numpy as np

from cnnjob.nn.arena import Arena, Array, ArrayStore, HostMemory
from cnnjob.nn.backend import Backend
from cnnjob.nn.blocks import Network, Shape
from cnnjob.nn.chains import Chain
from cnnjob.nn.cpu.backend import NumPyBackend
from cnnjob.nn.operations import require_trainable
from cnnjob.nn.optimisers import Optimiser, trainable_segments
from cnnjob.nn.pixels import VIEWS, Augmentation, PixelNormalisation
from cnnjob.nn.state import State
from cnnjob.nn.streaming import ImageSource, ImageStream
from cnnjob.nn.tensors import StepInputs, Task, Tensor
from cnnjob.nn.workers import Workers, run_all


class TrainingOptions(NamedTuple):
    """The settings of a training step that depend on neither the network nor the optimiser."""

    augmentation: Augmentation | None = None
    label_smoothing: float = 0.0
    """ε: share of each target that is spread over all classes (Szegedy et al. 2016, §7)."""

    @property
    def mixes(self) -> bool:
        """Return whether images and labels are mixed in pairs."""
        return self.augmentation is not None and self.augmentation.mixup > 0


MAX_EVALUATED = 1 << 14
"""Number of images whose probabilities are collected in the backend's memory before being copied to the host."""


class TrainingPlan:
    """The training step of a network, planned for one batch size."""

    def __init__(
        self,
        backend: Backend,
        network: Network,
        state: State,
        optimiser: Optimiser,
        inputs: StepInputs,
        pixels: PixelNormalisation,
        batch_size: int,
        options: TrainingOptions = TrainingOptions(),  # noqa: B008 - it is a tuple
    ) -> None:
        """Plan the step and allocate its buffers; nothing runs yet.

        Raises:
            ValueError: the network cannot be trained (see :func:`cnnjob.nn.operations.require_trainable`).
        """
        require_trainable(network, batch_size)
        self.inputs = inputs

        def build(arena: Arena) -> Task:
            return _plan_training(arena, backend, network, state, optimiser, inputs, pixels, batch_size, options)

        self._step = Arena.allocate(backend, build)

    @staticmethod
    def count_bytes(
        backend: Backend,
        network: Network,
        state: State,
        optimiser: Optimiser,
        batch_size: int,
        options: TrainingOptions = TrainingOptions(),  # noqa: B008 - it is a tuple
    ) -> int:
        """Return the exact size of the plan's buffers in bytes, without allocating them."""
        inputs, pixels = empty_step_inputs(network.image_shape), PixelNormalisation.unit(network.image_shape[-1])
        return Arena.count_bytes(
            lambda arena: _plan_training(arena, backend, network, state, optimiser, inputs, pixels, batch_size, options)
        )

    def step(self) -> None:
        """Run one step: forward, loss, backward, update; the position advances by one."""
        self._step()


class EvaluationPlan:
    """The evaluation of a network: class probabilities of images, computed with a state's current parameters."""

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
        """Plan the evaluation of a batch; nothing runs yet.

        Args:
            backend: the backend that runs the plan.
            network: the network.
            state: the network's parameters.
            pixels: normalisation of the images.
            batch_size: images per step.
            views: key in :data:`cnnjob.nn.pixels.VIEWS` that selects the views over which the logits are averaged.
            stream: stream that reads the images; by default, they are in memory.
        """
        self._backend, self._batch_size, self._stream = backend, batch_size, stream
        self._classes, self._inputs = network.classes, empty_step_inputs(network.image_shape, backend)
        streams = stream is not None

        def build(arena: Arena) -> Task:
            return _plan_evaluation(
                arena, backend, network, state, self._inputs, pixels, batch_size, views, streams=streams
            )

        self._step = Arena.allocate(backend, build)

    @staticmethod
    def count_bytes(
        backend: Backend, network: Network, state: State, batch_size: int, views: str = "none", *, streams: bool = False
    ) -> int:
        """Return the exact size of the plan's buffers in bytes, without allocating them."""
        inputs, pixels = empty_step_inputs(network.image_shape), PixelNormalisation.unit(network.image_shape[-1])
        return Arena.count_bytes(
            lambda arena: _plan_evaluation(
                arena, backend, network, state, inputs, pixels, batch_size, views, streams=streams
            )
        )

    def probabilities(self, images: Array | ImageSource, order: Array) -> Array:
        """Return the softmax outputs for the images with the indices ``order``.

        Args:
            images: uint8 (N, H, W, C), in the backend's memory or the host's; an image source if the plan has a stream.
            order: image indices, int64 (n,).

        Returns:
            Probabilities, NumPy array (n, classes) of the backend's dtype, float32 or float64.
        """
        self._inputs.images = self._stream.images if self._stream else self._backend.resident(images)  # type: ignore[arg-type]
        probabilities = np.empty((len(order), self._classes), self._backend.dtype)
        for first in range(0, len(order), len(self._inputs.order)):
            part = slice(first, first + len(self._inputs.order))
            self._evaluate(images, order[part], probabilities[part])
        return probabilities

    def _evaluate(self, images: Array | ImageSource, order: Array, probabilities: Array) -> None:
        """Evaluate images, and copy their probabilities to the host.

        The indices in ``order`` must fit into ``inputs.order``.
        """
        backend, inputs = self._backend, self._inputs
        steps = -(-len(order) // self._batch_size)
        # np.resize repeats the indices until the last batch is full; the rows of the repeated ones are not copied.
        whole_batches = np.resize(order, steps * self._batch_size)
        backend.copy(whole_batches, inputs.order[: len(whole_batches)])
        backend.copy(np.zeros(2, np.int64), inputs.position)
        if self._stream:
            rows = self._stream.start(images, whole_batches, self._batch_size)  # type: ignore[arg-type]
            backend.copy(rows, inputs.rows[: len(rows)])
        for _ in range(steps):
            if self._stream:
                self._stream.next()
            self._step()
        backend.copy(inputs.probabilities[: len(order)], probabilities)


class InspectionPlan:
    """The evaluation of a network by NumPy, with the outputs of the convolutions and the gradient of the input."""

    def __init__(
        self,
        network: Network,
        weights: dict[str, Array],
        pixels: PixelNormalisation,
        batch_size: int,
        dtype: Any = np.float32,
    ) -> None:
        """Plan the inspection of a batch; nothing runs yet.

        Args:
            network: the network.
            weights: all parameters by name, NumPy arrays of type ``dtype``, including running statistics.
            pixels: normalisation of the images.
            batch_size: number of images.
            dtype: type of the activations and gradients.
        """
        backend = NumPyBackend(Workers(1), dtype)
        self._inputs, self._pixels = empty_step_inputs(network.image_shape), pixels
        self._inputs.order = self._inputs.rows = np.arange(batch_size)

        def build(arena: Arena) -> tuple[Chain, Tensor, Tensor, list[Task], list[Task]]:
            chain = Chain(arena, backend, self._inputs, weights, {}, batch_size, trainable=True, inspects=True)
            x, logits, steps = chain.plan_network(network)
            gather = backend.gather(arena, self._inputs, x, pixels, None)
            forward = [gather, *(step.forward for step in steps)]
            return chain, x, logits, forward, [step.backward for step in reversed(steps)]

        chain, self._x, self._logits, self._forward, self._backward = Arena.allocate(HostMemory(), build)
        self._maps = {
            name: output.value
            for name, output in chain.outputs.items()
            if f"{name}/weights" in weights and output.value.ndim == len("NHWC")
        }

    def run(self, images: Array, classes: Array) -> tuple[dict[str, Array], Array]:
        """Evaluate images, and differentiate one logit per image with respect to the image's pixels.

        Args:
            images: uint8 (N, H, W, C), with N the batch size of the plan.
            classes: int64 (N,), for each image the class whose logit is differentiated.

        Returns:
            The outputs of the convolutions by layer name, each (N, H', W', F); these are the outputs of whole blocks,
            after normalisation, activation and pooling. Then the gradient, (N, H, W, C), of the logits with respect to
            the pixels scaled to 0 … 1. All arrays are copies.
        """
        self._inputs.images = images
        run_all(self._forward)
        maps = {name: output.copy() for name, output in self._maps.items()}
        self._logits.gradient[:] = 0
        self._logits.gradient[np.arange(len(classes)), classes] = 1
        run_all(self._backward)
        return maps, self._x.gradient * (255 * self._pixels.scale).astype(self._x.gradient.dtype)


def build_step_inputs(
    memory: ArrayStore,
    images: Array,
    labels: Array,
    steps: int,
    batch_size: int,
    seed: int,
    *,
    streams: bool = False,
) -> StepInputs:
    """Return the inputs for epochs of ``steps`` steps.

    Before each epoch, the caller fills in ``order`` and ``learning_rates``; ``momentum_drop``, ``lookahead``, ``ema``
    and ``mixup`` if they are used; and ``rows`` if the images are streamed. All of them are initially zero.

    Args:
        memory: the memory in which to allocate the inputs.
        images: uint8 (images, H, W, C), in ``memory`` or in host memory: a whole dataset, or the array of a stream.
        labels: int64 (images,), in ``memory`` or in host memory.
        steps: steps per epoch.
        batch_size: images per step.
        seed: the job's seed.
        streams: True if ``images`` is the array of a stream.

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
        momentum_drop=memory.zeros((steps,), np.float64),
        lookahead=memory.zeros((steps,), np.float64),
        ema=memory.zeros((steps,), np.float64),
        mixup=memory.zeros((steps,), np.float64),
        losses=memory.zeros((steps,), np.float64),
        n_correct=memory.zeros((steps,), np.int64),
        probabilities=memory.zeros((0, 0), np.float32),
        position=memory.zeros((2,), np.int64),
        seed=seed,
    )


def empty_step_inputs(image_shape: Shape, memory: ArrayStore | None = None) -> StepInputs:
    """Return inputs without images, in ``memory`` or, by default, in host memory."""
    images, labels = np.zeros((0, *image_shape), np.uint8), np.zeros(0, np.int64)
    return build_step_inputs(memory or HostMemory(), images, labels, steps=0, batch_size=0, seed=0)


def _plan_training(
    arena: Arena,
    backend: Backend,
    network: Network,
    state: State,
    optimiser: Optimiser,
    inputs: StepInputs,
    pixels: PixelNormalisation,
    batch_size: int,
    options: TrainingOptions,
) -> Task:
    """Plan one training step."""
    trainable = {name for name, parameter in network.parameters.items() if parameter.trainable}
    gradients = {name: view for name, view in state.layout.views(state.gradients).items() if name in trainable}
    chain = Chain(arena, backend, inputs, state.weights, gradients, batch_size, trainable=True)
    x, logits, steps = chain.plan_network(network)
    # The tasks are planned in the order in which they run, since a backend may fuse neighbouring tasks.
    tasks = [
        backend.gather(arena, inputs, x, pixels, options.augmentation),
        *(step.forward for step in steps),
        backend.loss(arena, inputs, logits, options.label_smoothing, mixes=options.mixes),
        *(step.backward for step in reversed(steps)),
    ]
    for name, parameter in network.parameters.items():
        if parameter.trainable and parameter.epochs:
            # With zero gradient and momentum, no update changes the parameter, and the gradients' norm excludes it.
            slots = [flat for slot, flat in state.slots.items() if slot in {"velocity", "first_moment"}]
            arrays = [flat[state.layout.slice_of(name)] for flat in (state.gradients, *slots)]
            first_step = parameter.epochs * len(inputs.learning_rates)
            tasks.append(backend.zero_from(arena, inputs, arrays, first_step))
    buffers = state.parameters, state.gradients, state.slots
    update = backend.update(arena, optimiser, trainable_segments(network, state.layout), buffers, inputs)
    return backend.compile_step(arena, inputs, [*tasks, update])


def _plan_evaluation(
    arena: Arena,
    backend: Backend,
    network: Network,
    state: State,
    inputs: StepInputs,
    pixels: PixelNormalisation,
    batch_size: int,
    views: str,
    *,
    streams: bool,
) -> Task:
    """Plan the probabilities of a batch, which are written to ``inputs.probabilities``."""
    # A multiple of the batch size, so that there are also rows for the padding of the last batch.
    n_images = max(1, MAX_EVALUATED // batch_size) * batch_size
    inputs.order = arena.take((n_images,), np.int64)
    inputs.rows = arena.take((n_images,), np.int64) if streams else inputs.order
    inputs.probabilities = arena.take((n_images, network.classes), backend.dtype)
    weights = state.layout.views(state.evaluated)
    chain = Chain(arena, backend, inputs, weights, {}, batch_size, trainable=False)
    x, logits, steps = chain.plan_network(network)
    tasks: list[Task] = []
    add_view, write_mean = backend.mean_outputs(arena, inputs, logits, list(VIEWS[views].values()))
    for view, add in zip(VIEWS[views], add_view, strict=True):
        change = view if any(view) else None  # the identity needs no table of source pixels
        tasks += [backend.gather(arena, inputs, x, pixels, change), *(step.forward for step in steps), add]
    return backend.compile_step(arena, inputs, [*tasks, write_mean])
