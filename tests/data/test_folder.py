"""Folders of images: what counts as one, how it is cut, and what is refused."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnjob.data.dataset import Dataset
from cnnjob.data.images import header, read_picture
from cnnjob.data.prepare.catalogue import CIFAR10
from cnnjob.data.prepare.folders.folder import read_folder
from cnnjob.data.prepare.folders.options import FolderOptions
from cnnjob.data.prepare.folders.tree import FolderTree
from cnnjob.data.prepare.prepare import prepare
from cnnjob.data.prepare.sources import obtain
from cnnjob.data.prepare.writer import DatasetContents
from cnnjob.errors import CnnjobError, DataError, JobError
from tests.helpers.image_sources import random_bytes, turned_exif, write_images


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of ten images."""
    write_images(tmp_path / "root" / "cat", 10)
    write_images(tmp_path / "root" / "dog", 10, seed=50)
    return tmp_path / "root"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "data" / "pets.h5"


def packed(root: Path, out: Path, size: tuple[int, int] | None = None, test_fraction: float | None = None) -> Dataset:
    return prepare("folder", out, source=root, size=size, test_fraction=test_fraction).dataset


def contents(root: Path) -> DatasetContents:
    tree = FolderTree(root)
    return read_folder(tree, tree.list(), FolderOptions(str(root), Path("x.h5"), test_fraction=0.2))


def trees(root: Path, *splits: str, mode: str = "RGB") -> Path:
    for seed, split in enumerate(splits):
        for number, name in enumerate(("cat", "dog")):
            write_images(root / split / name, 3, mode=mode, seed=100 * seed + 10 * number)
    return root


def test_a_file_that_becomes_a_pipe_after_listing_is_refused(root: Path) -> None:
    tree = FolderTree(root)
    first, *_ = tree.list().files
    assert tree.read(first)[0] == (root / first).read_bytes()
    (root / first).unlink()
    os.mkfifo(root / first)
    for known in (tree, FolderTree(root)):
        with pytest.raises(DataError, match=r"not a regular file \(found a pipe\)"):
            known.read(first)


def test_a_share_of_each_class_is_for_testing(root: Path, out: Path) -> None:
    dataset = packed(root, out, test_fraction=0.2)
    assert dataset.name == "pets"
    assert dataset.class_names == ("cat", "dog")
    assert dataset.counts("train") == (8, 8)
    assert dataset.counts("test") == (2, 2)
    images = np.concatenate([dataset.load(split)[0] for split in dataset.splits])
    expected = [random_bytes((5, 6, 3), seed) for seed in (*range(10), *range(50, 60))]
    assert sorted(image.tobytes() for image in images) == sorted(image.tobytes() for image in expected)


def test_the_cut_depends_on_the_names_alone(root: Path, tmp_path: Path) -> None:
    first = packed(root, tmp_path / "a.h5", test_fraction=0.3)
    other = tmp_path / "elsewhere"
    for name in ("dog", "cat"):
        for path in sorted((root / name).iterdir(), reverse=True):
            (other / name).mkdir(parents=True, exist_ok=True)
            (other / name / path.name).write_bytes(path.read_bytes())
    second = packed(other, tmp_path / "b.h5", test_fraction=0.3)
    assert first.array_sha256 == second.array_sha256
    assert first.source_sha256 == second.source_sha256


@pytest.mark.parametrize("splits", [("train", "test"), ("train", "val", "test")])
def test_given_splits_are_kept(tmp_path: Path, out: Path, splits: tuple[str, ...]) -> None:
    dataset = packed(trees(tmp_path / "root", *splits), out)
    assert dataset.splits == splits
    images, labels = dataset.load("test")
    np.testing.assert_array_equal(images[4], random_bytes((5, 6, 3), 100 * splits.index("test") + 11))
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_what_lies_beside_the_splits_is_said(tmp_path: Path, out: Path) -> None:
    root = trees(tmp_path / "root", "train", "test")
    assert prepare("folder", tmp_path / "a.h5", source=root).warnings == ()
    write_images(root / "train", 1, seed=7000)
    write_images(root / "extra" / "cat", 2)
    done = prepare("folder", out, source=root)
    assert done.dataset.splits == ("train", "test")
    assert done.warnings[0].startswith(f"{root}: left out: extra/ with 2 files, train/0000.png (hidden")
    assert not prepare("folder", out, source=root).created
    assert prepare("folder", out, source=root).warnings == done.warnings


def test_a_link_is_followed_but_never_in_a_circle(root: Path, out: Path) -> None:
    (root / "cow").symlink_to(write_images(root.parent / "elsewhere", 3))
    (root / "dog" / "0100.png").symlink_to(root / "dog" / "0000.png")
    (root / "dog" / "more").symlink_to(write_images(root.parent / "more", 2, seed=300))
    dataset = packed(root, out, test_fraction=0.2)
    assert dataset.class_names == ("cat", "cow", "dog")
    assert [sum(pair) for pair in zip(dataset.counts("train"), dataset.counts("test"), strict=True)] == [10, 3, 13]


def test_a_test_split_is_cut_from_train_and_val_stays(tmp_path: Path, out: Path) -> None:
    dataset = packed(trees(tmp_path / "root", "train", "val"), out, test_fraction=0.4)
    assert {split: dataset.counts(split) for split in dataset.splits} == {
        "train": (2, 2),
        "val": (3, 3),
        "test": (1, 1),
    }


def test_hidden_files_and_clutter_are_not_looked_at(root: Path, out: Path) -> None:
    write_images(root / ".ipynb_checkpoints", 2)
    write_images(root / "cat" / ".ipynb_checkpoints", 2)
    for name in (".DS_Store", "cat/.DS_Store", "cat/Thumbs.db", "README.txt"):
        (root / name).write_text("no image")
    write_images(root / "dog" / "more", 5, seed=500)
    done = prepare("folder", out, source=root, test_fraction=0.2)
    dataset = done.dataset
    left_out = ".DS_Store, .ipynb_checkpoints, README.txt, cat/.DS_Store, cat/.ipynb_checkpoints and 1 more"
    assert done.warnings == (
        f"{root}: left out: {left_out} (hidden, not images, or not in a class folder)",
        f"{root}: images in subfolders belong to the class of their folder (found dog/more)",
    )
    assert dataset.class_names == ("cat", "dog")
    assert [sum(pair) for pair in zip(dataset.counts("train"), dataset.counts("test"), strict=True)] == [10, 15]


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 1), ("RGB", 3), ("RGBA", 3)])
def test_grey_stays_grey(tmp_path: Path, out: Path, mode: str, channels: int) -> None:
    assert packed(trees(tmp_path / "root", "train", "test", mode=mode), out).image_shape == (5, 6, channels)


def test_one_coloured_image_makes_all_colour(tmp_path: Path, out: Path) -> None:
    root = trees(tmp_path / "root", "train", "test", mode="L")
    write_images(root / "test" / "dog", 1)
    images, _ = packed(root, out).load("train")
    assert images.shape[3] == 3
    np.testing.assert_array_equal(images[0], np.stack([random_bytes((5, 6), 0)] * 3, axis=-1))


def test_images_are_scaled_to_cover_and_cropped(root: Path, out: Path) -> None:
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = 200  # the middle square
    Image.fromarray(wide).save(root / "cat" / "0000.png")
    packed(root, out, size=(8, 8), test_fraction=0.1)
    image = read_picture(root / "cat" / "0000.png", (8, 8, 3)).pixels
    assert image.shape == (8, 8, 3)
    assert image[:, 1:-1].min() > 190


def test_images_stand_upright(tmp_path: Path) -> None:
    image = Image.fromarray(random_bytes((5, 6, 3), 0))
    path = tmp_path / "turned.png"
    image.save(path, exif=turned_exif())
    assert header(path)[:3] == (6, 5, False)
    np.testing.assert_array_equal(read_picture(path, (6, 5, 3)).pixels, np.rot90(np.asarray(image), -1))


def test_options_and_pixels_decide_what_is_up_to_date(root: Path, out: Path) -> None:
    def created(size: tuple[int, int] | None = None, *, force: bool = False) -> bool:
        return prepare("folder", out, source=root, test_fraction=0.2, size=size, force=force).created

    assert created()
    assert not created()
    with pytest.raises(
        JobError, match=r"pets.h5: already exists .found a dataset prepared with --test-fraction 0\.2.. Choose another"
    ):
        created((4, 4))
    assert created((4, 4), force=True)
    assert not created((4, 4))
    write_images(root / "cat", 1, seed=999)
    with pytest.raises(JobError, match="found a dataset prepared from other source files"):
        created((4, 4))
    assert created((4, 4), force=True)


def test_another_folder_of_the_same_name_is_not_packed_over_the_first(tmp_path: Path, out: Path) -> None:
    packed(trees(tmp_path / "a" / "pets", "train", "test"), out)
    before = out.read_bytes()
    with pytest.raises(JobError, match="found a dataset prepared from other source files"):
        packed(trees(tmp_path / "b" / "pets", "test", "train"), out)
    assert out.read_bytes() == before


def test_a_folder_can_be_pinned(root: Path, out: Path) -> None:
    found = packed(root, out, test_fraction=0.2).source_sha256["folder"]
    assert not prepare("folder", out, source=root, test_fraction=0.2, sha256=found.upper()).created
    with pytest.raises(DataError, match=f"not the pinned source .found sha256 {found}"):
        prepare("folder", out, source=root, test_fraction=0.2, sha256="0" * 64)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything; this process is nobody for a while."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("locked", ["root", "root/cat", "root/dog/more"])
def test_a_folder_that_cannot_be_read_is_never_left_out(
    root: Path, monkeypatch: pytest.MonkeyPatch, locked: str
) -> None:
    write_images(root / "dog" / "more", 2)
    monkeypatch.chdir(root.parent)  # nobody may not walk down to it
    Path().chmod(0o755)
    Path(locked).chmod(0)
    with as_nobody(), pytest.raises(DataError, match=f"^{locked}: cannot be read .Permission denied.. Change its"):
        contents(Path("root"))
    Path(locked).chmod(0o755)
    with as_nobody():
        assert contents(Path("root")).class_names == ("cat", "dog")


def test_a_source_in_a_folder_that_cannot_be_entered_is_a_data_error(
    root: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed(root, out, test_fraction=0.2).path.rename(root / "pets.h5")
    monkeypatch.chdir(root.parent)  # nobody may not walk down to it
    Path().chmod(0o755)
    root.chmod(0)
    with as_nobody(), pytest.raises(DataError, match=r"root/in: cannot be read .Permission denied"):
        contents(Path("root/in"))
    with as_nobody(), pytest.raises(DataError, match=r"root/a\.tar: cannot be read .Permission denied"):
        obtain(CIFAR10, "root/a.tar", None, progress=False)
    with (
        as_nobody(),
        pytest.raises(DataError, match=r"pets\.h5: cannot be read as a prepared dataset .*Permission denied"),
    ):
        Dataset.open(Path("root/pets.h5"))
    root.chmod(0o755)


def an_empty_class(root: Path) -> None:
    (root / "bird").mkdir()


def a_class_of_one(root: Path) -> None:
    write_images(root / "bird", 1)


def another_size(root: Path) -> None:
    write_images(root / "dog", 1, size=(5, 5))


def a_dangling_link(root: Path) -> None:
    (root / "dog" / "0100.png").symlink_to("nowhere")


def a_deep_folder(root: Path) -> None:
    write_images(root.joinpath("dog", *"abcdefghij" * 6), 2)


def a_circle(root: Path) -> None:
    write_images(root / "dog" / "more", 2)
    (root / "dog" / "more" / "again").symlink_to(root)


def a_name_of_other_bytes(root: Path) -> None:
    write_images(root / os.fsdecode(b"owl\xe9"), 2)


def a_name_of_a_space(root: Path) -> None:
    write_images(root / " ", 2)


def two_names_that_look_the_same(root: Path) -> None:
    for name in ("\N{LATIN SMALL LETTER E WITH ACUTE}", "e\N{COMBINING ACUTE ACCENT}"):
        write_images(root / name, 2)


def only_a_test_folder(root: Path) -> None:
    (root / "dog").rename(root / "test")


def other_classes(root: Path) -> None:
    trees(root, "train", "val")
    write_images(root / "val" / "bird", 1)


def no_classes(root: Path) -> None:
    (root / "train").mkdir()


@pytest.mark.parametrize(
    ("error", "message", "spoil"),
    [
        (DataError, "no train images in some classes .bird.", an_empty_class),
        (
            DataError,
            "class bird has too few images to split off test images .found 1, 1 of them distinct",
            a_class_of_one,
        ),
        (JobError, "(?s)differ in size .*19 images of 5x6, e.g. .*1 image of 5x5.*--size 5x6", another_size),
        (DataError, "(?s)1 file cannot be used .found:.*0100.png: no such file", a_dangling_link),
        (DataError, "nested too deeply .found more than 50", a_deep_folder),
        (DataError, "dog/more/again: a link that forms a loop .it points to ", a_circle),
        (DataError, "not UTF-8 .found .*. Rename its folder", a_name_of_other_bytes),
        (DataError, "the name of a class is blank .found ' '.. Rename", a_name_of_a_space),
        (DataError, "two classes have the same name .*u0301' and '.*xe9'", two_names_that_look_the_same),
        (DataError, "no train folder", only_a_test_folder),
        (DataError, "different classes .found only in val/: bird.", other_classes),
        (DataError, "train: the number of class folders must be .* .found 0.", no_classes),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_what_cannot_be_packed(
    root: Path, out: Path, error: type[CnnjobError], message: str, spoil: Callable[[Path], None]
) -> None:
    spoil(root)
    with pytest.raises(error, match=message):
        packed(root, out, test_fraction=0.2)
    assert not out.parent.exists() or list(out.parent.iterdir()) == []


def test_a_fraction_beside_a_test_folder(tmp_path: Path, out: Path) -> None:
    with pytest.raises(JobError, match="already has test images"):
        packed(trees(tmp_path / "root", "train", "test"), out, test_fraction=0.2)


def test_neither_a_fraction_nor_a_test_folder(root: Path, out: Path) -> None:
    with pytest.raises(JobError, match=r"no test images .found class folders, 2.*\n  cnnjob .* --test-fraction 0\.2$"):
        packed(root, out)


@pytest.mark.parametrize(
    ("splits", "name", "message"),
    [
        ((), "cat/pets.h5", "be written into the image folder .*root .in its subfolder cat"),
        ((), "data/pets.h5", "be written into the image folder .*root .in its subfolder data"),
        (("train", "test"), "test/pets.h5", "be written into the image folder .*root .in its subfolder test"),
        ((), os.fsdecode(b"../\xff.h5"), "name is not UTF-8 .found '.udcff'"),
        ((), "/".join("a" * 1000), "too deeply .found [0-9]+ folders"),
    ],
)
def test_where_a_folder_is_not_packed_to(root: Path, splits: tuple[str, ...], name: str, message: str) -> None:
    trees(root, *splits)
    before = sorted(root.rglob("*"))
    with pytest.raises(JobError, match=message):
        prepare("folder", root / name, source=root, test_fraction=None if splits else 0.2, force=True)
    assert sorted(root.rglob("*")) == before


def test_a_dataset_may_lie_beside_the_splits(tmp_path: Path) -> None:
    root = trees(tmp_path, "train", "test")
    for name in ("pets.h5", "data/pets.h5"):
        assert packed(root, root / name).splits == ("train", "test")


def test_a_source_is_never_overwritten(root: Path) -> None:
    for name, source in (("cifar10", root / "cat" / "0000.png"), ("folder", root / "cat" / "0000.png")):
        before = source.read_bytes()
        with pytest.raises(JobError, match=r"0000\.png: is also the source"):
            prepare(name, source, source=source, force=True)
        assert source.read_bytes() == before


def test_large_images_need_a_size(tmp_path: Path, out: Path) -> None:
    for name in ("a", "b"):
        folder = tmp_path / "root" / name
        folder.mkdir(parents=True)
        for i in range(2):
            Image.new("L", (2000, 1001), ord(name) + 100 * i).save(folder / f"{i}.png")
    with pytest.raises(JobError, match=r"(?s)too large .found 1001x2000.*--size 112x224"):
        packed(tmp_path / "root", out, test_fraction=0.5)
    assert packed(tmp_path / "root", out, size=(7, 8), test_fraction=0.5).image_shape == (7, 8, 1)


MEASURE = """
import resource, sys
from pathlib import Path
from cnnjob.data.prepare.prepare import prepare

def packed(name):
    source = Path(sys.argv[1], name)
    return prepare("folder", source.with_suffix(".h5"), source=source, test_fraction=0.1)

packed("small")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert packed("large").dataset.shapes["train"] == (1800, 160, 160, 3)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def test_two_thousand_images_take_little_memory(tmp_path: Path) -> None:
    for name, n in (("small", 2), ("large", 1000)):
        for label in "ab":
            folder = tmp_path / name / label
            folder.mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (160, 160), (i % 256, i // 256, ord(label))).save(folder / f"{i}.png")
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout) < 70  # MiB; the images have 146
