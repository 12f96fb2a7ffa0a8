"""Check a dataset's output path before any work starts: it must be writable and must not overwrite other files."""

import fcntl
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cnnjob.data.dataset import SUFFIXES, Dataset, is_damaged
from cnnjob.data.prepare.folders.options import typed_colour
from cnnjob.errors import DataError, JobError
from cnnjob.files import open_regular

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MOST_FOLDERS = 200  # Path.mkdir(parents=True) recurses once per missing folder
_INSTEAD = "Choose another --out, or overwrite the file with --force"
SKIPPED = "skipped"
"""Key in a prepared dataset's options; its value maps the name of each skipped source file to the file's fault."""


def target_of(out: Path) -> Path:
    """Return the file that a path resolves to; replacing that file leaves symbolic links intact."""
    return Path(os.path.realpath(out))


def require_title(out: Path, title: str) -> None:
    """Refuse a dataset name that cannot be stored in the file.

    Args:
        out: the file to be written.
        title: name of the dataset.

    Raises:
        JobError: the name contains bytes that are not UTF-8.
    """
    # In a name taken from a path, such bytes are lone surrogates, which "replace" turns into question marks.
    if title != title.encode(errors="replace").decode():
        raise JobError(f"{out}: the dataset's name is not UTF-8 (found {title!a}). Choose another --out")


def require_not_source(out: Path, source: Path) -> None:
    """Refuse an output path that is the same file as the source.

    Args:
        out: the file to be written.
        source: the folder or file to be read.

    Raises:
        JobError: the output file is the source.
    """
    target = target_of(out)
    if target == target_of(source) and not target.is_dir():
        raise JobError(f"{out}: is also the source (found --source {source}). Choose another --out")


def identity(out: Path) -> tuple[int, ...] | None:
    """Return values that change when a file is created, replaced or written to; None if there is no file."""
    try:
        status = out.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def require_same(out: Path, found: tuple[int, ...] | None) -> None:
    """Refuse to replace a file that was created or changed while the dataset was being prepared.

    Args:
        out: the file to be written.
        found: the :func:`identity` of the file before the dataset was prepared.

    Raises:
        JobError: the file was created or changed in the meantime.
    """
    if identity(out) != found:
        raise JobError(
            f"{out}: created or changed by another process in the meantime. Run the same command again, or choose "
            "another --out"
        )


def require_outside(out: Path, root: Path, bases: Iterable[Path]) -> None:
    """Refuse an output path that a later ``prepare`` of the same folder would read as an image.

    Args:
        out: the file to be written.
        root: the folder of images.
        bases: the folders under the root that contain the class folders.

    Raises:
        JobError: the output file would be among the images.
    """
    target, read = target_of(out), target_of(root)
    for folder in map(target_of, bases):
        inside = target.relative_to(folder).parts if target.is_relative_to(folder) else ()
        # A file directly in the root is next to the class folders, not in one, and a hidden folder is not read.
        if inside and not inside[0].startswith(".") and (len(inside) > 1 or folder != read):
            first = target.relative_to(read).parts[0]
            raise JobError(
                f"{out}: would be written into the image folder {root} (in its subfolder {first}). Choose another --out"
            )


def require_writable(out: Path) -> None:
    """Check that a file can be written to a path. Nothing is created or changed by the check.

    Args:
        out: the file to be written.

    Raises:
        DataError: the parent folder cannot be created or written to.
        JobError: the path is a folder or a special file, does not end in ``.h5``, or is nested too deeply.
    """
    try:
        _require_writable(out, target_of(out))
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror}). Choose another --out") from error


def _require_writable(out: Path, target: Path) -> None:
    if len(target.parts) > _MOST_FOLDERS:
        raise JobError(f"{out}: nested too deeply (found {len(target.parts)} folders). Choose another --out")
    if target.is_dir():
        raise JobError(f"{out}: not a file (found a folder). Specify a file in it, such as --out {out / 'NAME.h5'}")
    if os.path.lexists(target) and not target.is_file():
        raise JobError(f"{out}: not a regular file (found a device, a pipe or a link loop). Choose another --out")
    if out.suffix not in SUFFIXES:
        raise JobError(
            f"{out}: the name of a prepared file must end in .h5 so that other commands recognise it "
            f"(found {out.name!r}). Choose another --out"
        )
    # The nearest existing folder; missing folders will be created in it.
    folder = next(parent for parent in target.parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise DataError(f"{out}: cannot be written ({folder} is not a folder). Choose another --out")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"{out}: cannot be written (no permission in {folder}). Choose another --out")


def existing_dataset(out: Path, name: str, sha256: dict[str, str] | None, options: dict[str, Any]) -> Dataset | None:
    """Return the existing dataset at the output path, if it is the requested dataset.

    Args:
        out: the file to be written.
        name: name of the requested dataset.
        sha256: checksums of the requested dataset's source files; None if they are not known yet, in which
            case they are not compared.
        options: how the requested dataset's source files are read.

    Returns:
        The dataset, or None if the file does not exist or is a damaged dataset.

    Raises:
        JobError: the existing file is not the requested dataset, and would be overwritten.
    """
    if not out.exists():
        return None
    _require_not_open(out)
    try:
        dataset = Dataset.open(out)
    except DataError as error:
        if is_damaged(out):
            return None
        kind = "another program's HDF5 file" if _is_hdf5(out) else "a file that is not a dataset"
        raise JobError(
            f"{out}: already exists but is not a cnnjob dataset (found {kind}). Choose another --out"
        ) from error
    # Which files were skipped follows from the source and the permitted number of unusable files.
    existing = {key: value for key, value in dataset.options.items() if key != SKIPPED}
    if dataset.name != name:
        raise JobError(f"{out}: already exists (found the dataset {dataset.name!r}, not {name!r}). {_INSTEAD}")
    if existing != options:
        raise JobError(f"{out}: already exists (found a dataset prepared with {_as_typed(existing)}). {_INSTEAD}")
    if sha256 is not None and dataset.source_sha256 != sha256:
        raise JobError(f"{out}: already exists (found a dataset prepared from other source files). {_INSTEAD}")
    return dataset


def _require_not_open(out: Path) -> None:
    """Refuse a file that another process is writing; HDF5 holds a lock on such a file."""
    with open_regular(out) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JobError(f"{out}: another program has it open for writing. Choose another --out") from error
        except OSError:  # a file system without locks
            return


def _is_hdf5(path: Path) -> bool:
    with open_regular(path) as file:
        return file.read(len(_HDF5_SIGNATURE)) == _HDF5_SIGNATURE


def _as_typed(options: dict[str, Any]) -> str:
    """Return a dataset's options as typed on the command line."""
    size, fraction, fit = options.get("size"), options.get("test_fraction"), options.get("fit")
    background = options.get("background")
    given = [f"--size {'x'.join(map(str, size))}"] if isinstance(size, list) else []
    given += [f"--fit {fit}"] if fit else []
    given += [f"--background {typed_colour(background)}"] if isinstance(background, list) else []
    given += [f"--zip-encoding {options['zip_encoding']}"] if "zip_encoding" in options else []
    given += [f"--test-fraction {fraction}"] if fraction else []
    return " ".join(given) or "no options"
