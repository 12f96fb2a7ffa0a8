"""``KEY=VALUE`` on the command line: one assignment of TOML, read whole or refused."""

import json
import re
from collections.abc import Iterable
from typing import Any

from cnnjob.errors import JobError
from cnnjob.jobs import toml
from cnnjob.jobs.schema import in_one_line

_NAME = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')"""
_ASSIGNMENT = re.compile(rf"\s*({_NAME}(?:[ \t]*\.[ \t]*{_NAME})*)[ \t]*=(.*)", re.DOTALL)
_TOKEN = re.compile(
    r"""\"{3}(?:[^\\]|\\.)*?\"{3}|"(?:[^"\\\n]|\\.)*"|'{3}.*?'{3}|'[^'\n]*'|[^"'\[\]{},]+|[\[\]{},]""", re.DOTALL
)
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SPACE = re.compile(r"\s*")
_OPENING = ("[", "{", '"', "'")


def parse(text: str) -> tuple[tuple[str, ...], Any]:
    """Read one ``KEY=VALUE`` as TOML does; a value that is not TOML is a string, if it is a bare word.

    Args:
        text: the assignment, as ``train.epochs = 3`` or ``train.schedule=cosine``.

    Returns:
        The names of the dotted key, and the value.

    Raises:
        JobError: it is not one assignment, or its value cannot be read.
    """
    key, value = divide(text, "--set", "KEY=VALUE; for example --set train.epochs=3")
    return key, _value(value, text)


def divide(text: str, option: str, form: str) -> tuple[tuple[str, ...], str]:
    """Cut an assignment behind its key.

    Args:
        text: the assignment.
        option: the command's option that it was given with, for the message.
        form: what it should look like, for the message.

    Returns:
        The names of the dotted key, and the text behind the equals sign.

    Raises:
        JobError: there is no key, no equals sign or nothing behind it.
    """
    if len(text) > toml.LARGEST_BYTES:
        raise JobError(f"{option} {in_one_line(text)}: too long (found {len(text):,} characters). Use a job file")
    match = _ASSIGNMENT.fullmatch(text)
    if not match or not match[2].strip():
        raise JobError(f"{option} {in_one_line(text)}: not of the form {form}")
    try:
        table: Any = toml.parse(f"{match[1]} = 0")
    except ValueError as error:
        raise JobError(f"{option} {in_one_line(text)}: its key is not TOML, {error}") from error
    names: list[str] = []
    while isinstance(table, dict):
        ((name, table),) = table.items()
        names.append(name)
    return tuple(names), match[2].strip()


def written(names: Iterable[str]) -> str:
    """Return a dotted key as TOML writes it."""
    return ".".join(name if _BARE.fullmatch(name) else json.dumps(name, ensure_ascii=False) for name in names)


def values(text: str) -> list[str]:
    """Cut a list of values at the commas that are outside of brackets, braces and quotes.

    Args:
        text: ``A,B,…``; quotes and brackets count where a value begins with one.

    Returns:
        The text of each value.
    """
    found, start = list[str](), 0
    while start <= len(text):
        end = _end_of_value(text, start)
        found.append(text[start:end].strip())
        start = end + 1
    return found


def _end_of_value(text: str, start: int) -> int:
    """Return where the comma behind a value stands, or the end of the text."""
    first = _SPACE.match(text, start)
    place = first.end() if first else start
    if text.startswith(_OPENING, place):
        depth = 0
        while place < len(text) and (depth or text[place] != ","):
            token = _TOKEN.match(text, place)
            if token is None:  # a quote that is not closed
                return len(text)
            depth += (token[0] in "[{") - (token[0] in "]}")
            place = token.end()
    comma = text.find(",", place)
    return len(text) if comma < 0 else comma


def _value(text: str, assignment: str) -> Any:
    """Read a value: as the only member of an array, so that no comment and no second assignment can follow it."""
    try:
        parsed = toml.parse(f"value = [{text},]")
    except ValueError as error:
        reason = str(error)
    else:
        if parsed.keys() == {"value"} and len(parsed["value"]) == 1:
            return parsed["value"][0]
        reason = "more than one value"
    if text.startswith(_OPENING) or not text.isprintable():
        raise JobError(
            f"--set {in_one_line(assignment)}: not one assignment of TOML, {reason}; quote it for the shell, close its "
            "brackets, and give each assignment its own --set"
        )
    return text
