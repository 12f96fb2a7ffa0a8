"""The package's code as it was when a run was submitted: copied once, so that a requeued job runs that.

A copy is named by its digest, which is checked before each submission and at each attempt's start.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from cnnjob import files
from cnnjob.errors import DataError
from cnnjob.runs.environment import COMMIT_FILE, commit
from cnnjob.runs.run import Run

CODE = ".code"
_ROOT = files.PACKAGE.parent
_PACKAGES = ("PYTHONHOME", "PYTHONPLATLIBDIR", "PYTHONUSERBASE", "PYTHONNOUSERSITE")
"""Variables that choose the standard library and the packages that an interpreter finds."""
_UNSET = ("PYTHONINSPECT", "PYTHONOPTIMIZE", "PYTHONPYCACHEPREFIX", "PYTHONSTARTUP", "PYTHONWARNINGS", "PYTHONDEVMODE")
"""Variables that would hide an exit code, take byte code from elsewhere, or make a warning an error."""
_NFS = ".nfs"
"""NFS keeps a removed file under a name that begins so while another host reads it."""
Contents = Mapping[str, bytes | None]
"""The entries of a folder by their paths there: the content of a file, None for what is neither file nor folder."""


def snapshot_folder(run: Run) -> Path:
    """Return where the package's code of this moment is kept for a run and those beside it."""
    return _folder(run, _package())


def environment(code: Path) -> dict[str, str | None]:
    """Return the variables with which a Python runs a copy of the code, and nothing else from a folder or a cache.

    Byte code is neither written there nor read from elsewhere: no digest covers it. Packages are found as in this
    process, whatever a node or the setup lines of a profile set.

    Args:
        code: the copy.

    Returns:
        Their values; None for those that must not be set.
    """
    own = {"PYTHONPATH": str(code), "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**{name: os.environ.get(name) for name in _PACKAGES}, **dict.fromkeys(_UNSET), **own}


def save_snapshot(run: Run) -> Path:
    """Copy the package once, so that a requeued job runs what was submitted; repair a damaged copy.

    Raises:
        DataError: the copy cannot be written.
    """
    package = _package()
    folder = _folder(run, package)
    try:
        if folder.is_symlink() or _contents(folder) != package:
            with _written(folder, package) as fresh:
                _put(fresh, folder, package)
    except OSError as error:
        raise DataError(f"{folder}: the copy of the code cannot be written, {error}; see to that folder") from error
    return folder


def check_snapshot() -> None:
    """Check the copy of the code that this process runs, if it runs one.

    Raises:
        DataError: it is not what was submitted.
    """
    if _ROOT.parent.name != CODE:
        return
    found = _contents(_ROOT)
    if (name := _name(found)) != _ROOT.name:
        odd = [f" and {entry}" for entry, content in found.items() if content is None or "__pycache__" in entry]
        strange = f"found digest {name}{''.join(odd[:1])}"
        raise DataError(f"{_ROOT}: not the code that was submitted ({strange}). Submit the run again")


def _folder(run: Run, package: Contents) -> Path:
    return run.path.resolve().parent / CODE / _name(package)


def _name(contents: Contents) -> str:
    parts = [
        f"{name}\0".encode() if content is None else f"{name}\0{len(content)}\0".encode() + content
        for name, content in sorted(contents.items())
    ]
    return files.sha256_of(*parts)[:8]


def _package() -> dict[str, bytes]:
    """Return the files of this package without what Python derives and without hidden files, and its commit."""
    paths = [path for path in files.PACKAGE.rglob("[!.]*") if path.is_file() and "__pycache__" not in path.parts]
    found = {str(path.relative_to(_ROOT)): path.read_bytes() for path in paths}
    return {**found, COMMIT_FILE: files.readable_json(commit()).encode()}


def _contents(folder: Path) -> Contents:
    """Return everything in a copy; also hidden files, byte code, links and folders without a file count."""
    found: dict[str, bytes | None] = {}
    for place, folders, names in os.walk(folder):
        here = Path(place)
        links = [name for name in folders if (here / name).is_symlink()]
        entries = [here / name for name in (*names, *links) if not name.startswith(_NFS)]
        found |= {str(entry.relative_to(folder)): _content(entry) for entry in entries}
        if not (folders or names) and here != folder:
            found[str(here.relative_to(folder))] = None
    return found


def _content(path: Path) -> bytes | None:
    """Return a file's content; None for a link, a pipe, and what cannot be read or is too large for code."""
    with suppress(DataError):
        return None if path.is_symlink() else files.read_bytes(path)
    return None


@contextmanager
def _written(folder: Path, package: Mapping[str, bytes]) -> Iterator[Path]:
    """Give a new copy beside a folder; what is left of it, and was moved into it, is removed."""
    temporary = files.temporary_name(folder)
    try:
        for name, content in package.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put(fresh: Path, folder: Path, package: Mapping[str, bytes]) -> None:
    """Make a folder what the new copy is; a job may be starting from it, and another submission do the same."""
    if folder.is_symlink() or not folder.is_dir():
        _take_away(folder, fresh)
    if folder.is_dir():
        _repair(folder, package, fresh)
        return
    try:
        fresh.rename(folder)
    except OSError:
        if not folder.exists():  # or another submission was faster
            raise


def _repair(folder: Path, package: Mapping[str, bytes], fresh: Path) -> None:
    """Replace or take away each entry that differs, at once."""
    found = _contents(folder)
    folders = {parent for name in package for parent in Path(name).parents}
    for name in (name for name, content in found.items() if content is None or name not in package):
        outermost = next((path for path in reversed(Path(name).parents) if path not in folders), Path(name))
        _take_away(folder / outermost, fresh)
    for name, content in package.items():
        if found.get(name) != content:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (fresh / name).replace(folder / name)


def _take_away(path: Path, fresh: Path) -> None:
    """Move what is none of the package's into a folder that is removed."""
    with suppress(FileNotFoundError):  # another submission has done so
        path.rename(files.temporary_name(fresh / path.name))
