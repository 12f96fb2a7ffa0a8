"""Archives of images are read in place, as the folder that they hold, or refused with what to do."""

import io
import re
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

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


CLASSES = ("Äpfel", "苹果")
CJK = ("猫", "表")  # in Shift JIS, the second has a backslash


def zip_of_classes(
    path: Path,
    encoding: str,
    classes: tuple[str, ...] = CLASSES,
    *,
    file: str = "",
    flag: int = 0,
    separator: str = "/",
    extra: bool = False,
) -> Path:
    """A zip archive as other programs write it: names as bytes of an encoding, marked as UTF-8 only by ``flag``."""
    image = io.BytesIO()
    Image.new("RGB", (4, 4)).save(image, "PNG")
    content, entries, directory = image.getvalue(), b"", b""
    for split in ("train", "test"):
        for number, label in enumerate(classes):
            text = separator.join((split, label, f"{file}{number}.png"))
            name = text.encode(encoding, "replace")
            field = struct.pack("<BL", 1, zlib.crc32(name)) + text.encode()
            more = struct.pack("<HH", 0x7075, len(field)) + field if extra else b""
            sizes = struct.pack("<3L2H", zlib.crc32(content), len(content), len(content), len(name), len(more))
            common = struct.pack("<5H", 20, flag, 0, 0, 33) + sizes
            directory += b"PK\x01\x02\x14\0" + common + struct.pack("<3H2L", 0, 0, 0, 0, len(entries)) + name + more
            entries += b"PK\x03\x04" + common + name + more + content
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 4, 4, len(directory), len(entries), 0)
    path.write_bytes(entries + directory + end)
    return path


@pytest.mark.parametrize(
    ("encoding", "options"),
    [
        ("utf-8", {"flag": 1 << 11}),
        ("utf-8", {}),
        ("utf-8", {"separator": "\\"}),
        ("ascii", {"extra": True}),
    ],
)
def test_class_names_of_a_zip_are_what_its_author_wrote(tmp_path: Path, encoding: str, options: Any) -> None:
    done = prepared(zip_of_classes(tmp_path / "a.zip", encoding, **options))
    assert done.dataset.class_names == CLASSES
    assert not any("encoding" in warning for warning in done.warnings)


@pytest.mark.parametrize("encoding", ["gb18030", "shift_jis"])
def test_class_names_in_a_stated_encoding(tmp_path: Path, encoding: str) -> None:
    archive = zip_of_classes(tmp_path / "a.zip", encoding, CJK)
    with pytest.raises(DataError, match=r"a\.zip: names of folders are in an unknown encoding .found 'train/") as error:
        prepared(archive)
    assert {"gb18030": "'train/猫/0.png' in gbk", "shift_jis": "'train/猫/0.png' in shift_jis"}[encoding] in str(
        error.value
    )
    done = prepared(archive, zip_encoding=encoding)
    assert done.dataset.class_names == tuple(sorted(CJK))
    assert done.dataset.options["zip_encoding"] == encoding
    assert not any("encoding" in warning for warning in done.warnings)
    with pytest.raises(DataError, match=r"not in the encoding ascii .found b'train/.*State another --zip-encoding"):
        prepared(archive, zip_encoding="ascii", force=True)
    for wrong in ("klingon", "utf-16", "base64"):
        with pytest.raises(JobError, match=f"zip_encoding: not an encoding of names .found '{wrong}'"):
            prepared(archive, zip_encoding=wrong, force=True)


def test_file_names_in_an_unknown_encoding_are_reported(tmp_path: Path) -> None:
    archive = zip_of_classes(tmp_path / "a.zip", "gb18030", ("a", "b"), file="照片")
    (warning,) = [warning for warning in prepared(archive).warnings if "encoding" in warning]
    assert "a.zip: names of files in an unknown encoding were read as code page 437 (found 'train/" in warning


def test_dots_and_double_slashes_in_member_names_are_dropped(tmp_path: Path, folder: Path) -> None:
    expected = prepare("folder", tmp_path / "folder.h5", source=folder).dataset
    files = {f"./photos//{file.relative_to(folder)}": file.read_bytes() for file in folder.rglob("*.png")}
    assert prepared(write_zip(tmp_path / "photos.zip", files)).dataset.array_sha256 == expected.array_sha256


def test_a_tar_of_the_oldest_format_is_recognised(tmp_path: Path, folder: Path) -> None:
    expected = prepare("folder", tmp_path / "folder.h5", source=folder).dataset
    content = bytearray(pack(folder, tmp_path / "photos.tar", "w").read_bytes())
    position = 0
    while content[position]:
        head = content[position : position + 512]
        size = int(head[124:135], 8)
        head[257:] = bytes(255)  # this format has no magic, owner or prefix
        head[148:156] = b" " * 8
        head[148:156] = f"{sum(head):06o}\0 ".encode()
        content[position : position + 512] = head
        position += 512 + size + -size % 512
    (tmp_path / "photos.tar").write_bytes(content)
    assert prepared(tmp_path / "photos.tar").dataset.array_sha256 == expected.array_sha256


def test_an_encrypted_zip_is_refused_once(tmp_path: Path) -> None:
    path = zip_of_classes(tmp_path / "a.zip", "utf-8", flag=1)
    with pytest.raises(
        DataError, match=r"^\S+a\.zip: contains encrypted files \(found 4, e\.g\. .*Unpack the archive with its pass"
    ):
        prepared(path)


@pytest.mark.parametrize("inner", ["train.zip", "photos.7z", "x_train.npy", "mnist_train.csv"])
def test_archives_of_archives_and_arrays_are_named(tmp_path: Path, inner: str) -> None:
    path = write_zip(tmp_path / "a.zip", {f"data/{inner}": b"x", "data/readme.md": b"x"})
    with pytest.raises(DataError, match=rf"a\.zip: no images, only other files \(found data/{inner}\)\. Unpack"):
        prepared(path)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"Rar!\x1a\x07\x00", "a RAR archive, which is not supported. Unpack it with unrar"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive, which is not supported. Unpack it with 7z x"),
        (b"\x28\xb5\x2f\xfd", "compressed with Zstandard, which is not supported. Decompress it with unzstd"),
        (b"PAR1", "a Parquet file, which is not supported. Read it in Python"),
    ],
)
def test_other_archives_are_refused_by_name(tmp_path: Path, start: bytes, message: str) -> None:
    (tmp_path / "photos.bin").write_bytes(start + bytes(2000))
    with pytest.raises(DataError, match=re.escape(f"photos.bin: {message}")):
        prepared(tmp_path / "photos.bin")


def test_damaged_archives_are_refused(tmp_path: Path, folder: Path) -> None:
    for mode in ("zip", "w", "w:gz", "w:xz"):
        path = pack(folder, tmp_path / "whole", mode)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(DataError, match=f"^{path}: (damaged|an incomplete or damaged zip archive|.*ends within)"):
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


def test_a_member_without_a_name_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"x": b"", "train/a/1.png": b"x"})
    content = path.read_bytes().replace(b"\x01\0\0\0x", b"\0\0\0\0x")  # zipfile does not write an empty name
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.zip: "):
        prepared(path)
