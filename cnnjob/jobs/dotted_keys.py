"""List a job's settings by dotted key, such as ``train.optimiser.sgd.momentum``, and change one of them (``--set``)."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from cnnjob.errors import JobError
from cnnjob.jobs.assignment import format_key
from cnnjob.jobs.schema import in_one_line

_INDEX = re.compile(r"[0-9]{1,6}")  # at most six digits, since int() refuses thousands
KINDS = ("train.optimiser", "train.schedule", "train.optimiser.muon.others")
"""Tables in which exactly one key is set; in a list of settings, that key is the table's value."""


def iterate_settings(table: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every setting of a job with its dotted key.

    Args:
        table: the job, as returned by :meth:`Job.model_dump`.
        above: prefix of the keys, with a trailing dot.

    Yields:
        Keys and values; a list counts as one value. Before the settings of a table in :data:`KINDS`, the table's kind
        is also yielded as a value, for example ``train.optimiser`` with ``"sgd"``.
    """
    for key, value in table.items():
        name = above + key
        if name in KINDS and isinstance(value, dict) and len(value) == 1:
            yield name, next(iter(value))
        if isinstance(value, dict):
            yield from iterate_settings(value, f"{name}.")
        else:
            yield name, value


def belongs_to_selected_kind(key: str, settings: Mapping[str, Any]) -> bool:
    """Return whether a key applies to the selected optimiser and schedule: with AdamW, ``sgd.momentum`` does not."""
    kinds = (f"{table}.{settings[table]}." for table in KINDS if table in settings and key.startswith(f"{table}."))
    return all(key.startswith(kind) or key == kind[:-1] for kind in kinds)


def require_no_conflict(applied: Mapping[tuple[str, ...], str], key: tuple[str, ...], override: str) -> None:
    """Refuse an assignment that would undo an earlier assignment.

    Args:
        applied: the earlier assignments by key.
        key: the parts of the dotted key.
        override: the assignment, for the message.

    Raises:
        JobError: the assignment replaces a table that an earlier assignment changed, or selects a different optimiser
            or schedule.
    """
    for before, text in applied.items():
        if len(before) > len(key) and before[: len(key)] == key:
            raise JobError(
                f"--set {in_one_line(text)}: undone by the later --set {in_one_line(override)}, which replaces all of "
                f"{format_key(key)}. Swap the two, or combine them in one value"
            )
        for table in KINDS:
            kind, earlier = _kind_in(table, key), _kind_in(table, before)
            if kind and earlier and kind != earlier:
                raise JobError(
                    f"--set {in_one_line(text)}: undone by the later --set {in_one_line(override)}, which selects a "
                    f"different {table}. Use only one of the two"
                )


def _kind_in(table: str, key: tuple[str, ...]) -> str | None:
    """Return the kind, such as ``sgd``, that a key selects in a table of :data:`KINDS`; None for keys outside it."""
    names = tuple(table.split("."))
    return key[len(names)] if key[: len(names)] == names and len(key) > len(names) else None


def apply_override(
    content: dict[str, Any], key: tuple[str, ...], value: Any, override: str, applied: Mapping[tuple[str, ...], str]
) -> None:
    """Set one key in a job file's content.

    Setting a key of an optimiser or schedule also selects that optimiser or schedule.

    Args:
        content: the content, changed in place.
        key: the parts of the dotted key.
        value: the value.
        override: the text of the assignment, for error messages.
        applied: the earlier assignments, by key.

    Raises:
        JobError: a part of the key refers to something inside a value that is neither a table nor a list, or to a list
            element that does not exist.
    """
    table: Any = content
    for number, name in enumerate(key[:-1], start=1):
        # A kind that an earlier assignment chose is kept, and a key of another kind is refused.
        is_kind = ".".join(key[:number]) in KINDS and key[:number] not in applied
        if is_kind and isinstance(table, dict):
            setting = table.get(name)
            selected = setting if isinstance(setting, dict) else [setting]
            if key[number] not in selected:
                table[name] = key[number]
        table = _enter_table(table, name, key[number], override)
    # A list keeps its length: a block can be replaced, not appended.
    if (index := _list_index(table, key[-1])) is not None:
        table[index] = value
    elif isinstance(table, dict):
        table[key[-1]] = value
    else:
        raise JobError(_no_key_message(override, format_key(key)))


def _enter_table(table: Any, name: str, following: str, override: str) -> Any:
    """Return the table with a given name or index inside another table or list.

    A shorthand in place of the table (``true``, or the name of a kind) is first expanded to a table.

    Raises:
        JobError: the outer value is neither a table nor a list, or the list has no such index.
    """
    index: Any = _list_index(table, name)
    if index is None and not isinstance(table, dict):
        raise JobError(_no_key_message(override, name))
    if index is None:
        index = name
        table.setdefault(name, {})
    if isinstance(table[index], bool):
        table[index] = {}
    elif table[index] == following:
        table[index] = {following: {}}
    return table[index]


def _list_index(table: Any, name: str) -> int | None:
    """Return the list index that a name stands for; None if the table is not a list or has no such index."""
    if not isinstance(table, list) or not _INDEX.fullmatch(name):
        return None
    return int(name) if int(name) < len(table) else None


def _no_key_message(override: str, name: str) -> str:
    return (
        f"--set {in_one_line(override)}: there is no '{in_one_line(name)}' to set. To see every key:\n  cnnjob show JOB"
    )
