"""A training, step by step, as the network's parts compute it: what the trainer fills in for each epoch."""

from pathlib import Path
from typing import Any

import pytest

from cnnjob import nn
from cnnjob.nn.random import Purpose, permutation
from cnnjob.training.build import build_optimiser, build_pixels, build_schedule, build_training_options
from cnnjob.training.setup import TrainingSetup
from tests.helpers.toy_jobs import dataset, job, trained


@pytest.mark.parametrize("schedule", ["one_cycle", {"step": {"milestones": [1], "gamma": 0.5}}], ids=["cycle", "step"])
def test_each_epoch_has_the_shares_and_rates_of_its_steps(tmp_path: Path, schedule: Any) -> None:
    changes: dict[str, Any] = {
        "data__augment": {"flip": "random", "crop": 1, "cutout": 2, "mixup": 0.5},
        "model__blocks": [{"conv": 3, "activation": "silu", "bias_epochs": 1}, {"dense": 4}],
        "train__schedule": schedule,
        "train__label_smoothing": 0.1,
    }
    history = trained(tmp_path, **changes).run.history()
    setup = TrainingSetup.checked(job(**changes), dataset(tmp_path))
    train, backend, steps = setup.job.train, nn.NumPyBackend(nn.Workers(1)), setup.steps_per_epoch
    optimiser, options = build_optimiser(train), build_training_options(setup.job)
    pixels = build_pixels(setup.job.data, setup.dataset.mean, setup.dataset.std)
    state = nn.State(setup.network, optimiser, backend)
    state.initialise(setup.network, 0)
    inputs = nn.build_step_inputs(backend, *setup.dataset.load("train"), steps, train.batch_size, 0)
    plan = nn.TrainingPlan(backend, setup.network, state, optimiser, inputs, pixels, train.batch_size, options)
    for epoch, record in enumerate(history):
        order = permutation(len(setup.training), 0, Purpose.ORDER, epoch)[: len(inputs.order)]
        inputs.order[:] = setup.training[order]
        first = epoch * steps
        inputs.learning_rates[:] = build_schedule(train).rates(range(first, first + steps), train.epochs * steps)
        inputs.mixup[:] = nn.Augmentation(mixup=0.5).shares(0, epoch, steps)
        inputs.position[:] = 0, first
        for _ in range(steps):
            plan.step()
        assert record["train_loss"] == pytest.approx(float(inputs.losses.mean()), rel=1e-12)
        assert record["train_accuracy"] == pytest.approx(inputs.n_correct.sum() / len(inputs.order), rel=1e-12)
    assert len(history) == 2
