"""Check the path of a dataset before any work: it must be writable, and must not overwrite anything else."""

import os
from pathlib import Path
from typing import Any

from cnnjob.data.dataset import SPLITS, Dataset, is_damaged
from cnnjob.errors import DataError, JobError

_MOST_FOLDERS = 200  # Path.mkdir(parents=True) recurses once per missing folder
_INSTEAD = "give another --out, or overwrite it with --force"


def target_of(out: Path) -> Path:
    """Return the file behind a path's symbolic links; it is the one to replace, so that the links stay."""
    return Path(os.path.realpath(out))


def require_title(out: Path, title: str) -> None:
    """Refuse a name that cannot be stored in the file.

    Args:
        out: the file to be written.
        title: name of the dataset.

    Raises:
        JobError: the name contains bytes that are not UTF-8.
    """
    # In a name taken from a path, such bytes are lone surrogates, which "replace" turns into question marks.
    if title != title.encode(errors="replace").decode():
        raise JobError(f"{out}: the dataset's name is not UTF-8 (found {title!a}). Give --out a name that is")


def require_apart(out: Path, source: Path, *, of_images: bool) -> None:
    """Refuse a file that is its own source, or that a later ``prepare`` of the source would read as an image.

    Args:
        out: the file to be written.
        source: the folder or file to be read.
        of_images: whether the source is a folder of images, in whose subfolders every file counts as an image.

    Raises:
        JobError: the file is the source, or would lie among its images.
    """
    target, read = target_of(out), target_of(source)
    if target == read and not target.is_dir():
        raise JobError(f"{out}: it is the source (found --source {source}). Give another --out")
    if of_images and target != read and target.is_relative_to(read):
        splits = [split for split in SPLITS if (read / split).is_dir()]
        first, *inside = target.relative_to(read).parts
        if inside and not first.startswith(".") and (not splits or first in splits):
            raise JobError(f"{out}: it would lie among the images of {source} (found in {first}). Give another --out")


def require_writable(out: Path) -> None:
    """Refuse a path to which no file can be written, without creating anything.

    Args:
        out: the file to be written.

    Raises:
        DataError: its folder cannot be created or written to.
        JobError: the path is a folder or another kind of special file, or is too deep.
    """
    try:
        _require_writable(out, target_of(out))
    except OSError as error:
        raise DataError(f"{out}: cannot be written, {error.strerror}; give another --out") from error


def _require_writable(out: Path, target: Path) -> None:
    if len(target.parts) > _MOST_FOLDERS:
        raise JobError(f"{out}: too deep, found {len(target.parts)} folders; give another --out")
    if target.is_dir():
        raise JobError(f"{out}: not a file, found a folder; name a file in it, as --out {out / 'NAME.h5'}")
    if os.path.lexists(target) and not target.is_file():
        raise JobError(f"{out}: not a plain file, found a device, a pipe or a loop of links; give another --out")
    # The nearest folder that exists; the missing ones will be created in it.
    folder = next(parent for parent in target.parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise DataError(f"{out}: cannot be written, found {folder} to be no folder; give another --out")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"{out}: cannot be written, found no permission in {folder}; give another --out")


def found_at(out: Path, name: str, sha256: dict[str, str] | None, options: dict[str, Any]) -> Dataset | None:
    """Return the dataset that already exists at a path, if it is the requested one.

    Args:
        out: the file to be written.
        name: name of the requested dataset.
        sha256: checksums of its source files; None if they are not known yet, and then not compared.
        options: how its source files are read.

    Returns:
        The dataset, or None if there is no file, or only a damaged dataset.

    Raises:
        JobError: another file or dataset exists, which would be overwritten.
    """
    if not out.exists():
        return None
    try:
        dataset = Dataset.open(out)
    except DataError as error:
        if is_damaged(out):
            return None
        raise JobError(f"{out}: already there, found no dataset of this program; {_INSTEAD}") from error
    if dataset.name != name:
        raise JobError(f"{out}: already there, found the dataset {dataset.name!r} and not {name!r}; {_INSTEAD}")
    if dataset.options != options:
        raise JobError(f"{out}: already there, found packed with {_said(dataset.options)}; {_INSTEAD}")
    if sha256 is not None and dataset.source_sha256 != sha256:
        raise JobError(f"{out}: already there, found packed from other source files; {_INSTEAD}")
    return dataset


def _said(options: dict[str, Any]) -> str:
    """Return a dataset's options as typed on the command line."""
    size, fraction = options.get("size"), options.get("test_fraction")
    given = [f"--size {'x'.join(map(str, size))}"] if isinstance(size, list) else []
    given += [f"--test-fraction {fraction}"] if fraction else []
    return " ".join(given) or "no options"
