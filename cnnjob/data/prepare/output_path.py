"""Where a dataset is written: what may not be overwritten, and what cannot be written, is found before any work."""

import os
from pathlib import Path
from typing import Any

from cnnjob.data.dataset import SPLITS, Dataset, is_damaged
from cnnjob.errors import DataError, JobError

_MOST_FOLDERS = 200  # Python makes them one within the other
_INSTEAD = "give another --out, or overwrite it with --force"


def target_of(out: Path) -> Path:
    """The file behind a path's symbolic links: they stay, and it is written."""
    return Path(os.path.realpath(out))


def require_title(out: Path, title: str) -> None:
    """Refuse a dataset's name that cannot be written down.

    Args:
        out: the file that is going to be written.
        title: what the dataset is called.

    Raises:
        JobError: it has bytes that are not UTF-8.
    """
    if title != title.encode(errors="replace").decode():
        raise JobError(f"{out}: the dataset's name is not UTF-8 (found {title!a}). Give --out a name that is")


def require_apart(out: Path, source: Path, *, of_images: bool) -> None:
    """Refuse a file that is its own source, or would be an image or a class the next time.

    Args:
        out: the file that is going to be written.
        source: the folder or the file that is read.
        of_images: whether all that lies in the source's folders is taken for an image.

    Raises:
        JobError: it is.
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
    """Refuse a path that no file can be written to; nothing is made.

    Args:
        out: the file that is going to be written.

    Raises:
        DataError: its folder cannot be made or written to.
        JobError: it is a folder, or something else that is no plain file.
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
    folder = next(parent for parent in target.parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise DataError(f"{out}: cannot be written, found {folder} to be no folder; give another --out")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"{out}: cannot be written, found no permission in {folder}; give another --out")


def found_at(out: Path, name: str, sha256: dict[str, str] | None, options: dict[str, Any]) -> Dataset | None:
    """The dataset that is already there, if it is the one that was meant.

    Args:
        out: the file that is going to be written.
        name: what the dataset is called.
        sha256: its sources' sums; None where they are not known yet, and then they are not compared.
        options: how its sources are read.

    Returns:
        The dataset, or None where there is nothing, or a damaged dataset.

    Raises:
        JobError: there is something else, which packing would destroy.
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
    """The options of a dataset as one types them."""
    size, fraction = options.get("size"), options.get("test_fraction")
    given = [f"--size {'x'.join(map(str, size))}"] if isinstance(size, list) else []
    given += [f"--test-fraction {fraction}"] if fraction else []
    return " ".join(given) or "no options"
