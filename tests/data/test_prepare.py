"""Published datasets are packed as they are, once, and the same on every machine."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from cnnjob.data.dataset import Dataset
from cnnjob.data.prepare.catalogue import DIGITS, MNIST
from cnnjob.data.prepare.prepare import KNOWN, Prepared, prepare
from cnnjob.data.prepare.writer import Chunk, DatasetContents, write
from cnnjob.errors import CnnjobError, DataError, JobError
from tests.helpers.image_sources import (
    CIFAR10_BATCHES,
    cifar10_members,
    cifar_batch,
    mnist_arrays,
    pin,
    random_bytes,
    sha256,
    write_mnist,
    write_tar,
)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "data" / "out.h5"


def pack_mnist(folder: Path, out: Path, *, force: bool = False) -> Prepared:
    return prepare("mnist", out, source=folder, sha256=pin(folder), force=force)


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files_are_packed_as_they_are(tmp_path: Path, out: Path, *, zipped: bool) -> None:
    packed = pack_mnist(write_mnist(tmp_path / "source", zipped=zipped), out)
    arrays = mnist_arrays()
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = packed.dataset.load(split)
        np.testing.assert_array_equal(images[..., 0], arrays[f"{prefix}-images-idx3-ubyte"])
        np.testing.assert_array_equal(labels, arrays[f"{prefix}-labels-idx1-ubyte"])
    assert packed.created
    assert packed.dataset.size_bytes == 40 * 5 * 4
    assert packed.dataset.name == "mnist"


def test_mean_and_deviation_are_of_the_training_pixels(tmp_path: Path, out: Path) -> None:
    dataset = pack_mnist(write_mnist(tmp_path / "source"), out).dataset
    pixels = mnist_arrays()["train-images-idx3-ubyte"] / 255
    np.testing.assert_allclose(dataset.mean, [pixels.mean()], rtol=1e-14)
    np.testing.assert_allclose(dataset.std, [pixels.std()], rtol=1e-14)


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w"])
@pytest.mark.parametrize("order", [CIFAR10_BATCHES, tuple(reversed(CIFAR10_BATCHES))])
def test_batches_land_at_their_places(tmp_path: Path, out: Path, mode: str, order: tuple[str, ...]) -> None:
    members = cifar10_members()
    archive = write_tar(tmp_path / "own.tar", {"readme.html": b"hello"} | {name: members[name] for name in order}, mode)
    dataset = prepare("cifar10", out, source=archive, sha256=sha256(archive)).dataset
    images, labels = dataset.load("train")
    expected = np.concatenate([random_bytes((4, 3, 32, 32), seed) for seed in range(5)])
    np.testing.assert_array_equal(images.transpose(0, 3, 1, 2), expected)
    np.testing.assert_array_equal(labels, np.concatenate([random_bytes((4,), 100 + s, 10) for s in range(5)]))
    np.testing.assert_array_equal(dataset.load("test")[1], random_bytes((4,), 105, 10))


def test_an_unpacked_archive_is_the_same_dataset(tmp_path: Path) -> None:
    members = cifar10_members()
    archive = write_tar(tmp_path / "cifar-10-python.tar.gz", members)
    folder = tmp_path / "source" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, content in members.items():
        (folder / name).write_bytes(content)
    whole = prepare("cifar10", tmp_path / "a.h5", source=tmp_path, sha256=sha256(archive)).dataset
    loose = prepare("cifar10", tmp_path / "b.h5", source=folder.parent, sha256=pin(folder)).dataset
    assert whole.digest == loose.digest
    assert set(loose.source_sha256) == set(CIFAR10_BATCHES)


def test_cifar100_takes_the_fine_labels(tmp_path: Path, out: Path) -> None:
    members = {name: cifar_batch(seed, key="fine_labels", classes=100) for seed, name in enumerate(("train", "test"))}
    archive = write_tar(tmp_path / "c.tgz", members)
    dataset = prepare("cifar100", out, source=archive, sha256=sha256(archive).upper()).dataset
    np.testing.assert_array_equal(dataset.load("train")[1], random_bytes((4,), 100, 100))
    assert len(dataset.class_names) == 100


def test_digits_need_no_source(out: Path) -> None:
    from sklearn.datasets import load_digits

    dataset = prepare("digits", out).dataset
    assert dataset.shapes == {"train": (1437, 8, 8, 1), "test": (360, 8, 8, 1)} == DIGITS.described(out).shapes
    images, labels = (np.concatenate([dataset.load(split)[part] for split in dataset.splits]) for part in (0, 1))
    assert set(images.ravel().tolist()) == {(v * 255 + 8) // 16 for v in range(17)}
    assert sorted(labels) == sorted(load_digits().target)
    assert min(dataset.counts("test")) > 20


def test_the_digests_are_the_same_on_every_machine(out: Path) -> None:
    assert prepare("digits", out).dataset.array_sha256 == {
        "train/images": "7f6ff516acdd8ce830f78ab0c3e0030eda9217e7fff1d12714dba8f852504348",
        "train/labels": "7c5ba6b18382c17fb6f4a0b55b3521b5cf39c8ccdef78722b6a1dd0feb97f3a3",
        "test/images": "459d396436b995ac3efd3ddcdf8784ae8a7784f516cc834eec632f0ebb567066",
        "test/labels": "3a5b80dfea4114cc1e1eae4ea63d8714fb7c3054549cebf30cb06154585363fb",
    }


def test_a_complete_file_is_left_alone(tmp_path: Path, out: Path) -> None:
    folder = write_mnist(tmp_path / "source")
    first = pack_mnist(folder, out)
    before = out.stat()
    again = pack_mnist(folder, out)
    assert not again.created
    assert again.dataset == first.dataset
    assert out.stat() == before


def test_force_packs_again_with_the_same_content(tmp_path: Path, out: Path) -> None:
    folder = write_mnist(tmp_path / "source")
    pack_mnist(folder, out)
    before = out.stat().st_ino, sha256(out)
    assert pack_mnist(folder, out, force=True).created
    assert out.stat().st_ino != before[0]
    assert sha256(out) == before[1]


def without_its_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def without_its_mark(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file.attrs["complete"]


@pytest.mark.parametrize("spoil", [without_its_end, without_its_mark])
def test_a_damaged_dataset_is_packed_again(tmp_path: Path, out: Path, spoil: Callable[[Path], None]) -> None:
    folder = write_mnist(tmp_path / "source")
    pack_mnist(folder, out)
    spoil(out)
    assert pack_mnist(folder, out).created


def refused(folder: Path, out: Path, message: str) -> None:
    """Packing stops, names the file as it was given, and leaves it; with ``force`` it goes on."""
    before = out.read_bytes()
    with pytest.raises(JobError, match=f"^{out}: already exists {message}"):
        pack_mnist(folder, out)
    assert out.read_bytes() == before
    assert pack_mnist(folder, out, force=True).created


def test_another_dataset_is_not_overwritten(tmp_path: Path, out: Path) -> None:
    folder = write_mnist(tmp_path / "source")
    pack_mnist(folder, out)
    write_mnist(folder, zipped=False)
    for path in folder.glob("*.gz"):
        path.unlink()
    refused(
        folder,
        out,
        r"\(found a dataset prepared from other source files\)\. Choose .*, or overwrite the file with --force$",
    )
    prepare("digits", tmp_path / "digits.h5")
    refused(
        folder,
        tmp_path / "digits.h5",
        r"\(found the dataset 'digits', not 'mnist'\)\. Choose .* --force$",
    )


def test_a_file_that_is_no_dataset_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.h5").write_bytes(b"%PDF-1.7")
    refused(
        write_mnist(tmp_path / "source"),
        tmp_path / "thesis.h5",
        r"but is not a cnnjob dataset \(.*\)\. Choose another --out$",
    )


@pytest.mark.parametrize("force", [False, True])
def test_a_name_without_the_suffix_of_a_dataset_is_refused(tmp_path: Path, *, force: bool) -> None:
    (tmp_path / "thesis.pdf").write_bytes(b"%PDF-1.7")
    for name in ("thesis.pdf", "photos"):
        with pytest.raises(
            JobError, match=rf"{name}: the name of a prepared file must end in \.h5 .*\(found '{name}'\)"
        ):
            pack_mnist(write_mnist(tmp_path / "source"), tmp_path / name, force=force)
    assert (tmp_path / "thesis.pdf").read_bytes() == b"%PDF-1.7"


def test_the_hdf5_file_of_another_program_is_not_overwritten(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["weights"] = [1.5]
    refused(
        write_mnist(tmp_path / "source"), tmp_path / "weights.h5", r"but is not .* HDF5 file\)\. Choose another --out$"
    )


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_written_through(tmp_path: Path, *, there: bool) -> None:
    source, link, target = write_mnist(tmp_path / "source"), tmp_path / "link.h5", tmp_path / "large" / "disk.h5"
    link.symlink_to(target)
    if there:
        pack_mnist(source, target)
    packed = pack_mnist(source, link, force=True)
    assert packed.dataset.path == link
    assert link.is_symlink()
    assert Dataset.open(target).digest == packed.dataset.digest
    assert [path.name for path in target.parent.iterdir()] == ["disk.h5"]


@pytest.mark.parametrize("force", [True, False])
def test_what_no_file_can_be_written_to_is_said_before_any_work(tmp_path: Path, *, force: bool) -> None:
    source = write_mnist(tmp_path / "source")
    (tmp_path / "loop.h5").symlink_to("loop.h5")
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for name, error, message in (
        ("source", JobError, "not a file .found a folder"),
        ("loop.h5", JobError, "not a regular file"),
        ("pipe", JobError, "not a regular file"),
        ("x" * 300, DataError, "cannot be written .File name too long"),
        ("file/data/x.h5", DataError, f"cannot be written .{tmp_path / 'file'} is not a folder"),
    ):
        with pytest.raises(error, match=f"^{tmp_path / name}: {message}"):
            prepare("mnist", tmp_path / name, source=source, sha256="0" * 64, force=force)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "loop.h5", "file", "pipe"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_said_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(DataError, match=r"x.h5: cannot be written .no permission in .*locked.. Choose another"):
        prepare("mnist", tmp_path / "locked" / "new" / "x.h5", source="nowhere")


def test_what_was_packed_from_the_published_files_needs_no_network(out: Path) -> None:
    images, labels = random_bytes((3, 28, 28, 1), 0), np.arange(3)
    blocks = iter([Chunk("test", split, 0, images, labels, len(labels)) for split in ("train", "test")])
    options = {"size": None, "test_fraction": None}
    write(
        out,
        "mnist",
        DatasetContents(MNIST.class_names, {file.name: file.sha256 for file in MNIST.files}, blocks),
        options,
    )
    assert not prepare("mnist", out).created


def test_the_layout_is_plain(tmp_path: Path, out: Path) -> None:
    pack_mnist(write_mnist(tmp_path / "source"), out)
    with h5py.File(out) as file:
        assert (file.attrs["format"], file.attrs["complete"]) == (2, 1)
        assert json.loads(file.attrs["class_names"]) == [str(digit) for digit in range(10)]
        assert json.loads(file.attrs["options"]) == {"size": None, "test_fraction": None}
        assert all(h5py.check_string_dtype(file.attrs.get_id(name).dtype) is None
                   or h5py.check_string_dtype(file.attrs.get_id(name).dtype).length for name in file.attrs)  # fmt: skip
        for split in file:
            assert file[split]["labels"].dtype == np.uint8
            for array in file[split].values():
                assert array.chunks is None
                assert array.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS
                assert array.id.get_offset() % 4096 == 0
                start = array.id.get_offset()
                assert out.read_bytes()[start : start + array.nbytes] == array[...].tobytes()


def test_many_classes_with_long_names_fit(out: Path) -> None:
    names = tuple(f"class number {label} " + "x" * 100 for label in range(2000))
    images = random_bytes((2, 2, 2, 3), 0)
    blocks = iter([Chunk("test", split, 0, images, np.array([0, 1999]), 2) for split in ("train", "test")])
    write(out, "many", DatasetContents(names, {"x": "0" * 64}, blocks), {})
    dataset = Dataset.open(out)
    assert dataset.class_names == names
    assert dataset.load("train")[1].tolist() == [0, 1999]


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (DataError, "Did you mean cifar10", {"name": "cifar1O"}),
        (DataError, "one of mnist, .*, digits$", {"name": "quux"}),
        (JobError, "Specify the folder that contains the images", {"name": "folder"}),
        (JobError, "fixed", {"name": "mnist", "size": (3, 3)}),
        (JobError, "fixed", {"name": "mnist", "test_fraction": 0.1}),
        (JobError, "comes with scikit-learn", {"name": "digits", "source": "."}),
        (JobError, "Specify --source as well", {"name": "mnist", "sha256": "0" * 64}),
        (JobError, "64 hexadecimal", {"name": "mnist", "source": ".", "sha256": "0" * 63}),
        (JobError, "must be at least 1x1", {"name": "folder", "source": ".", "size": (0, 3)}),
        (JobError, "must be at least 1x1", {"name": "folder", "source": ".", "size": (3000, 3000)}),
        (JobError, "between 0 and 1", {"name": "folder", "source": ".", "test_fraction": 1.0}),
        (JobError, "no source .found ' '", {"name": "cifar10", "source": " "}),
        (JobError, "not a valid URL .*. Specify http", {"name": "cifar10", "source": "http://[::1"}),
        (DataError, "no such file or folder", {"name": "cifar10", "source": "nowhere"}),
        (DataError, "no such folder", {"name": "folder", "source": "nowhere"}),
        (DataError, "not a folder, an archive or an array file .found", {"name": "folder", "source": __file__}),
    ],
)
def test_arguments_that_cannot_be(out: Path, error: type[CnnjobError], message: str, arguments: dict[str, str]) -> None:
    with pytest.raises(error, match=message):
        prepare(out=out, **arguments)  # type: ignore[arg-type]
    assert not out.parent.exists()


IN_LITTLE_ROOM = """
import resource, sys
from pathlib import Path
from cnnjob.errors import DataError
from cnnjob.data.prepare.prepare import prepare

source, out, pin, room = sys.argv[1:]
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(room), most))
try:
    prepare("mnist", Path(out), source=source, sha256=pin)
except DataError as error:
    sys.exit(str(error))
finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
"""


@pytest.mark.parametrize("room", ["1000", "20000", "45000"])
def test_a_full_disk_is_one_message_and_leaves_nothing(tmp_path: Path, out: Path, room: str) -> None:
    source = write_mnist(tmp_path / "source")
    command = [sys.executable, "-c", IN_LITTLE_ROOM, str(source), str(out), pin(source), room]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"{out}: cannot be written (File too large). Free some space, or choose another folder\n"
    assert list(out.parent.iterdir()) == []


def test_the_catalogue_is_complete() -> None:
    assert [entry.name for entry in KNOWN] == ["mnist", "fashion-mnist", "cifar10", "cifar100", "digits"]
    for entry in KNOWN:
        assert entry.about
        assert f"{sum(count for count, *_ in entry.shapes.values()):,}" in entry.about
        assert "{1}x{2} {3}".format(*entry.shapes["train"]).replace(" 1", " grey").replace(" 3", " col") in entry.about
        assert len(set(entry.class_names)) in {10, 100}
        assert all(len(file.md5) == 32 and len(file.sha256) == 64 for file in entry.files)
        assert len(entry.mirrors) == (3 if entry.files else 0)


@pytest.mark.parametrize("length", [1, 100, 2000])
def test_a_damaged_file_of_another_program_is_not_replaced(tmp_path: Path, length: int) -> None:
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["weights"] = np.zeros(1000)
    content = (tmp_path / "weights.h5").read_bytes()[:-length]
    (tmp_path / "weights.h5").write_bytes(content)
    with pytest.raises(JobError, match=r"weights\.h5: already exists but is not a cnnjob dataset"):
        pack_mnist(write_mnist(tmp_path / "source"), tmp_path / "weights.h5")
    assert (tmp_path / "weights.h5").read_bytes() == content


def test_a_file_that_appears_in_the_meantime_is_not_replaced(tmp_path: Path) -> None:
    """Another process writes it while the pixels are read."""
    from cnnjob.data.prepare import output_path
    from cnnjob.data.prepare.writer import DatasetContents, write

    out = tmp_path / "toy.h5"
    before = output_path.identity(out)

    def chunks() -> Iterator[Chunk]:
        out.write_text("theirs")
        for split in ("train", "test"):
            yield Chunk("toy", split, 0, np.zeros((2, 4, 4, 1), np.uint8), np.arange(2), 2)

    contents = DatasetContents(("a", "b"), {"toy": "0" * 64}, chunks())
    with pytest.raises(JobError, match=r"toy\.h5: created or changed by another process in the meantime"):
        write(out, "toy", contents, {}, fence=lambda: output_path.require_same(out, before))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["theirs"]
