"""Read a folder of images with one subfolder per class.

Each file is read twice: first for its digest, size and colours, then for its pixels. Memory holds no more than the file
names of one class and one block of pixels.
"""

import hashlib
import math
import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NoReturn

import numpy as np

from cnnjob.data.dataset import BLOCK_BYTES, SPLITS
from cnnjob.data.images import header, read_picture
from cnnjob.data.prepare.split import cut
from cnnjob.data.prepare.writer import Chunk, DatasetContents
from cnnjob.errors import DataError, JobError
from cnnjob.files import open_regular

_CLUTTER = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})
_SHOWN = 3
_MOST_DEPTH = 50
_MAX_CLASSES = 1 << 16  # labels have at most 16 bits
MAX_PIXELS = 2_000_000  # of a prepared image; one in colour has 6 MB, and must fit in a chunk of HDF5


@dataclass(frozen=True)
class _Part:
    """A split: all images of a folder of classes, or a fraction of them."""

    split: str
    folder: Path
    test_fraction: float | None

    def class_names(self) -> list[str]:
        _, folders, _ = next(os.walk(self.folder, onerror=_refuse))
        return sorted(filter(_is_visible, folders))

    def files(self, label: int, name: str) -> list[Path]:
        """Return the images of one class in this split, in a fixed order."""
        folder = self.folder / name
        found = sorted(_files_in(folder))
        needed = 1 if self.test_fraction is None else 2
        if len(found) < needed:
            raise DataError(f"{folder}: too few images, found {len(found)}; a class needs at least {needed} here")
        if self.test_fraction is None:
            return found
        # Both splits get at least one image of each class. The label as seed gives each class a cut of its own.
        n_test = min(max(1, round(len(found) * self.test_fraction)), len(found) - 1)
        return [found[row] for row in cut(len(found), n_test, seed=label)[self.split]]


def contents(root: Path, size: tuple[int, int] | None, test_fraction: float | None) -> DatasetContents:
    """Survey a folder of images: its classes, their images' headers, and a digest of all files.

    Args:
        root: the folder, with ``train``, ``test`` and perhaps ``val`` in it, or with the classes themselves.
        size: (H, W) to which the images are scaled and cropped; None if all have the same size.
        test_fraction: fraction of each class that becomes the test split, if there is no ``test`` folder.

    Returns:
        The contents, with one digest over the digests and names of all images; pixels are read later.

    Raises:
        DataError: the folder is missing, or a class or an image is not usable.
        JobError: a size or a test fraction is missing, or does not apply to this folder.
    """
    try:
        _require_folder(root)
        parts = _parts(root, test_fraction)
        names = _common_classes(parts)
        digest, shape = _survey(root, parts, names, size)
        warnings = tuple(_warnings(root, parts))
    except OSError as error:
        raise DataError(f"{root}: cannot be read, {error}; see to its permissions") from error
    return DatasetContents(tuple(names), {"folder": digest}, _blocks(parts, names, shape), warnings)


def _require_folder(root: Path) -> None:
    if root.is_dir():
        return
    if root.exists():
        raise DataError(f"{root}: not a folder (found a file). Unpack it, and give the folder of the classes' folders")
    raise DataError(f"{root}: no such folder; give the folder that has the classes' folders")


def _parts(root: Path, test_fraction: float | None) -> list[_Part]:
    inside = [split for split in SPLITS if (root / split).is_dir()]
    if inside and "train" not in inside:
        raise DataError(f"{root}: no train folder, found {', '.join(inside)}; make one")
    if "test" in inside and test_fraction is not None:
        raise JobError(f"{root}: it has a test folder, found a test fraction given; leave one out")
    if not any(path.is_dir() for path in root.iterdir()):
        raise DataError(f"{root}: no folders of images, found none; make one a class, as train/CLASS and test/CLASS")
    if "test" not in inside and test_fraction is None:
        raise JobError(
            f"{root}: no train and test folders, found {', '.join(inside) or 'none'}; give --test-fraction 0.2"
        )
    base = root / "train" if inside else root
    parts = [_Part(split, root / split, None) for split in inside]
    if "test" in inside:
        return parts
    cut_in_two = [_Part(split, base, test_fraction) for split in ("train", "test")]
    return [*cut_in_two, *(part for part in parts if part.split == "val")]


def _common_classes(parts: Sequence[_Part]) -> list[str]:
    names = parts[0].class_names()
    if not 0 < len(names) <= _MAX_CLASSES:
        raise DataError(f"{parts[0].folder}: {len(names)} classes, found no folders that fit; make one a class")
    for name in names:
        if name != name.encode(errors="replace").decode():  # a lone surrogate stands for a byte that is not UTF-8
            raise DataError(f"{parts[0].folder}: a class whose name is not UTF-8 (found {name!a}). Rename its folder")
        if not name.strip():
            raise DataError(f"{parts[0].folder}: a class without a name (found {name!r}). Rename its folder")
    _require_different(parts[0].folder, names)
    for part in parts:
        if different := set(names) ^ set(part.class_names()):
            raise DataError(f"{part.folder}: not the classes of {parts[0].folder}, found only in one of them"
                            f" {', '.join(sorted(different)[:5])}; every class needs a folder in both")  # fmt: skip
    return names


def _require_different(folder: Path, names: Sequence[str]) -> None:
    """Refuse names that look the same: an accented letter can be one character or two."""
    first: dict[str, str] = {}
    for name in names:
        if (other := first.setdefault(unicodedata.normalize("NFC", name), name)) != name:
            raise DataError(f"{folder}: two classes of one name (found {other!a} and {name!a}). Rename a folder")


def _survey(
    root: Path, parts: Sequence[_Part], names: Sequence[str], size: tuple[int, int] | None
) -> tuple[str, tuple[int, int, int]]:
    """Return the digest of all files, and the shape (H, W, C) of the images to be written."""
    digest = hashlib.sha256()
    sizes = {size: root} if size else {}
    grey = True
    for path, _ in (image for part in parts for image in _labelled(part, names)):
        # A name need not be UTF-8: surrogateescape restores its bytes.
        digest.update(f"{_file_digest(path)}  {path.relative_to(root)}\n".encode(errors="surrogateescape"))
        found = header(path)
        grey = grey and found.is_grey  # a single image in colour makes all of them RGB
        if size is None:
            sizes.setdefault((found.height, found.width), path)
            _require_one_size(root, sizes)
    height, width = next(iter(sizes))
    return digest.hexdigest(), (height, width, 1 if grey else 3)


def _require_one_size(root: Path, sizes: dict[tuple[int, int], Path]) -> None:
    found = [f"{height}x{width} in {path.name}" for (height, width), path in sizes.items()]
    if len(found) > 1:
        raise JobError(f"{root}: images of several sizes, found {' and '.join(found)}; give --size HxW")
    if math.prod(next(iter(sizes))) > MAX_PIXELS:
        raise JobError(f"{root}: too large to pack, found {found[0]}; give --size HxW, at most {MAX_PIXELS:,} pixels")


def _file_digest(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _blocks(parts: Sequence[_Part], names: Sequence[str], shape: tuple[int, int, int]) -> Iterator[Chunk]:
    rows = max(1, BLOCK_BYTES // math.prod(shape))
    for part in parts:
        start, count, images = 0, sum(1 for _ in _labelled(part, names)), _labelled(part, names)
        while some := list(islice(images, rows)):
            stack = np.stack([read_picture(path, shape).pixels for path, _ in some])  # (N, H, W, C)
            labels = np.array([label for _, label in some])
            yield Chunk(str(part.folder), part.split, start, stack, labels, count)
            start += len(some)


def _labelled(part: _Part, names: Sequence[str]) -> Iterator[tuple[Path, int]]:
    """Yield each image of a split with its label, class by class."""
    for label, name in enumerate(names):
        for path in part.files(label, name):
            yield path, label


def _warnings(root: Path, parts: Sequence[_Part]) -> Iterator[str]:
    left_out = _left_out(root, parts)  # an iterator: names beyond the first few are counted, not kept
    shown = ", ".join(str(path.relative_to(root)) for path in islice(left_out, _SHOWN))
    more = sum(1 for _ in left_out)
    if shown:
        others = f" and {more:,} more" if more else ""
        yield f"{root}: some files or folders are left out, as hidden or in no class's folder (found {shown}{others})"


def _left_out(root: Path, parts: Sequence[_Part]) -> Iterator[Path]:
    """Yield what is not read: files and folders beside those of splits and classes, and hidden ones inside them."""
    splits = dict.fromkeys(part.folder for part in parts)
    for folder in dict.fromkeys((root, *splits)):
        for path in sorted(folder.iterdir()):
            if folder in splits and path.is_dir() and _is_visible(path.name):
                yield from _hidden_in(path)
            elif path not in splits:
                yield path


def _hidden_in(folder: Path) -> Iterator[Path]:
    for inside, folders, files in _walk(folder):
        yield from (Path(inside, name) for name in sorted((*folders, *files)) if not _is_visible(name))
        folders[:] = filter(_is_visible, folders)


def _files_in(folder: Path) -> Iterator[Path]:
    """Yield every visible file below a folder; a folder that cannot be read is an error, not skipped."""
    for inside, folders, files in _walk(folder):
        folders[:] = filter(_is_visible, folders)  # in place: os.walk descends only into what is left here
        for name in folders:
            if Path(inside, name).is_symlink():  # it may lead back here, without end
                raise DataError(
                    f"{Path(inside, name)}: a link to a folder within a class. Copy the folder, or remove it"
                )
        yield from (Path(inside, name) for name in files if _is_visible(name))


def _walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk through a class's folder like ``os.walk``, but refuse depths at which it could exhaust the call stack."""
    for inside, folders, files in os.walk(folder, onerror=_refuse):
        if len(Path(inside).relative_to(folder).parts) > _MOST_DEPTH:
            raise DataError(
                f"{folder}: folders more than {_MOST_DEPTH} deep. Move the images up, or remove these folders"
            )
        yield inside, folders, files


def _refuse(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename}: cannot be read, {error.strerror}; see to its permissions") from error


def _is_visible(name: str) -> bool:
    """Return whether a name is neither hidden nor a file that desktops leave behind."""
    return not name.startswith(".") and name not in _CLUTTER
