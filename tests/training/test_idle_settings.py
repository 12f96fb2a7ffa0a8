"""Settings that cannot act on a dataset are refused; the same job with its neighbours' values is not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cnnjob.data.dataset import Dataset
from cnnjob.data.prepare.writer import DatasetContents, write
from cnnjob.errors import JobError
from cnnjob.jobs.job import Job
from cnnjob.training.setup import TrainingSetup
from tests.helpers.toy_jobs import CLASSES, blots, dataset, job

ONE_STEP = {"train__epochs": 1, "train__batch_size": 162}
TO_ONE_PIXEL = {"conv": 4, "kernel": 6, "pad": 0}


def blocks(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"model__blocks": list(blocks)}


@pytest.mark.parametrize(
    ("changes", "acting", "message"),
    [
        (
            blocks(TO_ONE_PIXEL, {"global_pool": "max"}),
            blocks(TO_ONE_PIXEL | {"kernel": 5}, {"global_pool": "max"}),
            "model.blocks: global_pool1: its input is a single pixel, so the block has no effect. Leave it out",
        ),
        (
            blocks(TO_ONE_PIXEL | {"stride": 2}),
            blocks(TO_ONE_PIXEL | {"stride": 2, "kernel": 4}),
            "model.blocks: conv1: the kernel covers the whole input of 6×6 pixels, so the stride has no effect .found",
        ),
        (
            blocks(TO_ONE_PIXEL, {"residual": [{"conv": 3}, {"conv": 3, "stride": 3}]}),
            blocks(TO_ONE_PIXEL, {"residual": [{"conv": 3}, {"conv": 3}]}),
            "model.blocks: residual1/conv2: the kernel covers the whole input of 1×1 pixels",
        ),
        (
            ONE_STEP | {"train__schedule": {"constant": {"warmup": 0.5}}},
            ONE_STEP | {"train__schedule": {"constant": {"warmup": 0.5, "start_factor": 0.5}}},
            "train.schedule.constant.warmup: the only training step has learning rate 0. Leave warmup out, or",
        ),
        (
            {"train__schedule": {"triangular": {"warmup": 0.975}}},
            {"train__schedule": {"triangular": {"warmup": 0.97}}},
            "train.schedule: the 40 training steps end before the learning rate falls .found 'triangular'.",
        ),
        (
            {"train__schedule": {"step": {"milestones": [0.5, 0.98]}}},
            {"train__schedule": {"step": {"milestones": [0.5, 0.97]}}},
            "train.schedule.step.milestones: the 40 training steps end before this milestone .found 0.98.. Leave it",
        ),
        (
            ONE_STEP | {"train__schedule": {"one_cycle": {"end_factor": 0.0}}},
            ONE_STEP | {"train__schedule": "one_cycle"},
            "train.schedule.one_cycle.end_factor: the only training step has learning rate 0. Set a larger value",
        ),
        (
            {"train__ema": {"decay": 0.95}},
            {"train__ema": {"decay": 0.9}},
            "train.ema.decay: the warm-up keeps at most 0.915 in the 40 training steps, so this has no effect",
        ),
        (
            {"train__lookahead": {"every": 40, "power": 2.0}},
            {"train__lookahead": {"every": 39, "power": 2.0}},
            "train.lookahead.power: lookahead acts only once, after the last of 40 steps, so the power has no effect",
        ),
    ],
)
def test_what_cannot_act_on_a_dataset_is_refused(
    tmp_path: Path, changes: dict[str, Any], acting: dict[str, Any], message: str
) -> None:
    TrainingSetup.checked(job(**acting), dataset(tmp_path))
    with pytest.raises(JobError, match=message):
        TrainingSetup.checked(job(**changes), dataset(tmp_path))


def test_a_validation_fraction_beside_a_validation_split_is_refused(tmp_path: Path) -> None:
    contents = DatasetContents(CLASSES, {"toy": "0" * 64}, blots({"train": 80, "val": 30, "test": 30}))
    write(tmp_path / "toy.h5", "toy", contents, {})
    packed = Dataset.open(tmp_path / "toy.h5")
    TrainingSetup.checked(job(data__validation_fraction=0.1), packed)
    message = (
        r"toy.h5 has its own validation split, so this setting has no effect .found 0.25.. Leave it at its default"
    )
    with pytest.raises(JobError, match=f"data.validation_fraction: .*{message}"):
        TrainingSetup.checked(job(), packed)


@pytest.mark.parametrize(
    ("key", "value"), [("data__augment", {"flip": "random"}), ("train__test_time_augmentation", "flip")]
)
def test_images_of_one_column_have_no_mirror_image(tmp_path: Path, key: str, value: Any) -> None:
    columns = [replace(block, images=block.images[:, :, :1]) for block in blots({"train": 80, "test": 30})]
    write(tmp_path / "toy.h5", "toy", DatasetContents(CLASSES, {"toy": "0" * 64}, iter(columns)), {})
    packed = Dataset.open(tmp_path / "toy.h5")
    TrainingSetup.checked(job(model__blocks=[{"dense": 3}]), packed)
    name = "data.augment.flip" if "augment" in key and "data" in key else key.replace("__", ".")
    with pytest.raises(JobError, match=f"{name}: flipping images that are one pixel wide has no effect"):
        TrainingSetup.checked(job(model__blocks=[{"dense": 3}], **{key: value}), packed)


@pytest.mark.parametrize("name", ["digits", "mnist-cnn", "cifar10-fast", "cifar10-resnet"])
def test_a_shipped_job_of_one_epoch_is_accepted(name: str) -> None:
    assert Job.load(name, ["train.epochs=1"]).train.epochs == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"train__schedule": "cosine"},
        {"train__schedule": "step"},
        {"train__optimiser": {"sgd": {"momentum": 0.5}}},
        {"train__optimiser": {"adamw": {"beta1": 0.5}}},
    ],
)
def test_a_trial_of_one_step_keeps_the_settings_of_its_job(tmp_path: Path, changes: dict[str, Any]) -> None:
    TrainingSetup.checked(job(**ONE_STEP, **changes), dataset(tmp_path))
