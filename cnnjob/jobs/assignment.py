"""Parsing of ``KEY=VALUE`` command-line arguments, each of which is exactly one TOML assignment."""

import json
import re
from collections.abc import Iterable
from typing import Any

from cnnjob.errors import JobError
from cnnjob.jobs import toml
from cnnjob.jobs.schema import in_one_line

_NAME = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')"""
# DOTALL: a value may span several lines, as TOML arrays may.
_ASSIGNMENT = re.compile(rf"\s*({_NAME}(?:[ \t]*\.[ \t]*{_NAME})*)[ \t]*=(.*)", re.DOTALL)
# TOML's four string forms come before brackets and commas, so that those inside a string are not counted.
_TOKEN = re.compile(
    r"""\"{3}(?:[^\\]|\\.)*?\"{3}|"(?:[^"\\\n]|\\.)*"|'{3}.*?'{3}|'[^'\n]*'|[^"'\[\]{},]+|[\[\]{},]""", re.DOTALL
)
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SPACE = re.compile(r"\s*")
_OPENING = ("[", "{", '"', "'")


def parse_assignment(text: str) -> tuple[tuple[str, ...], Any]:
    """Parse one ``KEY=VALUE`` as TOML; a value that is not TOML is a string unless it starts with a quote or bracket.

    Args:
        text: the assignment, such as ``train.epochs = 3`` or ``train.schedule=cosine``.

    Returns:
        The parts of the dotted key, and the value.

    Raises:
        JobError: the text is not exactly one assignment, or its value cannot be parsed.
    """
    key, value = split_assignment(text, "--set", "KEY=VALUE; for example --set train.epochs=3")
    return key, _parse_value(value, text)


def split_assignment(text: str, option: str, form: str) -> tuple[tuple[str, ...], str]:
    """Split an assignment at its equals sign.

    Args:
        text: the assignment.
        option: the command-line option that it was passed to, for the message.
        form: the expected form, for the message.

    Returns:
        The parts of the dotted key, and the text after the equals sign.

    Raises:
        JobError: the key or the equals sign is missing, nothing follows it, or the text is too long.
    """
    # Checked before the regular expressions run over the text.
    if len(text) > toml.LARGEST_BYTES:
        raise JobError(f"{option} {in_one_line(text)}: too long (found {len(text):,} characters). Use a job file")
    match = _ASSIGNMENT.fullmatch(text)
    if not match or not match[2].strip():
        raise JobError(f"{option} {in_one_line(text)}: not of the form {form}")
    # The TOML parser resolves quotes and escapes in the key; the nested tables it returns hold one name each.
    try:
        table: Any = toml.parse_toml(f"{match[1]} = 0")
    except ValueError as error:
        raise JobError(
            f"{option} {in_one_line(text)}: the key is not valid TOML ({error}). Quote each part of the key"
        ) from error
    names: list[str] = []
    while isinstance(table, dict):
        ((name, table),) = table.items()
        names.append(name)
    return tuple(names), match[2].strip()


def format_key(names: Iterable[str]) -> str:
    """Return a dotted key in TOML; names that are not bare keys are quoted."""
    return ".".join(name if _BARE.fullmatch(name) else json.dumps(name, ensure_ascii=False) for name in names)


def split_values(text: str) -> list[str]:
    """Split a list of values at the commas outside brackets, braces and quotes.

    Args:
        text: ``A,B,…``. Brackets, braces and quotes are ordinary characters in a value that does not begin with any of
            them.

    Returns:
        The text of each value, without surrounding whitespace.
    """
    values, start = list[str](), 0
    while start <= len(text):
        end = _find_end_of_value(text, start)
        values.append(text[start:end].strip())
        start = end + 1
    return values


def _find_end_of_value(text: str, start: int) -> int:
    """Return the index of the comma after the value at ``start``, or the length of the text."""
    first = _SPACE.match(text, start)
    index = first.end() if first else start
    if text.startswith(_OPENING, index):
        depth = 0
        while index < len(text) and (depth or text[index] != ","):
            token = _TOKEN.match(text, index)
            if token is None:  # an unclosed quote; the TOML parser reports it
                return len(text)
            depth += 1 if token[0] in "[{" else -1 if token[0] in "]}" else 0
            index = token.end()
    comma = text.find(",", index)
    return len(text) if comma < 0 else comma


def _parse_value(text: str, assignment: str) -> Any:
    """Parse a value as the only element of an array, so that no comment or second assignment can follow it."""
    try:
        parsed = toml.parse_toml(f"value = [{text},]")
    except ValueError as error:
        reason = str(error)
    else:
        if parsed.keys() == {"value"} and len(parsed["value"]) == 1:
            return parsed["value"][0]
        reason = "more than one value"
    if text.startswith(_OPENING) or not text.isprintable():
        raise JobError(
            f"--set {in_one_line(assignment)}: not a single TOML assignment ({reason}). Quote it for the shell, close "
            "its brackets, and pass each assignment in its own --set"
        )
    return text
