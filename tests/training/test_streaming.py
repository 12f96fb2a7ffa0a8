"""Trainings on images that are read from the file as they are needed."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from cnnjob.data.dataset import Dataset
from cnnjob.data.prepare.writer import Chunk, DatasetContents, write
from cnnjob.data.stored import FileVersion, StoredArray
from cnnjob.errors import DataError, JobError
from cnnjob.runs import checkpoints
from cnnjob.training.memory import IN_MEMORY, STREAMED, estimate_memory, place_in_host_memory
from cnnjob.training.progress import NoProgress
from cnnjob.training.setup import TrainingSetup
from cnnjob.training.train import train
from tests.helpers.image_sources import random_bytes
from tests.helpers.older_files import as_format_1
from tests.helpers.progress import StopsAt
from tests.helpers.toy_jobs import CLASSES, blots, dataset, job, outcome_of, run_of

FEW: dict[str, Any] = {"train__epochs": 3, "train__batch_size": 4, "data__validation_fraction": 0.9}
NORM = {"batch_norm": {"momentum": 0.4}}
RESNET = FEW | {
    "model__blocks": [
        {"conv": 4, "kernel": 2, "pad": 0, "init": "whitening", "frozen": True, "activation": "gelu"},
        {"residual": [{"conv": 3, "stride": 2} | NORM, {"conv": 3, "activation": "none"} | NORM]},
        {"global_pool": "max"},
    ],
    "data__augment": {"flip": "alternating", "translate": 2},
    "train__lookahead": {"every": 3},
    "train__test_time_augmentation": "flip",
}
DROPOUT = {"model__blocks": [{"conv": 3, "pool": 2}, {"dropout": 0.3}, {"dense": 6}]}
AUGMENTED: dict[str, Any] = {
    "data__augment": {"flip": "random", "crop": 2, "cutout": 3, "mixup": 0.4},
    "train__test_time_augmentation": "flip_translate",
    "train__batch_size": 16,
}


def streamed(root: Path, data: Dataset, /, *, cores: int | None = None, **changes: Any) -> Any:
    """The outcome of a run whose images are streamed."""
    run = run_of(job(**changes), data, root / "streamed")
    assert train(run, cores=cores, in_memory_bytes=0).state == "finished"
    return outcome_of(run)


def in_memory(root: Path, data: Dataset, /, **changes: Any) -> Any:
    """The outcome of the same run with its images in memory."""
    run = run_of(job(**changes), data, root / "memory")
    assert train(run).state == "finished"
    return outcome_of(run)


@pytest.mark.parametrize("changes", [DROPOUT, RESNET, AUGMENTED], ids=["dropout", "resnet", "augmented"])
def test_a_streamed_run_has_the_bits_of_one_in_memory(tmp_path: Path, changes: dict[str, Any]) -> None:
    data = dataset(tmp_path)
    assert streamed(tmp_path, data, **changes) == in_memory(tmp_path, data, **changes)


def test_with_a_validation_split_and_selection_on_the_test_images(tmp_path: Path) -> None:
    contents = DatasetContents(CLASSES, {"toy": "0" * 64}, blots({"train": 80, "val": 300, "test": 270}))
    write(tmp_path / "toy.h5", "toy", contents, {})
    data = Dataset.open(tmp_path / "toy.h5")
    both: list[dict[str, Any]] = [{}, {"train__select_on": "test"}]
    for more in both:
        changes = {"data": {}, **more}
        assert streamed(tmp_path, data, **changes) == in_memory(tmp_path, data, **changes)


def test_processes_that_share_the_work_see_the_streamed_images(tmp_path: Path) -> None:
    """A batch of 16 images of 64 × 64 × 3 is large enough to be shared."""
    chunks = (
        Chunk("large", split, 0, random_bytes((n, 64, 64, 3), n), np.arange(n) % 3, n)
        for split, n in (("train", 100), ("test", 30))
    )
    write(tmp_path / "large.h5", "large", DatasetContents(CLASSES, {"large": "0" * 64}, chunks), {})
    data, changes = Dataset.open(tmp_path / "large.h5"), {"dataset": "large", **AUGMENTED}
    expected = in_memory(tmp_path, data, **changes)
    for cores in (1, 2):
        assert streamed(tmp_path / str(cores), data, cores=cores, **changes) == expected


@pytest.mark.parametrize("changes", [RESNET, AUGMENTED], ids=["resnet", "augmented"])
def test_stopped_at_every_step_it_is_the_unbroken_run(tmp_path: Path, changes: dict[str, Any]) -> None:
    data = dataset(tmp_path)
    expected = in_memory(tmp_path, data, **changes)
    for step in range(1, expected[2][-1]["step"]):
        run = run_of(job(**changes), data, tmp_path / f"stopped-{step}")
        assert train(run, StopsAt(step), in_memory_bytes=0).state == "stopped"
        checkpoint, _ = checkpoints.load_newest(run.checkpoints_folder, run.manifest()["digest"])
        assert checkpoint is not None
        assert checkpoint.progress.step == step
        # Where the images lie may change from one attempt to the next.
        assert train(run, in_memory_bytes=0 if step % 2 else None).state == "finished"
        assert outcome_of(run) == expected, step


@pytest.mark.parametrize("at_once_bytes", [10**9, 0], ids=["before the first step", "in a thread"])
@pytest.mark.parametrize("name", ["train/images", "train/labels", "test/images", "test/labels"])
@pytest.mark.parametrize("place", [0, 17, -1])
def test_a_flipped_byte_is_found_before_anything_is_saved(
    tmp_path: Path, name: str, place: int, at_once_bytes: int
) -> None:
    data = dataset(tmp_path)
    run = run_of(job(), data, tmp_path / "runs")
    with h5py.File(data.path) as file:
        start, size = file[name].id.get_offset(), file[name].nbytes
    with data.path.open("r+b") as raw:
        raw.seek(start + place % size)
        [byte] = raw.read(1)
        raw.seek(start + place % size)
        raw.write(bytes([byte ^ 1]))
    with pytest.raises(DataError, match=rf"toy\.h5: .*{name}"):
        train(run, checked_at_once_bytes=at_once_bytes, in_memory_bytes=0)
    assert not list(run.path.rglob("*.npz"))
    assert run.history() == []


class ActsAt(NoProgress):
    """Does something during one step."""

    def __init__(self, step: int, act: Callable[[], object]) -> None:
        self.left, self.act = step, act

    def step(self, epoch: int, step: int) -> None:
        self.left -= 1
        if self.left == 0:
            self.act()


def truncate(path: Path) -> None:
    os.truncate(path, 20_000)


def replace(path: Path) -> None:
    """Put a copy in the place of the file."""
    path.with_name("copy").write_bytes(path.read_bytes())
    path.with_name("copy").rename(path)


def overwrite(path: Path) -> None:
    """Write other content into the same file."""
    with path.open("r+b") as raw:
        raw.seek(20_000)
        raw.write(bytes(100))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (truncate, r"toy\.h5: truncated (while in use .found 20,000 bytes|.the file ends within)"),
        (replace, r"toy\.h5: replaced or changed while in use"),
        (overwrite, r"toy\.h5: replaced or changed while in use"),
        (Path.unlink, r"toy\.h5: cannot be read .No such file or directory"),
    ],
)
def test_a_file_that_changes_during_the_training_ends_it(
    tmp_path: Path, act: Callable[[Path], object], message: str
) -> None:
    data = dataset(tmp_path)
    content, expected = data.path.read_bytes(), in_memory(tmp_path, data)
    run = run_of(job(), data, tmp_path / "runs")
    with pytest.raises(DataError, match=message) as error:
        train(run, ActsAt(7, lambda: act(data.path)), in_memory_bytes=0)
    assert error.value.exit_code == 3
    assert run.attempts()[0]["why"] == f"failed: {error.value}"
    assert 7 <= run.attempts()[0]["step"] <= 20  # the small images of the first epoch, 20 steps, are read together
    data.path.write_bytes(content)
    assert train(run, in_memory_bytes=0).state == "finished"
    assert outcome_of(run) == expected


def test_a_failing_disk_is_a_data_error() -> None:
    """The kernel answers EIO to a read of this process's memory where there is none."""
    memory = Path("/proc/self/mem")
    array = StoredArray(memory, "train/images", 0, (4, 2), np.dtype(np.uint8), FileVersion.of(memory))
    with pytest.raises(DataError, match=r"/proc/self/mem: train/images cannot be read .Input/output error.") as error:
        array[0:2]
    assert error.value.exit_code == 3
    assert isinstance(error.value.__cause__, OSError)


def test_rows_are_read_in_any_order(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    images, _ = data.load("train")
    stored = data.stored("train")
    with stored.open() as reader:
        assert (len(reader), reader.shape) == (216, (216, 6, 6, 1))
        for indices in ([3], [5, 6, 7, 2, 3, 215, 0, 0, 1], range(216), []):
            np.testing.assert_array_equal(reader[np.array(indices, np.int64)], images[list(indices)])
    np.testing.assert_array_equal(stored[10:13], images[10:13])
    np.testing.assert_array_equal(stored[214:400], images[214:])


def test_images_are_streamed_if_they_do_not_fit(tmp_path: Path) -> None:
    setup = TrainingSetup.checked(job(), dataset(tmp_path))
    assert place_in_host_memory(setup) == IN_MEMORY
    assert place_in_host_memory(setup, in_memory_bytes=setup.dataset.size_bytes) == IN_MEMORY
    assert place_in_host_memory(setup, in_memory_bytes=setup.dataset.size_bytes - 1) == STREAMED
    loaded, read = estimate_memory(setup), estimate_memory(setup, placement=STREAMED)
    ring = 4 * 54 * 6 * 6  # four batches, each as large as the one that evaluates the validation images
    assert loaded.data - read.data == setup.dataset.size_bytes - ring - 216 * 8


def test_images_in_chunks_cannot_be_streamed(tmp_path: Path) -> None:
    dataset(tmp_path)
    data = Dataset.open(as_format_1(tmp_path / "toy.h5"))
    huge = job(model__blocks=[{"dense": 1_000_000}, {"dense": 1_000_000}])
    with pytest.raises(JobError, match=r"Prepare .*toy\.h5 again with --force, so that its images can be streamed"):
        place_in_host_memory(TrainingSetup.checked(huge, data))
    assert place_in_host_memory(TrainingSetup.checked(job(), data), in_memory_bytes=0) == IN_MEMORY
    with pytest.raises(DataError, match=r"the images are stored in chunks .found format 1"):
        data.stored("train")
