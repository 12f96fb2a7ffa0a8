"""Checkpoints that are lost, damaged, foreign or cannot be written."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnnjob.errors import DataError, TrainingError
from cnnjob.runs import checkpoints, npz
from cnnjob.runs.run import Run
from cnnjob.training.train import train
from tests.helpers.progress import Recorder, StopsAt
from tests.helpers.toy_jobs import corrupt, dataset, job, outcome_of, run_of, trained


def test_lost_checkpoints_are_said(tmp_path: Path) -> None:
    run = run_of(job(), dataset(tmp_path), tmp_path / "runs")
    train(run, StopsAt(7))
    for path in run.checkpoints_folder.iterdir():
        path.unlink()
    listener = Recorder()
    assert train(run, listener).state == "finished"
    assert "warning: no checkpoint from previous attempts is left; training from scratch" in listener.lines


def test_good_checkpoints_outlive_damaged_ones_with_higher_steps(tmp_path: Path) -> None:
    run = run_of(job(train__checkpoint_seconds=0.0), dataset(tmp_path), tmp_path / "runs")
    train(run, StopsAt(9))
    older, newer = sorted(run.checkpoints_folder.glob("step-*.npz"))
    extra = run.checkpoints_folder / "step-000000020.npz"  # as a kill between a rename and the clearing leaves three
    extra.write_bytes(newer.read_bytes())
    for path in (newer, extra):
        corrupt(path)
    train(run, StopsAt(1))
    names = sorted(path.name for path in run.checkpoints_folder.iterdir())
    assert names == [older.name, newer.name, f"{newer.name}.damaged", f"{extra.name}.damaged"]
    assert checkpoints.load_newest(run.checkpoints_folder, run.manifest()["digest"])[1] == []


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    """A step of ten digits has a name that is before those of nine digits."""
    for step in (999_999_998, 999_999_999, 1_000_000_000):
        progress = checkpoints.TrainingProgress(step=step)
        checkpoints.save(tmp_path, checkpoints.Checkpoint(progress, {"a": np.zeros(1)}, {"digest": "0" * 64}), print)
    assert {path.name for path in tmp_path.iterdir()} == {"step-999999999.npz", "step-1000000000.npz"}
    found, _ = checkpoints.load_newest(tmp_path, "0" * 64)
    assert (found and found.progress.step, checkpoints.newest_step(tmp_path)) == (1_000_000_000, 1_000_000_000)


def test_an_infinite_weight_is_never_saved(tmp_path: Path) -> None:
    arrays = {"weights/a": np.array([1.0, np.inf])}
    with pytest.raises(TrainingError, match="weights/a is not finite at step 0, so no checkpoint was saved"):
        checkpoints.save(tmp_path, checkpoints.Checkpoint(checkpoints.TrainingProgress(), arrays, {}), lambda: None)
    assert not list(tmp_path.iterdir())


def test_a_damaged_checkpoint_is_passed_over_and_said(tmp_path: Path) -> None:
    expected = outcome_of(trained(tmp_path / "a").run)
    run = run_of(job(train__checkpoint_seconds=0.0), dataset(tmp_path), tmp_path / "runs")
    train(run, StopsAt(7))
    older, newer = sorted(run.checkpoints_folder.iterdir())
    corrupt(newer)
    listener = Recorder()
    assert train(run, listener).state == "finished"
    assert any("damaged (its checksum does not match" in line and newer.name in line for line in listener.lines)
    assert "resumed at epoch 1, step 6" in listener.lines
    assert outcome_of(run) == expected
    assert older.name not in [path.name for path in run.checkpoints_folder.iterdir()]


def test_with_no_whole_checkpoint_left_nothing_is_overwritten(tmp_path: Path) -> None:
    run = run_of(job(), dataset(tmp_path), tmp_path / "runs")
    train(run, StopsAt(7))
    for path in run.checkpoints_folder.iterdir():
        corrupt(path)
    with pytest.raises(
        DataError, match=r"no intact checkpoint is left. Restore one from a backup, or remove .* to start from scratch"
    ):
        train(run)
    assert run.state() == "failed"


def test_a_checkpoint_of_another_job_or_format_is_refused(tmp_path: Path) -> None:
    run = run_of(job(), dataset(tmp_path), tmp_path / "runs")
    train(run, StopsAt(7))
    other = run_of(job(seed=5), dataset(tmp_path), tmp_path / "runs")
    other.checkpoints_folder.mkdir(parents=True)
    newest = max(run.checkpoints_folder.iterdir())
    (other.checkpoints_folder / newest.name).write_bytes(newest.read_bytes())
    with pytest.raises(DataError, match="belongs to another job"):
        train(other)
    arrays = npz.read_arrays(newest)
    head = {**json.loads(str(arrays["header"])), "format": 99}
    npz.write_arrays(newest, {**arrays, "header": np.array(json.dumps(head))})
    with pytest.raises(DataError, match="checkpoint format 99, but this version reads format 1"):
        train(run)


def test_checkpoints_that_are_removed_while_it_trains_are_saved_again(tmp_path: Path) -> None:
    class Removes(StopsAt):
        def step(self, epoch: int, step: int) -> None:
            if self.steps_left == 3:
                shutil.rmtree(run.checkpoints_folder)
            super().step(epoch, step)

    run = run_of(job(), dataset(tmp_path), tmp_path / "runs")
    assert train(run, Removes(6)).state == "stopped"
    assert [path.name for path in run.checkpoints_folder.iterdir()] == ["step-000000006.npz"]
    assert train(run).state == "finished"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, np.ndarray]]:
    """A run with two checkpoints in its second epoch, and the arrays of the newest."""
    root = tmp_path_factory.mktemp("saved")
    run = run_of(job(train__checkpoint_seconds=0.0), dataset(root), root / "runs")
    train(run, StopsAt(25))
    return run, npz.read_arrays(max(run.checkpoints_folder.iterdir()))


@pytest.mark.parametrize(
    "facts",
    [
        {"step": "9"},
        {"step": -1},
        {"step": 10**18},
        {"step": 24},
        {"epoch_step": 10**6},
        {"history": 5},
        {"history": [{}]},
        {"history": []},
        {"best_epoch": 99},
        {"surprise": 1},
        {"best_accuracy": None},
        {"header": np.arange(3)},
        {"header": np.array("{")},
        {"header": np.array("[" * 9999)},
        {"header": np.array('{"format": 1}')},
        {"losses": np.zeros(99)},
        {"hits": np.zeros(0)},
        {"weights/conv1/weights": np.zeros(3, np.float32)},
        {"best/conv1/weights": np.full((3, 3, 1, 4), np.nan, np.float32)},
    ],
)
def test_a_checkpoint_of_other_content_with_a_fitting_checksum_is_damaged(saved: Any, facts: dict[str, Any]) -> None:
    run, arrays = saved
    older, newest = sorted(run.checkpoints_folder.glob("step-*.npz"))
    shapes = {name: array.shape for name, array in arrays.items() if "/" in name}
    head = json.loads(str(arrays["header"]))
    head["progress"] |= {name: fact for name, fact in facts.items() if not isinstance(fact, np.ndarray)}
    others = {name: fact for name, fact in facts.items() if isinstance(fact, np.ndarray)}
    npz.write_arrays(newest, {**arrays, "header": np.array(json.dumps(head)), **others})
    found, [warning] = checkpoints.load_newest(
        run.checkpoints_folder, head["digest"], checkpoints.ExpectedArrays(shapes, 20)
    )
    damaged = newest.with_name(f"{newest.name}.damaged")
    assert (found and found.progress.step, warning.startswith(f"{newest}: damaged (")) == (24, True), warning
    damaged.unlink()
    npz.write_arrays(newest, arrays)
    assert (
        checkpoints.load_newest(run.checkpoints_folder, head["digest"], checkpoints.ExpectedArrays(shapes, 20))[1] == []
    )
    assert older.exists()
