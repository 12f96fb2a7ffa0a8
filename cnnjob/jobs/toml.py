"""TOML as people write it: job files, profiles and assignments, read in little time and memory whatever they hold."""

import re
import tomllib
from pathlib import Path
from typing import Any

from cnnjob import files
from cnnjob.errors import DataError, JobError

LARGEST_BYTES = 1 << 18
"""Of a file or an assignment; the largest job file that comes with the package has 3 KB."""
DEEPEST = 64
"""Names in one dotted key, at most: time and memory of Python's parser grow with their square."""
_BETWEEN_KEYS = re.compile(r"[\n,=\[\]{}#]")


def read(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        JobError: it is no regular file, cannot be read, is too large, or is not TOML.
    """
    try:
        return parse(files.read_text(path, LARGEST_BYTES))
    except DataError as error:
        raise JobError(f"{error}. Give a TOML file") from error
    except ValueError as error:
        raise JobError(f"{path}: not readable as TOML, {error}") from error


def parse(text: str) -> dict[str, Any]:
    """Parse TOML.

    Raises:
        ValueError: it is not TOML, or larger or deeper than any that is meant.
    """
    if len(text) > LARGEST_BYTES:
        raise ValueError(f"it has {len(text):,} characters, at most {LARGEST_BYTES:,} are read")
    keys = _BETWEEN_KEYS.split(text.replace(" ", "").replace("\t", ""))
    if any(key.count(".") >= DEEPEST for key in keys):
        raise ValueError(f"a name has more than {DEEPEST} parts between dots")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("its tables or lists are nested too deep") from error
