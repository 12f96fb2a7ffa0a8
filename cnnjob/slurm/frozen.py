"""The package's code as it was when a run was submitted: copied once, so that a requeued job runs that.

A copy is named by its digest, which is checked before each submission and at each attempt's start.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from cnnjob import files
from cnnjob.environments import COMMIT_FILE, commit
from cnnjob.errors import DataError
from cnnjob.runs import Run

CODE = ".code"
_ROOT = Path(__file__).parents[2]


def code_folder(run: Run) -> Path:
    """Return where the package's code of this moment is kept for a run and those beside it."""
    return _folder(run, _package())


def freeze(run: Run) -> Path:
    """Copy the package once, so that a requeued job runs what was submitted; repair a damaged copy.

    Raises:
        DataError: the copy cannot be written.
    """
    package = _package()
    folder = _folder(run, package)
    try:
        if folder.exists():
            _repair(folder, package)
        else:
            _write(folder, package)
    except OSError as error:
        raise DataError(f"{folder}: the copy of the code cannot be written, {error}; see to that folder") from error
    return folder


def check() -> None:
    """Check the copy of the code that this process runs, if it runs one.

    Raises:
        DataError: it is not what was submitted.
    """
    if _ROOT.parent.name == CODE and (found := _name(_contents(_ROOT))) != _ROOT.name:
        raise DataError(f"{_ROOT}: not the code that was submitted (its digest is {found}); submit the run again")


def _folder(run: Run, package: Mapping[str, bytes]) -> Path:
    return run.path.resolve().parent / CODE / _name(package)


def _name(contents: Mapping[str, bytes]) -> str:
    parts = [f"{name}\0{len(content)}\0".encode() + content for name, content in sorted(contents.items())]
    return files.sha256_of(*parts)[:8]


def _package() -> dict[str, bytes]:
    """Return the files of this package, and its commit."""
    package = Path(__file__).parents[1]
    found = {f"{package.name}/{name}": content for name, content in _contents(package).items()}
    return {**found, COMMIT_FILE: files.readable_json(commit()).encode()}


def _contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder by its path there, without what Python derives and without hidden files."""
    paths = {str(path.relative_to(folder)): path for path in folder.rglob("[!.]*") if path.is_file()}
    return {name: path.read_bytes() for name, path in paths.items() if "__pycache__" not in path.parts}


def _write(folder: Path, package: Mapping[str, bytes]) -> None:
    temporary = files.temporary_name(folder)
    try:
        for name, content in package.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        temporary.rename(folder)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if not folder.exists():  # or another submission was faster
            raise


def _repair(folder: Path, package: Mapping[str, bytes]) -> None:
    """Replace each file that differs at once: a job may be starting from this copy."""
    found = _contents(folder)
    for name, content in package.items():
        if found.pop(name, None) != content:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            files.write_whole(folder / name, content)
    for name in found:
        (folder / name).unlink()
