"""A prepared dataset is read as it was written, or refused in one message."""

import fcntl
import json
import math
from collections.abc import Callable
from contextlib import suppress
from operator import itemgetter, setitem
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cnnjob.data.dataset import BLOCK_BYTES, Dataset, Moments, blocks, digest_of
from cnnjob.data.prepare.writer import Chunk, DatasetContents, write
from cnnjob.errors import DataError
from tests.helpers.image_sources import random_bytes
from tests.helpers.older_files import as_format_1


def make(path: Path, splits: tuple[str, ...] = ("train", "test"), names: tuple[str, ...] = ("cat", "dog")) -> Dataset:
    def all_blocks() -> list[Chunk]:
        return [
            Chunk("x", split, start, random_bytes((20, 4, 5, 3), seed + start), np.arange(20) % len(names), 40)
            for seed, split in enumerate(splits)
            for start in (20, 0)
        ]

    write(path, "pets", DatasetContents(names, {"source": "0" * 64}, iter(all_blocks())), {"size": None})
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
    with pytest.raises(DataError, match=r"no split 'val' .found train, test"):
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
    with pytest.raises(DataError, match=r"damaged \(test/images has sha256"):
        dataset.verify()


@pytest.mark.parametrize("older", [False, True], ids=["format 2", "format 1"])
def test_a_flipped_bit_is_found_when_it_is_read(path: Path, *, older: bool) -> None:
    make(path)
    dataset = Dataset.open(as_format_1(path) if older else path)
    content = bytearray(path.read_bytes())
    content[content.index(random_bytes((20, 4, 5, 3), 0).tobytes()) + 7] ^= 1
    path.write_bytes(content)
    assert Dataset.open(path) == dataset
    for read in (lambda: dataset.load("train"), dataset.verify):
        with pytest.raises(DataError, match="cannot be read as a prepared" if older else "train/images has sha"):
            read()
    dataset.load("test")


def test_a_file_of_format_1_is_the_same_dataset(path: Path) -> None:
    new = make(path, ("train", "val", "test"))
    arrays = {split: new.load(split) for split in new.splits}
    old = Dataset.open(as_format_1(path))
    assert (old.format, new.format) == (1, 2)
    assert old.digest == new.digest
    assert old.array_sha256 == new.array_sha256
    old.verify()
    for split in new.splits:
        for before, after in zip(arrays[split], old.load(split), strict=True):
            np.testing.assert_array_equal(before, after)
        np.testing.assert_array_equal(old.example(split, 39)[0], arrays[split][0][39])
        assert old.counts(split) == (20, 20)


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
    """An edit of a file whose attributes have no checksum, as those of older versions."""

    def edit(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            file.attrs.pop("sha256")
            change(file)

    return edit


def attribute(name: str, value: object) -> Callable[[Path], None]:
    return edited(lambda file: file.attrs.create(name, value))


def put(file: h5py.File, name: str, content: np.ndarray) -> None:
    """Put a contiguous array in the place of another."""
    del file[name]
    file[name] = content


def an_array_for_a_group(file: h5py.File) -> None:
    del file["train"]
    file["train"] = [1]


SPOILED = {
    "missing": ("no such dataset. Prepare it:\n    cnnjob prepare pets --out .*pets.h5", missing),
    "garbage": ("cannot be read", garbage),
    "cut": ("cannot be read", cut),
    "empty": ("cannot be read", emptied),
    "of another program": (
        "not a cnnjob dataset",
        edited(lambda file: file.attrs.pop("format")),
    ),
    "of another format": ("found format 3", attribute("format", 3)),
    "of a list of formats": ("found format", attribute("format", [1, 1])),
    "incomplete": ("incomplete", edited(lambda file: file.attrs.pop("complete"))),
    "no name": ("cannot be read", edited(lambda file: file.attrs.pop("name"))),
    "a number for a name": ("cannot be read", attribute("name", 3.5)),
    "no mean": ("the attribute mean is missing", edited(lambda file: file.attrs.pop("mean"))),
    "no std": ("the attribute std is missing", edited(lambda file: file.attrs.pop("std"))),
    "no classes": ("the attribute class_names is missing", edited(lambda file: file.attrs.pop("class_names"))),
    "no checksums": ("the attribute array_sha256 is missing", edited(lambda file: file.attrs.pop("array_sha256"))),
    "no checksums of sources": (
        "the attribute source_sha256 is missing",
        edited(lambda file: file.attrs.pop("source_sha256")),
    ),
    "no options": ("the attribute options is missing", edited(lambda file: file.attrs.pop("options"))),
    "no JSON": ("cannot be read", attribute("array_sha256", np.bytes_(b"{"))),
    "other JSON": ("not a dict", attribute("array_sha256", np.bytes_(b"[]"))),
    "a word for the means": ("cannot be read", attribute("mean", np.bytes_(b"x"))),
    "another channel": (
        "mean and std do not have one value per channel .found 1 and 3 values for 3 channels",
        attribute("mean", [0.5]),
    ),
    "no class": ("there are no classes", attribute("class_names", np.bytes_(b"[]"))),
    "no test": ("the train split or the test split is missing .found train", edited(lambda file: file.pop("test"))),
    "no labels": ("cannot be read", edited(lambda file: file["test"].pop("labels"))),
    "fewer labels": ("labels do not match", edited(lambda file: put(file, "test/labels", np.zeros(39, np.uint8)))),
    "an array for a group": ("cannot be read", edited(an_array_for_a_group)),
}


def linked(name: str, link: object) -> Callable[[Path], None]:
    """A link, or something else, in the place of an object."""

    def put(file: h5py.File) -> None:
        del file[name]
        file[name] = link(file) if callable(link) else link

    return edited(put)


def outside(name: str) -> Callable[[Path], None]:
    """An object in another file, and an external link to it."""

    def move(path: Path) -> None:
        path.rename(path.with_name("other.h5"))
        with h5py.File(path.with_name("other.h5")) as other, h5py.File(path, "w") as file:
            file.attrs.update(other.attrs)
            for split in other:
                other.copy(other[split], file, split)
            del file[name]
            file[name] = h5py.ExternalLink("other.h5", f"/{name}")

    return move


def stored(name: str, **how: object) -> Callable[[Path], None]:
    """The same array stored in another way."""

    def store(file: h5py.File) -> None:
        content = {"data": file[name][...]} | how
        del file[name]
        file.create_dataset(name, **content)

    return edited(store)


def of_itself(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((40, 4, 5, 3), np.uint8)
    layout[...] = h5py.VirtualSource(file.filename, "train/images", (40, 4, 5, 3))
    del file["train/images"]
    file.create_virtual_dataset("train/images", layout)


def from_outside(path: Path) -> None:
    path.with_name("secret").write_bytes(bytes(2400))
    external = [(str(path.with_name("secret")), 0, 2400)]
    stored("train/images", data=None, shape=(40, 4, 5, 3), dtype=np.uint8, external=external)(path)


def with_label(label: int, names: str = '["cat","dog"]') -> Callable[[Path], None]:
    """A label that its digest allows."""

    def label_one(file: h5py.File) -> None:
        file["train/labels"][7] = label
        digests = json.loads(file.attrs["array_sha256"])
        digests["train/labels"] = digest_of(file["train/labels"])
        file.attrs["array_sha256"] = np.bytes_(json.dumps(digests))
        file.attrs["class_names"] = np.bytes_(names)

    return edited(label_one)


def named(*names: str) -> np.bytes_:
    return np.bytes_(json.dumps(names).encode())


def of_references(file: h5py.File) -> None:
    file.attrs.create("mean", [file["train"].ref] * 3, dtype=h5py.ref_dtype)


def never_written(rows: int) -> Callable[[Path], None]:
    def grow(file: h5py.File) -> None:
        for name in ("images", "labels"):
            file["train"][name].resize(rows, axis=0)

    return chunked(edited(grow))


def chunked(change: Callable[[Path], None]) -> Callable[[Path], None]:
    """A change of a file of format 1."""
    return lambda path: change(as_format_1(path))


def without_end(path: Path) -> None:
    """An array that ends beyond the end of the file, whose last bytes belong to the array."""
    with h5py.File(path, "r+") as file:
        [*_, start] = sorted(file[split][name].id.get_offset() for split in file for name in ("images", "labels"))
        start += 39
    with path.open("r+b") as raw:
        raw.truncate(start)


OF_IMAGES = {"chunks": (20, 4, 5, 3), "maxshape": (None, 4, 5, 3)}
CHECKED = OF_IMAGES | {"fletcher32": True}
VAST = OF_IMAGES | {"chunks": (140_000, 4, 5, 3)}
NOTHING = {"data": None, "shape": (40, 4, 5, 3), "dtype": np.uint8}
TRUTH = h5py.enum_dtype({"no": 0}, np.uint8)

HOSTILE = {
    "a label without a class": ("label does not refer to a class .found 2 in train/labels, but only 2 ", with_label(2)),
    "a soft link to a split": ("a member is a link", linked("train", h5py.SoftLink("/test"))),
    "a soft link": ("a member is a link", linked("train/images", h5py.SoftLink("/test/images"))),
    "a dangling link": ("a member is a link", linked("test/labels", h5py.SoftLink("/nowhere"))),
    "a link to itself": ("a member is a link", linked("test", h5py.ExternalLink("pets.h5", "/test"))),
    "a split of another file": ("found 'other.h5:/train' for train in /", outside("train")),
    "images of another file": ("found 'other.h5:/test/images' for images in /test", outside("test/images")),
    "training images for testing": ("has several names", linked("test", itemgetter("train"))),
    "a cycle": ("found 'loop' in /train", edited(lambda file: setitem(file, "train/loop", file["/"]))),
    "another group": ("found 'more' in /", edited(lambda file: file.create_group("more"))),
    "a type for a group": ("instead of a group", linked("val", np.dtype("u1"))),
    "a group for an array": ("instead of an array", linked("val/images", lambda file: file.create_group(None))),
    "external storage": ("in the file itself .found contiguous data in external files", from_outside),
    "a virtual array of itself": ("not stored as contiguous data in the file itself .found virtual", edited(of_itself)),
    "chunks": ("found chunked", stored("train/images", **OF_IMAGES)),
    "signed pixels": ("/train/images has an unexpected type .found int8", stored("train/images", dtype=np.int8)),
    "truths": ("an unexpected type", stored("val/images", dtype=TRUTH)),
    "large labels": ("found uint32", stored("test/labels", dtype=np.uint32)),
    "never written": ("/val/images is incomplete .needs 2,400 bytes at offset None", stored("val/images", **NOTHING)),
    "no images": ("the array /test/images is empty", stored("test/images", data=np.zeros((0, 4, 5, 3), np.uint8))),
    "an end beyond the file": ("cannot be read", without_end),
    "no chunks in format 1": ("not stored as chunked data in the file itself .found", chunked(stored("train/images"))),
    "compressed": ("has unexpected filters", chunked(stored("train/images", compression="gzip", **CHECKED))),
    "no checksums": ("has unexpected filters", chunked(stored("train/images", **OF_IMAGES))),
    "images in parts": ("has unexpected chunks", chunked(stored("test/images", fletcher32=True, chunks=(20, 4, 5, 1)))),
    "vast chunks": ("has unexpected chunks", chunked(stored("test/images", fletcher32=True, **VAST))),
    "rows never written": ("the array /train/images is incomplete", never_written(2000)),
    "many rows never written": ("the array /train/images is incomplete", never_written(1 << 40)),
    "a text of any length": ("not a fixed-length string", attribute("name", "pets")),
    "references": ("not numeric", edited(of_references)),
    "no number": ("one number from 0 to 1 per channel .found .nan, 0.5", attribute("mean", [np.nan, 0.5, 0.5])),
    "means of bytes": ("found .127.5, 127.5, 127.5. of shape .3,.", attribute("mean", [127.5] * 3)),
    "a negative std": ("one number from 0 to 1 per channel", attribute("std", [-0.1, 0.5, 0.5])),
    "an infinite std": ("one number from 0 to 1 per channel", attribute("std", [np.inf, 0.5, 0.5])),
    "means of rows": ("found .0.5, 0.5, 0.5. of shape .1, 3.", attribute("mean", [[0.5, 0.5, 0.5]])),
    "one mean for all": ("attribute mean should be .* of shape ..", attribute("mean", 0.5)),
    "no value": ("the attribute mean has no value", attribute("mean", h5py.Empty("f8"))),
    "no text": ("the attribute options has no value", attribute("options", h5py.Empty("S8"))),
    "other bytes": ("not valid UTF-8", attribute("name", np.bytes_(b"\xff"))),
    "two classes of one name": ("have the same name .found 'cat'", attribute("class_names", named("cat", "cat"))),
    "a class without a name": ("is blank .found '' for class 1", attribute("class_names", named("cat", ""))),
    "another attribute": ("does not belong in a dataset .found 'flip' in /", attribute("flip", 1)),
    "an attribute of a split": ("found 'more' in /test", edited(lambda file: file["test"].attrs.create("more", 1))),
    "an attribute of images": ("in /val/images", edited(lambda file: file["val/images"].attrs.create("more", 1))),
    "a source of no checksum": ("not a SHA-256", attribute("source_sha256", np.bytes_(b'{"source": "0"}'))),
    "deep JSON": ("cannot be read", attribute("options", np.bytes_(b"[" * 20_000))),
    "half a character": ("cannot be read", attribute("class_names", np.bytes_(rb'["cat", "\ud800"]'))),
    "classes of numbers": ("not a list of str", attribute("class_names", np.bytes_(b"[1, 2]"))),
    "a digest too few": ("exactly one checksum for", attribute("array_sha256", np.bytes_(b'{"train/images": "00"}'))),
}  # fmt: skip


@pytest.mark.parametrize(("message", "spoil"), HOSTILE.values(), ids=HOSTILE)
def test_what_the_writer_does_not_make_is_refused(path: Path, message: str, spoil: Callable[[Path], None]) -> None:
    make(path, ("train", "val", "test"))
    spoil(path)
    with pytest.raises(DataError, match=message) as error:
        Dataset.open(path)
    assert str(error.value).startswith(f"{path}: ")


ARRAYS = ("train/images", "train/labels", "test/images", "test/labels")
CHANGED = {
    "name": np.bytes_(b"cats"),
    "class_names": np.bytes_(b'["dog","cat"]'),
    "mean": [0.5, 0.5, 0.5],
    "std": [0.0, 0.5, 0.5],
    "array_sha256": np.bytes_(json.dumps(dict.fromkeys(ARRAYS, "0" * 64))),
    "source_sha256": np.bytes_(b"{}"),
    "options": np.bytes_(b'{"size":[4,5]}'),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_a_changed_attribute_is_refused_before_any_image_is_read(path: Path, name: str) -> None:
    make(path)
    with h5py.File(path, "r+") as file:
        file.attrs[name] = CHANGED[name]
    with pytest.raises(DataError, match=r"attributes have been changed .found sha256 '[0-9a-f]{64}', expected"):
        Dataset.open(path)


def test_images_of_another_shape_with_the_same_bytes_are_refused(path: Path) -> None:
    make(path)
    with h5py.File(path, "r+") as file:
        for split in ("train", "test"):
            images = file[split]["images"][...].reshape(40, 5, 4, 3)
            del file[split]["images"]
            file[split].create_dataset("images", data=images)
    with pytest.raises(DataError, match="attributes have been changed"):
        Dataset.open(path)


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize("change", [lambda value: np.nextafter(value, 0), np.zeros_like, np.flip], ids=range(3))
def test_statistics_are_those_of_the_training_images(path: Path, name: str, change: Callable[[Any], Any]) -> None:
    expected = make(path)
    edited(lambda file: file.attrs.create(name, change(file.attrs[name])))(path)
    changed = Dataset.open(path)
    assert not changed.is_sealed
    for read in (changed.verify, lambda: changed.verify("train"), lambda: changed.load("train")):
        with pytest.raises(
            DataError, match=rf"pets.h5: the attribute {name} does not match the training images"
        ) as error:
            read()
        assert f"expected {', '.join(map(repr, getattr(expected, name)))}). Prepare" in str(error.value)
    changed.verify("test")


@pytest.mark.parametrize("shape", [(3, 1, 1, 1), (70_000, 1, 1, 3), (2, 700, 700, 1), (150, 30, 3, 4)])
def test_statistics_are_exact(shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).choice(np.array([0, 1, 254, 255], np.uint8), shape, p=[0.1, 0.1, 0.1, 0.7])
    moments = Moments()
    for part in np.array_split(images, 3):
        moments.add(part)
    means, deviations = moments.mean_and_std()
    for channel, (mean, std) in enumerate(zip(means, deviations, strict=True)):
        values = [int(value) for value in images[..., channel].ravel()]
        n, total, squares = len(values), sum(values), sum(value * value for value in values)
        assert mean == total / (255 * n)
        assert std == pytest.approx(float(np.std(values)) / 255, rel=1e-9)
        assert std == math.sqrt(n * squares - total * total) / (255 * n)


def test_a_file_of_an_older_version_is_read(path: Path) -> None:
    dataset = make(path)
    assert dataset.is_sealed
    edited(lambda _: None)(path)
    older = Dataset.open(path)
    assert not older.is_sealed
    assert older.digest == dataset.digest
    older.verify()


def test_what_replaced_the_file_since_is_refused(path: Path) -> None:
    dataset = make(path)
    make(path, ("train", "val", "test"))
    with pytest.raises(DataError, match="replaced while it was being read"):
        dataset.load("train")


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


def test_a_misspelt_name_gets_a_suggestion(tmp_path: Path) -> None:
    make(tmp_path / "digits.h5")
    with pytest.raises(DataError, match=r"digit\.h5: no such dataset\. Did you mean digits\? Prepare it"):
        Dataset.find("digit", tmp_path)
