"""Conversion of a job's settings to :mod:`cnnjob.nn` objects, such as the network, optimiser and schedule."""

from dataclasses import replace

from cnnjob import nn
from cnnjob.errors import JobError
from cnnjob.jobs.job import Job
from cnnjob.jobs.model import Model
from cnnjob.jobs.settings import DataSettings, DecaySettings, SgdSettings, TrainSettings


def build_network(model: Model, image_shape: tuple[int, int, int], classes: int) -> nn.Network:
    """Build a job's network for a dataset.

    Args:
        model: the job's model.
        image_shape: (H, W, C).
        classes: number of classes; the final classifier has one output per class.

    Returns:
        The network.

    Raises:
        JobError: a block does not match the output of the preceding block.
    """
    try:
        return nn.Network.build([*model.blocks, replace(model.classifier, units=classes)], image_shape)
    except ValueError as error:
        raise JobError(f"model.blocks: {error}. Change the block or its position") from error


def build_optimiser(train: TrainSettings) -> nn.Optimiser:
    """Build the optimiser that a job asks for; SGD by default."""
    lookahead = nn.Lookahead(**dict(train.lookahead)) if train.lookahead else None
    if adamw := train.optimiser.adamw:
        # In nn, β₁ is called momentum, and every optimiser has that field.
        return nn.AdamW(adamw.beta1, train.weight_decay, lookahead, adamw.beta2, adamw.eps)
    sgd = train.optimiser.sgd or SgdSettings()
    return nn.Sgd(sgd.momentum, train.weight_decay, lookahead, sgd.nesterov, sgd.decoupled_weight_decay)


def build_schedule(train: TrainSettings) -> nn.Schedule:
    """Build a job's learning rate schedule; triangular by default."""
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
    """Build a job's training options: image augmentation and label smoothing."""
    augmentation = nn.Augmentation(**dict(job.data.augment)) if job.data.augment else None
    return nn.TrainingOptions(augmentation, job.train.label_smoothing)


def build_pixels(data: DataSettings, mean: tuple[float, ...], std: tuple[float, ...]) -> nn.PixelNormalisation:
    """Build a job's pixel normalisation.

    Args:
        data: the job's data settings.
        mean: per-channel mean of the training images' pixels, scaled to 0..1.
        std: per-channel standard deviation of the same pixels.

    Returns:
        The normalisation to mean 0 and standard deviation 1 per channel, or to the range 0..1.
    """
    return (
        nn.PixelNormalisation.standardised(mean, std)
        if data.pixels == "standardised"
        else nn.PixelNormalisation.unit(len(mean))
    )
