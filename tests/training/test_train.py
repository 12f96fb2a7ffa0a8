"""The loop: what it learns, when it stops, and that a resumed run is the unbroken one to the last bit."""

import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from cnnjob import files
from cnnjob.data.dataset import Dataset
from cnnjob.data.prepare.writer import DatasetContents, write
from cnnjob.errors import BusyError, CnnjobError, DataError, JobError, TrainingError
from cnnjob.jobs import json_files
from cnnjob.jobs.job import Job
from cnnjob.runs import checkpoints, npz
from cnnjob.runs.claims import claim
from cnnjob.runs.run import Run
from cnnjob.training.inference.classifier import load_classifier
from cnnjob.training.progress import NoProgress
from cnnjob.training.split import split_training_images
from cnnjob.training.stopping import SIGNALS, StopRequest
from cnnjob.training.train import train
from tests.helpers.progress import Recorder, StopsAt
from tests.helpers.toy_jobs import CLASSES, WILD, blots, dataset, job, outcome_of, run_of, trained

DROPOUT = [{"conv": 3, "kernel": 3, "pool": 2}, {"dropout": 0.3}, {"dense": 6}]
PLAIN = [{"conv": 3, "kernel": 3, "pool": 2}, {"dense": 6}]
FEW: dict[str, Any] = {"train__epochs": 3, "train__batch_size": 4, "data__validation_fraction": 0.9}
"""15 steps, for what takes longer."""
NORM = {"batch_norm": {"momentum": 0.4}}
RESIDUAL = [
    {"conv": 4, "kernel": 2, "pad": 0, "init": "whitening", "frozen": True, "activation": "gelu"},
    {"residual": [{"conv": 3, "stride": 2, "activation": "silu"} | NORM, {"conv": 3, "activation": "none"} | NORM]},
    {"global_pool": "max"},
]
JOBS: list[dict[str, Any]] = [
    FEW | {"train__optimiser": {"sgd": {"momentum": 0.0}}, "model__blocks": PLAIN},
    {"train__optimiser": "sgd", "model__blocks": PLAIN},
    FEW | {"train__optimiser": {"sgd": {"momentum": 0.0}}, "model__blocks": DROPOUT},
    FEW | {"train__optimiser": "sgd", "model__blocks": DROPOUT},
    FEW
    | {
        "model__blocks": RESIDUAL,
        "train__schedule": {"one_cycle": {"base_momentum": 0.8}},
        "data__augment": {"flip": "alternating", "translate": 2, "mixup": 0.5},
        "train__optimiser": {"sgd": {"nesterov": True, "decoupled_weight_decay": True}},
        "train__weight_decay": 0.01,
        "train__lookahead": {"every": 3},
        "train__label_smoothing": 0.1,
        "train__test_time_augmentation": "flip",
    },
    FEW
    | {
        "model__blocks": [{"conv": 3, "activation": "gelu", "bias": True, "bias_epochs": 2} | NORM, *DROPOUT],
        "data__augment": {"flip": "random", "crop": 2, "cutout": 3},
        "train__optimiser": "adamw",
        "train__schedule": {"step": {"milestones": [1, 2], "gamma": 0.3}},
        "train__learning_rate": 0.01,
        "train__weight_decay": 0.01,
        "train__lookahead": {"every": 7},
    },
    FEW
    | {
        "model__blocks": DROPOUT,
        "train__optimiser": "adam",
        "train__learning_rate": 0.01,
        "train__weight_decay": 0.01,
        "train__clip_norm": 1.0,
        "train__ema": {"decay": 0.8},
    },
    FEW
    | {
        "model__blocks": [{"conv": 4}, *DROPOUT],
        "train__optimiser": {"muon": {"ns_steps": 3, "others": {"adamw": {"learning_rate": 0.01}}}},
        "train__learning_rate": 0.02,
        "train__weight_decay": 0.01,
    },
]


def test_it_learns_and_finishes(tmp_path: Path) -> None:
    outcome = trained(tmp_path, train__epochs=12, seed=1)
    result = outcome.run.result()
    assert outcome.state == "finished"
    assert result["test_accuracy"] > 0.9
    assert result["epochs"] == 12
    assert result["parameters"] == sum(array.size for array in outcome.run.weights().values())
    history = outcome.run.history()
    assert [record["epoch"] for record in history] == list(range(1, 13))
    assert [record["step"] for record in history] == [20 * epoch for epoch in range(1, 13)]
    assert {"train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "seconds"} <= history[0].keys()
    assert "test_accuracy" not in history[0]
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    predictions = outcome.run.predictions()
    right = predictions["probabilities"].argmax(axis=1) == predictions["labels"]
    assert right.mean() == result["test_accuracy"]
    assert outcome.run.state() == "finished"
    [attempt] = outcome.run.attempts()
    assert (attempt["why"], attempt["step"], attempt["resumed_at_step"]) == ("finished", 240, None)


def test_a_finished_run_says_so_and_is_left_alone(tmp_path: Path) -> None:
    first = trained(tmp_path)
    before = {path: path.read_bytes() for path in first.run.path.rglob("*") if path.is_file()}
    again = trained(tmp_path)
    assert (again.run, again.state) == (first.run, "was finished")
    assert before == {path: path.read_bytes() for path in first.run.path.rglob("*") if path.is_file()}


@pytest.fixture(
    scope="module",
    params=JOBS,
    ids=["sgd", "momentum", "dropout", "dropout momentum", "resnet", "adamw", "adam, clipped, averaged", "muon"],
)
def unbroken(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A run that nobody stopped, and the changes to the toy job that it was made with.

    In memory where there is such a folder: that all is flushed to the disk is for the durability tests to show.
    """
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        changes = {"train__schedule": "cosine", **request.param}
        outcome = trained(Path(folder), **changes)
        yield Path(folder), changes, outcome_of(outcome.run)


def test_stopped_at_every_step_it_is_the_unbroken_run(unbroken: Any) -> None:
    """15 or 40 stop points of each of the jobs: weights, running statistics among them, predictions and history."""
    root, changes, expected = unbroken
    steps = expected[2][-1]["step"]
    assert steps == (15 if FEW.items() <= changes.items() else 40)
    for step in range(1, steps + 1):
        run = run_of(job(**changes), dataset(root), root / f"stopped-{step}")
        listener = StopsAt(step)
        outcome = train(run, listener)
        if step < steps:
            assert outcome.state == "stopped"
            assert checkpoints.load_newest(run.checkpoints_folder, run.manifest()["digest"])[0].progress.step == step  # type: ignore[union-attr]
            assert run.state() == "stopped"
            outcome = train(run)
        assert outcome.state in {"finished", "stopped"}
        if outcome.state == "stopped":
            outcome = train(run)
        assert outcome_of(run) == expected, step


def test_stopped_again_and_again_it_is_the_unbroken_run(unbroken: Any) -> None:
    root, changes, expected = unbroken
    run = run_of(job(**changes), dataset(root), root / "often")
    often = 4 if expected[2][-1]["step"] == 15 else 12
    signals = ((signal.SIGINT, signal.SIGTERM, *SIGNALS) * 2)[:often]
    states = [train(run, StopsAt(3, number)).state for number in signals]
    assert states == ["stopped"] * often
    assert train(run).state == "finished"
    assert outcome_of(run) == expected
    assert [attempt["resumed_at_step"] for attempt in run.attempts()] == [None, *range(3, len(states) * 3 + 1, 3)]
    assert run.attempts()[1]["why"] == "stopped: SIGTERM"
    assert run.result()["attempts"] == len(states) + 1


def test_early_stopping_keeps_the_best_weights(tmp_path: Path) -> None:
    outcome = trained(
        tmp_path, train__epochs=60, train__learning_rate=0.2, train__early_stopping={"patience": 4}, data__pixels="unit"
    )
    result, history = outcome.run.result(), outcome.run.history()
    scores = [record["validation_accuracy"] for record in history]
    assert result["best_epoch"] == scores.index(max(scores)) + 1
    assert result["epochs"] == len(history) == result["best_epoch"] + 4 < 60


def test_a_moving_average_is_evaluated_selected_and_kept(tmp_path: Path) -> None:
    """Batch normalisation's running statistics are averaged too; training goes on from the weights themselves."""
    changes = {"model__blocks": [{"conv": 3, "pool": 2} | NORM, {"dense": 6}], "train__epochs": 4}
    plain = trained(tmp_path, **changes).run
    averaged = trained(tmp_path, **changes, train__ema={"decay": 0.95, "warmup": False}).run
    assert [record["train_loss"] for record in averaged.history()] == [
        record["train_loss"] for record in plain.history()
    ]
    checkpoint, _ = checkpoints.load_newest(averaged.checkpoints_folder, averaged.manifest()["digest"])
    other, _ = checkpoints.load_newest(plain.checkpoints_folder, plain.manifest()["digest"])
    assert checkpoint
    assert other
    for name, array in averaged.weights().items():
        np.testing.assert_array_equal(checkpoint.arrays[f"weights/{name}"], other.arrays[f"weights/{name}"])
        np.testing.assert_array_equal(checkpoint.arrays[f"best/{name}"], array)
        assert not np.array_equal(array, other.arrays[f"weights/{name}"]), name
        if averaged.result()["best_epoch"] == 4:
            np.testing.assert_array_equal(checkpoint.arrays[f"ema/{name}"], array)
    losses = [[record["validation_loss"] for record in run.history()] for run in (plain, averaged)]
    assert losses[0] != losses[1]
    probabilities = load_classifier(averaged).probabilities(dataset(tmp_path).load("test")[0])
    np.testing.assert_array_equal(probabilities, averaged.predictions()["probabilities"])


def test_the_last_epoch_can_be_chosen(tmp_path: Path) -> None:
    outcome = trained(tmp_path, train__select_on="last", data__validation_fraction=0.0)
    assert outcome.run.result()["best_epoch"] == 2
    assert "validation_accuracy" not in outcome.run.history()[0]


def test_the_test_set_can_choose_and_it_is_recorded(tmp_path: Path) -> None:
    outcome = trained(tmp_path, train__select_on="test")
    result, history = outcome.run.result(), outcome.run.history()
    assert result["selected_on"] == "test"
    assert result["test_accuracy"] == max(record["test_accuracy"] for record in history)


def test_a_dataset_may_bring_its_own_validation_images(tmp_path: Path) -> None:
    contents = DatasetContents(CLASSES, {"toy": "0" * 64}, blots({"train": 80, "val": 30, "test": 30}))
    write(tmp_path / "toy.h5", "toy", contents, {})
    packed = Dataset.open(tmp_path / "toy.h5")
    assert [len(part) for part in split_training_images(job(), packed)] == [80, 0]
    outcome = train(run_of(job(data__validation_fraction=0.1), packed, tmp_path / "runs"))
    assert outcome.run.history()[0]["step"] == 10
    assert "validation_accuracy" in outcome.run.history()[0]


def test_the_split_is_the_same_for_every_seed_and_whole(tmp_path: Path) -> None:
    packed = dataset(tmp_path)
    training, held_out = split_training_images(job(seed=1), packed)
    np.testing.assert_array_equal(np.sort(np.concatenate([training, held_out])), np.arange(216))
    assert len(held_out) == 54
    np.testing.assert_array_equal(split_training_images(job(seed=2), packed)[1], held_out)


def test_a_loss_that_is_no_number_stops_before_anything_is_overwritten(tmp_path: Path) -> None:
    linear = [{"dense": 8, "activation": "none"}]
    diverging = job(model__blocks=linear, train__learning_rate=900.0, train__optimiser={"sgd": {"momentum": 0.99}})
    run = run_of(diverging, dataset(tmp_path), tmp_path / "runs")
    said = r"the loss is (nan|inf) at step \d+ \(epoch \d, .*learning rate .*\)\. Lower train.learning_rate"
    with pytest.raises(TrainingError, match=said):
        train(run)
    assert run.state() == "failed"
    assert run.attempts()[0]["why"].startswith("failed: ")
    [kept] = run.checkpoints_folder.iterdir()  # that of the start
    assert all(np.isfinite(array).all() for name, array in npz.read_arrays(kept).items() if name != "header")


def test_an_evaluation_that_is_no_number_stops_with_its_cause(tmp_path: Path) -> None:
    """One step an epoch: the training loss is that of before the step that went wrong."""
    linear = [{"dense": 8, "activation": "none", "learning_rate_factor": 1e6}]
    diverging = job(model__blocks=linear, train__learning_rate=1000.0, train__batch_size=162, train__epochs=30)
    run = run_of(diverging, dataset(tmp_path), tmp_path / "runs")
    with pytest.raises(TrainingError, match=r"the (validation )?loss is (nan|inf) at step \d+ \(epoch \d+, "):
        train(run)
    assert all(np.isfinite(record["validation_loss"]) for record in run.history())
    assert "failed: " in run.log_file.read_text()


def test_a_last_update_after_which_the_outputs_overflow_fails_the_run(tmp_path: Path) -> None:
    run = run_of(job(**WILD), dataset(tmp_path), tmp_path / "runs")
    said = (
        r"the test loss is nan with the weights of epoch 1\. Lower train.learning_rate or change the initial weights$"
    )
    for attempt in (1, 2):  # again from the checkpoint at its end
        with pytest.raises(TrainingError, match=said):
            train(run)
        assert run.state() == "failed"
        assert len(run.attempts()) == attempt
        assert not any(path.exists() for path in (run.result_file, run.weights_file, run.predictions_file))
    assert math.isfinite(run.history()[0]["train_loss"])


@pytest.mark.parametrize(
    ("checkpoint_seconds", "said"),
    [
        (
            60.0,
            r"the largest value of conv23/variance is (inf|nan) at step 27 .*\. Lower train.learning_rate or change",
        ),
        (
            0.0,
            r"weights/conv23/variance is not finite at step 1, so no checkpoint was saved\. Lower train.learning_rate",
        ),
    ],
)
def test_running_statistics_that_overflow_fail_the_epoch(checkpoint_seconds: float, said: str, tmp_path: Path) -> None:
    """Training itself goes by the batch's statistics, and never sees the running ones."""
    huge = {"conv": 2, "init": 10.0, "kernel": 1, "pad": 0, "bias": True, "bias_init": 10.0, "activation": "none"}
    run = run_of(
        job(
            model__blocks=[*[huge] * 22, {"conv": 2, "init": 10.0, "batch_norm": True}],
            data__validation_fraction=0.0,
            train__select_on="last",
            train__checkpoint_seconds=checkpoint_seconds,
        ),
        dataset(tmp_path),
        tmp_path / "runs",
    )
    with pytest.raises(TrainingError, match=rf"{re.escape(str(run.path))}: {said}"):
        train(run)
    assert [path.name for path in run.checkpoints_folder.glob("*.npz")] == ["step-000000000.npz"]
    assert not run.history()


def test_memory_that_ends_in_a_later_step_is_said_and_the_same_call_goes_on(tmp_path: Path) -> None:
    class Greedy(StopsAt):
        def step(self, epoch: int, step: int) -> None:
            self.steps_left -= 1
            if self.steps_left == 0:
                np.empty(1 << 60, np.uint8)

    run = run_of(job(), dataset(tmp_path), tmp_path / "runs")
    with pytest.raises(JobError, match=r"toy: out of memory \(numpy.*MemoryError: Unable to allocate"):
        train(run, Greedy(7))
    assert run.attempts()[0]["why"].startswith("failed: toy: out of memory")
    assert train(run).state == "finished"


def test_a_run_that_another_process_writes_is_left_alone(tmp_path: Path) -> None:
    run = run_of(job(), dataset(tmp_path), tmp_path / "runs")
    claim(run)  # this process lives
    with pytest.raises(BusyError, match="another process is writing this run: process"):
        train(run)
    assert len(run.attempts()) == 1


def test_a_process_that_was_taken_for_dead_cannot_write(tmp_path: Path) -> None:
    class Superseded(Recorder):
        def step(self, epoch: int, step: int) -> None:
            if (epoch, step) == (1, 5):
                record = json.loads(run.attempt_files()[0].read_text())
                files.write_json(run.attempts_folder / "0002.json", {**record, "attempt": 2})

    run = run_of(job(train__checkpoint_seconds=0.0), dataset(tmp_path), tmp_path / "runs")
    with pytest.raises(BusyError, match="this process was presumed dead, and attempt 2 now owns the run"):
        train(run, Superseded())
    found, _ = checkpoints.load_newest(run.checkpoints_folder, run.manifest()["digest"])
    assert found is not None
    assert found.progress.step == 4
    assert run.attempts()[0]["ended"] is None


def test_another_environment_is_said_and_recorded(tmp_path: Path) -> None:
    run = run_of(job(), dataset(tmp_path), tmp_path / "runs")
    train(run, StopsAt(7))
    first = run.environment()
    files.write_json(run.environment_file, {**first, "bits": {**first["bits"], "numpy": "1.0"}})
    listener = Recorder()
    train(run, listener)
    assert any(
        "bits may differ from step 7 onwards: numpy" in line and "instead of 1.0" in line for line in listener.lines
    )
    assert run.result()["bits_may_differ_from_step"] == 7


def test_a_folder_of_another_job_is_refused(tmp_path: Path) -> None:
    packed = dataset(tmp_path)
    run = run_of(job(), packed, tmp_path / "runs")
    files.write_json(run.job_file, json_files.add_seal({**run.manifest(), "digest": "f" * 64}))
    with pytest.raises(DataError, match="belongs to another job, whose digest begins with the same digits"):
        run_of(job(), packed, tmp_path / "runs")


def test_a_full_disk_at_the_start_is_met_before_the_work(tmp_path: Path) -> None:
    class Fills(NoProgress):
        def start(self, job: Job, steps: int) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))

    run, before = run_of(job(), dataset(tmp_path), tmp_path / "runs"), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(CnnjobError, match=r"could not save the checkpoint at step 0 \(.*File too large"):
            train(run, Fills())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_same_bits_on_one_core_as_on_all(tmp_path: Path) -> None:
    """Stopped on one core and resumed on all: a process of its own, since affinity is the process's."""
    expected = outcome_of(trained(tmp_path / "all").run)
    code = (
        "import os, sys; from pathlib import Path; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from tests.helpers.progress import *; from tests.helpers.toy_jobs import *; root = Path(sys.argv[1]);"
        "train(run_of(job(), dataset(root), root / 'runs'), StopsAt(11))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=Path(__file__).parents[2])
    run = run_of(job(), dataset(tmp_path), tmp_path / "runs")
    assert run.attempts()[0]["step"] == 11
    assert train(run).state == "finished"
    assert outcome_of(run) == expected


@pytest.mark.parametrize("number", SIGNALS)
def test_each_stop_signal_asks_and_nothing_else_is_left_of_it(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        found = [stop.requested_by]
        signal.raise_signal(number)
        found.append(stop.requested_by)
    assert found == [None, number.name]
    assert signal.getsignal(number) == before


def test_a_signal_that_was_ignored_at_the_start_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            found = [stop.requested_by]
            signal.raise_signal(signal.SIGXCPU)
            found.append(stop.requested_by)
        assert found == [None, "SIGXCPU"]
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_interrupt_stops_at_once_and_loses_only_the_work_since(tmp_path: Path) -> None:
    class Impatient(Recorder):
        def step(self, epoch: int, step: int) -> None:
            if step == 5:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    run = run_of(job(), dataset(tmp_path), tmp_path / "runs")
    with pytest.raises(KeyboardInterrupt):
        train(run, Impatient())
    assert run.state() == "stopped"
    assert train(run).state == "finished"
    assert outcome_of(run) == outcome_of(trained(tmp_path / "unbroken").run)


def test_log_and_attempts_tell_the_whole_life(tmp_path: Path) -> None:
    run = run_of(job(), dataset(tmp_path), tmp_path / "runs")
    train(run, StopsAt(25))
    train(run)
    log = run.log_file.read_text()
    assert log.count("--- attempt ") == 2
    assert "stopped by SIGUSR1 at step 25" in log
    assert "resumed at epoch 2, step 25" in log
    assert "finished: test accuracy" in log
    assert isinstance(Run(run.path).job(), type(job()))
    assert math.isclose(run.result()["gpu_hours"], 0)


def test_the_same_job_again_takes_its_new_resources(tmp_path: Path) -> None:
    """Unless it is finished, or a process has it."""

    def seconds_after(seconds: float) -> float:
        run = run_of(job(train__checkpoint_seconds=seconds), dataset(tmp_path), tmp_path / "runs")
        return run.job().train.checkpoint_seconds

    assert [seconds_after(7.0), seconds_after(5.0)] == [7.0, 5.0]
    run = run_of(job(), dataset(tmp_path), tmp_path / "runs")
    before, held = seconds_after(6.0), claim(run)
    assert seconds_after(3.0) == before
    held.end("stopped: SIGTERM", 0)
    assert seconds_after(4.0) == 4.0
    run.result_file.write_text("{}")
    assert seconds_after(3.0) == 4.0
