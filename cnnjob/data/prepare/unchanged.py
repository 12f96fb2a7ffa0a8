"""Detect from file sizes and times whether a source has changed since it was prepared, without reading its files.

The records are stored in the download cache, one file per prepared dataset. They only save time: without a record, or
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
"""Minimum age of a file's last change; two changes within one tick of a file system's clock may have the same time."""


@dataclass(frozen=True)
class Remembered:
    """The record of a source at the time it was prepared.

    Attributes:
        fingerprint: :func:`fingerprint` of the source and the options.
        sha256: checksums of the source.
        description: detected type of the source.
        warnings: warnings about the source.
        version: version of cnnjob that prepared the source.
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
        options: how the source is read; the table of labels is treated as one of the source's files.

    Returns:
        The digest. None if the source cannot be listed, or if a file was changed so recently that another change might
        not alter the recorded change time.
    """
    now_ns = time.time_ns()
    settled_ns = now_ns - int(1e9 * _SETTLED_SECONDS)
    digest = hashlib.sha256(repr((options.as_json(), options.skip_damaged)).encode())
    try:
        for name, stamp in _stamps(source, options):
            if stamp is None or stamp[-1] > settled_ns:
                return None
            digest.update(f"{name}\0{stamp}\n".encode(errors="surrogateescape"))
    except (OSError, CnnjobError):  # reading the source will raise an error that states the cause
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
    for name in (*listing.files, *listing.left_out):  # files left out include arrays and tables
        yield name, tree.stamp(name)


def recall(out: Path, found: str | None) -> Remembered | None:
    """Return the record of a dataset's source, if the source has not changed.

    Args:
        out: the dataset's file.
        found: the current fingerprint of the source.

    Returns:
        The record; None if no record exists, or if the source or the package's version has changed.
    """
    if found is None or not (path := _record_of(out)).exists():
        return None
    try:
        remembered = Remembered(**files.read_json(path))
    except (CnnjobError, TypeError):  # damaged, or written by another version
        return None
    # The same files may be read differently by another version of the code.
    return remembered if (remembered.fingerprint, remembered.version) == (found, __version__) else None


def remember(out: Path, remembered: Remembered) -> None:
    """Store the record of a dataset's source; do nothing if the cache cannot be written to."""
    path = _record_of(out)
    content: dict[str, Any] = asdict(remembered)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, content)
    except (OSError, CnnjobError):
        return


def _record_of(out: Path) -> Path:
    return cache_folder() / "prepared" / f"{files.sha256_of(os.fsencode(out.resolve()))}.json"
