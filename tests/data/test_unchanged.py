"""A source that did not change is recognised without reading its files; any change makes `prepare` read them."""

import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cnnjob.data.prepare.folders.options import FolderOptions
from cnnjob.data.prepare.folders.tree import FolderTree
from cnnjob.data.prepare.prepare import Prepared, prepare
from cnnjob.data.prepare.unchanged import fingerprint
from cnnjob.errors import DataError, JobError
from tests.helpers.image_sources import write_images


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folders for all tests, made at once: what changed within the last two seconds is read again."""
    root = tmp_path_factory.mktemp("folders")
    for number in range(len(CHANGES) + 3):
        for split, name in itertools.product(("train", "test"), "ab"):
            write_images(root / str(number) / "photos" / split / name, 3)
    time.sleep(2.2)
    return iter(sorted(root.glob("*/photos")))


@pytest.fixture
def source(folders: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    path = next(folders)
    monkeypatch.setenv("CNNJOB_CACHE_DIR", str(path.parent / "cache"))
    return path


def write_arrays(path: Path, value: int) -> None:
    images, labels = np.full((4, 5, 5), value, np.uint8), np.arange(4) % 2
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)


def prepared(source: Path, *, verify: bool = False, size: tuple[int, int] | None = None) -> Prepared:
    return prepare("folder", source.parent / "out.h5", source=source, size=size, verify=verify)


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda root: (root / "train/a/0001.png").write_bytes((root / "train/b/0002.png").read_bytes()),
    "added": lambda root: (root / "train/a/new.png").write_bytes((root / "train/a/0001.png").read_bytes()),
    "removed": lambda root: (root / "train/a/0001.png").unlink(),
    "renamed": lambda root: (root / "train/a/0001.png").rename(root / "train/a/x.png"),
    "class renamed": lambda root: [(root / split / "a").rename(root / split / "c") for split in ("train", "test")],
    "same size and time": lambda root: rewrite_unseen(root / "train/a/0001.png"),
}


def rewrite_unseen(path: Path) -> None:
    """Change a file and restore its size and time of modification; the time of the inode's change tells."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(source: Path, change: str) -> None:
    assert prepared(source).created
    again = prepared(source)
    assert not again.created
    CHANGES[change](source)
    with pytest.raises((JobError, DataError), match=r"prepared from other source files|cannot be used"):
        prepared(source)


def test_an_unchanged_source_gives_the_same_answer_and_verify_reads_it(source: Path) -> None:
    first = prepared(source)
    record = next((source.parent / "cache" / "prepared").iterdir())
    again = prepared(source)
    assert (again.created, again.description, again.warnings) == (False, first.description, first.warnings)
    assert again.dataset.digest == first.dataset.digest
    # A false record shows who believes it: only what does not read the source.
    record.write_text(record.read_text().replace("class folders", "class folders, as remembered"))
    assert "as remembered" in prepared(source).description
    assert "as remembered" not in prepared(source, verify=True).description


def test_a_damaged_record_and_other_options_are_no_obstacle(source: Path) -> None:
    prepared(source)
    record = next((source.parent / "cache" / "prepared").iterdir())
    for content in ("", "{}", "[1]", '{"fingerprint": 3}', "\0"):
        record.write_text(content)
        assert not prepared(source).created
    with pytest.raises(JobError, match="already exists"):
        prepared(source, size=(4, 4))
    (source.parent / "out.h5").unlink()
    assert prepared(source).created


def test_an_array_file_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNJOB_CACHE_DIR", str(tmp_path / "cache"))
    source = tmp_path / "toy.npz"
    write_arrays(source, 0)
    assert prepared(source).created
    assert not (tmp_path / "cache" / "prepared").exists()  # it was changed a moment ago
    assert not prepared(source).created
    write_arrays(source, 1)
    with pytest.raises(JobError, match="prepared from other source files"):
        prepared(source)


def test_what_was_changed_after_the_beginning_is_not_remembered(source: Path) -> None:
    tree = FolderTree(source)
    listing, options = tree.list(), FolderOptions(str(source), source.parent / "out.h5")
    now, later = time.time_ns(), time.time_ns() + 10**9
    before = fingerprint(source, options, now, listing)
    assert before == fingerprint(source, options, later, tree.list())
    # Of a file that has been read, what counts is what was read.
    name = listing.files[0]
    listing.stamps[name] = tree.read(name)[1]
    (source / name).touch()
    assert fingerprint(source, options, now, listing) == before
    listing.stamps.clear()
    assert fingerprint(source, options, now, listing) is None
    listing.stamps[name] = (1, 2, 3, 4)
    assert fingerprint(source, options, now, listing) not in {before, None}
