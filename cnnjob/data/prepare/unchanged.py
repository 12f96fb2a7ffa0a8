"""Recognise a source that has not changed since it was prepared by sizes and times, without reading its files.

What is remembered lies in the cache of downloads, one file per prepared dataset. It only saves time: without it, or
with ``--verify``, every file is read and hashed.
"""

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cnnjob import __version__, files
from cnnjob.data.prepare.download import cache_folder
from cnnjob.data.prepare.folders.options import FolderOptions
from cnnjob.data.prepare.folders.tree import FolderTree, Stamp, stamp_of
from cnnjob.errors import CnnjobError

_SETTLED_SECONDS = 2.0
"""Age that a change needs: a file system may give two changes within one tick of its clock the same time."""


@dataclass(frozen=True)
class Remembered:
    """What was found in a source when it was prepared.

    Attributes:
        fingerprint: :func:`fingerprint` of the source and the options.
        sha256: the checksums of the source.
        description: what it was recognised as.
        warnings: what the user should know about it.
        version: that of the package.
    """

    fingerprint: str
    sha256: dict[str, str]
    description: str
    warnings: list[str]
    version: str = __version__


def fingerprint(source: Path, options: FolderOptions) -> str | None:
    """Return a digest of the names, sizes, inodes and times of a source's files, and of the options.

    Args:
        source: a file or a folder.
        options: how it is read; the table of labels counts as a file.

    Returns:
        The digest; None if a file was changed so recently that a later change may leave the same time, or if the
        source cannot be listed.
    """
    now_ns = time.time_ns()
    settled_ns = now_ns - int(1e9 * _SETTLED_SECONDS)
    digest = hashlib.sha256(repr((options.as_json(), options.skip_damaged)).encode())
    try:
        for name, stamp in _stamps(source, options):
            if stamp is None or stamp[-1] > settled_ns:
                return None
            digest.update(f"{name}\0{stamp}\n".encode(errors="surrogateescape"))
    except (OSError, CnnjobError):  # reading the source says what is wrong
        return None
    return digest.hexdigest()


def _stamps(source: Path, options: FolderOptions) -> Iterator[tuple[str, Stamp | None]]:
    if options.labels:
        yield str(options.labels.resolve()), stamp_of(options.labels.stat())
    if not source.is_dir():
        yield str(source.resolve()), stamp_of(source.stat())
        return
    tree = FolderTree(source)
    listing = tree.list()
    yield str(source.resolve()), (0, 0, 0, 0)
    for name in listing.folders:
        yield name, (0, 0, 0, 0)
    for name in (*listing.files, *listing.left_out):  # arrays and tables are among those that are no images
        yield name, tree.stamp(name)


def recall(out: Path, found: str | None) -> Remembered | None:
    """Return what is remembered of the source of a dataset.

    Args:
        out: the dataset's file.
        found: the fingerprint of the source now.

    Returns:
        None if there is nothing, or the source has changed.
    """
    if found is None or not (path := _record_of(out)).exists():
        return None
    try:
        remembered = Remembered(**files.read_json(path))
    except (CnnjobError, TypeError):  # damaged, or of another version
        return None
    # What follows from the same files may change with the code that reads them.
    return remembered if (remembered.fingerprint, remembered.version) == (found, __version__) else None


def remember(out: Path, remembered: Remembered) -> None:
    """Write down what was found in the source of a dataset; a cache that cannot be written is no error."""
    path = _record_of(out)
    content: dict[str, Any] = asdict(remembered)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, content)
    except (OSError, CnnjobError):
        return


def _record_of(out: Path) -> Path:
    return cache_folder() / "prepared" / f"{files.sha256_of(os.fsencode(out.resolve()))}.json"
