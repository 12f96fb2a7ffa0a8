"""A source that is not what it should be is one message, and leaves nothing behind."""

import gzip
import os
import pickle
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnjob.data.prepare import cifar, pickles
from cnnjob.data.prepare import idx as idx_files
from cnnjob.data.prepare.catalogue import CIFAR10
from cnnjob.data.prepare.prepare import prepare
from cnnjob.data.prepare.writer import Chunk, DatasetContents, write
from cnnjob.errors import DataError, JobError
from tests.helpers.image_sources import (
    cifar10_members,
    cifar_batch,
    idx,
    mnist_arrays,
    pin,
    python2_batch,
    random_bytes,
    sha256,
    write_mnist,
    write_tar,
)

IMAGES = mnist_arrays()["train-images-idx3-ubyte"]
LABELS = mnist_arrays()["train-labels-idx1-ubyte"]


def refused(name: str, source: Path, pinned: str | None, message: str) -> str:
    """The message of the refusal, after a look that nothing is left behind."""
    out = source.parent / "data" / "out.h5"
    with pytest.raises(DataError, match=message) as error:
        prepare(name, out, source=source, sha256=pinned)
    assert not out.parent.exists() or list(out.parent.iterdir()) == []
    return str(error.value)


LYING_HEADERS = {
    "one byte short": ("shorter than its header", idx(IMAGES)[:-1]),
    "one byte long": ("longer than its header", idx(IMAGES) + b"\0"),
    "labels": ("not an IDX file of 3 dimensions .found 1", idx(LABELS)),
    "nothing": ("not an IDX file .found no bytes", b""),
    "half a header": ("its header is incomplete .found 12 of 16 bytes", idx(IMAGES)[:12]),
    "floats": ("its values are not uint8 .found float32", b"\0\0\x0d\3" + idx(IMAGES)[4:]),
    "no height": ("header is not valid", struct.pack(">4B3I", 0, 0, 8, 3, 30, 0, 4)),
    "huge images": ("header is not valid", struct.pack(">4B3I", 0, 0, 8, 3, 30, 2**31, 2**31)),
    "many images": ("30 labels for 4294967295 images", struct.pack(">4B3I", 0, 0, 8, 3, 2**32 - 1, 5, 4)),
    "one image less": ("30 labels for 29 images", idx(IMAGES[:-1])),
}


@pytest.mark.parametrize(("message", "images"), LYING_HEADERS.values(), ids=LYING_HEADERS)
def test_a_lying_idx_header(tmp_path: Path, message: str, images: bytes) -> None:
    source = write_mnist(tmp_path / "source", train_images=images)
    refused("mnist", source, pin(source), message)


def test_a_label_out_of_range(tmp_path: Path) -> None:
    source = write_mnist(tmp_path / "source", t10k_labels=idx(np.full(10, 10, np.uint8)))
    refused("mnist", source, pin(source), "t10k-labels.*out of range .found 10.. Labels must be from 0 to 9")


def test_splits_of_different_sizes(tmp_path: Path) -> None:
    source = write_mnist(tmp_path / "source", t10k_images=idx(random_bytes((10, 4, 5), 0)))
    refused("mnist", source, pin(source), "different shapes")


@pytest.mark.parametrize("damage", ["cut", "flipped", "tail"])
def test_damaged_gzip(tmp_path: Path, damage: str) -> None:
    source = write_mnist(tmp_path / "source")
    path = source / "train-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        del content[-10:]
    elif damage == "flipped":
        content[len(content) // 2] ^= 255
    else:
        content += b"more"
    path.write_bytes(content)
    refused("mnist", source, pin(source), "train-images-idx3-ubyte.gz: (damaged|shorter|longer)")


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    source = write_mnist(tmp_path / "source", train_images=idx(IMAGES) + bytes(50_000_000))
    refused("mnist", source, pin(source), "longer than its header")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    source = write_mnist(tmp_path / "source")
    (source / "t10k-labels-idx1-ubyte.gz").unlink()
    refused("mnist", source, None, "missing t10k-labels-idx1-ubyte.gz.. Copy")


def test_one_file_for_a_dataset_of_four(tmp_path: Path) -> None:
    source = write_mnist(tmp_path / "source")
    with pytest.raises(JobError, match=r"mnist has 4 files .found one.. Specify the folder"):
        prepare("mnist", tmp_path / "out.h5", source=source / "train-images-idx3-ubyte.gz")


def test_an_unknown_file_is_refused_with_both_sums_and_what_to_type(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "cifar-10-python.tar.xz", cifar10_members(), "w:xz")
    found = sha256(archive)
    message = refused("cifar10", archive, None, "not the published file")
    assert f"sha256 {found}" in message
    assert "c58f30108f718f92721af3b95e74349a" in message
    assert message.endswith(f"add --sha256 {found}")
    assert refused("cifar10", archive, "0" * 64, "not the pinned source").count(found) == 1


def test_unknown_files_are_refused_with_the_pin_of_them_all(tmp_path: Path) -> None:
    source = write_mnist(tmp_path / "source", zipped=False)
    assert refused("mnist", source, None, "not the published file").endswith(f"add --sha256 {pin(source)}")
    assert "no known checksum" in refused("fashion-mnist", source, None, "not the published file")


def test_a_web_page_is_called_one(tmp_path: Path) -> None:
    page = tmp_path / "cifar-10-python.tar.gz"
    page.write_bytes(b"\n<!DOCTYPE html><title>Log in</title>")
    refused("cifar10", page, None, "a web page")
    refused("cifar10", page, "0" * 64, "a web page")


def archive_with(**changed: bytes) -> Callable[[Path], Path]:
    return lambda folder: write_tar(folder / "own.tar.gz", cifar10_members() | changed)


def archive_without(name: str) -> Callable[[Path], Path]:
    members = {other: content for other, content in cifar10_members().items() if other != name}
    return lambda folder: write_tar(folder / "own.tar.gz", members)


def cut_archive(mode: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = write_tar(folder / "own.tar", cifar10_members(), mode)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        return path

    return make


def flipped_archive(folder: Path) -> Path:
    path = write_tar(folder / "own.tar.xz", cifar10_members(), "w:xz")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    return path


def garbage(folder: Path) -> Path:
    path = folder / "own.tar.gz"
    path.write_bytes(random_bytes((5000,), 0).tobytes())
    return path


ROWS = random_bytes((4, 3072), 0)


BAD_ARCHIVES = {
    "a member less": ("missing data_batch_3", archive_without("data_batch_3")),
    "cut gzip": ("damaged", cut_archive("w:gz")),
    "cut xz": ("damaged", cut_archive("w:xz")),
    "cut tar": ("damaged", cut_archive("w")),
    "flipped xz": ("damaged", flipped_archive),
    "garbage": ("damaged", garbage),
    "a smaller batch": ("found 3 images, expected 4", archive_with(data_batch_2=cifar_batch(1, 3))),
    "label 10": ("out of range", archive_with(test_batch=python2_batch(ROWS, [0, 1, 2, 10]))),
    "label -1": ("small integers", archive_with(test_batch=python2_batch(ROWS, [0, 1, 2, -1]))),
    "a label less": (
        "labels and images differ .found 3 and 4",
        archive_with(test_batch=python2_batch(ROWS, [0, 1, 2])),
    ),
    "short rows": ("not consist of rows of 3,072", archive_with(test_batch=python2_batch(ROWS[:, :9], [0] * 4))),
    "a list": ("not consist of rows of 3,072", archive_with(test_batch=pickle.dumps([1]))),
    "no labels": ("not a list", archive_with(test_batch=python2_batch(ROWS, [0] * 4, "coarse"))),
    "cut pickle": ("not a readable pickle", archive_with(test_batch=cifar_batch(5)[:-9])),
    "empty pickle": ("not a readable pickle", archive_with(test_batch=b"")),
}


@pytest.mark.parametrize(("message", "make"), BAD_ARCHIVES.values(), ids=BAD_ARCHIVES)
def test_a_bad_archive(tmp_path: Path, message: str, make: Callable[[Path], Path]) -> None:
    archive = make(tmp_path)
    refused("cifar10", archive, sha256(archive), message)


def test_a_batch_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    files = {file.name: tmp_path / file.name for file in CIFAR10.unpacked}
    for name, content in cifar10_members().items():
        files[name].write_bytes(content)
    os.truncate(files["data_batch_3"], (256 << 20) + 1)
    with pytest.raises(DataError, match="data_batch_3: too large"):
        list(cifar.read(CIFAR10, files))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="/proc/self/mem: cannot be read"):
        prepare("cifar10", tmp_path / "out.h5", source="/proc/self/mem")


def test_a_split_is_never_missing(tmp_path: Path) -> None:
    block = Chunk("x", "train", 0, random_bytes((1, 2, 2, 1), 0), np.zeros(1, np.uint8), 1)
    with pytest.raises(DataError, match="no test images"):
        write(tmp_path / "out.h5", "x", DatasetContents(("a",), {"x": ""}, iter([block])), {})
    assert list(tmp_path.iterdir()) == []


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_pickle_does_nothing(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "trace"
    members = cifar10_members() | {"data_batch_1": pickle.dumps({"data": Hostile(trace)}, protocol)}
    archive = write_tar(tmp_path / "own.tar.gz", members)
    refused("cifar10", archive, sha256(archive), "an unsafe pickle.*found the name '(posix|nt) system'")
    assert not trace.exists()


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_batches_that_python_3_pickled_are_read(protocol: int) -> None:
    content = pickle.dumps({"data": ROWS, "labels": [3, 1, 2, 0]}, protocol)
    images, labels = cifar.parse_batch(content, "x")
    np.testing.assert_array_equal(images.reshape(4, 3072), ROWS)
    assert labels.tolist() == [3, 1, 2, 0]


@pytest.mark.parametrize("array", [np.asfortranarray(ROWS), ROWS.astype(np.int64), ROWS[None], np.array(3)])
@pytest.mark.parametrize("protocol", [2, 5])
def test_arrays_of_another_kind_are_refused(array: np.ndarray, protocol: int) -> None:
    with pytest.raises(DataError, match="not consist of rows of 3,072"):
        cifar.parse_batch(pickle.dumps({"data": array, "labels": [0] * 4}, protocol), "x")


def test_a_memo_that_would_fill_the_memory_is_refused() -> None:
    with pytest.raises(DataError, match="larger than its contents"):
        pickles.load_plain(b"\x80\x02]r\xff\xff\xff\x0f.", "x")


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_much_is_looked_through_without_copies(protocol: int) -> None:
    content = pickle.dumps({"data": np.zeros((1000, 3072), np.uint8), "labels": [0] * 1000}, protocol)
    assert cifar.parse_batch(content, "x")[0].shape == (1000, 3, 32, 32)
    with pytest.raises(DataError, match="not a readable pickle"):
        cifar.parse_batch(content[: 2 << 20], "x")


@given(st.binary(max_size=40), st.integers(0, 300), st.integers(0, 300))
def test_no_pickle_gives_more_than_a_data_error(patch: bytes, start: int, length: int) -> None:
    content = python2_batch(ROWS[:1], [1])
    head = content[:250] + content[250 + 2700 :]  # short: most of what is patched is opcodes
    with suppress(DataError):
        cifar.parse_batch(head[:start] + patch + head[start + length :], "x")


@given(st.binary(max_size=60))
def test_no_bytes_give_more_than_a_data_error(content: bytes) -> None:
    with suppress(DataError):
        pickles.load_plain(content, "x")


@given(
    dimensions=st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 4), max_size=4),
    rest=st.binary(max_size=40),
    zipped=st.booleans(),
)
def test_no_idx_header_gives_more_than_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, *, dimensions: list[int], rest: bytes, zipped: bool
) -> None:
    content = struct.pack(f">4B{len(dimensions)}I", 0, 0, 8, len(dimensions), *dimensions) + rest
    folder = tmp_path_factory.getbasetemp() / "idx"
    source = write_mnist(folder, train_images=content)
    if not zipped:
        (source / "train-images-idx3-ubyte.gz").write_bytes(content)
    files = {path.name: path for path in source.iterdir()}
    try:
        blocks = list(idx_files.read(files))
    except DataError:
        return
    assert blocks[0].images.shape[0] == 30


def test_gzip_of_nothing(tmp_path: Path) -> None:
    source = write_mnist(tmp_path / "source")
    (source / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"")[:5])
    refused("mnist", source, pin(source), "damaged|not an IDX")
