"""Snapshots of the package's code, so that a SLURM job runs the code that was submitted, even after a requeue.

Runs with the same code and the same parent folder share one copy of the code. A copy is named after the digest of its
files. The files are checked against the digest before each submission and at the start of each attempt.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from cnnjob import files
from cnnjob.errors import DataError
from cnnjob.runs.commit import COMMIT_FILE, find_commit
from cnnjob.runs.run import Run

CODE = ".code"
_ROOT = files.PACKAGE.parent
_PACKAGE_VARIABLES = ("PYTHONHOME", "PYTHONPLATLIBDIR", "PYTHONUSERBASE", "PYTHONNOUSERSITE")
"""Environment variables that determine which standard library and packages an interpreter finds."""
_UNSET = ("PYTHONINSPECT", "PYTHONOPTIMIZE", "PYTHONPYCACHEPREFIX", "PYTHONSTARTUP", "PYTHONWARNINGS", "PYTHONDEVMODE")
"""Environment variables that could hide an exit code, load bytecode from elsewhere, or turn a warning into an error."""
_NFS = ".nfs"
"""Prefix of the name under which NFS keeps a removed file while another host has it open."""
Contents = Mapping[str, bytes | None]
"""A folder's entries: relative path → file content, or None for an entry that is not a readable file."""


def snapshot_folder(run: Run) -> Path:
    """Return the snapshot folder for the package's current code; all runs in the same parent folder share it."""
    return _folder_of(run, _read_package())


def python_environment(code: Path) -> dict[str, str | None]:
    """Return the environment variables that make Python run a code snapshot.

    Python then imports nothing from the current folder. Bytecode is neither written to the snapshot nor read from
    elsewhere, since no digest covers it. Installed packages are found where this process finds them, even if the node
    or a profile's setup lines set other paths.

    Args:
        code: folder of the snapshot.

    Returns:
        The value of each environment variable; None for a variable that must be unset.
    """
    fixed = {"PYTHONPATH": str(code), "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**{name: os.environ.get(name) for name in _PACKAGE_VARIABLES}, **dict.fromkeys(_UNSET), **fixed}


def save_snapshot(run: Run) -> Path:
    """Copy the package unless an intact copy exists, and return the folder of the copy; a damaged copy is repaired.

    Raises:
        DataError: the copy cannot be written.
    """
    package = _read_package()
    folder = _folder_of(run, package)
    try:
        if folder.is_symlink() or _read_contents(folder) != package:
            with _temporary_copy(folder, package) as fresh:
                _install(fresh, folder, package)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot write the code snapshot ({error}). Check the free space and the folder's permissions"
        ) from error
    return folder


def check_snapshot() -> None:
    """Check the code snapshot that this process runs, if it runs one.

    Raises:
        DataError: the snapshot differs from the code that was submitted.
    """
    if _ROOT.parent.name != CODE:
        return
    contents = _read_contents(_ROOT)
    if (digest := _snapshot_digest(contents)) != _ROOT.name:
        unexpected = [entry for entry, content in contents.items() if content is None or "__pycache__" in entry]
        difference = f"digest {digest}{f' and {unexpected[0]}' if unexpected else ''}"
        raise DataError(f"{_ROOT}: not the code that was submitted (found {difference}). Submit the run again")


def _folder_of(run: Run, package: Contents) -> Path:
    return run.path.resolve().parent / CODE / _snapshot_digest(package)


def _snapshot_digest(contents: Contents) -> str:
    # lengths and NULs keep two different sets of files from producing the same bytes
    parts = [
        f"{name}\0".encode() if content is None else f"{name}\0{len(content)}\0".encode() + content
        for name, content in sorted(contents.items())
    ]
    return files.short_digest(files.sha256_of(*parts))


def _read_package() -> dict[str, bytes]:
    """Return this package's files by path, excluding bytecode and hidden files but including a file with the commit.

    A snapshot is not a Git repository, so the commit is stored with the code.
    """
    paths = [path for path in files.PACKAGE.rglob("[!.]*") if path.is_file() and "__pycache__" not in path.parts]
    contents = {str(path.relative_to(_ROOT)): path.read_bytes() for path in paths}
    return {**contents, f"{files.PACKAGE.name}/{COMMIT_FILE}": files.readable_json(find_commit()).encode()}


def _read_contents(folder: Path) -> Contents:
    """Return everything in a snapshot, including hidden files, bytecode, links and empty folders.

    Any of them could change what Python imports.
    """
    contents: dict[str, bytes | None] = {}
    for directory, subfolders, names in os.walk(folder):
        parent = Path(directory)
        links = [name for name in subfolders if (parent / name).is_symlink()]
        entries = [parent / name for name in (*names, *links) if not name.startswith(_NFS)]
        contents |= {str(entry.relative_to(folder)): _read_content(entry) for entry in entries}
        if not (subfolders or names) and parent != folder:
            contents[str(parent.relative_to(folder))] = None
    return contents


def _read_content(path: Path) -> bytes | None:
    """Return a file's content; None for a link, a pipe, or a file that cannot be read or is too large to be code."""
    with suppress(DataError):
        return None if path.is_symlink() else files.read_bytes(path)
    return None


@contextmanager
def _temporary_copy(folder: Path, package: Mapping[str, bytes]) -> Iterator[Path]:
    """Write a copy of the package next to a folder, and yield the path of the copy; on exit, remove the copy."""
    temporary = files.temporary_name(folder)
    try:
        for name, content in package.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _install(fresh: Path, folder: Path, package: Mapping[str, bytes]) -> None:
    """Move a new copy of the package to the path of a snapshot folder, or repair the folder if it exists.

    During this call, a SLURM job may start from the folder, and another submission may install an identical copy.

    Raises:
        OSError: the copy could not be installed.
    """
    if folder.is_symlink() or not folder.is_dir():
        _move_away(folder, fresh)
    if folder.is_dir():
        _repair(folder, package, fresh)
        return
    try:
        fresh.rename(folder)
    except OSError:
        if not folder.exists():  # otherwise another submission has installed the same content
            raise


def _repair(folder: Path, package: Mapping[str, bytes], fresh: Path) -> None:
    """Make the content of a snapshot folder equal to the package, with one rename per replaced or removed entry.

    The folder itself is not replaced, since a SLURM job may be starting from it.
    """
    contents = _read_contents(folder)
    folders = {parent for name in package for parent in Path(name).parents}
    for name in (name for name, content in contents.items() if content is None or name not in package):
        # a folder that is not part of the package is removed as a whole
        outermost = next((path for path in reversed(Path(name).parents) if path not in folders), Path(name))
        _move_away(folder / outermost, fresh)
    for name, content in package.items():
        if contents.get(name) != content:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (fresh / name).replace(folder / name)


def _move_away(path: Path, fresh: Path) -> None:
    """Move a file or folder that does not belong to the package into a folder that is about to be removed."""
    with suppress(FileNotFoundError):  # another submission has removed it
        path.rename(files.temporary_name(fresh / path.name))
