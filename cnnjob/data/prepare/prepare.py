"""Prepare a dataset: convert source files into one HDF5 file.

:func:`prepare` is the only entry point. :mod:`~cnnjob.data.prepare.sources` finds, downloads and hashes the files of a
published dataset; :mod:`~cnnjob.data.prepare.folders` finds and hashes a user's images. One module per format reads
the source files as a stream of chunks, and :mod:`~cnnjob.data.prepare.writer` writes any such stream. Prepared files
are read by :mod:`cnnjob.data.dataset`.
"""

import math
import re
import shlex
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from cnnjob.data.dataset import Dataset
from cnnjob.data.images import FITS, WHITE, Fit
from cnnjob.data.prepare import cifar, digits, idx, output_path, sources, unchanged
from cnnjob.data.prepare.arrays.stream import ArraySet, read_array_set
from cnnjob.data.prepare.catalogue import DIGITS, KNOWN, Entry
from cnnjob.data.prepare.folders.folder import MAX_PIXELS
from cnnjob.data.prepare.folders.options import VAL, FolderOptions
from cnnjob.data.prepare.recognise import read_source
from cnnjob.data.prepare.writer import DatasetContents, write
from cnnjob.errors import DataError, JobError, closest_name, plural
from cnnjob.files import no_fence

__all__ = ["KNOWN", "Entry", "Prepared", "prepare"]

FOLDER = "folder"
_ENTRIES = {entry.name: entry for entry in KNOWN}


@dataclass(frozen=True)
class Prepared:
    """The result of :func:`prepare`.

    Attributes:
        dataset: the prepared dataset.
        created: whether this call wrote the file; if not, a complete file from the same source already existed.
        seconds: duration of the call.
        description: detected type of the source, in one line; empty for a published dataset.
        warnings: warnings about the source, one line each.
    """

    dataset: Dataset
    created: bool
    seconds: float
    description: str = ""
    warnings: tuple[str, ...] = ()


def prepare(
    name: str,
    out: Path,
    *,
    source: str | Path | None = None,
    sha256: str | None = None,
    size: tuple[int, int] | None = None,
    fit: Fit = FITS[0],
    test_fraction: float | str | None = None,
    labels: Path | None = None,
    skip_damaged: int = 0,
    arrays: ArraySet | None = None,
    background: tuple[int, int, int] = WHITE,
    zip_encoding: str | None = None,
    force: bool = False,
    verify: bool = False,
    progress: bool = False,
) -> Prepared:
    """Convert a dataset into one HDF5 file, unless that file already exists.

    Args:
        name: name of an entry in :data:`KNOWN`, or a new name for the images in ``source`` or ``arrays``; ``folder``
            stands for the name of the file ``out``, without its suffix.
        out: the file to write; its folder is created if necessary, and a symbolic link is followed.
        source: a folder, a file or a URL; if None, the files are downloaded from the publisher or its mirrors.
        sha256: expected SHA-256 of the source; if specified, the source may differ from the published one.
        size: (H, W) to which a folder's images are scaled.
        fit: how to fit images to the size: ``crop``, ``pad`` or ``stretch``.
        test_fraction: fraction of each class in a folder that becomes the test split, in (0, 1); ``val`` makes the
            validation images the test images.
        labels: a table with the labels of a folder's images.
        skip_damaged: maximum number of unusable images that are skipped; they are listed in the prepared file.
        background: colour (R, G, B) behind transparent pixels and around padded images, each 0..255.
        zip_encoding: encoding of names in a zip archive that are not in UTF-8, such as ``gbk``.
        arrays: images and labels in memory, instead of a source; see :func:`.arrays.in_memory.arrays_of`.
        force: whether to overwrite an existing file, regardless of what it contains.
        verify: whether to read and hash a source even if its files have the same sizes and times as before.
        progress: whether to show progress bars on stderr, if stderr is a terminal.

    Returns:
        The dataset, and how it was obtained.

    Raises:
        DataError: the source is missing, damaged or not the expected one; or the file cannot be written.
        JobError: the arguments contradict each other, or a different file already exists.
    """
    started, started_ns = time.perf_counter(), time.time_ns()
    progress = progress and sys.stderr.isatty()
    _require_known(name, name if arrays else source)
    options = FolderOptions(
        name if source is None else str(source),
        out,
        size,
        fit,
        test_fraction,
        labels,
        skip_damaged,
        background,
        zip_encoding,
        _unrelated_options(sha256, force=force, verify=verify),
    )
    request = _Request(name, None if source is None else str(source), sha256, options, arrays)
    request.require_possible()
    # A user's images are not in the catalogue, so the dataset is named after its file.
    title = out.stem if name == FOLDER else name
    output_path.require_title(out, title)
    if source is not None:
        output_path.require_not_source(out, Path(source))
    output_path.require_writable(out)
    fence = no_fence if force else partial(output_path.require_same, out, output_path.identity(out))
    published = request.published()
    # With published checksums, an existing file can be recognised without downloading or hashing the sources.
    dataset = None if force else output_path.existing_dataset(out, title, published, options.as_json())
    contents: DatasetContents | None = None
    if request.is_own and not (force or verify):
        remembered = unchanged.find_record(out, Path(source or ""), options)
        if remembered and (dataset := output_path.existing_dataset(out, title, remembered.sha256, options.as_json())):
            request.require_pinned(remembered.sha256)
            return Prepared(
                dataset,
                created=False,
                seconds=time.perf_counter() - started,
                description=remembered.description,
                warnings=tuple(remembered.warnings),
            )
    if dataset is None or published is None:
        contents = request.contents(progress=progress)
        output_path.require_outside(out, Path(source or ""), contents.bases)
        # Check again now that the sources have been hashed; their pixels are not read until they are written.
        dataset = None if force else output_path.existing_dataset(out, title, contents.sha256, options.as_json())
        if dataset is None:
            if progress:
                from cnnjob.data.prepare.progress import counted  # noqa: PLC0415

                contents = counted(contents, title)
            stored = options.as_json() | ({output_path.SKIPPED: contents.faults} if skip_damaged else {})
            write(out, title, contents, stored, fence=fence)
    created = dataset is None
    dataset = dataset or Dataset.open(out)
    description, warnings = "", tuple[str, ...]()
    if contents:
        remarks = [f"{source}: {plural(count, 'image')}: {remark}" for remark, count in contents.remarks.items()]
        description, warnings = contents.description, (*contents.warnings, *remarks)
        if request.is_own:
            unchanged.save_record(out, Path(source or ""), options, replace(contents, warnings=warnings), started_ns)
    return Prepared(dataset, created, time.perf_counter() - started, description, warnings)


def _unrelated_options(sha256: str | None, *, force: bool, verify: bool) -> tuple[str, ...]:
    """Return the options that do not affect the result, as typed on the command line."""
    given = {"--force": force, "--verify": verify}
    return (*(("--sha256", sha256) if sha256 else ()), *(option for option, is_given in given.items() if is_given))


def _require_known(name: str, source: str | Path | None) -> None:
    """Refuse a name that is not in the catalogue.

    If a source is given, a new name is also accepted: it becomes the name of the dataset prepared from the source.

    Raises:
        DataError: nothing has this name; the message suggests what to specify instead.
        JobError: the name or the source is a URL.
    """
    known = (*_ENTRIES, FOLDER)
    address = next((text for text in map(str, (source, name)) if "://" in text), None)
    if address and name not in _ENTRIES:
        if not address.startswith(("http://", "https://", "ftp://")):
            raise JobError(f"{address}: cnnjob downloads only its built-in datasets. Copy the file to this machine")
        file = PurePosixPath(urlsplit(address).path).name or "FILE"
        raise JobError(
            f"{address}: cnnjob downloads only its built-in datasets. Download the file yourself, then prepare it:\n"
            f"  {shlex.join(['curl', '-L', '-o', file, address])}\n  {shlex.join(['cnnjob', 'prepare', file])}"
        )
    if name in known:
        return
    near = closest_name(name, (*_ENTRIES, *(path.name for path in Path().glob("*/"))))
    is_capitalised = name.lower() in known
    if source is not None and not is_capitalised and "/" not in name:
        return
    hint = f"Did you mean {near}?" if near else f"Specify a folder, or one of {', '.join(_ENTRIES)}"
    raise DataError(f"{name}: no such dataset, folder or archive. {hint}")


@dataclass(frozen=True)
class _Request:
    """The arguments of :func:`prepare`, with the properties and checks that depend only on them."""

    name: str
    source: str | None
    sha256: str | None
    options: FolderOptions
    arrays: ArraySet | None = None

    @property
    def is_published(self) -> bool:
        return self.name in _ENTRIES

    @property
    def is_own(self) -> bool:
        return self.source is not None and not self.is_published

    def published(self) -> dict[str, str] | None:
        """Return the checksums of the files to be downloaded; None if the checksums are not known in advance."""
        if self.source is not None or not self.is_published or self.name == DIGITS.name:
            return None
        return {file.name: file.sha256 for file in _ENTRIES[self.name].files}

    def contents(self, *, progress: bool) -> DatasetContents:
        """Return the contents of the source, hashed but not yet parsed."""
        if self.name == DIGITS.name:
            return digits.contents(DIGITS.class_names)
        if self.arrays:
            return read_array_set(self.arrays, self.options)
        if not self.is_published:
            contents = read_source(Path(self.source or ""), self.options, progress=progress)
            self.require_pinned(contents.sha256)
            return contents
        entry = _ENTRIES[self.name]
        files = sources.obtain(entry, self.source, self.sha256, progress=progress)
        sums = sources.check(entry, files, self.sha256)
        return DatasetContents(entry.class_names, sums, cifar.read(entry, files) if entry.archive else idx.read(files))

    def require_pinned(self, sums: dict[str, str]) -> None:
        """Check that a user's source has the expected SHA-256, if one was specified."""
        digest = sources.pin_of(sums)
        if self.sha256 is not None and self.sha256.lower() != digest:
            raise DataError(
                f"{self.source}: not the pinned source (found sha256 {digest}, expected {self.sha256}). Copy it again"
            )

    def require_possible(self) -> None:
        """Refuse arguments that contradict each other."""
        self._require_possible_source()
        if not self.is_published:
            self._require_possible_images()
            return
        if given := self.options.as_typed():
            raise JobError(f"{self.name}: its size and splits are fixed (found {' '.join(given)}). Omit these options")

    def _require_possible_source(self) -> None:
        if self.arrays and (self.source is not None or self.name in {*_ENTRIES, FOLDER}):
            found = f"the name {self.name}" if self.source is None else f"source {self.source}"
            raise JobError(
                f"{self.name}: arrays can have neither a source nor a built-in name (found {found}). Choose another "
                "name, or omit the source"
            )
        if self.name == FOLDER and self.source is None:
            raise JobError(f"{FOLDER}: no source. Specify the folder that contains the images")
        if self.name == DIGITS.name and self.source is not None:
            raise JobError(
                f"{self.name}: comes with scikit-learn and needs no source (found {self.source}). Omit --source"
            )
        if self.source is not None and not self.source.strip():
            raise JobError(f"{self.name}: no source (found {self.source!r}). Specify a folder, a file or an address")
        if self.sha256 is not None and self.source is None:
            raise JobError(f"{self.name}: a sha256 without a source (found {self.sha256}). Specify --source as well")
        if self.sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", self.sha256):
            raise JobError(f"sha256: not a SHA-256 (found {self.sha256!r}). Specify 64 hexadecimal characters")

    def _require_possible_images(self) -> None:
        size, fraction = self.options.size, self.options.test_fraction
        if size and not (min(size) > 0 and math.prod(size) <= MAX_PIXELS):
            raise JobError(
                f"size: must be at least 1x1 and at most {MAX_PIXELS:,} pixels in total (found {size[0]}x{size[1]}). "
                "Choose another size"
            )
        if self.options.fit not in FITS:
            raise JobError(f"fit: unknown (found {self.options.fit!r}). Choose one of {', '.join(FITS)}")
        try:
            b"/".decode(self.options.zip_encoding or "ascii")
        except (LookupError, UnicodeError):
            raise JobError(
                f"zip_encoding: not an encoding of names (found {self.options.zip_encoding!r}). Specify one that "
                "Python knows, such as gbk, shift_jis, cp949 or cp866"
            ) from None
        if self.options.fit != FITS[0] and size is None:
            raise JobError(f"fit: {self.options.fit} needs a size. Specify --size as well")
        if self.options.skip_damaged < 0:
            raise JobError(f"skip_damaged: must not be negative (found {self.options.skip_damaged}). Specify 0 or more")
        if fraction not in {None, VAL} and not (isinstance(fraction, int | float) and 0 < fraction < 1):
            raise JobError(
                f"test_fraction: must be between 0 and 1, or {VAL} (found {fraction}). Specify a fraction, such as "
                "--test-fraction 0.2"
            )
