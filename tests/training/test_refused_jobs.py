"""Jobs that do not fit their data or the memory, and settings without influence on the bits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from cnnjob import nn
from cnnjob.data.dataset import Dataset
from cnnjob.data.prepare.writer import DatasetContents, write
from cnnjob.errors import JobError
from cnnjob.jobs.settings import (
    AugmentSettings,
    ConstantSettings,
    DecaySettings,
    EarlyStoppingSettings,
    ScheduleSettings,
)
from cnnjob.training.setup import TrainingSetup
from cnnjob.training.train import train
from tests.helpers.toy_jobs import CLASSES, blots, dataset, job, outcome_of, run_of

NORM_LAST = {"batch_norm": True, "order": ["activation", "pool", "norm"]}


def blocks(*of: dict[str, Any], classifier: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"model__blocks": list(of), "model__classifier": classifier or {}}


def test_a_job_that_does_not_fit_its_data_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    packed = dataset(tmp_path)
    for changes, message in (
        ({"train__batch_size": 500}, "train.batch_size: 500 is more than the 162 training images. Lower it"),
        ({"model__blocks": [{"conv": 2, "pool": 9}]}, "model.blocks: conv1: an input of 6×6 pixels is too small for"),
        (
            {"data__validation_fraction": 0.0},
            "data.validation_fraction: 0 of 216 training images gives no validation images",
        ),
        (
            {"data__validation_fraction": 0.9999},
            "data.validation_fraction: 0.9999 of 216 training images leaves 3 to train on, fewer than a batch of 8",
        ),
        (
            blocks({"conv": 2, "frozen": True, "bias": False}, classifier={"frozen": True, "bias": False}),
            "model: all parameters are frozen, so nothing is trained",
        ),
        (
            {"train__weight_decay": 0.1}
            | blocks({"conv": 2, "frozen": True, "batch_norm": True}, classifier={"frozen": True, "bias": False}),
            "train.weight_decay: has no effect, since all weights are frozen. Leave it out",
        ),
        ({"data__augment": {"translate": 6}}, "data.augment.translate: translates images of 6×6 pixels by 6, but"),
        (
            {"data__augment": {"crop": 6}},
            "data.augment.crop: moves images of 6×6 pixels by up to 6, so that nothing of",
        ),
        (
            {"data__augment": {"cutout": 7}},
            "data.augment.cutout: the square of 7 pixels is larger than the images of 6×6 pixels. Lower it, or leave",
        ),
        (
            {"data__augment": {"mixup": 0.1}, "train__batch_size": 1},
            "data.augment.mixup: needs two images per batch .found train.batch_size = 1.. Set a larger batch, or leave",
        ),
        (blocks({"dense": 3}, {"global_pool": "max"}), "global_pool1: a global_pool block needs an image"),
        (blocks({"residual": [{"dropout": 0.1}]}), "residual1: a residual block needs a conv block in its body"),
        (blocks({"residual": [{"conv": 2}, {"conv": 2, "pool": 9}]}), "residual1: conv2: an input of .* is too small"),
        (
            blocks({"residual": [{"conv": 2, "kernel": 1}, {"conv": 2, "kernel": 2, "pad": 1, "stride": 2}]}),
            "residual1: its body turns 6×6×1 into 4×4×2, but the input has too few pixels for a shortcut",
        ),
        (
            blocks({"residual": [{"conv": 2, "kernel": 2, "pad": 1}]}),
            "residual1: its padding enlarges the image from 6×6×1 to 7×7×2, but a shortcut cannot enlarge",
        ),
        (
            blocks({"conv": 2, "pad": 64, "pool": 64}),
            "model.blocks: conv1: pad 64 is not less than kernel 3, so outputs at the edges depend only on padding. ",
        ),
        (
            blocks({"residual": [{"conv": 2, "kernel": 1, "pad": 1}, {"conv": 2, "pad": 0}]}),
            "model.blocks: residual1.conv1: pad 1 is not less than kernel 1",
        ),
        (
            {"train__batch_size": 1} | blocks({"conv": 3, "pad": 0}, {"conv": 5, "pad": 0, "pool": 2} | NORM_LAST),
            "model.blocks: conv2: batch normalisation needs more .* .found one 1×1×5 image per batch.. Change",
        ),
        (
            {"train__batch_size": 1} | blocks({"residual": [{"conv": 3, "pool": 6} | NORM_LAST]}),
            "model.blocks: residual1.conv1: batch normalisation needs more than one value per channel",
        ),
        (
            {"train__epochs": 2, "train__lookahead": {"every": 41}},
            "train.lookahead.every: 41 is more than the 40 training steps, so lookahead has no effect. Lower it",
        ),
        (
            blocks({"conv": 3}) | {"train__optimiser": "muon"},
            "train.optimiser.muon: there are no weights that it updates .found none trained except those of the first "
            "layer and the classifier.. Add a block",
        ),
        (
            blocks({"conv": 3, "frozen": True}, {"dense": 3}) | {"train__optimiser": {"muon": {"first_layer": True}}},
            "train.optimiser.muon.first_layer: has no effect, since its weights are not trained. Leave it out",
        ),
        (
            blocks({"conv": 3, "frozen": True}, {"dense": 3})
            | {"train__optimiser": {"muon": {"classifier": True, "others": {"adamw": {"weight_decay": 0.1}}}}},
            "muon.others.adamw.weight_decay: has no effect, since Muon updates all weights that decay. Leave it out",
        ),
        (
            blocks({"conv": 3}, {"dense": 3}) | {"train__optimiser": {"muon": {"adjust_learning_rate": "none"}}},
            "muon.adjust_learning_rate: has no effect, since no matrix has more outputs than inputs, so 'original' is",
        ),
        (blocks({"conv": 3, "init": "whitening"}), "conv1: whitening needs an even number of filters up to 18"),
    ):
        with pytest.raises(JobError, match=message):
            run_of(job(**changes), packed, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_normalisation_of_two_values_and_a_lookahead_at_the_last_step_are_allowed(tmp_path: Path) -> None:
    small = blocks({"conv": 3, "pool": 6} | NORM_LAST)
    TrainingSetup.checked(
        job(**small, train__batch_size=2, train__lookahead={"every": 81}, train__epochs=1), dataset(tmp_path)
    )
    TrainingSetup.checked(job(**blocks({"conv": 3, "pool": 3} | NORM_LAST), train__batch_size=1), dataset(tmp_path))


def test_views_that_move_an_image_need_pixels_to_mirror(tmp_path: Path) -> None:
    rows = [replace(block, images=block.images[:, :1]) for block in blots({"train": 80, "test": 30})]
    write(tmp_path / "toy.h5", "toy", DatasetContents(CLASSES, {"toy": "0" * 64}, iter(rows)), {})
    packed = Dataset.open(tmp_path / "toy.h5")
    TrainingSetup.checked(job(model__blocks=[{"dense": 3}], train__test_time_augmentation="flip"), packed)
    said = r"train.test_time_augmentation: translates images of 1×6 pixels by 1, but at most 0 pixels can be mirrored"
    with pytest.raises(JobError, match=said):
        TrainingSetup.checked(job(model__blocks=[{"dense": 3}], train__test_time_augmentation="flip_translate"), packed)


def test_a_job_larger_than_the_memory_is_refused_before_it_starts(tmp_path: Path) -> None:
    huge = job(model__blocks=[{"dense": 1_000_000}, {"dense": 1_000_000}])
    run = run_of(huge, dataset(tmp_path), tmp_path / "runs")
    with pytest.raises(JobError, match=r"needs [\d,.]+ GB of memory for its arrays .found [\d.]+ GB free"):
        train(run)
    assert run.state() == "pending"


def replaced(one: Any, path: str, value: Any) -> Any:
    """A frozen table with one value replaced, unchecked."""
    name, _, rest = path.partition(".")
    if isinstance(one, tuple):
        return tuple(replaced(part, rest, value) if str(place) == name else part for place, part in enumerate(one))
    changes = {name: replaced(getattr(one, name), rest, value) if rest else value}
    return one.model_copy(update=changes) if isinstance(one, BaseModel) else replace(one, **changes)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.blocks.0.order", ("pool", "activation", "norm")),
        ("model.blocks.1.order", ("activation", "pool", "norm")),
        ("model.blocks", None),
        ("train.early_stopping", EarlyStoppingSettings(patience=1)),
        (
            "train.schedule",
            ScheduleSettings.model_construct(constant=ConstantSettings.model_construct(warmup=0.5, start_factor=1.0)),
        ),
        ("train.schedule", ScheduleSettings.model_construct(cosine=DecaySettings.model_construct(end_factor=1.0))),
        ("data.augment", AugmentSettings()),
        ("train.optimiser.sgd.decoupled_weight_decay", True),
        ("train.precision", "tf32"),
    ],
)
def test_what_a_job_leaves_out_or_refuses_has_no_influence_on_the_bits(tmp_path: Path, path: str, value: Any) -> None:
    blocks = [{"conv": 3, "pool": 2}, {"conv": 3, "activation": "gelu"}, {"dropout": 0.2}, {"dense": 4}]
    plain, packed = job(train__epochs=2, model__blocks=blocks), dataset(tmp_path)
    idle = (nn.Dropout(0.0), *plain.model.blocks[3:])
    other = replaced(plain, path, value or (*plain.model.blocks[:3], *idle))
    assert other != plain
    runs = [run_of(one, packed, tmp_path / str(number)) for number, one in enumerate((plain, other))]
    first, second = (
        outcome_of(train(run, setup=TrainingSetup.of_run(run, one)).run)
        for run, one in zip(runs, (plain, other), strict=True)
    )
    assert first == second
