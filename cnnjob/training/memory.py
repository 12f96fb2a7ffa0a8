"""The memory that training needs, counted to the byte before any allocation; a job that needs too much is refused."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod

from cnnjob import nn
from cnnjob.data.dataset import CHUNKED_FORMAT
from cnnjob.errors import JobError
from cnnjob.jobs.job import Job
from cnnjob.nn.cuda.device_api import ShapeOnlyDevice
from cnnjob.runs.environment import available_memory_bytes
from cnnjob.training.build import build_optimiser, build_training_options
from cnnjob.training.setup import TrainingSetup

EVALUATION_BATCH = 256
"""Maximum number of images per evaluation step."""
DEVICE_MARGIN = 64
"""Resident images leave 1 / ``DEVICE_MARGIN`` of a GPU's free memory to kernels and the allocator."""
INDEX_BYTES = 8
"""Size of a label or an index (int64), in bytes."""


@dataclass(frozen=True)
class MemoryEstimate:
    """The exact sizes of the training arrays in bytes, by purpose."""

    data: int
    """Images (or their buffers, if they are streamed), labels, and the indices of the images in each step."""
    parameters: int
    """Parameters, gradients, the optimiser's slots and the best parameters so far."""
    training: int
    """Buffers for the training steps."""
    evaluation: int
    """Buffers for evaluation, including the computed probabilities."""
    checkpoint: int
    """The copy of the saved arrays that is made for each checkpoint."""

    @property
    def total(self) -> int:
        """The sum of all sizes, in bytes."""
        return self.on_device + self.checkpoint

    @property
    def on_device(self) -> int:
        """The sum in bytes, without the checkpoint, which is assembled in host memory even with a GPU."""
        return self.data + self.parameters + self.training + self.evaluation


@dataclass(frozen=True)
class ImagePlacement:
    """The location of the images during training."""

    streams: bool = False
    """True if images are read from the file as they are needed; False if all images are in memory."""
    n_resident: int = 0
    """If images are streamed to a GPU, the number of training images that still stay in its memory."""


IN_MEMORY = ImagePlacement()
STREAMED = ImagePlacement(streams=True)


def estimate_memory(
    setup: TrainingSetup, backend: nn.Backend | None = None, placement: ImagePlacement = IN_MEMORY
) -> MemoryEstimate:
    """Count the memory needed for training without allocating it.

    Args:
        setup: the setup of the run.
        backend: the backend to train on; NumPy by default.
        placement: the location of the images; all in memory by default.

    Returns:
        The sizes of the arrays.
    """
    job, dataset, network = setup.job, setup.dataset, setup.network
    backend, optimiser = backend or nn.NumPyBackend(nn.Workers(1)), build_optimiser(job.train)
    state = nn.State(network, optimiser, backend, shape_only=True)  # arrays that have a shape but no memory
    batch = evaluation_batch([dataset.shapes["test"][0], dataset.shapes.get("val", (setup.n_validation,))[0]])
    images = dataset.size_bytes  # a pixel is one byte
    if placement.streams:
        largest = max(batch, job.train.batch_size)
        images = nn.ImageStream.count_bytes(dataset.image_shape, largest, placement.n_resident)
    labels = sum(shape[0] * INDEX_BYTES for shape in dataset.shapes.values())
    # The epoch's order; training and validation indices; with a stream, also the positions of the ordered images.
    chosen = (2 + placement.streams) * dataset.shapes["train"][0] * INDEX_BYTES
    best, options = state.parameters.nbytes, build_training_options(job)  # a copy of the best parameters so far
    return MemoryEstimate(
        data=images + labels + chosen,
        parameters=state.size_bytes + best,
        training=nn.TrainingPlan.count_bytes(backend, network, state, optimiser, job.train.batch_size, options),
        evaluation=nn.EvaluationPlan.count_bytes(
            backend, network, state, batch, job.train.test_time_augmentation, streams=placement.streams
        ),
        checkpoint=best + sum(flat.nbytes for flat in state.saved_buffers.values()),
    )


def estimate_device_memory(setup: TrainingSetup) -> MemoryEstimate:
    """Count the memory needed for training on a GPU; this works without a GPU."""
    return estimate_memory(setup, nn.CudaBackend(ShapeOnlyDevice(setup.job.train.precision)))


def evaluation_batch(counts: Iterable[int]) -> int:
    """Return the number of images per evaluation step, given the sizes of the splits to evaluate."""
    return min(EVALUATION_BATCH, max(counts))


def place_in_host_memory(
    setup: TrainingSetup, backend: str = "numpy", in_memory_bytes: int | None = None
) -> ImagePlacement:
    """Decide whether to load the images into host memory or to stream them; refuse a job that does not fit either way.

    Args:
        setup: the setup of the run.
        backend: ``numpy`` or ``cuda``; with ``cuda``, only data and checkpoints need host memory.
        in_memory_bytes: maximum size of a dataset whose images are loaded; by default, they are loaded if they fit.

    Returns:
        :data:`IN_MEMORY` or :data:`STREAMED`.

    Raises:
        JobError: the job needs more memory than is available; the message states both sizes.
    """
    free = available_memory_bytes()

    def needed(placement: ImagePlacement) -> int:
        memory = estimate_memory(setup, placement=placement)
        return memory.total if backend == "numpy" else memory.data + memory.checkpoint

    placements = _possible_placements(setup)
    if in_memory_bytes is not None and setup.dataset.size_bytes > in_memory_bytes and STREAMED in placements:
        placements = [STREAMED]
    for placement in placements:
        if needed(placement) <= free:
            return placement
    raise JobError(
        f"{setup.job.name}: needs {min(map(needed, placements)) / 1e9:.1f} GB of memory for its arrays "
        f"(found {free / 1e9:.1f} GB free). {_how_to_stream(setup)}Lower train.batch_size or the block sizes, or use a "
        "machine with more memory"
    )


def _possible_placements(setup: TrainingSetup) -> list[ImagePlacement]:
    """Return the possible placements of the images, in order of preference; chunked images cannot be streamed."""
    return [IN_MEMORY] if setup.dataset.format == CHUNKED_FORMAT else [IN_MEMORY, STREAMED]


def _how_to_stream(setup: TrainingSetup) -> str:
    """Return advice, with a trailing space, if the dataset must be prepared again for streaming; otherwise ""."""
    if setup.dataset.format != CHUNKED_FORMAT:
        return ""
    return f"Prepare {setup.dataset.path} again with --force, so that its images can be streamed. "


def place_in_device_memory(setup: TrainingSetup, backend: nn.CudaBackend, host: ImagePlacement) -> ImagePlacement:
    """Decide how many images stay in GPU memory; refuse a job that does not fit even if no image stays there.

    Args:
        setup: the setup of the run.
        backend: the GPU's backend.
        host: the placement returned by :func:`place_in_host_memory`.

    Returns:
        :data:`IN_MEMORY` if all images fit in host and GPU memory; otherwise a placement that streams images and states
            how many training images stay on the GPU.

    Raises:
        JobError: the job needs more memory than is free; the message states the largest batch size that fits.
    """
    job, placements = setup.job, [STREAMED] if host.streams else _possible_placements(setup)
    free, batch = backend.device.free_bytes, job.train.batch_size

    def needed(size: int, placement: ImagePlacement) -> int:
        resized = job.model_copy(update={"train": job.train.model_copy(update={"batch_size": size})})
        return estimate_memory(replace(setup, job=resized), backend, placement).on_device

    def least(size: int) -> int:
        return min(needed(size, placement) for placement in placements)

    for placement in placements:
        if (needs := needed(batch, placement)) <= free:
            # The remaining memory holds images, which then need not be streamed.
            room = (free - needs - free // DEVICE_MARGIN) // prod(setup.dataset.image_shape)
            resident = min(max(0, room), setup.dataset.shapes["train"][0]) if placement.streams else 0
            return replace(placement, n_resident=resident)
    # least() grows with the batch size; counting allocates nothing, so trying some sizes costs little.
    largest = bisect_right(range(1, batch), free, key=least)
    fits = f"the largest train.batch_size that fits is {largest}" if largest else "not even a batch of one image fits"
    raise JobError(
        f"{job.name}: needs {least(batch):,} bytes of GPU memory (found {free:,} free on {backend.device.name}); "
        f"{fits}. {_how_to_stream(setup)}Lower train.batch_size or the block sizes, or use a GPU with more memory"
    )


@contextmanager
def memory_errors_as_job_error(job: Job) -> Iterator[None]:
    """Turn a MemoryError into a JobError.

    Raises:
        JobError: in place of a ``MemoryError``.
    """
    try:
        yield
    except MemoryError as error:
        # The class is named because CuPy's subclass means that GPU memory, not host memory, has run out.
        kind = f"{type(error).__module__}.{type(error).__name__}".removeprefix("builtins.")
        raise JobError(
            f"{job.name}: out of memory ({kind}: {error}). Lower train.batch_size, or end other programs on this "
            "machine. Saved checkpoints are intact"
        ) from error
