"""A job bound to a dataset: its network, its images, its memory, its run.

What does not fit together is found here, before anything is written.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from cnnjob import environments, files, jobs, models, nn, schemas
from cnnjob.datasets import Dataset
from cnnjob.errors import CnnjobError, DataError, JobError
from cnnjob.idle import require_acting
from cnnjob.nn.random import Purpose, permutation
from cnnjob.runs import OLDEST_FORMAT, Run, format_of

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
    if adamw := train.optimiser.adamw:
        return nn.AdamW(adamw.beta1, train.weight_decay, lookahead, adamw.beta2, adamw.eps)
    sgd = train.optimiser.sgd or jobs.Sgd()
    return nn.Sgd(sgd.momentum, train.weight_decay, lookahead, sgd.nesterov, sgd.decoupled_weight_decay)


def schedule_of(train: jobs.Train) -> nn.Schedule:
    """How a job's learning rate goes."""
    schedule = train.schedule
    if schedule.constant:
        return nn.Schedule(train.learning_rate, "constant", schedule.constant.warmup, schedule.constant.start_factor)
    fall = schedule.cosine or schedule.triangular or jobs.Fall()
    return nn.Schedule(
        train.learning_rate,
        "cosine" if schedule.cosine else "triangular",
        fall.warmup,
        fall.start_factor,
        fall.end_factor,
    )


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
    held_out = counts_of(job, dataset)[1]
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
    if [[*found.mean], [*found.std]] != [[*data["mean"]], [*data["std"]]]:
        raise DataError(
            f"{found.path}: damaged, mean and std are not those that {run.path} was made with (found {found.mean}, "
            f"{found.std}). Prepare the same sources again"
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
    """Return which training images are trained on, and which are held out for validation.

    Each class gives its share. The choice is the same for every seed, so that seeds are compared on the same images.

    Args:
        job: how large a share is held out.
        dataset: where it has a validation split of its own, nothing is held out.

    Returns:
        int64 indices of both, ascending.
    """
    count = dataset.shapes["train"][0]
    order = permutation(count, 0, Purpose.VALIDATION)
    labels = np.zeros(0, np.int64) if "val" in dataset.splits else dataset.labels("train")[order]
    shares = held_out_counts(np.bincount(labels, minlength=len(dataset.class_names)), job.data.validation_fraction)
    by_class = np.argsort(labels, kind="stable")  # places in the order, those of a class after one another
    numbers = np.arange(len(labels)) - np.searchsorted(labels[by_class], labels[by_class])  # within the class
    held_out = order[by_class[numbers < shares[labels[by_class]]]]
    return np.setdiff1d(np.arange(count), held_out), np.sort(held_out)


def held_out_of(run: Run, dataset: Dataset) -> np.ndarray:
    """Return the training images that a run held out, int64 indices; up to format 2 they were not chosen by class."""
    job = run.job()
    if format_of(run.frozen()) > OLDEST_FORMAT or "val" in dataset.splits:
        return split(job, dataset)[1]
    count = dataset.shapes["train"][0]
    return np.sort(permutation(count, 0, Purpose.VALIDATION)[: round(count * job.data.validation_fraction)])


def held_out_counts(counts: np.ndarray, fraction: float) -> np.ndarray:
    """Return how many images of each class are held out.

    Of all images together it is their share, given to the classes by the largest remainder; a class of two or more
    gives at least one and keeps at least one, and a single one is trained on.

    Args:
        counts: (K,) images of each class.
        fraction: the share that is held out; of 0 nothing is.

    Returns:
        (K,) int64.
    """
    share = Fraction(str(fraction))
    wanted = [share * int(count) for count in counts]
    most = [max(0, int(count) - 1) for count in counts]
    given = [min(max(int(one), 1), limit) if share else 0 for one, limit in zip(wanted, most, strict=True)]
    left = round(sum(wanted)) - sum(given)
    for place in sorted(range(len(counts)), key=lambda place: given[place] - wanted[place]):
        more = int(left > 0 and given[place] < most[place])
        given[place], left = given[place] + more, left - more
    return np.array(given, np.int64)


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
    content = schemas.sealed(
        {"format": jobs.FORMAT, "digest": digest, "job": job.model_dump(mode="json"), "data": data}
    )
    with written_or_said(run.path):
        run.path.mkdir(parents=True, exist_ok=True)
        if frozen:
            files.write_json(run.job_file, content)
        else:
            files.create_exclusive(run.job_file, files.readable_json(content).encode())
    return run


def unfinished_older_runs(root: Path, name: str) -> dict[str, Run]:
    """Find the runs of a job that another version began and that are not resumed.

    Args:
        root: the folder of the runs.
        name: the job's.

    Returns:
        The runs, by the digest that their job and data would have now.
    """
    older: dict[str, Run] = {}
    for run in map(Run, sorted(root.glob(f"{name}-*"))):
        with suppress(CnnjobError):
            frozen = {} if run.result_file.exists() else run.frozen()
            if frozen and format_of(frozen) != jobs.FORMAT:
                older[run.job().digest(str(run.data()["digest"]))] = run
    return older


def begun_anew(runs: Iterable[Run]) -> Iterator[str]:
    """Yield a sentence on each unfinished run of another version in whose place a new run begins.

    Args:
        runs: made by :func:`run_of`; only those that have not begun are looked at.

    Yields:
        What to tell the user.
    """
    places: dict[tuple[Path, str], dict[str, Run]] = {}
    for run in runs:
        if run.state() != "pending":
            continue
        frozen = run.frozen()
        place = run.path.parent, frozen["job"]["name"]
        if place not in places:
            places[place] = unfinished_older_runs(*place)
        if older := places[place].get(frozen["digest"]):
            yield (
                f"{older.path}: another version of cnnjob began this run and did not finish it. Its validation images "
                f"were chosen otherwise, so it is not resumed; the run begins anew in {run.path}"
            )


def check(job: jobs.Job, dataset: Dataset) -> None:
    """Find what does not fit before anything is written.

    Args:
        job: the job.
        dataset: its dataset; of one that is not packed yet, only the shapes are known and looked at.

    Raises:
        JobError: the job and the dataset do not fit together.
    """
    network = _network_on(job, dataset)
    _check_learns(job, network)
    _check_moves(job, dataset)
    training, held_out = counts_of(job, dataset)
    _check_counts(job, dataset, training, held_out)
    try:
        nn.require_trainable(network, job.train.batch_size)
    except ValueError as error:
        raise JobError(f"model.blocks: {error}; change the block or train.batch_size") from error
    steps = training // job.train.batch_size * job.train.epochs
    if job.train.lookahead and job.train.lookahead.every > steps:
        raise JobError(
            f"train.lookahead.every: {job.train.lookahead.every} is more than the {steps} steps of the training, so it "
            "would not act; lower it, or leave out train.lookahead"
        )
    require_acting(job, dataset, network, schedule_of(job.train), steps)


def counts_of(job: jobs.Job, dataset: Dataset) -> tuple[int, int]:
    """Return how many training images are trained on, and how many are held out.

    Args:
        job: how large a share is held out.
        dataset: of one that is not packed yet, its classes count as equal.

    Returns:
        Both numbers.
    """
    if dataset.array_sha256 or "val" in dataset.splits:
        training, held_out = split(job, dataset)
        return len(training), len(held_out)
    count, classes = dataset.shapes["train"][0], len(dataset.class_names)
    each = np.array([len(part) for part in np.array_split(np.arange(count), classes)])
    held = int(held_out_counts(each, job.data.validation_fraction).sum())
    return count - held, held


def _check_learns(job: jobs.Job, network: nn.Network) -> None:
    """Find a network of which nothing is trained, and a weight decay without weights that are."""
    learning = [one for one in network.parameters.values() if one.learns and one.learning_rate_factor]
    if not learning:
        raise JobError("model: nothing of it is trained, all of it is frozen; set frozen to false in one block")
    if job.train.weight_decay and not any(one.decays for one in learning):
        raise JobError("train.weight_decay: all weights are frozen, and it acts on nothing else; leave it out")


def _check_counts(job: jobs.Job, dataset: Dataset, training: int, held_out: int) -> None:
    """Find too few images or classes, and name the setting that makes them too few."""
    if len(dataset.class_names) == 1:
        raise JobError(
            f"{dataset.path}: it has a single class, '{dataset.class_names[0]}', so there is nothing to tell apart; "
            "prepare a dataset of two or more classes"
        )
    whole, size = training + held_out, job.train.batch_size
    share = f"data.validation_fraction: {job.data.validation_fraction:g} of {whole:,} training images"
    if job.train.select_on == "validation" and not held_out and "val" not in dataset.splits:
        raise JobError(f"{share} is none, but train.select_on is 'validation'; set one of the two")
    if whole >= size > training:
        raise JobError(f"{share} leaves {training:,}, fewer than a batch of {size:,}; lower it, or train.batch_size")
    if size > training:
        raise JobError(f"train.batch_size: {size:,} is more than the {training:,} training images; lower it")


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
