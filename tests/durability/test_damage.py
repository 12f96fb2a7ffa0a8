"""Every flipped bit and every lost tail of a checkpoint is found, and the one before it is taken."""

import os
import shutil
from pathlib import Path
from random import Random

import h5py
import numpy as np
import pytest

from cnnjob.data.dataset import Dataset
from cnnjob.errors import DataError
from cnnjob.runs.run import Run
from cnnjob.training import train
from cnnjob.training.progress import NoProgress
from tests.durability import commands
from tests.durability.damage import both, flipped, require_older, stopped_run
from tests.durability.toys import fingerprint, toy_job, toy_run
from tests.helpers.toy_jobs import dataset, job, run_of

pytestmark = pytest.mark.durability

FLIPS = 600
TRUNCATIONS = 40
TRAININGS = 8


def test_every_flipped_bit_is_found(folder: Path) -> None:
    run = stopped_run(folder)
    content = both(run)[-1].read_bytes()
    spread = np.linspace(0, 8 * len(content) - 1, FLIPS, dtype=int)
    head_and_tail = [*range(64), *range(8 * len(content) - 8 * 96, 8 * len(content), 7)]
    bits = sorted({*spread.tolist(), *head_and_tail})
    assert len(bits) >= FLIPS
    for bit in bits:
        require_older(run, flipped(content, bit), f"bit {bit}")


def test_every_lost_tail_is_found(folder: Path) -> None:
    run = stopped_run(folder)
    content = both(run)[-1].read_bytes()
    lengths = {*np.linspace(0, len(content) - 1, TRUNCATIONS, dtype=int).tolist(), len(content) - 64}
    for length in sorted(lengths):
        require_older(run, content[:length], f"{length} of {len(content)} bytes")


def test_bytes_behind_the_end_are_found(folder: Path) -> None:
    run = stopped_run(folder)
    require_older(run, both(run)[-1].read_bytes() + b"\0", "one byte more")


def test_a_training_says_what_was_damaged_and_ends_with_the_same_bytes(folder: Path) -> None:
    unbroken = toy_run(folder, runs="unbroken")
    train.train(unbroken)
    stopped = stopped_run(folder)
    content = both(stopped)[-1].read_bytes()
    for bit in np.linspace(0, 8 * len(content) - 1, TRAININGS, dtype=int).tolist():
        run = Run(shutil.copytree(stopped.path, folder / f"{bit}" / stopped.name))
        both(run)[-1].write_bytes(flipped(content, bit))
        heard = Heard()
        assert train.train(run, heard).state == "finished"
        warned = [line for line in heard.lines if line.startswith("warning: ") and "damaged" in line]
        assert len(warned) == 1
        assert warned[0] in run.log_file.read_text()
        assert fingerprint(run) == fingerprint(unbroken)


class Heard(NoProgress):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_both_damaged_is_an_error_that_says_what_to_do(folder: Path) -> None:
    run = stopped_run(folder)
    for path in both(run):
        path.write_bytes(flipped(path.read_bytes(), 4000))
    kept = [path.read_bytes() for path in both(run)]
    with pytest.raises(DataError, match=r"no intact checkpoint is left\. Restore one from a backup, or remove"):
        train.train(run)
    done = commands.run_train(toy_job(folder))
    assert done.returncode == DataError.exit_code
    assert "Traceback" not in done.stderr
    assert f"remove {run.path} to start from scratch" in done.stderr
    assert [path.read_bytes() for path in both(run)] == kept


def array_at(path: Path) -> dict[str, range]:
    """The bytes of each array in a dataset file, by the array's name."""
    with h5py.File(path) as file:
        arrays = {f"{split}/{name}": file[split][name] for split in file for name in ("images", "labels")}
        return {
            name: range(array.id.get_offset(), array.id.get_offset() + array.nbytes) for name, array in arrays.items()
        }


def flip(path: Path, place: int, bit: int) -> None:
    with path.open("r+b") as file:
        [byte] = os.pread(file.fileno(), 1, place)
        os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), place)


def test_every_flipped_byte_of_images_and_labels_is_found(tmp_path: Path) -> None:
    data = dataset(tmp_path, images=21)
    arrays = array_at(data.path)
    assert sum(map(len, arrays.values())) == (21 + 40) * (6 * 6 + 1)
    for name, places in arrays.items():
        for place in places:
            flip(data.path, place, place % 8)
            with pytest.raises(DataError, match=rf"toy\.h5: .*{name}"):
                Dataset.open(data.path).verify()
            flip(data.path, place, place % 8)
    Dataset.open(data.path).verify()


@pytest.mark.parametrize("in_memory_bytes", [None, 0], ids=["in memory", "streamed"])
@pytest.mark.parametrize("at_once_bytes", [10**9, 0], ids=["before the first step", "in a thread"])
def test_no_training_saves_anything_with_a_flipped_byte(
    tmp_path: Path, in_memory_bytes: int | None, at_once_bytes: int
) -> None:
    """At places drawn at random; the array is named, and no checkpoint or result is left."""
    data = dataset(tmp_path)
    run = run_of(job(), data, tmp_path / "runs")
    places = [(name, place) for name, found in array_at(data.path).items() for place in found]
    for name, place in Random(0).sample(places, 80):
        flip(data.path, place, place % 8)
        with pytest.raises(DataError, match=rf"toy\.h5: .*{name}"):
            train.train(run, checked_at_once_bytes=at_once_bytes, in_memory_bytes=in_memory_bytes)
        flip(data.path, place, place % 8)
        assert not list(run.path.rglob("*.npz")), (name, place)
        assert run.history() == []
        assert not run.result_file.exists()
