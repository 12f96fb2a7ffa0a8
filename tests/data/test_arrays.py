"""Images stored as arrays: every format gives the pixels and labels that its publisher means."""

import gzip
import shlex
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from cnnjob import prepare as prepare_arrays
from cnnjob.data.dataset import Dataset
from cnnjob.data.prepare.prepare import prepare
from cnnjob.errors import CnnjobError, DataError, JobError
from tests.helpers.image_sources import cifar10_members, idx, random_bytes

TRAIN, TEST = random_bytes((12, 5, 4), 1), random_bytes((6, 5, 4), 2)
TRAIN_LABELS, TEST_LABELS = np.arange(12, dtype=np.uint8) % 3, np.arange(6, dtype=np.uint8) % 3


def prepared(source: Path, name: str = "own", **options: object) -> Dataset:
    return prepare(name, source.parent / "data" / f"{name}.h5", source=source, **options).dataset  # type: ignore[arg-type]


def require(dataset: Dataset, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    found_images, found_labels = dataset.load(split)
    np.testing.assert_array_equal(found_images, images[..., None] if images.ndim == 3 else images)
    np.testing.assert_array_equal(found_labels, labels)


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return root


def idx_files(form: str) -> dict[str, bytes]:
    return {
        form.format(split="train", kind="images", n=3): idx(TRAIN),
        form.format(split="train", kind="labels", n=1): idx(TRAIN_LABELS),
        form.format(split="t10k", kind="images", n=3): idx(TEST),
        form.format(split="t10k", kind="labels", n=1): idx(TEST_LABELS),
    }


@pytest.mark.parametrize(
    "form",
    [
        "{split}-{kind}-idx{n}-ubyte.gz",
        "{split}-{kind}.idx{n}-ubyte",
        "KMNIST/raw/{split}-{kind}-idx{n}-ubyte",
        "archive/{split}-{kind}-idx{n}-ubyte/{split}-{kind}-idx{n}-ubyte",
    ],
)
def test_idx_sets_of_any_name(tmp_path: Path, form: str) -> None:
    dataset = prepared(write(tmp_path / "root", idx_files(form)), "kmnist")
    assert (dataset.name, dataset.class_names) == ("kmnist", ("0", "1", "2"))
    require(dataset, "train", TRAIN, TRAIN_LABELS)
    require(dataset, "test", TEST, TEST_LABELS)


def test_an_archive_beside_its_unpacked_file_is_not_read(tmp_path: Path) -> None:
    files = idx_files("{split}-{kind}-idx{n}-ubyte")
    root = write(tmp_path / "root", files | {f"{name}.gz": content for name, content in files.items()})
    require(prepared(root), "train", TRAIN, TRAIN_LABELS)


def test_emnist_is_turned_and_its_letters_are_named(tmp_path: Path) -> None:
    form = "EMNIST/raw/emnist-letters-{split}-{kind}-idx{n}-ubyte"
    files = {
        form.format(split="train", kind="images", n=3): idx(TRAIN.transpose(0, 2, 1)),
        form.format(split="train", kind="labels", n=1): idx(TRAIN_LABELS + 1),
        form.format(split="test", kind="images", n=3): idx(TEST.transpose(0, 2, 1)),
        form.format(split="test", kind="labels", n=1): idx(TEST_LABELS + 1),
        "EMNIST/raw/emnist-letters-mapping.txt": b"1 65 97\n2 66 98\n3 67 99\n",
    }
    dataset = prepared(write(tmp_path / "root", files))
    assert dataset.class_names == ("Aa", "Bb", "Cc")
    require(dataset, "train", TRAIN, TRAIN_LABELS)
    require(dataset, "test", TEST, TEST_LABELS)
    (tmp_path / "root/EMNIST/raw/emnist-letters-mapping.txt").unlink()
    assert prepared(tmp_path / "root", "letters").class_names == ("1", "2", "3")


def test_one_of_several_sets_is_named(tmp_path: Path) -> None:
    files = idx_files("KMNIST/raw/{split}-{kind}-idx{n}-ubyte") | idx_files("MNIST/raw/{split}-{kind}-idx{n}-ubyte")
    root = write(tmp_path / "root", files)
    with pytest.raises(JobError, match=r"several IDX sets .found 2") as error:
        prepared(root)
    commands = [shlex.split(line) for line in str(error.value).splitlines() if line.startswith("  ")]
    assert [command[2] for command in commands] == ["kmnist", "mnist"]
    require(prepared(root, "kmnist"), "test", TEST, TEST_LABELS)


def test_qmnist_has_its_labels_in_a_column(tmp_path: Path) -> None:
    columns = np.arange(12 * 8, dtype=">i4").reshape(12, 8)
    columns[:, 0] = TRAIN_LABELS
    table = struct.pack(">4B2I", 0, 0, 12, 2, *columns.shape) + columns.tobytes()
    files = {"qmnist-train-images-idx3-ubyte.gz": idx(TRAIN), "qmnist-train-labels-idx2-int.gz": table}
    root = write(tmp_path / "root", files)
    with pytest.raises(JobError, match=r"(?s)no test images.*--test-fraction 0.2$"):
        prepared(root)
    dataset = prepared(root, test_fraction=0.5)
    assert dataset.counts("train") == dataset.counts("test") == (2, 2, 2)
    expected = {image.tobytes(): label for image, label in zip(TRAIN, TRAIN_LABELS, strict=True)}
    for split in ("train", "test"):
        images, labels = dataset.load(split)
        assert [expected[image.tobytes()] for image in images] == labels.tolist()


ARRAYS = {"x_train": TRAIN, "y_train": TRAIN_LABELS, "x_test": TEST, "y_test": TEST_LABELS}
MEDICAL = {
    "train_images": TRAIN, "train_labels": TRAIN_LABELS[:, None].astype(np.int64),
    "val_images": TEST[:3], "val_labels": TEST_LABELS[:3, None],
    "test_images": TEST, "test_labels": TEST_LABELS[:, None],
}  # fmt: skip


@pytest.mark.parametrize("arrays", [ARRAYS, MEDICAL], ids=["keras", "medmnist"])
@pytest.mark.parametrize("form", ["npz", "compressed", "npy", "one each"])
def test_numpy_files(tmp_path: Path, arrays: dict[str, np.ndarray], form: str) -> None:
    source = tmp_path / "root.npz"
    if form == "npz":
        np.savez(source, **arrays)  # type: ignore[arg-type] # its other parameter is a bool
    elif form == "compressed":
        np.savez_compressed(source, **arrays)  # type: ignore[arg-type]
    else:
        source = tmp_path / "root"
        source.mkdir()
        for name, array in arrays.items():
            np.save(source / f"{name}.npy", array) if form == "npy" else np.savez(source / f"{name}.npz", array)
    dataset = prepared(source)
    assert dataset.class_names == ("0", "1", "2")
    require(dataset, "train", TRAIN, TRAIN_LABELS)
    require(dataset, "test", TEST, TEST_LABELS)
    assert ("val" in dataset.splits) == (arrays is MEDICAL)


@pytest.mark.parametrize("order", ["last", "first"])
def test_channels_may_come_first(tmp_path: Path, order: str) -> None:
    images = random_bytes((4, 5, 6, 3), 3)
    stored = images if order == "last" else images.transpose(0, 3, 1, 2)
    np.savez(tmp_path / "a.npz", x=np.ascontiguousarray(stored), y=[7, 2, 7, 2])
    dataset = prepared(tmp_path / "a.npz", test_fraction=0.5)
    assert dataset.class_names == ("2", "7")
    for split in ("train", "test"):
        for image, label in zip(*dataset.load(split), strict=True):
            row = next(row for row in range(4) if (images[row] == image).all())
            assert label == [1, 0, 1, 0][row]


@pytest.mark.parametrize(
    "labels",
    [
        TRAIN_LABELS.astype(np.float32),
        TRAIN_LABELS[:, None].astype(float),
        np.eye(3)[TRAIN_LABELS],
        np.eye(3, dtype=bool)[TRAIN_LABELS],
    ],
    ids=["floats", "column", "one-hot", "one-hot of truth values"],
)
def test_labels_may_be_whole_floats_or_one_hot(tmp_path: Path, labels: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", x_train=TRAIN, y_train=labels, x_test=TEST, y_test=TEST_LABELS)
    require(prepared(tmp_path / "a.npz"), "train", TRAIN, TRAIN_LABELS)


def test_what_is_not_read_beside_arrays_is_named(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    statistics = {"x_mean": TRAIN.mean(0), "x_std": TRAIN.std(0)}
    np.savez(root / "a.npz", x_train=TRAIN, y_train=TRAIN_LABELS, x_test=TEST, y_test=TEST_LABELS, **statistics)
    (root / "plot.png").write_bytes(b"a plot")
    (root / "readme.txt").write_text("about")
    done = prepare("a", tmp_path / "a.h5", source=root)
    require(done.dataset, "train", TRAIN, TRAIN_LABELS)
    assert f"{root}: left out: x_mean, x_std, plot.png, readme.txt" in done.warnings


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": TRAIN / 255, "y_train": TRAIN_LABELS}, "not uint8 .found float64.. Scale them to 0..255"),
        ({"x_train": TRAIN}, "no train labels .found the arrays x_train"),
        ({"a": TRAIN, "b": TRAIN_LABELS}, "no image arrays .found the arrays a, b"),
        (
            {"x_train": TRAIN, "y_train": TRAIN_LABELS[1:]},
            "numbers of labels and images differ .found 11 labels and 12 images",
        ),
        ({"x_train": TRAIN, "y_train": 2 * np.eye(12)}, "labels are not one whole number per image .found float64"),
        ({"x_train": TRAIN, "y_train": np.eye(12) + np.eye(12)[::-1]}, "labels are not one whole number per image"),
        ({"x_train": TRAIN, "y_train": TRAIN_LABELS + 0.5}, "labels are not one whole number per image"),
        ({"x_train": TRAIN, "y_train": TRAIN_LABELS + np.inf}, "labels are not one whole number per image"),
        ({"x_train": TRAIN, "y_train": TRAIN_LABELS * np.nan}, "labels are not one whole number per image"),
        (
            {"x_train": TRAIN, "y_train": TRAIN_LABELS.astype(np.uint64) + 2**63},
            "labels are not one whole number per image .found uint64",
        ),
        ({"x_train": TRAIN, "y_train": TRAIN_LABELS + 1e300}, "labels are not one whole number per image"),
        ({"x_train": TRAIN, "y_train": TRAIN_LABELS * 1j}, "labels are not one whole number per image"),
        ({"x_train": TRAIN, "y_train": TRAIN_LABELS.astype(str)}, "labels are not one whole number per image"),
        ({"x_train": TRAIN[..., None, None], "y_train": TRAIN_LABELS}, "not an array of images .found shape"),
        ({"x_train": TRAIN, "images_train": TRAIN, "y_train": TRAIN_LABELS}, "two arrays contain train images"),
        ({"x_train": np.array([None] * 12), "y_train": TRAIN_LABELS}, "an array of Python objects"),
        ({"x_train": TRAIN, "y_train": TRAIN_LABELS, "x_test": TEST[:, :4], "y_test": TEST_LABELS}, "different shapes"),
        ({"x_train": np.asfortranarray(TRAIN), "y_train": TRAIN_LABELS}, "in Fortran order.*ascontiguousarray"),
        (
            {"x_train": TRAIN, "y_train": TRAIN_LABELS, "x_test": TEST[..., None].repeat(3, 3), "y_test": TEST_LABELS},
            "differ in their number of channels",
        ),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type] # its other parameter is a bool
    with pytest.raises(DataError, match=message):
        prepared(tmp_path / "a.npz", test_fraction=None if "x_test" in arrays else 0.2)


def test_a_flipped_byte_of_an_array_is_found(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **ARRAYS)  # type: ignore[arg-type] # its other parameter is a bool
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[content.index(TRAIN.tobytes()) + 5] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"x_train.npy: not readable as an array .Bad CRC"):
        prepared(tmp_path / "a.npz")


def test_the_binary_version_of_cifar10(tmp_path: Path) -> None:
    images, labels = random_bytes((12, 3, 32, 32), 5), np.arange(12, dtype=np.uint8) % 2
    records = np.concatenate([labels[:, None], images.reshape(12, -1)], axis=1)
    files = {f"b/data_batch_{number + 1}.bin": records[2 * number : 2 * number + 2].tobytes() for number in range(5)}
    files |= {"b/test_batch.bin": records[10:].tobytes(), "b/batches.meta.txt": b"plane\ncar\n\n"}
    dataset = prepared(write(tmp_path / "root", files))
    assert dataset.class_names == ("plane", "car")
    require(dataset, "train", images[:10].transpose(0, 2, 3, 1), labels[:10])
    require(dataset, "test", images[10:].transpose(0, 2, 3, 1), labels[10:])
    (tmp_path / "root/b/data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"missing \(data_batch_3\.bin"):
        prepared(tmp_path / "root", "other")


def test_the_binary_version_of_cifar100_gives_the_fine_labels(tmp_path: Path) -> None:
    images, labels = random_bytes((4, 3, 32, 32), 5), np.array([1, 0, 1, 0], np.uint8)
    records = np.concatenate([labels[:, None] + 7, labels[:, None], images.reshape(4, -1)], axis=1).tobytes()
    files = {"train.bin": records, "test.bin": records[: 2 * 3074], "fine_label_names.txt": b"apple\nbear\n"}
    dataset = prepared(write(tmp_path / "root", files))
    assert dataset.class_names == ("apple", "bear")
    require(dataset, "train", images.transpose(0, 2, 3, 1), labels)


def test_stl10(tmp_path: Path) -> None:
    images, labels = random_bytes((4, 96, 96, 3), 6), np.array([2, 1, 2, 1], np.uint8)
    columns = images.transpose(0, 3, 2, 1).tobytes()
    files = {f"{split}_X.bin": columns for split in ("train", "test")}
    files |= {f"{split}_y.bin": labels.tobytes() for split in ("train", "test")}
    files |= {"class_names.txt": b"airplane\nbird\n", "unlabeled_X.bin": b""}
    done = prepare("stl10", tmp_path / "stl10.h5", source=write(tmp_path / "root", files))
    assert done.dataset.class_names == ("airplane", "bird")
    require(done.dataset, "train", images, labels.astype(int) - 1)
    assert done.warnings[0].endswith("left out: unlabeled_X.bin")


@pytest.mark.parametrize("compressed", [True, False])
def test_svhn(tmp_path: Path, *, compressed: bool) -> None:
    images, digits = random_bytes((20, 32, 32, 3), 7), np.arange(20) % 10
    labels = np.where(digits == 0, 10, digits).astype(np.uint8)[:, None]
    (tmp_path / "root").mkdir()
    for split in ("train", "test"):
        content = {"X": images.transpose(1, 2, 3, 0), "y": labels}
        savemat(tmp_path / "root" / f"{split}_32x32.mat", content, do_compression=compressed)
    dataset = prepared(tmp_path / "root")
    found_images, found_labels = dataset.load("train")
    np.testing.assert_array_equal(found_images, images)
    assert [dataset.class_names[label] for label in found_labels] == [str(digit) for digit in digits]
    path = tmp_path / "root" / "train_32x32.mat"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"train_32x32.mat: not readable as a MATLAB version 5 file"):
        prepared(tmp_path / "root", "cut")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.mat", b"MATLAB 7.3", "a MATLAB file. Save its arrays with numpy.savez; or for SVHN, specify the folder"),
        ("a.h5", b"\x89HDF\r\n\x1a\n", "an HDF5 file from another program"),
        ("train-images-idx3-ubyte", idx(TRAIN), "a single IDX file"),
        ("a.xyz", b"hello", "not a folder, an archive or an array file .found b'hello'"),
        (
            "fer2013.csv",
            b"emotion,pixels",
            r"text, not images .found b'emotion,pixels'.*contains pixels, read it in Python",
        ),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepared(tmp_path / name)


def test_other_versions_are_refused_by_name(tmp_path: Path) -> None:
    root = write(tmp_path / "root", {f"c/{name}": content for name, content in cifar10_members().items()})
    with pytest.raises(DataError, match=r"(?s)the Python version of CIFAR.*cnnjob prepare cifar10 --source .*/root/c$"):
        prepared(root)
    with pytest.raises(DataError, match=r"Download train_32x32.mat and test_32x32.mat instead"):
        prepared(write(tmp_path / "svhn", {"train/digitStruct.mat": b""}))
    with zipfile.ZipFile(tmp_path / "svhn" / "a.zip", "w") as archive:
        archive.writestr("a", "b")
    (tmp_path / "svhn" / "train" / "digitStruct.mat").unlink()
    with pytest.raises(DataError, match=r"no images, only other files .found a.zip"):
        prepared(tmp_path / "svhn")


def test_arrays_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images, labels = {"train": TRAIN, "test": TEST}, {"train": TRAIN_LABELS, "test": TEST_LABELS.tolist()}
    dataset = prepare_arrays("mine", images=images, labels=labels, class_names=["a", "b", "c", "d"][:3])
    assert (dataset.name, dataset.class_names, dataset.path) == ("mine", ("a", "b", "c"), Path("data/mine.h5"))
    require(dataset, "train", TRAIN, TRAIN_LABELS)
    assert prepare_arrays("mine", images=images, labels=labels, class_names=["a", "b", "c"]) == dataset
    with pytest.raises(JobError, match="from other source files"):
        prepare_arrays("mine", images={**images, "train": TRAIN + 1}, labels=labels)
    cut = prepare_arrays("cut", images=TRAIN, labels=TRAIN_LABELS, test_fraction=0.25, size=(8, 8))
    assert cut.shapes == {"train": (9, 8, 8, 1), "test": (3, 8, 8, 1)}


@pytest.mark.parametrize(
    ("name", "images", "labels", "message"),
    [
        ("mnist", TRAIN, TRAIN_LABELS, "mnist: arrays can have neither a source nor a built-in name"),
        ("a", {"train": TRAIN, "test": TEST}, {"train": TRAIN_LABELS[1:], "test": TEST_LABELS}, "numbers of labels"),
        (
            "a",
            {"train": TRAIN, "dev": TEST},
            {"train": TRAIN_LABELS, "dev": TEST_LABELS},
            "images and labels have different splits",
        ),
        ("a", TRAIN, TRAIN_LABELS, r"no test images .*, with test_fraction=0\.2$"),
    ],
)
def test_arrays_from_python_that_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, images: object, labels: object, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CnnjobError, match=message):
        prepare_arrays(name, images=images, labels=labels)
    assert not list(tmp_path.iterdir())


def test_copies_among_arrays_stay_together_and_are_named(tmp_path: Path) -> None:
    images = np.concatenate([TRAIN, TRAIN])
    np.savez(tmp_path / "a.npz", x=images, y=np.concatenate([TRAIN_LABELS, TRAIN_LABELS]))
    dataset = prepared(tmp_path / "a.npz", test_fraction=0.5)
    train, test = ({image.tobytes() for image in dataset.load(split)[0]} for split in ("train", "test"))
    assert not train & test
    np.savez(tmp_path / "b.npz", x_train=TRAIN, y_train=TRAIN_LABELS, x_test=TRAIN[:3], y_test=TRAIN_LABELS[:3])
    warnings = prepare("b", tmp_path / "b.h5", source=tmp_path / "b.npz").warnings
    assert "exact copies of 3 images found in more than one split: train[0] (train) = test[0] (test)" in warnings[0]


def test_arrays_are_padded_with_the_background(tmp_path: Path) -> None:
    images, labels = np.full((4, 8, 4), 9, np.uint8), np.arange(4) % 2
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=images + 1, y_test=labels)
    black = (0, 0, 0)
    dataset = prepare(
        "folder", tmp_path / "out.h5", source=tmp_path / "a.npz", size=(8, 8), fit="pad", background=black
    ).dataset
    assert dataset.load("train")[0][0, 0, :, 0].tolist() == [0, 0, 9, 9, 9, 9, 0, 0]


def test_a_damaged_header_of_an_array_is_a_data_error(tmp_path: Path) -> None:
    np.save(tmp_path / "x_train.npy", TRAIN)
    with (tmp_path / "y").open("wb") as file:
        np.save(file, TRAIN_LABELS)
    content = (tmp_path / "x_train.npy").read_bytes()
    at = content.index(b")")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("x_train.npy", content[:at] + b"(" + content[at + 1 :])
        archive.writestr("y_train.npy", (tmp_path / "y").read_bytes())
    with pytest.raises(DataError, match=r"b\.npz: x_train\.npy: not readable as an array"):
        prepared(tmp_path / "b.npz")
