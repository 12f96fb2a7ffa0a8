"""Archives of images are read in place, as the folder that they hold, or refused with what to do."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from cnnjob.data.dataset import Dataset
from cnnjob.data.prepare.prepare import Prepared, prepare
from cnnjob.errors import DataError, JobError
from tests.helpers.image_sources import write_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, split in enumerate(("Training", "Testing")):
        for number, label in enumerate(("1", "2", "10")):
            write_images(tmp_path / "photos" / split / label, 40, seed=1000 * seed + 100 * number)
    return tmp_path / "photos"


def pack(folder: Path, path: Path, mode: str, prefix: str = "photos") -> Path:
    """An archive of a folder, with folders of other systems beside it."""
    files = [(f"{prefix}/{file.relative_to(folder)}", file.read_bytes()) for file in folder.rglob("*.png")]
    files += [("__MACOSX/photos/._x.png", b"x"), (f"{prefix}/.DS_Store", b"x"), (f"{prefix}/readme.txt", b"x")]
    if mode == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{prefix}/", b"")
            for name, content in reversed(files):
                archive.writestr(name, content)
        return path
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload] # its modes are spelt out one by one
        for name, content in reversed(files):
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def prepared(source: Path, **options: object) -> Prepared:
    return prepare("folder", source.parent / "data" / "out.h5", source=source, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["zip", "w", "w:gz", "w:xz", "w:bz2"])
def test_an_archive_is_the_folder_that_it_holds(tmp_path: Path, folder: Path, mode: str) -> None:
    expected = prepare("folder", tmp_path / "folder.h5", source=folder).dataset
    done = prepared(pack(folder, tmp_path / "photos.archive", mode))
    assert done.dataset.class_names == ("1", "2", "10")
    assert done.dataset.digest == expected.digest
    assert done.dataset.array_sha256 == expected.array_sha256
    assert "__MACOSX" in done.warnings[0]
    assert "photos/readme.txt" in done.warnings[0]
    assert not prepared(tmp_path / "photos.archive").created


def test_labels_of_a_table_name_members(tmp_path: Path, folder: Path) -> None:
    archive = pack(folder, tmp_path / "photos.zip", "zip")
    rows = [f"photos/Training/10/{number:04}.png,{number % 2}" for number in range(40)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]))
    dataset = prepared(archive, labels=tmp_path / "labels.csv", test_fraction=0.5).dataset
    assert dataset.counts("train") == dataset.counts("test") == (10, 10)


def test_an_archive_that_is_replaced_while_it_is_read_is_an_error(tmp_path: Path, folder: Path) -> None:
    from cnnjob.data.prepare.folders.archive import TarTree, ZipTree
    from cnnjob.data.prepare.folders.folder import read_folder
    from cnnjob.data.prepare.folders.options import FolderOptions

    for kind, mode in ((ZipTree, "zip"), (TarTree, "w")):
        archive = pack(folder, tmp_path / "photos.archive", mode)
        tree = kind(archive)
        contents = read_folder(tree, tree.list(), FolderOptions(str(archive), tmp_path / "x.h5"))
        with pytest.MonkeyPatch.context():
            (folder / "Training" / "1" / "0000.png").rename(folder / "Training" / "1" / "0099.png")
            archive.unlink()
            pack(folder, archive, mode)
        with pytest.raises(DataError, match=r"photos\.archive.*: (changed|added or removed|no such member)"):
            list(contents.blocks)
        (folder / "Training" / "1" / "0099.png").rename(folder / "Training" / "1" / "0000.png")


def write_zip(path: Path, names: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("name", ["../x.png", "/a/x.png", "a/../../x.png"])
def test_a_member_outside_the_archive_is_refused(tmp_path: Path, name: str) -> None:
    path = write_zip(tmp_path / "a.zip", {name: b"x"})
    with pytest.raises(DataError, match=r"the path of a member points outside the archive .*Create the archive again"):
        prepared(path, test_fraction=0.5)


def test_damaged_archives_are_refused(tmp_path: Path, folder: Path) -> None:
    for mode in ("zip", "w", "w:gz", "w:xz"):
        path = pack(folder, tmp_path / "whole", mode)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(DataError, match=f"^{path}: (damaged|not a folder|.*ends within)"):
            prepared(path)


def test_a_flipped_byte_of_a_member_is_found(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*.png"):
            archive.write(file, file.relative_to(folder))
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 20] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"(?s)1 file cannot be used .*\.png: damaged \(Bad CRC-32"):
        prepared(path)


def test_an_archive_without_a_test_split_says_so(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(JobError, match=r"(?s)no test images.*cnnjob prepare .*photos\.zip .*--test-fraction 0\.2$"):
        prepared(pack(folder / "Training", tmp_path / "photos.zip", "zip"))
    assert isinstance(prepared(tmp_path / "photos.zip", test_fraction=0.2).dataset, Dataset)


@pytest.mark.parametrize("link", ["hard", "symbolic"])
def test_links_in_a_tar_are_refused_by_name(tmp_path: Path, link: str) -> None:
    for name in "ab":
        write_images(tmp_path / "root" / name, 3)
    target = tmp_path / "root" / "a" / "copy.png"
    if link == "hard":
        target.hardlink_to(tmp_path / "root" / "a" / "0000.png")
    else:
        target.symlink_to("0000.png")
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        archive.add(tmp_path / "root", "root")
    with pytest.raises(DataError, match=r"root/a/\w+\.png: links in archives are not followed"):
        prepare("folder", tmp_path / "out.h5", source=tmp_path / "photos.tar", test_fraction=0.3)
