"""Parse users' TOML (job files, profiles, assignments) in bounded time and memory, and format jobs as TOML."""

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cnnjob import files
from cnnjob.errors import DataError, JobError

LARGEST_BYTES = 1 << 18
"""Maximum size of a file or an assignment, in bytes; the largest job file in the package is 3 KB."""
DEEPEST = 64
"""Maximum number of parts in a dotted key: the time and memory of Python's parser grow quadratically with it."""
_BETWEEN_KEYS = re.compile(r"[\n,=\[\]{}#]")


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        JobError: the file is missing, not a regular file, unreadable, too large, or not TOML.
    """
    try:
        return parse_toml(files.read_text(path, LARGEST_BYTES))
    except DataError as error:
        raise JobError(f"{error}. Pass a TOML file") from error
    except ValueError as error:
        raise JobError(f"{path}: not readable as TOML ({error}). Correct the file") from error


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML.

    Raises:
        ValueError: the text is not TOML, or exceeds the limits on its size and depth.
    """
    if len(text) > LARGEST_BYTES:
        raise ValueError(f"it has {len(text):,} characters; the limit is {LARGEST_BYTES:,}")
    # Scanned before the parser runs. Dots inside strings count as well, which is stricter than necessary.
    keys = _BETWEEN_KEYS.split(text.replace(" ", "").replace("\t", ""))
    if any(key.count(".") >= DEEPEST for key in keys):
        raise ValueError(f"a dotted key has more than {DEEPEST} parts")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("its tables or arrays are nested too deeply") from error


def format_toml(content: Mapping[str, Any]) -> str:
    """Format the content of a job file as TOML."""
    lines = [f"{key} = {_inline(value)}" for key, value in content.items() if not isinstance(value, dict)]
    for name, table in content.items():
        if isinstance(table, dict):
            lines += ["", f"[{name}]", *(f"{key} = {_inline(value)}" for key, value in table.items())]
    return "\n".join(lines)


def _inline(value: object, indent: str = "") -> str:
    """Format a value; a list of tables has one table per line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_inline(item, indent)}" for key, item in value.items()) + " }"
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return "[\n" + "".join(f"{indent}  {_inline(item, indent + '  ')},\n" for item in value) + f"{indent}]"
    return json.dumps(value, ensure_ascii=False)  # JSON's escapes for characters beyond 16 bits are not TOML
