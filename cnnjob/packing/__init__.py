"""Source files -> one HDF5 file.

The one door is :func:`pack`. A format's module reads hashed files as a stream of blocks;
`writer` writes any stream; `sources` finds, downloads and hashes. Reading packed files is
`cnnjob.datasets`' business.
"""

import difflib
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnjob.datasets import Dataset
from cnnjob.errors import DataError, JobError
from cnnjob.packing import cifar, digits, idx, sources
from cnnjob.packing.catalogue import DIGITS, KNOWN, Entry
from cnnjob.packing.writer import Contents, write

__all__ = ["KNOWN", "Entry", "Packed", "pack"]

FOLDER = "folder"
_ENTRIES = {entry.name: entry for entry in KNOWN}


@dataclass(frozen=True)
class Packed:
    """What packing gave.

    Attributes:
        dataset: the packed dataset.
        created: whether it was packed now; otherwise a complete file of the same source was there.
        seconds: how long it took.
        bytes: the size of the dataset's images.
    """

    dataset: Dataset
    created: bool
    seconds: float
    bytes: int


def pack(
    name: str,
    out: Path,
    *,
    source: str | Path | None = None,
    sha256: str | None = None,
    size: tuple[int, int] | None = None,
    test_fraction: float | None = None,
    force: bool = False,
    progress: bool = False,
) -> Packed:
    """Pack a dataset into one HDF5 file, unless that file is already there.

    Args:
        name: a name of :data:`KNOWN`, or ``folder`` for a folder of images.
        out: the file; its folder is created.
        source: a folder, a file or a URL; None downloads from the publisher and its mirrors.
        sha256: the source's SHA-256, which allows a source that nobody published.
        size: (H, W) of a folder's images, which are scaled and cropped to it.
        test_fraction: the part of each class of a folder that is for testing, in (0, 1).
        force: whether to pack again what is already there.
        progress: whether to show bars on stderr.

    Returns:
        The dataset and what it cost.

    Raises:
        DataError: the source is missing, damaged or not the one that was meant.
        JobError: the arguments do not fit each other.
    """
    started = time.perf_counter()
    _require_fitting(name, source, sha256, size, test_fraction)
    title = out.stem if name == FOLDER else name
    options = {"size": size and list(size), "test_fraction": test_fraction}
    # What is published is known: nothing has to be downloaded to compare with it.
    there = None if force or source else _up_to_date(out, title, _published(name), options)
    if there is None:
        contents = _contents(name, source, sha256, progress=progress)
        there = None if force else _up_to_date(out, title, contents.sha256, options)
        if there is None:
            write(out, title, contents, options)
    dataset = there or Dataset.open(out)
    return Packed(dataset, there is None, time.perf_counter() - started, _bytes(dataset))


def _require_fitting(
    name: str,
    source: str | Path | None,
    sha256: str | None,
    size: tuple[int, int] | None,
    test_fraction: float | None,
) -> None:
    """Refuse arguments that do not fit each other."""
    names = (*_ENTRIES, FOLDER)
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"
        raise JobError(f"{name}: no such dataset; {hint}")
    if name == FOLDER and source is None:
        raise JobError(f"{name}: no source, found none; name the folder of images")
    if name != FOLDER and (size or test_fraction is not None):
        raise JobError(f"{name}: size and test fraction are fixed, found one given; they are for a folder of images")
    if name == DIGITS.name and (source or sha256):
        raise JobError(f"{name}: it has no source files, found source or sha256 given; leave them out")


def _published(name: str) -> dict[str, str]:
    """The SHA-256 of every published file, by name."""
    return {file.name: file.sha256 for file in _ENTRIES[name].files}


def _up_to_date(out: Path, title: str, sha256: dict[str, str], options: dict[str, Any]) -> Dataset | None:
    """The dataset at ``out`` if it was packed whole, in this way, from these sources."""
    try:
        dataset = Dataset.open(out)
    except DataError:
        return None
    found = (dataset.name, dataset.source_sha256, dataset.options)
    return dataset if found == (title, sha256, options) else None


def _contents(
    name: str,
    source: str | Path | None,
    sha256: str | None,
    *,
    progress: bool,
) -> Contents:
    """What the source holds, hashed and not yet parsed."""
    if name == DIGITS.name:
        return digits.contents(DIGITS.class_names)
    entry = _ENTRIES[name]
    files = sources.obtain(entry, None if source is None else str(source), sha256, progress=progress)
    sums = sources.check(entry, files, sha256)
    return Contents(entry.class_names, sums, cifar.read(entry, files) if entry.archive else idx.read(files))


def _bytes(dataset: Dataset) -> int:
    return sum(math.prod(shape) for shape in dataset.shapes.values())
