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

from cnnjob import __version__, files
from cnnjob.data.prepare.download import cache_folder
from cnnjob.data.prepare.folders.options import FolderOptions
from cnnjob.data.prepare.folders.tree import FolderTree, Listing, Stamp, stamp_of
from cnnjob.data.prepare.writer import DatasetContents
from cnnjob.errors import CnnjobError

_SETTLED_SECONDS = 2.0
"""Minimum age of a file's last change; two changes within one tick of a file system's clock may have the same time."""


@dataclass(frozen=True)
class SourceRecord:
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


def fingerprint(source: Path, options: FolderOptions, time_ns: int, listing: Listing | None = None) -> str | None:
    """Return a digest of the names, sizes, inodes and times of a source's files and folders, and of the options.

    Args:
        source: a file or a folder.
        options: how the source is read; the table of labels is treated as one of the source's files.
        time_ns: time before which nothing has been read, in nanoseconds since 1970.
        listing: the files in the folder, with the stamps of those that have been read; None if nothing has been read.

    Returns:
        The digest. None if the source cannot be listed, or if a file or folder was changed too recently: the content
        that was read may be older, or another change might not alter the recorded time.
    """
    settled_ns = time_ns - int(1e9 * _SETTLED_SECONDS)
    digest = hashlib.sha256(repr((options.as_json(), options.skip_damaged, str(source.resolve()))).encode())
    try:
        for name, stamp in _stamps(source, options, listing):
            if stamp is None or stamp[-1] > settled_ns:
                return None
            digest.update(f"{name}\0{stamp}\n".encode(errors="surrogateescape"))
    except (OSError, CnnjobError):  # reading the source will raise an error that states the cause
        return None
    return digest.hexdigest()


def _stamps(source: Path, options: FolderOptions, listing: Listing | None) -> Iterator[tuple[str, Stamp | None]]:
    if options.labels:
        yield str(options.labels.resolve()), stamp_of(options.labels.stat())
    if not source.is_dir():
        yield "", stamp_of(source.stat())
        return
    tree = FolderTree(source)
    listing = listing or tree.list()
    for name in ("", *listing.folders, *listing.files, *listing.left_out):  # the last include arrays and tables
        yield name, listing.stamps.get(name) or tree.stamp(name)


def find_record(out: Path, source: Path, options: FolderOptions) -> SourceRecord | None:
    """Return the record of a dataset's source, if the source has not changed.

    Args:
        out: the dataset's file.
        source: a file or a folder.
        options: how the source is read.

    Returns:
        The record; None if no record exists, or if the source or the package's version has changed.
    """
    try:
        record = SourceRecord(**files.read_json(_record_of(out)))
    except (CnnjobError, TypeError):  # missing, damaged, or written by another version
        return None
    # The same files may be read differently by another version of the code.
    is_same = record.version == __version__
    return record if is_same and record.fingerprint == fingerprint(source, options, time.time_ns()) else None


def save_record(out: Path, source: Path, options: FolderOptions, contents: DatasetContents, started_ns: int) -> None:
    """Store the record of a source that has been read; do nothing if the cache cannot be written to.

    Args:
        out: the dataset's file.
        source: a file or a folder.
        options: how the source was read.
        contents: what the source contains.
        started_ns: time before reading began, in nanoseconds since 1970.
    """
    found = fingerprint(source, options, started_ns, contents.listing)
    if found is None:
        return
    record = SourceRecord(found, contents.sha256, contents.description, [*contents.warnings])
    path = _record_of(out)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, asdict(record))
    except (OSError, CnnjobError):
        return


def _record_of(out: Path) -> Path:
    return cache_folder() / "prepared" / f"{files.sha256_of(os.fsencode(out.resolve()))}.json"
