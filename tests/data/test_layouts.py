"""Folders as people have them: every common layout gives the right pixels and labels, or is refused with what to do."""

import itertools
import json
import os
import re
import shlex
import unicodedata
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from typer.testing import CliRunner

from cnnjob.cli.main import app
from cnnjob.data.dataset import Dataset
from cnnjob.data.images import read_picture
from cnnjob.data.prepare.folders import reading
from cnnjob.data.prepare.folders.layout import split_of_name
from cnnjob.data.prepare.prepare import Prepared, prepare
from cnnjob.errors import DataError, JobError
from tests.helpers.image_sources import encoded, random_bytes, write_images

SIDE = 4


def draw(root: Path, *names: str, size: tuple[int, int] = (SIDE, SIDE)) -> Path:
    """An image per name whose pixels follow from the name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels_of(name, size)).save(path)
    return root


def pixels_of(name: str, size: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    return random_bytes((*size, 3), zlib.crc32(name.encode()))


def prepared(root: Path, **options: object) -> Prepared:
    return prepare("folder", root.parent / "data" / "out.h5", source=root, **options)  # type: ignore[arg-type]


def require(dataset: Dataset, split: str, expected: Iterable[tuple[str, str]]) -> None:
    """Compare a split with the names of its images and their classes, in order."""
    images, labels = dataset.load(split)
    pairs = list(expected)
    assert [dataset.class_names[label] for label in labels] == [label for _, label in pairs]
    for image, (name, _) in zip(images, pairs, strict=True):
        np.testing.assert_array_equal(image, np.asarray(Image.open(dataset.path.parents[1] / "root" / name)))


def refused(root: Path, message: str, error: type[Exception] = DataError, **options: object) -> str:
    with pytest.raises(error, match=message) as refusal:
        prepared(root, **options)
    assert not [*(root.parent / "data").glob("*")]
    return str(refusal.value)


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Training", "Validation", "Testing"),
        ("TRN", "DEV", "TST"),
        ("seg_train", "seg_valid", "seg_test"),
        ("train2017", "val2017", "eval2017"),
        ("TrainingSet", "ValidSet", "TestSet"),
        ("archive/train", "archive/dev", "archive/evaluation"),
        ("a/b/seg_train/seg_train", "a/b/seg_val/seg_val", "a/b/seg_test/seg_test"),
        ("train/images", "valid/images", "test/images"),
    ],
)
def test_splits_of_any_common_name(tmp_path: Path, train: str, val: str, test: str) -> None:
    root = draw(tmp_path / "root", *(f"{folder}/{name}" for folder in (train, val, test)
                                     for name in ("dog/2.png", "dog/10.png", "cat/1.png")))  # fmt: skip
    done = prepared(root)
    assert done.dataset.class_names == ("cat", "dog")
    for split, folder in (("train", train), ("val", val), ("test", test)):
        pairs = [(f"{folder}/cat/1.png", "cat"), (f"{folder}/dog/10.png", "dog"), (f"{folder}/dog/2.png", "dog")]
        require(done.dataset, split, pairs)
    assert "(train)" in done.description
    assert "(test), 2 classes" in done.description
    assert done.warnings == ()


@pytest.mark.parametrize(
    ("name", "split"),
    [("Trn", "train"), ("my-valid_set", "val"), ("constraint", None), ("contest", None), ("train_test", None),
     ("latest", None), ("device", None), ("testEnv", "test")],
)  # fmt: skip
def test_only_whole_words_name_a_split(name: str, split: str | None) -> None:
    found = split_of_name(name)
    assert (found and found[0]) == split


def test_the_class_of_trains_is_no_split(tmp_path: Path) -> None:
    root = draw(tmp_path / "root", *(f"{name}/{i}.png" for name in ("bus", "car", "train") for i in range(4)))
    assert prepared(root, test_fraction=0.25).dataset.class_names == ("bus", "car", "train")


def test_train_and_test_are_never_classes(tmp_path: Path) -> None:
    root = draw(tmp_path / "root", *(f"{split}/{i}.png" for split in ("Training", "Testing") for i in range(4)))
    refused(root, r"root/Training: the images are not in class folders .found 4 images.. .*labels", test_fraction=0.2)


def test_a_class_that_holds_only_folders_is_refused(tmp_path: Path) -> None:
    root = draw(tmp_path / "root", *(f"{group}/{name}/{i}.png" for group in "ab" for name in "cd" for i in range(3)))
    refused(root, "the class folder a contains only folders, no images .found c, d.", test_fraction=0.2)
    inside = draw(tmp_path / "other", "cat/train/1.png", "cat/test/1.png", "dog/train/1.png", "dog/test/1.png")
    refused(inside, "the class folder cat contains only folders, no images .found test, train.", test_fraction=0.2)


def test_different_classes_are_listed(tmp_path: Path) -> None:
    root = draw(tmp_path / "root", "train/a/1.png", "train/b/1.png", "train/C/1.png", "test/a/1.png", "test/c/1.png")
    refused(root, re.escape("(found only in train/: C, b; only in test/: c)"))


def test_two_spellings_of_one_letter_are_one_class(tmp_path: Path) -> None:
    one, two = "ros\N{LATIN SMALL LETTER E WITH ACUTE}", "rose\N{COMBINING ACUTE ACCENT}"
    root = draw(tmp_path / "root", f"train/{two}/1.png", "train/b/1.png", f"test/{one}/2.png", "test/b/2.png")
    dataset = prepared(root).dataset
    assert dataset.class_names == ("b", one)
    require(dataset, "train", [("train/b/1.png", "b"), (f"train/{two}/1.png", one)])
    require(dataset, "test", [("test/b/2.png", "b"), (f"test/{one}/2.png", one)])


def test_numbers_are_in_the_order_of_their_values(tmp_path: Path) -> None:
    names = [str(number) for number in range(12)]
    root = draw(tmp_path / "root", *(f"{split}/{name}/1.png" for split in ("train", "test") for name in names))
    assert prepared(root).dataset.class_names == tuple(names)


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    root = draw(tmp_path / "root", *(f"{split}/a/1.png" for split in ("train", "val", "valid", "test")))
    refused(root, "several folders for the val split .found val, valid.")


def test_test_images_without_labels_are_left_out_and_named(tmp_path: Path) -> None:
    root = draw(tmp_path / "root", *(f"train/{name}/{i}.png" for name in "ab" for i in range(5)), "test/x.png")
    done = prepared(root, test_fraction=0.2)
    assert done.dataset.counts("train") == (4, 4)
    assert done.warnings[0].startswith(f"{root}: left out: test/ with 1 file ")


def test_validation_images_become_test_images_when_asked(tmp_path: Path) -> None:
    root = draw(tmp_path / "root", "train/a/1.png", "train/b/1.png", "val/a/2.png", "val/b/2.png")
    message = refused(root, "no test images", JobError)
    commands = [line.strip() for line in message.splitlines() if line.startswith("  ")]
    assert [shlex.split(command)[-1] for command in commands] == ["0.2", "val"]
    dataset = prepared(root, test_fraction="val").dataset
    assert dataset.splits == ("train", "test")
    require(dataset, "test", [("val/a/2.png", "a"), ("val/b/2.png", "b")])


def test_tiny_imagenet(tmp_path: Path) -> None:
    names = ("n02", "n01")
    root = draw(tmp_path / "root", *(f"train/{name}/images/{name}_{i}.png" for name in names for i in range(2)),
                "val/images/val_0.png", "val/images/val_1.png", "test/images/test_0.png")  # fmt: skip
    (root / "val" / "val_annotations.txt").write_text("val_0.png\tn02\t0\t0\t9\t9\nval_1.png\tn01\t0\t0\t9\t9\n")
    (root / "train" / "n01" / "n01_boxes.txt").write_text("n01_0.png\t0\t0\t9\t9\n")
    done = prepared(root, test_fraction="val")
    assert done.dataset.class_names == ("n01", "n02")
    require(done.dataset, "test", [("val/images/val_1.png", "n01"), ("val/images/val_0.png", "n02")])
    assert "test/ with 1 file" in done.warnings[0]


LABELS = {
    "paths": "path,label\ntrain/1.png,b\ntrain/2.png,a\n./train/3.png,b\ntrain/4.png,a\n",
    "ends": "Image Name\tClass\n1.png\tb\n2.png\ta\n3.png\tb\n4.png\ta\n",
    "names without suffix": "id;breed\n1;b\n2;a\n\n3;b\n4;a\n",
    "quoted, with a mark": '\ufeff"image_id","x","category"\n"1",,"b"\n"2",,"a"\n"3",,"b"\n"4",,"a"\n',
}


@pytest.mark.parametrize("table", LABELS.values(), ids=LABELS)
def test_labels_of_a_table(tmp_path: Path, table: str) -> None:
    root = draw(tmp_path / "root", *(f"train/{i}.png" for i in range(1, 5)), "test/9.png")
    (tmp_path / "table.csv").write_text(table, encoding="utf-8")
    done = prepared(root, labels=tmp_path / "table.csv", test_fraction=0.5)
    assert done.dataset.class_names == ("a", "b")
    for split in ("train", "test"):
        images, labels = done.dataset.load(split)
        expected = {
            pixels_of(f"train/{i}.png").tobytes(): label for i, label in zip(range(1, 5), (1, 0, 1, 0), strict=True)
        }
        assert [expected[image.tobytes()] for image in images] == labels.tolist() == [0, 1]
    assert "test/ with 1 file" in done.warnings[0]
    assert done.dataset.source_sha256.keys() == {"folder", "labels"}
    (tmp_path / "table.csv").write_text(f"{table}\n", encoding="utf-8")
    with pytest.raises(JobError, match="other source files"):
        prepared(root, labels=tmp_path / "table.csv", test_fraction=0.5)


def test_splits_and_numbers_of_a_table(tmp_path: Path) -> None:
    root = draw(tmp_path / "root", *(f"{i}.png" for i in range(6)))
    rows = ["0.png,10,Train", "1.png,2,Train", "2.png,10,valid", "3.png,2,valid", "4.png,10,TEST", "5.png,2,TEST"]
    (tmp_path / "t.csv").write_text("\n".join(["file_name,target,split", *rows]))
    dataset = prepared(root, labels=tmp_path / "t.csv").dataset
    assert dataset.class_names == ("2", "10")
    for split, start in (("train", 0), ("val", 2), ("test", 4)):
        require(dataset, split, [(f"{start + 1}.png", "2"), (f"{start}.png", "10")])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("foo,bar\n1,2\n", "no path and no label column .found 'foo', 'bar'.. Use the column names path"),
        ("path,x\n1,2\n", "no label column .found 'path', 'x'."),
        ("", "no path and no label column .found no columns."),
        (
            "path,label\n1.png,a\n9.png,b\n8.png,b\n",
            "(?s)could not match 2 rows to images in .*9.png on line 3: no such file.*8.png on line 4",
        ),
        ("path,label\n1.png,a\n1,b\n", "1 on line 3: already on line 2, with label 'a'"),
        ("path,label\n2.png,a\n", "2.png on line 2: several files match, such as x/2.png and y/2.png"),
        ("path,label\n1.png,\n", "t.csv:2: no label"),
        ("path,label,split\n1.png,a,one\n", "t.csv:2: unknown split .found 'one'."),
        ("path,label,usage\n1.png,a,PublicTest\nx/2.png,a,PrivateTest\n", "several names for the test split"),
        ("path,label,split\n1.png,a,test\n", "no training images"),
        ('path,label\n1.png,"a\n', "t.csv:2: not a valid table row"),
        ("path,label\n\udce91,b\n", "t.csv: not UTF-8"),
    ],
)
def test_a_table_that_does_not_fit(tmp_path: Path, table: str, message: str) -> None:
    root = draw(tmp_path / "root", "1.png", "x/2.png", "y/2.png")
    (tmp_path / "t.csv").write_bytes(table.encode(errors="surrogateescape"))
    refused(root, message, labels=tmp_path / "t.csv", test_fraction=0.5)


def broken(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"no image")


def test_all_unusable_files_are_listed_and_can_be_skipped(tmp_path: Path) -> None:
    root = draw(tmp_path / "root", *(f"{split}/{name}/{i}.png" for split in ("train", "test") for name in "ab"
                                     for i in range(3)))  # fmt: skip
    broken(root, "train/a/x.png", "test/b/y.jpg")
    content = encoded(Image.fromarray(pixels_of("z")), "jpeg")
    (root / "train/b/z.jpg").write_bytes(content[:-20])  # its header is whole
    message = refused(root, "(?s)root: 3 files cannot be used")
    assert all(f"  {root}/{name}: " in message for name in ("train/a/x.png", "test/b/y.jpg", "train/b/z.jpg"))
    command = shlex.split(message.splitlines()[-1])
    assert command[-2:] == ["--skip-damaged", "3"]
    with pytest.raises(DataError, match=r"(?s)3 files cannot be used.*z.jpg: not a usable image.*--skip-damaged 3$"):
        prepared(root, skip_damaged=2)
    done = prepared(root, skip_damaged=3)
    skipped = done.dataset.options["skipped"]
    assert skipped.keys() == {"train/a/x.png", "test/b/y.jpg", "train/b/z.jpg"}
    shown = CliRunner().invoke(app, ["show", str(done.dataset.path)])
    assert "\n3 unusable files skipped:\n  " in shown.output
    assert all(f"\n  {message}\n" in shown.output for message in skipped.values())
    as_json = CliRunner().invoke(app, ["show", str(done.dataset.path), "--json"])
    assert json.loads(as_json.stdout)["skipped"] == skipped
    require(done.dataset, "train", [(f"train/{name}/{i}.png", name) for name in "ab" for i in range(3)])
    assert not prepared(root, skip_damaged=3).created
    with pytest.raises(DataError, match="3 files cannot be used"):
        prepared(root)


def test_damage_that_only_the_second_pass_finds_is_listed_too(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for split, name, i in itertools.product(("train", "test"), "ab", range(25)):  # enough for two processes
        (root / split / name).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(random_bytes((70, 65, 3), i))
        image.save(root / split / name / f"{i}.jpg")
    for name in ("train/a/3.jpg", "test/b/20.jpg"):
        (root / name).write_bytes((root / name).read_bytes()[:-40])
    message = refused(root, "(?s)root: 2 files cannot be used")
    assert all(f"  {root}/{name}: not a usable image" in message for name in ("train/a/3.jpg", "test/b/20.jpg"))
    done = prepared(root, skip_damaged=2)
    assert done.dataset.counts("train") == (24, 25)
    assert done.dataset.counts("test") == (25, 24)


def test_files_that_are_no_images_are_left_out(tmp_path: Path) -> None:
    root = draw(tmp_path / "root", *(f"{split}/{name}/1.png" for split in ("train", "test") for name in "ab"))
    clutter = ("train/a/Thumbs.db", "train/a/Desktop.ini", "train/@eaDir/1.png", "__MACOSX/train/a/._1.png",
               "train/a/._1.png", "train/b/notes.txt", "train/b/boxes.XML", "labels.csv")  # fmt: skip
    broken(root, *clutter)
    done = prepared(root)
    assert done.dataset.counts("train") == (1, 1)
    assert "__MACOSX/, " in done.warnings[0] or "__MACOSX" in done.warnings[0]


def test_copies_are_counted_and_named(tmp_path: Path) -> None:
    root = draw(tmp_path / "root", *(f"{split}/{name}/{i}.png" for split in ("train", "test") for name in "ab"
                                     for i in range(2)))  # fmt: skip
    for copy, name in (("test/a/copy.png", "train/a/0.png"), ("train/b/copy.png", "train/a/1.png")):
        (root / copy).write_bytes((root / name).read_bytes())
    crossing, ambiguous = prepared(root).warnings
    assert crossing.endswith("exact copies of 1 image found in more than one split: "
                             "train/a/0.png (train) = test/a/copy.png (test)")  # fmt: skip
    assert ambiguous.endswith("exact copies of 1 image found with more than one label: "
                              "train/a/1.png (a) = train/b/copy.png (b)")  # fmt: skip


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8])
def test_a_cut_never_puts_copies_into_both_splits(tmp_path: Path, fraction: float) -> None:
    root = draw(tmp_path / "root", *(f"{name}/{i}.png" for name in "ab" for i in range(8)))
    for i in range(8):  # of the same class, and two of the other
        (root / f"a/{i} copy.png").write_bytes((root / f"a/{i}.png").read_bytes())
    for i in range(2):
        (root / f"b/of a {i}.png").write_bytes((root / f"a/{i}.png").read_bytes())
    dataset = prepared(root, test_fraction=fraction).dataset
    contents = {split: {image.tobytes() for image in dataset.load(split)[0]} for split in ("train", "test")}
    assert not contents["train"] & contents["test"]
    assert len(contents["train"] | contents["test"]) == 16
    assert sum(map(sum, (dataset.counts("train"), dataset.counts("test")))) == 26


@pytest.mark.parametrize("change", ["write", "add", "remove"])
def test_a_change_while_the_folder_is_read_is_an_error(tmp_path: Path, change: str) -> None:
    from cnnjob.data.prepare.folders.folder import read_folder
    from cnnjob.data.prepare.folders.options import FolderOptions
    from cnnjob.data.prepare.folders.tree import FolderTree

    root = draw(tmp_path / "root", *(f"{split}/{name}/1.png" for split in ("train", "test") for name in "ab"))
    tree = FolderTree(root)
    contents = read_folder(tree, tree.list(), FolderOptions(str(root), tmp_path / "x.h5"))
    if change == "remove":
        (root / "test" / "b" / "1.png").unlink()
    else:
        draw(root, "train/a/2.png")
        (root / "train/a/2.png").rename(root / ("test/b/1.png" if change == "write" else "test/b/2.png"))
        (root / "test" / "b" / "1.png").touch()  # a new time alone is no change
    with pytest.raises(DataError, match=r"test/b/[12].png: (changed|added or removed|no such file)"):
        list(contents.blocks)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_images_are_fitted_as_pillow_does(tmp_path: Path, fit: str) -> None:
    root = tmp_path / "root"
    sizes = {"train/a/1.png": (8, 20), "train/b/1.png": (20, 8), "test/a/1.png": (6, 6), "test/b/1.png": (3, 4)}
    for name, size in sizes.items():
        draw(root, name, size=size)
    dataset = prepared(root, size=(6, 10), fit=fit).dataset
    for name in sizes:
        split, label, _ = name.split("/")
        image = Image.open(root / name)
        if fit == "crop":
            expected = ImageOps.fit(image, (10, 6), Image.Resampling.BILINEAR)
        elif fit == "pad":
            expected = ImageOps.pad(image, (10, 6), Image.Resampling.BILINEAR, color=(255, 255, 255))
        else:
            expected = image.resize((10, 6), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(dataset.load(split)[0]["ab".index(label)], np.asarray(expected))


def test_sizes_are_listed_with_the_command_that_does(tmp_path: Path) -> None:
    root = draw(tmp_path / "my root", *(f"{split}/{name}/1.png" for split in ("train", "test") for name in "ab"))
    draw(root, "test/b/2.png", size=(7, 900))
    message = refused(root, "(?s)4 images of 4x4, e.g. train/a/1.png.*1 image of 7x900, e.g. test/b/2.png", JobError)
    program, command, source, *options = shlex.split(message.splitlines()[-1])
    assert (program, command, Path(source)) == ("cnnjob", "prepare", root)
    assert options[-2:] == ["--size", "4x4"]
    assert prepared(root, size=(4, 4)).created
    with pytest.raises(JobError, match="fit: pad needs a size"):
        prepared(root, fit="pad")


def test_the_file_is_the_same_on_any_number_of_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    for split, name, i in itertools.product(("train", "test"), "ab", range(45)):
        (root / split / name).mkdir(parents=True, exist_ok=True)
        channels = 4 if i % 7 == 0 else 3
        Image.fromarray(random_bytes((40 + i % 30, 60, channels), i)).save(root / split / name / f"{i}.png")
    cores = os.sched_getaffinity(0)
    contents, warnings = set(), set()
    try:
        for some, most_bytes in itertools.product(({min(cores)}, cores), (0, 300_000, 128 << 20)):
            os.sched_setaffinity(0, some)
            # With little memory, the survey keeps only the first images, and the second pass decodes the others again.
            monkeypatch.setattr(reading, "_MAX_KEPT_BYTES", most_bytes)
            done = prepared(root, size=(30, 20), force=True)
            contents.add(done.dataset.path.read_bytes())
            warnings.add(done.warnings)
    finally:
        os.sched_setaffinity(0, cores)
    assert len(contents) == len(warnings) == 1
    assert "28 images: transparent pixels were composited" in str(warnings)


def test_what_was_done_to_images_is_said(tmp_path: Path) -> None:
    root = draw(tmp_path / "root", *(f"{split}/{name}/1.png" for split in ("train", "test") for name in "ab"))
    clear = np.dstack([pixels_of("c"), np.full((SIDE, SIDE), 100, np.uint8)])
    Image.fromarray(clear).save(root / "train/a/clear.png")
    Image.fromarray(np.full((SIDE, SIDE), 4095, np.uint16)).save(root / "train/a/deep.png")
    first = Image.fromarray(pixels_of("f"))
    first.save(root / "train/b/moving.png", save_all=True, append_images=[Image.fromarray(pixels_of("s"))])
    done = prepared(root)
    assert [line.split(": ", 1)[1] for line in done.warnings] == [
        "1 image: transparent pixels were composited onto the background",
        "1 image: 16-bit pixels with no value above 4095 are nearly black. Scale 12-bit data to 16 bits first",
        "1 image: only the first of several images was read",
    ]
    images, _ = done.dataset.load("train")
    np.testing.assert_array_equal(images[1], (clear[..., :3].astype(int) * 100 + 255 * 155 + 127) // 255)
    np.testing.assert_array_equal(images[2], 15)
    np.testing.assert_array_equal(images[4], first)
    images, _ = prepared(root, background=(0, 0, 0), force=True).dataset.load("train")
    np.testing.assert_array_equal(images[1], (clear[..., :3].astype(int) * 100 + 127) // 255)


def test_classes_that_differ_only_in_capitals_are_named(tmp_path: Path) -> None:
    names = ("anger", "ANGER", "joy")
    root = draw(tmp_path / "root", *(f"{split}/{name}/1.png" for split in ("train", "test") for name in names))
    done = prepared(root)
    assert done.dataset.class_names == ("ANGER", "anger", "joy")
    (warning,) = done.warnings
    assert warning.endswith("some class names differ only in case, spaces or leading zeros (found 'ANGER' and 'anger')")


@pytest.mark.parametrize(
    "names",
    [
        ("train/cat.1.png", "train/dog.1.png", "test1/1.png", "test1/2.png"),
        ("train/1.png", "test_images/1.png"),
        ("train/1.png", "unlabeled/1.png"),
    ],
)
def test_splits_without_classes_are_not_classes(tmp_path: Path, names: tuple[str, ...]) -> None:
    message = "(look like splits without class folders|the images are not in class folders).*--labels FILE"
    refused(draw(tmp_path / "root", *names), message, test_fraction=0.5)


@pytest.mark.parametrize(
    ("names", "holds"),
    [
        ([f"{c}/{s}/1.png" for c in ("cat", "dog") for s in ("train", "test")] + ["cat/o.png"], "cat"),
        ([f"dataset/{s}/{c}/1.png" for s in ("train", "test") for c in "ab"] + ["dataset/sample.png"], "dataset"),
        (["a/1.png", "a/2.png", "a/masks/1.png", "b/1.png", "b/2.png"], "a"),
        ([f"{domain}/{name}/1.png" for domain in ("real", "art") for name in ("cat", "dog")] + ["art/o.png"], "art"),
    ],
)
def test_images_beside_folders_of_images_make_no_class(tmp_path: Path, names: list[str], holds: str) -> None:
    message = refused(draw(tmp_path / "root", *names), "contains both images and folders", test_fraction=0.5)
    assert f"the class folder {holds} contains both images" in message


def test_a_loose_image_beside_class_folders_is_left_out(tmp_path: Path) -> None:
    names = [f"train/{name}/{i}.png" for name in ("cats", "dogs") for i in range(3)]
    root = draw(tmp_path / "root", *names, "train/contact.png", "test1/0.png", "test1/1.png")
    done = prepared(root, test_fraction=0.3)
    assert done.dataset.class_names == ("cats", "dogs")
    assert "train/contact.png" in done.warnings[0]


def test_files_without_a_suffix_that_are_no_images_make_no_class(tmp_path: Path) -> None:
    root = draw(tmp_path / "root", *(f"data/{name}/{i}.png" for name in "ab" for i in range(4)))
    (root / "data" / "README").write_text("hello")
    assert prepared(root, test_fraction=0.25).dataset.class_names == ("a", "b")


def test_small_jpegs_are_scaled_as_large_ones_and_as_predict_scales_them(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for split, name, i in itertools.product(("train", "test"), "ab", range(2)):
        (root / split / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_bytes((64, 64, 3), i)).save(root / split / name / f"{i}.jpg")
    images, _ = prepared(root, size=(16, 16)).dataset.load("train")
    for image, path in zip(images, sorted((root / "train").rglob("*.jpg")), strict=True):
        np.testing.assert_array_equal(image, read_picture(path, (16, 16, 3)).pixels)


@pytest.mark.parametrize("header", ["filename,target,species", "path,label,label", "path,class,category"])
def test_two_columns_of_labels_are_refused(tmp_path: Path, header: str) -> None:
    root = draw(tmp_path / "root", "1.png", "2.png")
    (tmp_path / "labels.csv").write_text(f"{header}\n1.png,5,cat\n2.png,6,dog\n")
    names = ", ".join(repr(name) for name in header.split(",")[1:])
    refused(root, f"several columns may contain the labels .found {names}.", labels=tmp_path / "labels.csv")


def test_a_column_called_label_is_preferred(tmp_path: Path) -> None:
    root = draw(tmp_path / "root", *(f"{i}.png" for i in range(8)))
    rows = "".join(f"{i}.png,{i},{'cat' if i % 2 else 'dog'}\n" for i in range(8))
    (tmp_path / "labels.csv").write_text(f"path,y,label\n{rows}")
    done = prepared(root, labels=tmp_path / "labels.csv", test_fraction=0.25)
    assert done.dataset.class_names == ("cat", "dog")


@pytest.mark.parametrize("header", ["path,cat,dog,emu", ",image_id,cat,dog,emu", "path,split,cat,dog,emu"])
def test_a_table_may_have_one_column_per_class(tmp_path: Path, header: str) -> None:
    root = draw(tmp_path / "root", *(f"{i}.png" for i in range(12)))
    lines = [header]
    for i in range(12):
        cells = {"": i, "path": f"{i}.png", "image_id": i, "split": "test" if i < 3 else "train"}
        ones = {name: "1.0" if number == i % 3 else "0.0" for number, name in enumerate(("cat", "dog", "emu"))}
        lines.append(",".join(str((cells | ones)[name]) for name in header.split(",")))
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    options = {} if "split" in header else {"test_fraction": 0.25}
    done = prepared(root, labels=tmp_path / "labels.csv", **options)
    assert "in one column per class of" in done.description
    for split in ("train", "test"):
        images, labels = done.dataset.load(split)
        by_image = {
            np.asarray(Image.open(root / f"{i}.png")).tobytes(): ["cat", "dog", "emu"][i % 3] for i in range(12)
        }
        assert [done.dataset.class_names[label] for label in labels] == [by_image[image.tobytes()] for image in images]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1.png,1,1\n2.png,0,1", r"labels\.csv:2: not exactly one class .found cat, dog"),
        ("1.png,1,0\n2.png,0,0", r"labels\.csv:3: not exactly one class .found none"),
        ("1.png,0.7,0.3\n2.png,0,1", r"labels\.csv: no label column .found 'path', 'cat', 'dog'.*one column per class"),
        ("1.png,1\n2.png,0,1", r"labels\.csv: no label column"),
    ],
)
def test_columns_that_do_not_give_one_class_are_refused(tmp_path: Path, rows: str, message: str) -> None:
    root = draw(tmp_path / "root", "1.png", "2.png")
    (tmp_path / "labels.csv").write_text(f"path,cat,dog\n{rows}\n")
    refused(root, message, labels=tmp_path / "labels.csv", test_fraction=0.5)


@pytest.mark.parametrize("prefix", ["root/", "/kaggle/input/root/", "C:\\photos\\"])
def test_a_table_written_for_another_location(tmp_path: Path, prefix: str) -> None:
    root = draw(tmp_path / "root", *(f"{'ab'[i % 2]}/{i}.png" for i in range(8)))
    rows = "".join(f"{prefix}{'ab'[i % 2]}/{i}.png,{'cat' if i % 2 else 'dog'}\n" for i in range(8))
    (tmp_path / "labels.csv").write_text(f"path,label\n{rows}")
    done = prepared(root, labels=tmp_path / "labels.csv", test_fraction=0.25)
    assert done.dataset.class_names == ("cat", "dog")
    (tmp_path / "labels.csv").write_text(f"path,label\n{rows}{prefix}none.png,cat\n")
    (tmp_path / "data" / "out.h5").unlink()
    refused(root, "could not match 9 rows", labels=tmp_path / "labels.csv", test_fraction=0.25)


def test_a_workbook_is_not_a_table(tmp_path: Path) -> None:
    root = draw(tmp_path / "root", "1.png", "2.png")
    (tmp_path / "labels.xlsx").write_bytes(b"PK\3\4" + bytes(100))
    refused(root, "labels.xlsx: an Excel workbook", labels=tmp_path / "labels.xlsx", test_fraction=0.5)


def test_a_folder_that_may_hold_the_test_images_is_named(tmp_path: Path) -> None:
    for label in "xy":
        write_images(tmp_path / "photos" / "train" / label, 4, seed=ord(label))
        write_images(tmp_path / "photos" / "my_test" / label, 2, seed=2 * ord(label))
    with pytest.raises(
        JobError, match=r"Nothing is read from my_test/\. If this folder contains the test images, rename it to test$"
    ):
        prepare("folder", tmp_path / "out.h5", source=tmp_path / "photos")


def test_images_with_masks_are_not_two_classes(tmp_path: Path) -> None:
    for label in ("images", "masks"):
        write_images(tmp_path / "photos" / label, 4)
    with pytest.raises(DataError, match=r"not classes \(found images, masks\)\. Specify a table .*--labels FILE"):
        prepare("folder", tmp_path / "out.h5", source=tmp_path / "photos", test_fraction=0.5)


def test_classes_that_differ_only_in_leading_zeros_are_named(tmp_path: Path) -> None:
    for number, label in enumerate(("01", "1", "2")):
        write_images(tmp_path / "photos" / label, 4, seed=number * 10)
    done = prepare("folder", tmp_path / "out.h5", source=tmp_path / "photos", test_fraction=0.5)
    assert done.warnings[0].endswith("or leading zeros (found '01' and '1')")


def test_copies_in_another_class_are_named_where_too_few_images_are_left(tmp_path: Path) -> None:
    for label in "xyz":
        write_images(tmp_path / "photos" / label, 1, seed=5)
    write_images(tmp_path / "photos" / "x", 4, seed=5)
    message = (
        r"class y has too few images to split off test images \(found 1, 1 of them distinct and 1 of them also in "
        r"other classes, e\.g\. y/0000\.png = x/0000\.png\)"
    )
    with pytest.raises(DataError, match=message):
        prepare("folder", tmp_path / "out.h5", source=tmp_path / "photos", test_fraction=0.5)


def test_a_table_without_rows_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", 2)
    (tmp_path / "labels.csv").write_text("path,label\n")
    with pytest.raises(DataError, match=r"labels\.csv: no labels \(found only a header\)\. Add a row for each image"):
        prepare(
            "folder", tmp_path / "out.h5", source=tmp_path / "photos", labels=tmp_path / "labels.csv", test_fraction=0.5
        )


def test_suggested_commands_repeat_what_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for label in "xy":
        write_images(tmp_path / "-photos" / label, 4, seed=ord(label))
    with pytest.raises(JobError) as refused:
        prepare("folder", Path("data/-photos.h5"), source="-photos", sha256="0" * 64, force=True, verify=True)
    command = f"cnnjob prepare ./-photos --test-fraction 0.2 --sha256 {'0' * 64} --force --verify"
    assert str(refused.value).splitlines()[1].strip() == command
    created = prepare("folder", Path("data/x.h5"), source="-photos", size=(4, 4), fit="pad", background=(255, 0, 0),
                      test_fraction=0.5)  # fmt: skip
    with pytest.raises(JobError, match=r"--size 4x4 --fit pad --background #ff0000 --test-fraction 0\.5"):
        prepare("folder", created.dataset.path, source="-photos", size=(4, 4), fit="pad", test_fraction=0.5)


@pytest.mark.parametrize(
    ("name", "source"), [("photos", "https://a.org/b/c%20d.zip?e"), ("https://a.org/b/c.zip", None)]
)
def test_a_users_images_are_not_downloaded(tmp_path: Path, name: str, source: str | None) -> None:
    with pytest.raises(JobError, match=r"downloads only its built-in datasets[^$]*curl -L -o [^$]*cnnjob prepare"):
        prepare(name, tmp_path / "out.h5", source=source)


@pytest.mark.parametrize("wrapper", ["my_test_project", "training12-main", "a/train-data", "train"])
def test_a_wrapper_may_have_the_word_for_a_split_in_its_name(tmp_path: Path, wrapper: str) -> None:
    for split in ("train", "test"):
        for label in "xy":
            write_images(tmp_path / "splits" / wrapper / split / label, 3, seed=100 * ord(label) + 10 * len(split))
    done = prepare("folder", tmp_path / "splits.h5", source=tmp_path / "splits")
    assert (done.dataset.splits, done.dataset.class_names) == (("train", "test"), ("x", "y"))
    for label in "xy":
        write_images(tmp_path / "classes" / wrapper / label, 4, seed=100 * ord(label))
    done = prepare("folder", tmp_path / "classes.h5", source=tmp_path / "classes", test_fraction=0.25)
    assert done.dataset.class_names == ("x", "y")
    assert (*done.dataset.counts("train"), *done.dataset.counts("test")) == (3, 3, 1, 1)


def test_a_test_folder_without_labels_is_explained(tmp_path: Path) -> None:
    for label in "xy":
        write_images(tmp_path / "photos" / "train" / label, 4, seed=ord(label))
    write_images(tmp_path / "photos" / "test", 3, seed=7)
    (tmp_path / "photos" / "logs").mkdir()
    (tmp_path / "photos" / "logs" / "a.out").write_text("x")
    with pytest.raises(JobError) as refused:
        prepare("folder", tmp_path / "out.h5", source=tmp_path / "photos")
    assert str(refused.value).endswith(
        "The images in test/ have no labels, because they are not in class folders. To use them, specify a table of "
        "labels with a column split, with --labels FILE"
    )


def test_a_flat_folder_in_a_wrapper_is_not_one_class(tmp_path: Path) -> None:
    write_images(tmp_path / "photos" / "faces", 4)
    with pytest.raises(DataError, match=r"only one class.*found 'faces'.*or a table of labels with --labels FILE$"):
        prepare("folder", tmp_path / "out.h5", source=tmp_path / "photos")


def test_pointers_of_git_lfs_are_named_and_not_suggested_to_be_skipped(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
    for label in "xy":
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(600):
            (tmp_path / "photos" / label / f"{number}.jpg").write_text(pointer)
    (tmp_path / "labels.csv").write_text(pointer)
    with pytest.raises(DataError) as refused:
        prepare("folder", tmp_path / "out.h5", source=tmp_path / "photos", test_fraction=0.5)
    lines = str(refused.value).splitlines()
    assert lines[0].endswith("photos: 1200 files cannot be used (found:")
    assert lines[1].endswith("0.jpg: a Git LFS pointer instead of the file itself. Run git lfs pull in its repository")
    assert lines[1001:] == ["  and 200 more).", "Repair or remove them"]
    with pytest.raises(DataError, match=r"labels\.csv: a Git LFS pointer"):
        prepare("folder", tmp_path / "out.h5", source=tmp_path / "photos", labels=tmp_path / "labels.csv")
    for name in ("x.npz", "x_train.npy"):
        (tmp_path / name).write_text(pointer)
        with pytest.raises(DataError, match="a Git LFS pointer"):
            prepare("folder", tmp_path / "out.h5", source=tmp_path / name)


def test_plots_next_to_arrays_are_not_the_images(tmp_path: Path) -> None:
    write_images(tmp_path / "both" / "data", 2)
    arrays: dict[str, np.ndarray] = {"x": np.arange(12 * 16, dtype=np.uint8).reshape(12, 4, 4), "y": np.arange(12) % 3}
    for name, array in arrays.items():
        np.save(tmp_path / "both" / "data" / f"{name}_train.npy", array)
    for source in (tmp_path / "both", tmp_path / "both" / "data"):
        done = prepare("folder", tmp_path / f"{source.name}.h5", source=source, test_fraction=0.25)
        assert done.dataset.class_names == ("0", "1", "2")
    with pytest.raises(DataError, match=r"x_train\.npy: only one array of a pair .found y_train\.npy next to it"):
        prepare("folder", tmp_path / "out.h5", source=tmp_path / "both" / "data" / "x_train.npy", test_fraction=0.25)


def test_a_table_with_other_capitals_is_explained(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", 2)
    (tmp_path / "labels.csv").write_text("path,label\n0000.PNG,a\n0001.png,b\n")
    with pytest.raises(
        DataError, match=r"0000\.PNG on line 2: no such file \(but 0000\.png, which differs in upper and"
    ):
        prepare("folder", tmp_path / "out.h5", source=tmp_path / "photos", labels=tmp_path / "labels.csv")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("path,label\na.png,hawk, red-tailed\n", r"labels\.csv:2: more cells than columns .*in quotation marks$"),
        ("filename,x,y\na.png,3,4\n", "no label column"),
    ],
)
def test_tables_that_could_be_misread_are_refused(tmp_path: Path, table: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text(table)
    root = draw(tmp_path / "root", "a.png", "b.png")
    refused(root, message, labels=tmp_path / "labels.csv", test_fraction=0.5)


def test_names_in_a_table_are_the_same_in_both_forms_of_unicode(tmp_path: Path) -> None:
    names = ("é1.png", "é2.png", "a3.png", "a4.png")
    root = draw(tmp_path / "root", *names)
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    rows = [f"{unicodedata.normalize('NFD', names[0])},{composed}", f"{names[1]},{decomposed}", "a3.png,x", "a4.png,x"]
    (tmp_path / "labels.csv").write_text("\n".join(['path, "label"', *rows]))
    dataset = prepared(root, labels=tmp_path / "labels.csv", test_fraction=0.5).dataset
    assert dataset.class_names == (composed, "x")
    assert dataset.counts("train") == (1, 1)


@pytest.mark.parametrize("names", [("bullet_train", "medieval"), ("bullet_train", "Testudo_graeca", "latest")])
def test_class_names_may_contain_the_letters_of_a_split(tmp_path: Path, names: tuple[str, ...]) -> None:
    root = draw(tmp_path / "root", *(f"{name}/{number}.png" for name in names for number in range(2)))
    assert prepared(root, test_fraction=0.5).dataset.class_names == tuple(sorted(names))


@pytest.mark.parametrize("splits", [("1_train", "2_val", "3_test"), ("traindata", "valdata", "TESTDATA")])
def test_numbered_and_compound_names_of_splits_are_recognised(tmp_path: Path, splits: tuple[str, ...]) -> None:
    root = draw(tmp_path / "root", *(f"{split}/{label}/1.png" for split in splits for label in "ab"))
    assert prepared(root).dataset.splits == ("train", "val", "test")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("cat", "dog", "cat|dog", "cat"), "1 row may have several labels, and each of the 1 combinations is a class"),
        (("a|b", "b|c", "c|a", "b|c"), "4 rows may have several labels, and each of the 3 combinations is a class"),
        (("cat", "dog", "cat dog", "dog cat"), "2 rows may have several labels, and each of the 2 combinations"),
        (('"cat, dog"', "cat", "dog", "cat"), "1 row may have several labels"),
        (("golden retriever", "labrador retriever", "pug", "pug"), ""),
        (('"Pepper,_bell___healthy"', '"Pepper,_bell___spot"', "Corn_(maize)", "Corn_(maize)"), ""),
    ],
)
def test_cells_with_several_labels_are_reported(tmp_path: Path, labels: tuple[str, ...], message: str) -> None:
    root, table = tmp_path / "root", tmp_path / "labels.csv"
    rows = [f"{split}/{i}.png,{label},{split}" for split in ("train", "test") for i, label in enumerate(labels)]
    draw(root, *(row.partition(",")[0] for row in rows))
    table.write_text("\n".join(["path,label,split", *rows[: len(labels)], *rows[len(labels) :]]))
    warnings = [line for line in prepared(root, labels=table).warnings if "several labels" in line]
    assert len(warnings) == bool(message)
    if message:
        count, _, rest = message.partition(" ")
        assert warnings[0].startswith(f"{table}: {2 * int(count)} rows {rest.partition(' ')[2]}")
        assert "Keep one label per image" in warnings[0]


def test_columns_of_classes_with_the_same_name_are_refused(tmp_path: Path) -> None:
    root, table = draw(tmp_path / "root", "1.png", "2.png"), tmp_path / "labels.csv"
    table.write_text("path,cat,dog,cat\n1.png,1,0,0\n2.png,0,1,0\n")
    with pytest.raises(DataError, match=r"labels\.csv: two columns have the same name .found 'cat'.. Rename or remove"):
        prepared(root, labels=table, test_fraction=0.5)


@pytest.mark.parametrize("names", [("HAM10000_images_part_1", "HAM10000_images_part_2"), ("images_001", "images_012")])
def test_numbered_parts_of_a_collection_are_not_classes(tmp_path: Path, names: tuple[str, str]) -> None:
    root = draw(tmp_path / "root", *(f"{name}/{number}.png" for number, name in enumerate(names * 2)))
    message = r"root: the folders look like parts of a collection, not like classes"
    with pytest.raises(DataError, match=message):
        prepared(root, test_fraction=0.5)
    (root / "metadata.csv").write_text("Image Index,Finding Labels\n0,a\n1,b\n2,b\n3,a\n")
    with pytest.raises(DataError, match=message) as error:
        prepared(root, test_fraction=0.5)
    *_, question, command = str(error.value).splitlines()
    assert question == "If metadata.csv contains the labels:"
    assert f"--labels {root}/metadata.csv" in command
    done = prepared(root, labels=root / "metadata.csv", test_fraction=0.5)
    assert done.dataset.class_names == ("a", "b")


@pytest.mark.parametrize(
    "names", [("class1", "class2"), ("c0", "c1"), ("level_1", "level_2"), ("images_cat", "images_dog")]
)
def test_other_numbered_folders_are_classes(tmp_path: Path, names: tuple[str, str]) -> None:
    root = draw(tmp_path / "root", *(f"{name}/{number}.png" for number, name in enumerate(names * 2)))
    assert prepared(root, test_fraction=0.5).dataset.class_names == names


def test_images_with_the_same_names_in_two_folders_need_a_subfolder(tmp_path: Path) -> None:
    root = draw(tmp_path / "root", *(f"{split}/{number}.png" for split in ("train", "test") for number in range(4)))
    (tmp_path / "labels.csv").write_text("id,label\n0,a\n1,b\n2,b\n3,a\n")
    with pytest.raises(DataError, match=r"or specify a subfolder such as .*root/train\. Paths are relative"):
        prepared(root, labels=tmp_path / "labels.csv", test_fraction=0.5)
    assert prepared(root / "train", labels=tmp_path / "labels.csv", test_fraction=0.5).created


def test_json_is_not_a_table(tmp_path: Path) -> None:
    root = draw(tmp_path / "root", "1.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "1.png", "label": "cat"}\n')
    with pytest.raises(DataError, match=r"metadata\.jsonl: JSON, not a table. Save it as CSV"):
        prepared(root, labels=tmp_path / "metadata.jsonl", test_fraction=0.5)


def test_workbooks_beside_class_folders_are_not_images(tmp_path: Path) -> None:
    root = draw(
        tmp_path / "root", *(f"COVID-19/{name}/{number}.png" for name in ("COVID", "Normal") for number in "12")
    )
    (root / "COVID-19" / "COVID.metadata.xlsx").write_bytes(b"PK")
    done = prepared(root, test_fraction=0.5)
    assert done.dataset.class_names == ("COVID", "Normal")
    assert "COVID.metadata.xlsx" in done.warnings[0]
