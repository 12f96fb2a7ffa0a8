"""A training, step by step, as the network's parts compute it: what the trainer fills in for each epoch."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from cnnjob import nn
from cnnjob.jobs.job import Job
from cnnjob.nn.random import Purpose, permutation
from cnnjob.training.build import build_optimiser, build_pixels, build_schedule, build_training_options
from cnnjob.training.progress import NoProgress
from cnnjob.training.setup import TrainingSetup
from cnnjob.training.train import train
from tests.helpers.toy_jobs import dataset, job, run_of, trained


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


def test_the_seconds_of_an_epoch_are_those_of_its_steps_and_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(NoProgress):
        started = ended = 0.0

        def start(self, job: Job, steps: int) -> None:
            flushes.clear()
            self.started = time.monotonic()

        def end_epoch(self, record: dict[str, Any]) -> None:
            self.ended = time.monotonic()
            self.flushes = len(flushes)

    def slow_flush(handle: int) -> None:
        flush(handle)
        time.sleep(0.01)
        flushes.append(handle)

    flush, flushes, clock = os.fsync, list[int](), Clock()
    run = run_of(
        job(train__epochs=4, train__batch_size=54, train__checkpoint_seconds=0.0), dataset(tmp_path), tmp_path / "runs"
    )
    monkeypatch.setattr(os, "fsync", slow_flush)
    train(run, clock)
    counted, history = sum(record["seconds"] for record in run.history()), run.history()
    assert clock.flushes >= 2 * len(history)
    assert counted + 0.01 * clock.flushes <= clock.ended - clock.started + 0.001 * len(history)
    assert run.result()["train_seconds"] >= counted + 0.01 * clock.flushes
