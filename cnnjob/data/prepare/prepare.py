"""Prepare a dataset: source files in, one HDF5 file out.

:func:`prepare` is the only entry point. :mod:`~cnnjob.data.prepare.sources` finds, downloads and hashes the source
files; the module of a format reads them as a stream of chunks; :mod:`~cnnjob.data.prepare.writer` writes any such
stream. Prepared files are read by :mod:`cnnjob.data.dataset`.
"""

import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnjob.data.dataset import Dataset
from cnnjob.data.prepare import cifar, digits, folder, idx, output_path, sources
from cnnjob.data.prepare.catalogue import DIGITS, KNOWN, Entry
from cnnjob.data.prepare.progress import counted
from cnnjob.data.prepare.writer import DatasetContents, write
from cnnjob.errors import DataError, JobError, closest_name

__all__ = ["KNOWN", "Entry", "Prepared", "prepare"]

FOLDER = "folder"
_ENTRIES = {entry.name: entry for entry in KNOWN}


@dataclass(frozen=True)
class Prepared:
    """The result of :func:`prepare`.

    Attributes:
        dataset: the prepared dataset.
        created: whether the file was written by this call; otherwise a complete file of the same source existed.
        seconds: duration of the call.
        bytes: size of the dataset's images, in bytes.
        warnings: what the user should know about the source, one line each.
    """

    dataset: Dataset
    created: bool
    seconds: float
    bytes: int
    warnings: tuple[str, ...] = ()


def prepare(
    name: str,
    out: Path,
    *,
    source: str | Path | None = None,
    sha256: str | None = None,
    size: tuple[int, int] | None = None,
    test_fraction: float | None = None,
    force: bool = False,
    progress: bool = False,
) -> Prepared:
    """Convert a dataset into one HDF5 file, unless that file already exists.

    Args:
        name: name of an entry of :data:`KNOWN`, or ``folder`` for a folder of images.
        out: the file to write; its folder is created, and a symbolic link is followed.
        source: a folder, a file or a URL; None downloads from the publisher and its mirrors.
        sha256: the expected SHA-256 of the source, which permits a source other than the published one.
        size: (H, W) to which a folder's images are scaled and cropped.
        test_fraction: fraction of each class of a folder that becomes the test split, in (0, 1).
        force: whether to write again if the file exists, whatever it is.
        progress: whether to show progress bars on stderr.

    Returns:
        The dataset, and how it was obtained.

    Raises:
        DataError: the source is missing, damaged or not the expected one; or the file cannot be written.
        JobError: the arguments contradict each other, or another file exists.
    """
    started = time.perf_counter()
    request = _Request(name, None if source is None else str(source), sha256, size, test_fraction)
    request.require_possible()
    # A folder of images is in no catalogue: the file it is written to names the dataset.
    title = out.stem if name == FOLDER else name
    output_path.require_title(out, title)
    output_path.require_writable(out)
    if source is not None:
        output_path.require_apart(out, Path(source), of_images=name == FOLDER)
    published = request.published()
    # With published checksums an existing file is recognised without downloading or hashing the sources.
    there = None if force else output_path.found_at(out, title, published, request.options)
    warnings: tuple[str, ...] = ()
    if there is None or published is None:
        contents = request.contents(progress=progress)
        warnings = contents.warnings
        # Again, now that the sources are hashed; their pixels are not read before they are written.
        there = None if force else output_path.found_at(out, title, contents.sha256, request.options)
        if there is None:
            write(out, title, counted(contents, title) if progress else contents, request.options)
    dataset = there or Dataset.open(out)
    n_bytes = sum(math.prod(shape) for shape in dataset.shapes.values())
    return Prepared(dataset, there is None, time.perf_counter() - started, n_bytes, warnings)


@dataclass(frozen=True)
class _Request:
    """Arguments of :func:`prepare`, and what follows from them alone."""

    name: str
    source: str | None
    sha256: str | None
    size: tuple[int, int] | None
    test_fraction: float | None

    @property
    def options(self) -> dict[str, Any]:
        return {"size": self.size and list(self.size), "test_fraction": self.test_fraction}

    def published(self) -> dict[str, str] | None:
        """Return the checksums of the files that would be downloaded; None if they are not known in advance."""
        if self.source is not None or self.name == DIGITS.name:
            return None
        return {file.name: file.sha256 for file in _ENTRIES[self.name].files}

    def contents(self, *, progress: bool) -> DatasetContents:
        """Return the contents of the source: hashed, not yet parsed."""
        if self.name == DIGITS.name:
            return digits.contents(DIGITS.class_names)
        if self.name == FOLDER:
            return self._pinned(folder.contents(Path(self.source or ""), self.size, self.test_fraction))
        entry = _ENTRIES[self.name]
        files = sources.obtain(entry, self.source, self.sha256, progress=progress)
        sums = sources.check(entry, files, self.sha256)
        return DatasetContents(entry.class_names, sums, cifar.read(entry, files) if entry.archive else idx.read(files))

    def _pinned(self, contents: DatasetContents) -> DatasetContents:
        found = sources.pin_of(contents.sha256)
        if self.sha256 is not None and self.sha256.lower() != found:
            raise DataError(
                f"{self.source}: not the pinned folder, found sha256 {found}, expected {self.sha256}; copy it again"
            )
        return contents

    def require_possible(self) -> None:
        """Refuse arguments that contradict each other."""
        names = (*_ENTRIES, FOLDER)
        if self.name not in names:
            near = closest_name(self.name, names)
            hint = f"did you mean {near!r}?" if near else f"known are {', '.join(names)}"
            raise JobError(f"{self.name}: no such dataset, found no {self.name!r} in the catalogue; {hint}")
        self._require_possible_source()
        if self.name == FOLDER:
            self._require_possible_images()
        elif self.options != {"size": None, "test_fraction": None}:
            raise JobError(f"{self.name}: its size and splits are fixed, found {self.options}; leave them out")

    def _require_possible_source(self) -> None:
        if self.name == FOLDER and self.source is None:
            raise JobError(f"{FOLDER}: no source, found none; name the folder of images")
        if self.name == DIGITS.name and self.source is not None:
            raise JobError(f"{self.name}: it comes with scikit-learn, found source {self.source}; leave it out")
        if self.source is not None and not self.source.strip():
            raise JobError(f"{self.name}: no source, found {self.source!r}; name a folder, a file or an address")
        if self.sha256 is not None and self.source is None:
            raise JobError(f"{self.name}: a sha256 of no source, found {self.sha256}; give the source too")
        if self.sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", self.sha256):
            raise JobError(f"sha256: no SHA-256, found {self.sha256!r}; it has 64 hexadecimal characters")

    def _require_possible_images(self) -> None:
        if self.size and not (min(self.size) > 0 and math.prod(self.size) <= folder.MAX_PIXELS):
            raise JobError(f"size: from 1x1 to {folder.MAX_PIXELS:,} pixels, found {self.size}; give another")
        if self.test_fraction is not None and not 0 < self.test_fraction < 1:
            raise JobError(f"test_fraction: between 0 and 1, found {self.test_fraction}; 0.2 is usual")
