"""The package's code as it was when a run was submitted: copied once, so that a requeued job runs that."""

import os
import shutil
from pathlib import Path

from cnnjob import files
from cnnjob.environments import COMMIT_FILE, commit
from cnnjob.runs import Run

CODE = ".code"


def code_folder(run: Run) -> Path:
    """Where the package's code of this moment is kept, for a run and those beside it."""
    package = Path(__file__).parents[1]
    sources = sorted(path for path in package.rglob("*") if path.suffix in {".py", ".cu"})
    digest = files.sha256_of(
        files.canonical_json(commit()).encode(),
        *(part for path in sources for part in (str(path.relative_to(package)).encode(), path.read_bytes())),
    )
    return run.path.resolve().parent / CODE / digest[:8]


def freeze(run: Run) -> Path:
    """Copy the package once, so that a requeued job runs what was submitted."""
    folder = code_folder(run)
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}{files.TEMPORARY_SUFFIX}")
        shutil.copytree(Path(__file__).parents[1], temporary / "cnnjob", ignore=shutil.ignore_patterns("__pycache__"))
        files.write_json(temporary / COMMIT_FILE, commit())
        try:
            temporary.rename(folder)
        except OSError:  # another submission was faster
            shutil.rmtree(temporary, ignore_errors=True)
    return folder
