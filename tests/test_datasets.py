"""A packed dataset is read as it was written, or refused in one message."""

import fcntl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cnnjob.datasets import BLOCK_BYTES, Dataset, blocks
from cnnjob.errors import DataError, JobError
from cnnjob.packing.writer import Block, Contents, write
from tests.packing_sources import random_bytes


def make(path: Path, splits: tuple[str, ...] = ("train", "test"), names: tuple[str, ...] = ("cat", "dog")) -> Dataset:
    def all_blocks() -> list[Block]:
        return [
            Block("x", split, start, random_bytes((20, 4, 5, 3), seed + start), np.arange(20) % len(names))
            for seed, split in enumerate(splits)
            for start in (20, 0)
        ]

    write(path, "pets", Contents(names, {"source": "0" * 64}, iter(all_blocks())), {"size": None})
    return Dataset.open(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pets.h5"


def test_a_dataset_says_what_it_holds(path: Path) -> None:
    dataset = make(path, ("train", "val", "test"))
    assert dataset.path == path
    assert dataset.name == "pets"
    assert dataset.class_names == ("cat", "dog")
    assert dataset.shapes["val"] == (40, 4, 5, 3)
    assert dataset.splits == ("train", "val", "test")
    assert dataset.image_shape == (4, 5, 3)
    assert dataset.counts("val") == (20, 20)
    assert dataset.source_sha256 == {"source": "0" * 64}
    assert set(dataset.array_sha256) == {f"{s}/{a}" for s in dataset.splits for a in ("images", "labels")}


def test_arrays_are_read_whole(path: Path) -> None:
    images, labels = make(path).load("test")
    np.testing.assert_array_equal(images, np.concatenate([random_bytes((20, 4, 5, 3), s) for s in (1, 21)]))
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert labels.tolist() == [0, 1] * 20


def test_an_unknown_split_is_a_users_mistake(path: Path) -> None:
    with pytest.raises(JobError, match="no split 'val', found train, test"):
        make(path).load("val")


def test_the_digest_is_of_content_not_of_place(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a.h5"), make(tmp_path / "b.h5")
    assert first.digest == second.digest
    assert len(first.digest) == 64
    assert make(tmp_path / "c.h5", names=("dog", "cat")).digest != first.digest
    assert make(tmp_path / "d.h5", ("train", "val", "test")).digest != first.digest


def test_a_locked_file_can_be_read(path: Path) -> None:
    dataset = make(path)
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="lock"):
            h5py.File(path, "r", locking=True)
        assert dataset.load("train")[0].shape == (40, 4, 5, 3)


def test_verify_reads_every_byte(path: Path) -> None:
    dataset = make(path)
    dataset.verify()
    with h5py.File(path, "r+") as file:
        file["test/images"][3, 2, 1, 0] ^= 1
    with pytest.raises(DataError, match="damaged, test/images has sha256"):
        dataset.verify()


def test_a_damaged_chunk_is_found_when_it_is_read(path: Path) -> None:
    dataset = make(path)
    content = bytearray(path.read_bytes())
    content[content.index(random_bytes((20, 4, 5, 3), 0).tobytes()) + 7] ^= 1
    path.write_bytes(content)
    assert Dataset.open(path) == dataset
    for read in (lambda: dataset.load("train"), dataset.verify):
        with pytest.raises(DataError, match="not readable as a packed dataset"):
            read()
    dataset.load("test")


def test_blocks_are_bounded_and_cover_all(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        array = file.create_dataset("x", (23, 1 << 20), np.uint8, chunks=(3, 1 << 20))
        assert [block.shape[0] for block in blocks(array)] == [6, 6, 6, 5]
        assert all(block.nbytes <= BLOCK_BYTES for block in blocks(array))


def missing(path: Path) -> None:
    path.unlink()


def garbage(path: Path) -> None:
    path.write_bytes(random_bytes((5000,), 0).tobytes())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def edited(change: Callable[[h5py.File], object]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file)

    return edit


def attribute(name: str, value: object) -> Callable[[Path], None]:
    return edited(lambda file: file.attrs.create(name, value))


def an_array_for_a_group(file: h5py.File) -> None:
    del file["train"]
    file["train"] = [1]


SPOILED = {
    "missing": ("no such dataset; pack it with `cnnjob prepare pets --out .*pets.h5`", missing),
    "garbage": ("not readable", garbage),
    "cut": ("not readable", cut),
    "empty": ("not readable", emptied),
    "of another program": ("found format None", edited(lambda file: file.attrs.pop("format"))),
    "of another format": ("found format 2", attribute("format", 2)),
    "of a list of formats": ("found format", attribute("format", [1, 1])),
    "incomplete": ("incomplete", edited(lambda file: file.attrs.pop("complete"))),
    "no name": ("not readable", edited(lambda file: file.attrs.pop("name"))),
    "a number for a name": ("not readable", attribute("name", 3.5)),
    "no JSON": ("not readable", attribute("array_sha256", np.bytes_(b"{"))),
    "other JSON": ("not a dict", attribute("array_sha256", np.bytes_(b"[]"))),
    "a word for the means": ("not readable", attribute("mean", np.bytes_(b"x"))),
    "another channel": ("do not fit", attribute("mean", [0.5])),
    "no class": ("do not fit", attribute("class_names", np.bytes_(b"[]"))),
    "no test": ("do not fit", edited(lambda file: file.pop("test"))),
    "no labels": ("not readable", edited(lambda file: file["test"].pop("labels"))),
    "fewer labels": ("holds uint8", edited(lambda file: file["test/labels"].resize(39, axis=0))),
    "an array for a group": ("not readable", edited(an_array_for_a_group)),
}


@pytest.mark.parametrize(("message", "spoil"), SPOILED.values(), ids=SPOILED)
def test_what_is_no_dataset_is_refused(path: Path, message: str, spoil: Callable[[Path], None]) -> None:
    make(path)
    spoil(path)
    with pytest.raises(DataError, match=message) as error:
        Dataset.open(path)
    assert str(error.value).startswith(f"{path}: ")


def test_a_folder_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such dataset"):
        Dataset.open(tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**30), st.binary(max_size=8))
def test_no_patched_file_gives_more_than_a_data_error(path: Path, place: int, patch: bytes) -> None:
    if not path.exists():
        make(path)
    content = path.read_bytes()
    place %= 4000  # the header and the attributes
    spoiled = path.with_name("spoiled.h5")
    spoiled.write_bytes(content[:place] + patch + content[place + len(patch) :])
    with suppress(DataError):
        Dataset.open(spoiled).verify()
