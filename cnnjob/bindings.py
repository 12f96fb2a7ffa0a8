"""A job bound to a dataset: its network, its images, its memory, its run.

What does not fit together is found here, before anything is written.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from cnnjob import environments, files, jobs, models, nn, schemas
from cnnjob.datasets import Dataset
from cnnjob.errors import CnnjobError, DataError, JobError
from cnnjob.nn.random import Purpose, permutation
from cnnjob.runs import Run

EVALUATION_BATCH = 256
INDEX_BYTES = 8


def network_of(model: models.Model, image_shape: tuple[int, int, int], classes: int) -> nn.Network:
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
    classifier = nn.Dense(units=classes, activation="none", **dict(model.classifier))
    try:
        return nn.Network.build([*(_block_of(block) for block in model.blocks), classifier], image_shape)
    except ValueError as error:
        raise JobError(f"model.blocks: {error}; change the block or its place") from error


def _network_on(job: jobs.Job, dataset: Dataset) -> nn.Network:
    return network_of(job.model, dataset.image_shape, len(dataset.class_names))


def _block_of(block: Any) -> Any:
    """The same block without its key's name."""
    settings = dict(block)
    match block:
        case models.Conv():
            norm = nn.BatchNorm(**dict(block.batch_norm)) if block.batch_norm else None
            del settings["batch_norm"]
            return nn.Conv(filters=settings.pop("conv"), norm=norm, **settings)
        case models.Dense():
            return nn.Dense(units=settings.pop("dense"), **settings)
        case models.GlobalPool():
            return nn.GlobalPool(block.global_pool)
        case models.Residual():
            return nn.Residual(tuple(map(_block_of, block.residual)), block.activation)
    return nn.Dropout(settings["dropout"])


def optimiser_of(train: jobs.Train) -> nn.Optimiser:
    """The optimiser that a job asks for."""
    lookahead = nn.Lookahead(**dict(train.lookahead)) if train.lookahead else None
    if train.optimiser == "adamw":
        return nn.AdamW(train.momentum, train.weight_decay, lookahead, train.beta2, train.eps)
    return nn.Sgd(train.momentum, train.weight_decay, lookahead, train.nesterov, train.decoupled_weight_decay)


def schedule_of(train: jobs.Train) -> nn.Schedule:
    """How a job's learning rate goes."""
    return nn.Schedule(train.learning_rate, train.schedule, train.warmup, train.start_factor, train.end_factor)


def lesson_of(job: jobs.Job) -> nn.Lesson:
    """What the images of a job are changed by, and its labels."""
    augmentation = nn.Augmentation(**dict(job.data.augment)) if job.data.augment else None
    return nn.Lesson(augmentation, job.train.label_smoothing)


def pixels_of(data: jobs.Data, mean: tuple[float, ...], std: tuple[float, ...]) -> nn.Pixels:
    """How a job wants a dataset's pixels; mean and std are of each channel's 0 … 1 values."""
    return nn.Pixels.standardised(mean, std) if data.pixels == "standardised" else nn.Pixels.unit(len(mean))


@dataclass(frozen=True)
class Memory:
    """The exact bytes of a training's arrays, by what they are for."""

    data: int
    """Images, labels, and which of them a step takes."""
    parameters: int
    """Parameters, gradients and the optimiser's slots; the best parameters beside them."""
    training: int
    """Buffers of the training steps."""
    evaluation: int
    """Buffers of the evaluations, and the probabilities they give."""
    checkpoint: int
    """The one copy that is made to save it."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.on_device + self.checkpoint

    @property
    def on_device(self) -> int:
        """What is on the GPU where one is used; a checkpoint is made on the host."""
        return self.data + self.parameters + self.training + self.evaluation


def memory_of(job: jobs.Job, network: nn.Network, dataset: Dataset, backend: nn.Backend | None = None) -> Memory:
    """Count the memory of a job's training on a dataset without taking it; with NumPy by default."""
    backend, optimiser = backend or nn.NumPyBackend(nn.Workers(1)), optimiser_of(job.train)
    state = nn.State(network, optimiser, backend, hollow=True)
    held_out = len(split(job, dataset)[1])
    batch = evaluation_batch([dataset.shapes["test"][0], dataset.shapes.get("val", (held_out,))[0]])
    images = sum(prod(shape) + shape[0] * INDEX_BYTES for shape in dataset.shapes.values())
    chosen = 2 * dataset.shapes["train"][0] * INDEX_BYTES  # the epoch's order, and what is held out or not
    best = state.parameters.nbytes
    return Memory(
        images + chosen,
        state.size_bytes + best,
        nn.TrainingPlan.count_bytes(backend, network, state, optimiser, job.train.batch_size, lesson_of(job)),
        nn.EvaluationPlan.count_bytes(backend, network, state, batch, job.train.test_time_augmentation),
        best + sum(flat.nbytes for flat in state.kept.values()),
    )


def evaluation_batch(counts: Iterable[int]) -> int:
    """Images of one evaluation step, given the sizes of the splits that are evaluated."""
    return min(EVALUATION_BATCH, max(counts))


def dataset_of(job: jobs.Job, folder: Path) -> Dataset:
    """The packed dataset that a job names: a file, or a name in a folder.

    Raises:
        DataError: it is missing or damaged.
    """
    named = Path(job.dataset)
    return Dataset.open(named if named.suffix in {".h5", ".hdf5"} else folder / f"{job.dataset}.h5")


def dataset_of_run(run: Run, dataset: Dataset | None = None) -> Dataset:
    """The dataset that a run was made with, wherever it lies now.

    Args:
        run: the run.
        dataset: where it is said to lie; where it lay when the run was made by default.

    Returns:
        The dataset.

    Raises:
        DataError: it is missing, damaged or not the same.
    """
    data = run.data()
    found = dataset or Dataset.open(Path(data["path"]))
    if found.digest != data["digest"]:
        raise DataError(
            f"{found.path}: not the data that {run.path} was made with "
            f"({found.digest[:8]}, it was {data['digest'][:8]}); prepare the same sources again"
        )
    return found


def require_memory(job: jobs.Job, dataset: Dataset, backend: str = "numpy") -> None:
    """Refuse a job that this machine's memory cannot hold, before anything is allocated.

    Args:
        job: what is to be trained.
        dataset: on what.
        backend: ``numpy``, or ``cuda``, where only the data and the checkpoint pass through this memory.

    Raises:
        JobError: it needs more than there is; both are said.
    """
    memory = memory_of(job, _network_on(job, dataset), dataset)
    needed = memory.total if backend == "numpy" else memory.data + memory.checkpoint
    there = environments.available_memory_bytes()
    if needed > there:
        raise JobError(
            f"{job.name}: needs {needed / 1e9:.1f} GB of memory for its arrays, {there / 1e9:.1f} GB are free; "
            "lower train.batch_size or the blocks' sizes, or use a larger machine"
        )


def split(job: jobs.Job, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Which training images are trained on, and which are held out for validation.

    The choice is the same for every seed, so that seeds are compared on the same images.

    Args:
        job: how large a share is held out.
        dataset: where it has a validation split of its own, nothing is held out.

    Returns:
        int64 indices of both, ascending.
    """
    count = dataset.shapes["train"][0]
    held = 0 if "val" in dataset.splits else round(count * job.data.validation_fraction)
    order = permutation(count, 0, Purpose.VALIDATION)
    return np.sort(order[held:]), np.sort(order[:held])


def run_of(job: jobs.Job, dataset: Dataset, root: Path) -> Run:
    """The run of a job on a dataset; its job file is written when it is new, or has other resources.

    Raises:
        JobError: the job and the dataset do not fit together.
        DataError: the run's job file is damaged, or is another job's.
    """
    check(job, dataset)
    run = Run.of(job, dataset.digest, root)
    digest = job.digest(dataset.digest)
    frozen = run.frozen() if run.job_file.exists() else {}
    if frozen and frozen["digest"] != digest:
        raise DataError(f"{run.job_file}: of another job with the same first digits; move it away")
    if frozen and (frozen["job"] == job.model_dump(mode="json") or run.state() in {"finished", "running"}):
        return run
    data = {
        "path": str(dataset.path.resolve()),
        "name": dataset.name,
        "digest": dataset.digest,
        "image_shape": dataset.image_shape,
        "class_names": dataset.class_names,
        "mean": dataset.mean,
        "std": dataset.std,
    }
    content = schemas.sealed({"digest": digest, "job": job.model_dump(mode="json"), "data": data})
    with written_or_said(run.path):
        run.path.mkdir(parents=True, exist_ok=True)
        if frozen:
            files.write_json(run.job_file, content)
        else:
            files.create_exclusive(run.job_file, files.readable_json(content).encode())
    return run


def check(job: jobs.Job, dataset: Dataset) -> None:
    """Find what does not fit before anything is written."""
    network = _network_on(job, dataset)
    _check_moves(job, dataset)
    training, held_out = split(job, dataset)
    if job.train.select_on == "validation" and not len(held_out) and "val" not in dataset.splits:
        raise JobError(
            f"data.validation_fraction: {job.data.validation_fraction:g} of {len(training)} training images is none, "
            "but train.select_on is 'validation'; set one of the two"
        )
    if len(training) < job.train.batch_size:
        raise JobError(
            f"train.batch_size: {job.train.batch_size} is more than the {len(training)} training images; lower it"
        )
    try:
        nn.require_trainable(network, job.train.batch_size)
    except ValueError as error:
        raise JobError(f"model.blocks: {error}; change the block or train.batch_size") from error
    steps = len(training) // job.train.batch_size * job.train.epochs
    if job.train.lookahead and job.train.lookahead.every > steps:
        raise JobError(
            f"train.lookahead.every: {job.train.lookahead.every} is more than the {steps} steps of the training, so it "
            "would not act; lower it, or leave out train.lookahead"
        )


def _check_moves(job: jobs.Job, dataset: Dataset) -> None:
    """What comes in at an edge is mirrored at it: one pixel less than the image has, at most."""
    height, width, _ = dataset.image_shape
    moves = {
        "data.augment.translate": job.data.augment.translate if job.data.augment else 0,
        "train.test_time_augmentation": int(job.train.test_time_augmentation == "flip_translate"),
    }
    for key, pixels in moves.items():
        if pixels >= min(height, width):
            raise JobError(
                f"{key}: moves images of {height}×{width} pixels by {pixels}, at most {min(height, width) - 1} can be "
                "mirrored at their edges; ask for less"
            )


@contextmanager
def written_or_said(path: Path) -> Iterator[None]:
    """Say that the disk is full or failing; what was kept before is whole.

    Raises:
        CnnjobError: instead of an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise CnnjobError(
            f"{path}: cannot be read or written, {error}; see to the disk, and run the same command again"
        ) from error
