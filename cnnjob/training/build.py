"""A job's settings as the objects of :mod:`cnnjob.nn`: network, optimiser, schedule, augmentation and pixels."""

from typing import Any

from cnnjob import nn
from cnnjob.errors import JobError
from cnnjob.jobs import model as blocks
from cnnjob.jobs.job import DataSettings, DecaySettings, Job, SgdSettings, TrainSettings
from cnnjob.jobs.model import Model


def build_network(model: Model, image_shape: tuple[int, int, int], classes: int) -> nn.Network:
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
        return nn.Network.build([*(_build_block(block) for block in model.blocks), classifier], image_shape)
    except ValueError as error:
        raise JobError(f"model.blocks: {error}; change the block or its place") from error


def _build_block(block: Any) -> Any:
    """The same block without its key's name."""
    settings = dict(block)
    match block:
        case blocks.Conv():
            norm = nn.BatchNorm(**dict(block.batch_norm)) if block.batch_norm else None
            del settings["batch_norm"]
            return nn.Conv(filters=settings.pop("conv"), norm=norm, **settings)
        case blocks.Dense():
            return nn.Dense(units=settings.pop("dense"), **settings)
        case blocks.GlobalPool():
            return nn.GlobalPool(block.global_pool)
        case blocks.Residual():
            return nn.Residual(tuple(map(_build_block, block.residual)), block.activation)
    return nn.Dropout(settings["dropout"])


def build_optimiser(train: TrainSettings) -> nn.Optimiser:
    """The optimiser that a job asks for."""
    lookahead = nn.Lookahead(**dict(train.lookahead)) if train.lookahead else None
    if adamw := train.optimiser.adamw:
        return nn.AdamW(adamw.beta1, train.weight_decay, lookahead, adamw.beta2, adamw.eps)
    sgd = train.optimiser.sgd or SgdSettings()
    return nn.Sgd(sgd.momentum, train.weight_decay, lookahead, sgd.nesterov, sgd.decoupled_weight_decay)


def build_schedule(train: TrainSettings) -> nn.Schedule:
    """How a job's learning rate goes."""
    schedule = train.schedule
    if schedule.constant:
        return nn.Schedule(train.learning_rate, "constant", schedule.constant.warmup, schedule.constant.start_factor)
    fall = schedule.cosine or schedule.triangular or DecaySettings()
    return nn.Schedule(
        train.learning_rate,
        "cosine" if schedule.cosine else "triangular",
        fall.warmup,
        fall.start_factor,
        fall.end_factor,
    )


def build_training_options(job: Job) -> nn.TrainingOptions:
    """What the images of a job are changed by, and its labels."""
    augmentation = nn.Augmentation(**dict(job.data.augment)) if job.data.augment else None
    return nn.TrainingOptions(augmentation, job.train.label_smoothing)


def build_pixels(data: DataSettings, mean: tuple[float, ...], std: tuple[float, ...]) -> nn.PixelNormalisation:
    """How a job wants a dataset's pixels; mean and std are of each channel's 0 … 1 values."""
    return (
        nn.PixelNormalisation.standardised(mean, std)
        if data.pixels == "standardised"
        else nn.PixelNormalisation.unit(len(mean))
    )
