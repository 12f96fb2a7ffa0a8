"""The built-in job of a dataset: it trains on any dataset, however few or small its images are."""

from pathlib import Path

import numpy as np
import pytest

from cnnjob.data.dataset import Dataset
from cnnjob.data.prepare.writer import Chunk, DatasetContents, write
from cnnjob.errors import DataError
from cnnjob.jobs.job import Job
from cnnjob.jobs.toml import format_toml
from cnnjob.training.default_job import DefaultJobs, load_job
from cnnjob.training.setup import TrainingSetup
from cnnjob.training.train import train
from tests.helpers.image_sources import random_bytes


def dataset(folder: Path, labels: list[int], shape: tuple[int, int, int], *, val: bool = False) -> Dataset:
    """A dataset of random images with these labels; its test images, and perhaps its validation images, likewise."""
    splits = ("train", "val", "test") if val else ("train", "test")
    images = random_bytes((len(labels), *shape), 1)
    blocks = iter([Chunk("x", split, 0, images, np.array(labels), len(labels)) for split in splits])
    names = tuple(f"class {label}" for label in range(max(labels) + 1))
    write(folder / "own.h5", "own", DatasetContents(names, {"x": "0" * 64}, blocks), {})
    return Dataset.open(folder / "own.h5")


@pytest.mark.parametrize("val", [True, False])
@pytest.mark.parametrize("labels", [[0, 1], [0, 0, 1, 1, 1], [0, 1, 2] * 7, [0] * 40 + [1]])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 300, 3), (8, 8, 1), (5, 7, 3), (33, 20, 3)])
def test_any_dataset_trains(tmp_path: Path, labels: list[int], shape: tuple[int, int, int], *, val: bool) -> None:
    found = dataset(tmp_path, labels, shape, val=val)
    job = load_job("own", ["train.epochs=1"], tmp_path)
    setup = TrainingSetup.checked(job, found)
    assert job.train.batch_size * min(4, setup.n_training) <= setup.n_training
    run = setup.create_run(tmp_path / "runs")
    train(run, setup=setup)
    assert run.result()["test_images"] if "test_images" in run.result() else run.result()


@pytest.mark.parametrize("shape", [(224, 224, 3), (64, 64, 3), (2000, 900, 1), (6, 100_000, 3)])
def test_large_images_have_a_small_network(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    found = dataset(tmp_path, [0, 1], shape)
    assert TrainingSetup.checked(load_job("own", (), tmp_path), found).network.parameter_count < 10_000_000


@pytest.mark.parametrize(("n_images", "batch_size", "epochs"), [(20, 4, 100), (20_000, 128, 21), (60_000, 128, 10)])
def test_few_images_are_trained_for_more_epochs(tmp_path: Path, n_images: int, batch_size: int, epochs: int) -> None:
    dataset(tmp_path, [0, 1] * (n_images // 2), (1, 1, 1))
    job = load_job("own", (), tmp_path)
    assert (job.train.batch_size, job.train.epochs) == (batch_size, epochs)


def test_the_job_is_the_one_that_is_written(tmp_path: Path) -> None:
    dataset(tmp_path, [0, 1, 2] * 10, (9, 9, 3))
    content = DefaultJobs(tmp_path)("own")
    assert content is not None
    (tmp_path / "own.toml").write_text(format_toml({key: value for key, value in content.items() if key != "name"}))
    assert Job.load(str(tmp_path / "own.toml")) == load_job("own", (), tmp_path)


def test_a_file_is_named_by_its_path(tmp_path: Path) -> None:
    dataset(tmp_path, [0, 1], (3, 3, 1)).path.rename(tmp_path / "my photos+.h5")
    job = load_job(str(tmp_path / "my photos+.h5"), (), tmp_path / "elsewhere")
    assert (job.name, job.dataset) == ("my photos+", str(tmp_path / "my photos+.h5"))


@pytest.mark.parametrize(
    ("name", "message"),
    [("OWN", r"no such job or dataset\. Did you mean own\?"), ("owm", "Did you mean own"), ("zzz", "no such job")],
)
def test_similar_names_are_suggested(tmp_path: Path, name: str, message: str) -> None:
    dataset(tmp_path, [0, 1], (3, 3, 1))
    with pytest.raises(DataError, match=message):
        load_job(name, (), tmp_path)
