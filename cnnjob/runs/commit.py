"""The Git commit of this package's code.

In a clone, git knows the commit. A copy of the package (a wheel, or the code snapshot of a SLURM job) contains a file
with the commit, which ``hatch_build.py`` or :mod:`cnnjob.slurm.submit.code_snapshot` writes when the copy is made.

This module needs only the standard library, since ``hatch_build.py`` imports it.
"""

import subprocess
from contextlib import suppress
from functools import cache
from typing import TypedDict

from cnnjob import files
from cnnjob.errors import DataError

COMMIT_FILE = "commit.json"
"""Name of the file with the commit, in the folder of the package; a clone does not have it."""
_GIT_SECONDS = 10


class Commit(TypedDict):
    """A commit, as it is written to ``commit.json`` and to a run's ``environment.json``; all None if unknown."""

    commit: str | None
    """The full hash."""
    dirty: bool | None
    """True if the package's files differ from the commit."""


@cache  # a process keeps the code that it has imported, even if something else is committed meanwhile
def find_commit() -> Commit:
    """Return the commit of the package's code, and whether the package's files differ from that commit."""
    with suppress(DataError):
        match files.read_json(files.PACKAGE / COMMIT_FILE):
            case {"commit": str() | None as commit, "dirty": bool() | None as dirty}:
                return {"commit": commit, "dirty": dirty}
    try:
        # A virtual environment may be inside another project's clone, whose commit is unrelated to this package.
        _git("ls-files", "--error-unmatch", "__init__.py")
        return {"commit": _git("rev-parse", "HEAD"), "dirty": bool(_git("status", "--porcelain", "."))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


def _git(*arguments: str) -> str:
    # By default, `git status` locks the index to refresh it, and the user's own git commands could fail meanwhile.
    command = ["git", "--no-optional-locks", "-C", str(files.PACKAGE), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_GIT_SECONDS)  # noqa: S603
    return done.stdout.strip()
