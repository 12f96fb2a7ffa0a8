"""JSON files with a known schema: fields are checked on reading, and a seal (a SHA-256) reveals edits.

A file may be damaged, edited or written by another version. Fields outside the schema are ignored; fields in the schema
are guaranteed to have the types that the code relies on.
"""

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from cnnjob import files
from cnnjob.errors import DataError

SEAL = "sha256"
"""Key that holds the SHA-256 of the file's other content."""
_SHOWN = 60
_FIRST_YEAR, _LAST_YEAR = 1971, 9000
"""Range of years in which any time can be converted to any time zone and compared with any other time."""


def _require_time(text: str) -> str:
    time = datetime.fromisoformat(text)
    if not time.tzinfo or not _FIRST_YEAR <= time.year <= _LAST_YEAR:
        raise ValueError(f"a time needs a time zone and a year from {_FIRST_YEAR} to {_LAST_YEAR}")
    return text


# Every JSON reader represents integers below 2**53 exactly; inode numbers have up to 64 bits.
Count = Annotated[int, Field(ge=0, lt=2**53)]
Inode = Annotated[int, Field(ge=0, lt=2**64)]
Share = Annotated[float, Field(ge=0, le=1)]
Time = Annotated[str, AfterValidator(_require_time)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Fields(BaseModel):
    """The base class for the schemas of JSON files: field types are strict, and unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False, protected_namespaces=())


# Building an adapter is far more expensive than validating with it.
@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def read_checked(path: Path, kind: type[BaseModel]) -> dict[str, Any]:
    """Read a JSON file that contains one object.

    Args:
        path: the file.
        kind: its schema.

    Returns:
        The file's content, including fields outside the schema.

    Raises:
        DataError: the file is missing, is not a regular file, or is damaged; the message names the field.
    """
    content: dict[str, Any] = checked(files.read_json(path), kind, str(path))
    return content


def read_list(path: Path, kind: Any, at_least: int = 0) -> list[Any]:
    """Read a JSON file that contains one list.

    Args:
        path: the file.
        kind: type or schema of each element.
        at_least: minimum number of elements.

    Returns:
        The elements.

    Raises:
        DataError: the file is missing, is not a regular file, or is damaged; the message identifies an invalid element.
    """
    members: list[Any] = checked(files.read_json(path), list[kind], str(path))
    if len(members) < at_least:
        raise DataError(f"{path}: damaged (it has {len(members)} elements, expected at least {at_least}). Restore it")
    return members


def read_lines(path: Path, kind: Any, at_most: int) -> list[Any]:
    """Read a file with one JSON object per line.

    Args:
        path: the file.
        kind: type or schema of each line.
        at_most: maximum size of the file, in bytes.

    Returns:
        The content of each non-empty line.

    Raises:
        DataError: the file is missing, is not a regular file, is larger than ``at_most``, or is damaged; the
            message names the line.
    """
    # Not splitlines(), which also splits at characters such as U+2028 that JSON allows inside a string.
    lines = files.read_text(path, at_most).split("\n")
    return [parse_checked(line, kind, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line]


def parse_checked(text: str, kind: Any, where: str) -> Any:
    """Parse JSON and check the result against a schema; ``where`` states the source of the text in messages.

    Raises:
        DataError: the text is not JSON, or does not match the schema.
    """
    try:
        content = files.parse_json(text)
    except ValueError as error:
        raise DataError(f"{where}: damaged (not readable as JSON: {error}). Restore it") from error
    return checked(content, kind, where)


def checked(content: Any, kind: Any, where: str) -> Any:
    """Return the content unchanged if it matches a schema; ``where`` is the name of the content in messages.

    Raises:
        DataError: the content does not match the schema; the message names the first invalid field.
    """
    # The validated model is discarded: it has only the fields of the schema.
    try:
        _adapter(kind).validate_python(content)
    except ValidationError as error:
        what = _describe_problem(error.errors()[0])
        raise DataError(
            f"{where}: damaged ({what}). Restore it, or remove it if no process is training the run"
        ) from error
    return content


def _describe_problem(problem: Any) -> str:
    """Return a description of a field's problem, such as ``data.mean is missing``."""
    field = ".".join(map(str, problem["loc"])) or "it"
    if problem["type"] == "missing":
        return f"{field} is missing"
    if problem["type"] in {"model_type", "list_type"}:
        return f"{field} is not {'an object' if problem['type'] == 'model_type' else 'a list'}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{field}: {message[0].lower()}{message[1:]}, found {repr(problem['input'])[:_SHOWN]}"


def read_sealed(path: Path, kind: type[BaseModel]) -> dict[str, Any]:
    """Read a JSON file that contains the SHA-256 of the rest of its content; files from older versions may lack it.

    Args:
        path: the file.
        kind: its schema.

    Returns:
        The file's content.

    Raises:
        DataError: the file is missing, damaged or edited.
    """
    content = read_checked(path, kind)
    # Every version that wrote a format also wrote a seal: a file with a format alone has lost its seal.
    if content.get(SEAL) is None and "format" in content:
        raise DataError(
            f"{path}: damaged or edited (its SHA-256 is missing). Restore it, or train the changed job in a separate "
            "run folder"
        )
    if content.get(SEAL) not in {None, compute_seal(content)}:
        raise DataError(
            f"{path}: damaged or edited (its SHA-256 does not match its other content). Restore it, or train the "
            "changed job in a separate run folder"
        )
    return content


def compute_seal(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a file's content without its seal."""
    rest = {key: value for key, value in content.items() if key != SEAL}
    return files.sha256_of(files.canonical_json(rest).encode())


def add_seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content with its seal added."""
    return {**content, SEAL: compute_seal(content)}
