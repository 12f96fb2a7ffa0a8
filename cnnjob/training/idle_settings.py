"""Refusal of settings that have no effect on a given dataset: they would give another run folder with the same bits.

What cannot act on any dataset is refused, or left out, where the job is read (:mod:`cnnjob.jobs.job`). A key's
default is accepted everywhere. So are the neutral values that a sweep begins with (a dropout, smoothing or decay of
0, a pool or factor of 1), which are the spelling of "none". So is a precision of a GPU's on a CPU, since the machine
decides on it: the run says at its start, and records, what it computes in. A training of one step is a trial of a job
that is made for more of them: its schedule and its optimiser are accepted, unless the step has the learning rate 0.
"""

from collections.abc import Iterator
from math import prod

from cnnjob import nn
from cnnjob.data.dataset import Dataset
from cnnjob.errors import JobError
from cnnjob.jobs.job import Job
from cnnjob.jobs.settings import DataSettings, LookaheadSettings
from cnnjob.nn.blocks import Layer


def require_effect(job: Job, dataset: Dataset, network: nn.Network, schedule: nn.Schedule, steps: int) -> None:
    """Refuse a job with a setting that has no effect.

    Args:
        job: the job.
        dataset: the dataset that it is trained on.
        network: the job's network.
        schedule: the job's learning rate schedule.
        steps: number of steps of the whole training.

    Raises:
        JobError: a setting has no effect; the first one is named.
    """
    for found in (*_of_images(job, dataset), *_of_network(network), *_of_steps(job, schedule, steps)):
        raise JobError(found)


def _of_images(job: Job, dataset: Dataset) -> Iterator[str]:
    fraction, default, width = job.data.validation_fraction, DataSettings().validation_fraction, dataset.image_shape[1]
    if "val" in dataset.splits and fraction != default:
        yield (
            f"data.validation_fraction: {dataset.path} has a validation split of its own, so nothing is held out "
            f"(found {fraction:g}); leave it at its default, {default:g}"
        )
    flips = {
        "data.augment.flip": job.data.augment.flip if job.data.augment else "none",
        "train.test_time_augmentation": job.train.test_time_augmentation,
    }
    for key, flip in flips.items():
        if width == 1 and flip != "none":
            yield f"{key}: images of one column have no other mirror image (found '{flip}'); leave it out"


def _of_network(network: nn.Network) -> Iterator[str]:
    for layer in network.layers:
        sides, block = layer.input_shape[:2], layer.block
        if isinstance(block, nn.GlobalPool) and prod(sides) == 1:
            yield f"model.blocks: {layer.name}: there is a single pixel (found 1×1) to pool; leave the block out"
        inner = block.body(layer.input_shape) if isinstance(block, nn.Residual) else (layer,)
        for one in inner:
            if isinstance(one.block, nn.Conv) and one.block.stride > 1 and _has_one_place(one):
                where = layer.name if one is layer else f"{layer.name}/{one.name}"
                yield (
                    f"model.blocks: {where}: the kernel has a single place in {one.input_shape[0]}×"
                    f"{one.input_shape[1]} pixels, so no stride moves it (found {one.block.stride}); leave it out"
                )


def _has_one_place(layer: Layer) -> bool:
    """Return whether a convolution has a single output pixel whatever its stride, as its kernel covers the input."""
    conv = layer.block
    return isinstance(conv, nn.Conv) and all(side + 2 * conv.pad == conv.kernel for side in layer.input_shape[:2])


def _of_steps(job: Job, schedule: nn.Schedule, steps: int) -> Iterator[str]:
    kind, lookahead = job.train.schedule.kind, job.train.lookahead
    rising = schedule.warmup * steps
    if steps == 1 and not schedule.rates(range(steps), steps).any():
        yield (
            f"train.schedule.{kind}.warmup: the only step of the training has the learning rate 0; leave it out, or "
            "set start_factor"
        )
    if schedule.shape != "constant" and 1 < steps <= rising + 1:
        yield (
            f"train.schedule: the {steps:,} steps of the training end before the learning rate falls (found "
            f"'{kind}'); write 'constant'"
        )
    if lookahead and lookahead.every == steps and lookahead.power != LookaheadSettings().power:
        yield (
            f"train.lookahead.power: it acts once, after the last of {steps:,} steps, where any power of 1 is 1 "
            f"(found {lookahead.power:g}); leave it out, or lower train.lookahead.every"
        )
