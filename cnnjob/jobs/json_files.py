"""JSON files with a known content: their fields are checked when they are read, and a seal tells an edited one.

A file may be damaged, edited or of another version: a field that is not described is left alone, one that is
described has the type that the code relies on.
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
"""The key of a record's SHA-256 of all its other content."""
_SHOWN = 60
_FIRST_YEAR, _LAST_YEAR = 1971, 9000
"""Of a time that can be moved to any zone, and compared with any other."""


def _time(text: str) -> str:
    time = datetime.fromisoformat(text)
    if not time.tzinfo or not _FIRST_YEAR <= time.year <= _LAST_YEAR:
        raise ValueError("a time needs a zone, and a year that can be")
    return text


Count = Annotated[int, Field(ge=0, lt=2**53)]
Inode = Annotated[int, Field(ge=0, lt=2**64)]
Number = float
Share = Annotated[float, Field(ge=0, le=1)]
Time = Annotated[str, AfterValidator(_time)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Fields(BaseModel):
    """Strict about the types of what is described; other fields may stand beside it."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False, protected_namespaces=())


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def read(path: Path, kind: type[BaseModel]) -> dict[str, Any]:
    """Read a JSON file of a known kind.

    Args:
        path: the file.
        kind: one of this module's, or a table of a job or a profile.

    Returns:
        What the file says, with fields that are not described.

    Raises:
        DataError: it is missing or is no regular file; or damaged, and which field it is.
    """
    content: dict[str, Any] = checked(files.read_json(path), kind, str(path))
    return content


def read_list(path: Path, kind: Any, at_least: int = 0) -> list[Any]:
    """Read a JSON file of a list.

    Args:
        path: the file.
        kind: of each member.
        at_least: how many members it must have.

    Returns:
        What the file says.

    Raises:
        DataError: it is missing or is no regular file; or damaged, and which member it is.
    """
    members: list[Any] = checked(files.read_json(path), list[kind], str(path))
    if len(members) < at_least:
        raise DataError(f"{path}: damaged, it has {len(members)} members, at least {at_least} are needed")
    return members


def read_lines(path: Path, kind: Any, at_most: int) -> list[Any]:
    """Read a file of one JSON object per line.

    Args:
        path: the file.
        kind: of each line.
        at_most: bytes.

    Returns:
        What the lines say.

    Raises:
        DataError: it is missing, is no regular file or is larger; or damaged, and which line it is.
    """
    lines = files.read_text(path, at_most).split("\n")
    return [parse(line, kind, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line]


def parse(text: str, kind: Any, where: str) -> Any:
    """Parse JSON of a known kind; ``where`` names it.

    Raises:
        DataError: it is not JSON, or not of this kind.
    """
    try:
        content = files.parse_json(text)
    except ValueError as error:
        raise DataError(f"{where}: damaged, not readable as JSON ({error})") from error
    return checked(content, kind, where)


def checked(content: Any, kind: Any, where: str) -> Any:
    """Return content that is of a known kind; ``where`` names it.

    Raises:
        DataError: it is not; the first field that is wrong is named.
    """
    try:
        _adapter(kind).validate_python(content)
    except ValidationError as error:
        what = _explain(error.errors()[0])
        raise DataError(
            f"{where}: damaged, {what}. Restore it, or remove the file if nothing trains the run"
        ) from error
    return content


def _explain(problem: Any) -> str:
    """Return what is wrong with a field: ``data.mean is missing``."""
    field = ".".join(map(str, problem["loc"])) or "it"
    if problem["type"] == "missing":
        return f"{field} is missing"
    if problem["type"] in {"model_type", "list_type"}:
        return f"{field} is no {'object' if problem['type'] == 'model_type' else 'list'}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{field}: {message[0].lower()}{message[1:]}, found {repr(problem['input'])[:_SHOWN]}"


def read_sealed(path: Path, kind: type[BaseModel]) -> dict[str, Any]:
    """Read a JSON file that carries a SHA-256 of its other content; one of an older version may lack it.

    Args:
        path: the file.
        kind: one of this module's.

    Returns:
        What the file says.

    Raises:
        DataError: it is missing, damaged or edited.
    """
    content = read(path, kind)
    if content.get(SEAL) is None and "format" in content:
        raise DataError(
            f"{path}: damaged or edited, it lacks its SHA-256. Restore it, or train the changed job in a run folder of "
            "its own"
        )
    if content.get(SEAL) not in {None, seal_of(content)}:
        raise DataError(
            f"{path}: damaged or edited, its SHA-256 does not fit its other content. Restore it, or train the changed "
            "job in a run folder of its own"
        )
    return content


def seal_of(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all of a record's content but its seal."""
    rest = {key: value for key, value in content.items() if key != SEAL}
    return files.sha256_of(files.canonical_json(rest).encode())


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record's content with its seal."""
    return {**content, SEAL: seal_of(content)}
