"""Refuse settings that have no effect on a given dataset, since they would create a second run with identical bits.

Settings that have no effect on any dataset are refused or dropped when the job is read (:mod:`cnnjob.jobs.job`).
The following are accepted even if they have no effect:

- the default of every key;
- the neutral values that a sweep starts from: 0 for dropout, smoothing or decay, and 1 for a pool or factor;
- the initialisers of blocks that take initial weights (``model.init_from``), and the learning rate factor, momentum
  and ``bias_epochs`` of such blocks if they are frozen, so that the blocks of another job can be used unchanged;
- a GPU precision on a machine without a GPU, where the run logs and records the precision that it uses instead;
- the schedule and optimiser settings of a run with a single step, since such a run is a trial of a job intended for
  more steps; they are refused only if that step has learning rate 0.
"""

from collections.abc import Iterator
from math import prod

from cnnjob import nn
from cnnjob.data.dataset import Dataset
from cnnjob.jobs.job import Job
from cnnjob.jobs.settings import DataSettings, EmaSettings, LookaheadSettings


def find_idle_settings(
    job: Job, dataset: Dataset, network: nn.Network, schedule: nn.Schedule, steps: int
) -> Iterator[str]:
    """Yield a message for each setting that has no effect.

    Args:
        job: the job.
        dataset: the dataset that the job is trained on.
        network: the job's network.
        schedule: the job's learning rate schedule.
        steps: total number of training steps.
    """
    yield from _idle_for_images(job, dataset)
    yield from _idle_blocks(network)
    kind, lookahead = job.train.schedule.kind, job.train.lookahead
    rising = schedule.warmup * steps
    if steps == 1 and not schedule.rates(range(steps), steps).any():
        yield (
            f"train.schedule.{kind}.warmup: the only training step has learning rate 0. Leave warmup out, "
            "or set start_factor"
            if schedule.shape != "one_cycle"
            else "train.schedule.one_cycle.end_factor: the only training step has learning rate 0. Set a larger value"
        )
    late = [m for m, first in zip(schedule.milestones, schedule.milestone_steps(steps), strict=True) if first >= steps]
    if late and steps > 1:
        yield (
            f"train.schedule.step.milestones: the {steps:,} training steps end before this milestone (found "
            f"{late[0]:g}). Leave it out, or set a smaller one"
        )
    if schedule.shape in {"cosine", "triangular"} and 1 < steps <= rising + 1:
        yield (
            f"train.schedule: the {steps:,} training steps end before the learning rate falls (found '{kind}'). "
            "Use 'constant'"
        )
    if lookahead and lookahead.every == steps and lookahead.power != LookaheadSettings().power:
        yield (
            f"train.lookahead.power: lookahead acts only once, after the last of {steps:,} steps, so the power has no "
            f"effect (found {lookahead.power:g}). Leave it out, or lower train.lookahead.every"
        )
    ema, reached = job.train.ema, float(nn.Ema(decay=1.0).decays(range(steps)).max())
    if ema and ema.warmup and ema.decay > reached and ema.decay != EmaSettings().decay and steps > 1:
        yield (
            f"train.ema.decay: the warm-up keeps at most {reached:.3g} in the {steps:,} training steps, so this has "
            f"no effect (found {ema.decay:g}). Lower it, leave it out, or set train.ema.warmup = false"
        )


def _idle_for_images(job: Job, dataset: Dataset) -> Iterator[str]:
    fraction, default, width = job.data.validation_fraction, DataSettings().validation_fraction, dataset.image_shape[1]
    if "val" in dataset.splits and fraction != default:
        yield (
            f"data.validation_fraction: {dataset.path} has its own validation split, so this setting has no effect "
            f"(found {fraction:g}). Leave it at its default, {default:g}"
        )
    flips = {
        "data.augment.flip": job.data.augment.flip if job.data.augment else "none",
        "train.test_time_augmentation": job.train.test_time_augmentation,
    }
    for key, flip in flips.items():
        if width == 1 and flip != "none":
            yield f"{key}: flipping images that are one pixel wide has no effect (found '{flip}'). Leave it out"


def _idle_blocks(network: nn.Network) -> Iterator[str]:
    for layer in network.layers:
        sides, block = layer.input_shape[:2], layer.block
        if isinstance(block, nn.GlobalPool) and prod(sides) == 1:
            yield f"model.blocks: {layer.name}: its input is a single pixel, so the block has no effect. Leave it out"
        inner_layers = block.body(layer.input_shape) if isinstance(block, nn.Residual) else (layer,)
        for inner in inner_layers:
            conv = inner.block
            if not isinstance(conv, nn.Conv) or conv.stride == 1:
                continue
            height, width = inner.input_shape[:2]
            # If the kernel covers its input, there is a single output pixel whatever the stride is.
            if all(side + 2 * conv.pad == conv.kernel for side in (height, width)):
                where = layer.name if inner is layer else f"{layer.name}/{inner.name}"
                yield (
                    f"model.blocks: {where}: the kernel covers the whole input of {height}×{width} pixels, so the "
                    f"stride has no effect (found {conv.stride}). Leave it out"
                )
