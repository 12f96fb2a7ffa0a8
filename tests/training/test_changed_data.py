"""A dataset that changes, before a run or during it."""

from pathlib import Path

import h5py
import pytest

from cnnjob.data.dataset import Dataset
from cnnjob.errors import DataError
from cnnjob.training.setup import TrainingSetup
from cnnjob.training.train import train
from tests.helpers.progress import StopsAt
from tests.helpers.toy_jobs import dataset, job, outcome_of, run_of, trained


def test_another_dataset_under_the_same_name_is_refused(tmp_path: Path) -> None:
    run = run_of(job(), dataset(tmp_path), tmp_path / "runs")
    (tmp_path / "toy.h5").unlink()
    dataset(tmp_path, images=100)
    with pytest.raises(DataError, match=r"not the data that .* was created with"):
        train(run)


@pytest.mark.parametrize("at_once_bytes", [10**9, 0], ids=["before the first step", "in a thread"])
@pytest.mark.parametrize("name", ["train/images", "test/images", "test/labels"])
def test_no_step_on_changed_data_is_ever_saved(tmp_path: Path, name: str, at_once_bytes: int) -> None:
    """The file's own checksums fit the change; only the digest of the array does not."""

    def flip() -> None:
        with h5py.File(tmp_path / "toy.h5", "r+") as file:
            file[name][39] ^= 1

    run = run_of(job(), dataset(tmp_path), tmp_path / "runs")
    flip()
    with pytest.raises(DataError, match=rf"toy\.h5: damaged \({name} has sha256"):
        train(run, checked_at_once_bytes=at_once_bytes)
    assert {path.name for path in run.path.rglob("*") if path.is_file()} <= {
        *("job.json", "environment.json", "0001.json", "history.jsonl", "log.txt", "heartbeat"),
    }
    assert run.history() == []
    assert run.attempts()[0]["why"].startswith("failed: ")
    flip()
    assert train(run, checked_at_once_bytes=at_once_bytes).state == "finished"
    assert outcome_of(run) == outcome_of(trained(tmp_path / "unchanged").run)


def with_another(path: Path, name: str) -> Dataset:
    """A dataset of an older version, whose attributes have no checksum, with another mean or std."""
    with h5py.File(path, "r+") as file:
        file.attrs.pop("sha256")
        file.attrs[name] = file.attrs[name] + 0.01
    return Dataset.open(path)


@pytest.mark.parametrize("at_once_bytes", [10**9, 0], ids=["before the first step", "in a thread"])
@pytest.mark.parametrize("name", ["mean", "std"])
def test_statistics_that_were_changed_before_there_was_a_run_are_refused(
    tmp_path: Path, name: str, at_once_bytes: int
) -> None:
    dataset(tmp_path)
    run = run_of(job(), with_another(tmp_path / "toy.h5", name), tmp_path / "runs")
    with pytest.raises(DataError, match=rf"toy\.h5: the attribute {name} does not match the training images"):
        train(run, checked_at_once_bytes=at_once_bytes)
    assert run.history() == []
    assert not list(run.path.rglob("*.npz"))


def test_another_mean_is_refused(tmp_path: Path) -> None:
    run = run_of(job(), dataset(tmp_path), tmp_path / "runs")
    with_another(tmp_path / "toy.h5", "mean")
    with pytest.raises(DataError, match=r"toy\.h5: damaged \(mean and std differ from those"):
        train(run)


def test_data_that_are_checked_in_a_thread_give_the_same_bits_after_a_stop(tmp_path: Path) -> None:
    run = run_of(job(), dataset(tmp_path), tmp_path / "runs")
    assert train(run, StopsAt(1), checked_at_once_bytes=0).state == "stopped"
    assert run.attempts()[0]["step"] == 1
    assert train(run, checked_at_once_bytes=0).state == "finished"
    assert outcome_of(run) == outcome_of(trained(tmp_path / "unbroken").run)


def test_a_moved_dataset_and_another_cadence_are_taken_up(tmp_path: Path) -> None:
    run = run_of(job(), dataset(tmp_path), tmp_path / "runs")
    train(run, StopsAt(7))
    (tmp_path / "moved").mkdir()
    (tmp_path / "toy.h5").rename(tmp_path / "moved" / "toy.h5")
    with pytest.raises(DataError, match="no such dataset"):
        train(run)
    moved, often = dataset(tmp_path / "moved"), job(train__checkpoint_seconds=0.0)
    assert run_of(often, moved, tmp_path / "runs") == run
    listener = StopsAt(3)
    train(run, listener, setup=TrainingSetup.of_run(run, often, moved))
    assert sorted(path.name for path in run.checkpoints_folder.iterdir()) == [
        "step-000000009.npz",
        "step-000000010.npz",
    ]
    assert train(run, setup=TrainingSetup.of_run(run, dataset=moved)).state == "finished"


def test_a_dataset_is_found_by_name_or_path(tmp_path: Path) -> None:
    packed = dataset(tmp_path)
    assert Dataset.find("toy", tmp_path).digest == packed.digest
    assert Dataset.find(str(packed.path), Path("nowhere")).digest == packed.digest
