"""Base classes for the tables of a job file or a profile, and error messages in the terms of those files."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from cnnjob.errors import closest_name, printable


def _below_one(share: float) -> float:
    """Refuse a fraction that rounds to 1 in float32."""
    if share >= 1 - _HALF_STEP:
        raise ValueError(f"input should be less than 1 in float32 too, at most 0.9999999, found {share}")
    return share


Fraction = Annotated[float, Field(ge=0, lt=1), AfterValidator(_below_one)]

# In float32 a dropout rate that rounds to 1 divides by zero, and a learning rate of 1e-300 trains nothing.
_SMALLEST, _HALF_STEP = 2.0**-126, 2.0**-25
"""The smallest normal number of float32, and half the spacing of its numbers just below 1."""
_SHOWN_LETTERS = 80
_SHOWN_PROBLEMS = 50
_EXPECTED = {
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_from_float": "an integer",
    "int_type": "an integer",
    "model_type": "a table of its settings",
    "string_too_short": "a string that is not empty",
    "string_type": "a string",
    "tuple_type": "an array",
}
"""Names of the expected values in messages, by pydantic's error type."""


class Settings(BaseModel):
    """A table of a job file or a profile: frozen, and strict about names and types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @field_validator("*", mode="after")
    @classmethod
    def _one_zero(cls, value: Any) -> Any:
        """Replace -0.0, which would give another digest, by 0.0; refuse other numbers below float32's normal range."""
        if not isinstance(value, float):
            return value
        if 0 < abs(value) < _SMALLEST:
            raise ValueError(f"input should be 0, or at least {_SMALLEST:g}, the smallest of float32, found {value:g}")
        return value + 0.0  # -0.0 + 0.0 is 0.0

    @classmethod
    def place_now(cls, key: str, table: Mapping[str, Any]) -> str:  # noqa: ARG003 - most have never changed
        """Return a sentence on where a key of an older layout is now; empty for any other key."""
        return ""


class OneOf(Settings):
    """A table with exactly one of its keys, itself a table; the bare name of a key selects it with its defaults."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if isinstance(value, str) and value in cls.model_fields:
            return {value: {}}
        if not isinstance(value, dict | cls) or (isinstance(value, dict) and not _has_one(value, cls.model_fields)):
            *some, last = map(repr, cls.model_fields)
            kinds = f"{', '.join(some)} or {last}"
            raise ValueError(f"input should be {kinds}, or a table with one of these keys, found {as_typed(value)}")
        return value

    @property
    def kind(self) -> str:
        """Name of the key that is set."""
        return next(key for key in type(self).model_fields if getattr(self, key) is not None)

    @model_serializer(mode="wrap")
    def _only_what_is_there(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Without the None of the other kinds a dump can be written as TOML and read back.
        return {key: value for key, value in handler(self).items() if value is not None}


def _has_one(table: dict[str, Any], kinds: Iterable[str]) -> bool:
    """Return whether a table has one kind, or only unknown keys, which pydantic then reports with a near match."""
    known = [kind for kind in kinds if table.get(kind) is not None and table[kind] is not False]
    return len(known) == 1 or (not known and any(key not in kinds for key in table))


def is_older(info: ValidationInfo) -> bool:
    """Return whether a job of an older format is being read; it may hold settings without effect, refused today."""
    return bool(info.context and info.context.get("older"))


def _unless_false(value: Any) -> Any:
    """Map ``false`` to None and ``true`` to a table of defaults, since TOML has no null."""
    return {} if value is True else None if value is False else value


OrFalse = BeforeValidator(_unless_false)
"""Validator of an optional table: ``false`` is none, ``true`` is a table of defaults."""


def near(name: str, names: Iterable[str]) -> str:
    """Return a suggestion of the name that was probably meant, to be appended to a message; empty if none is close."""
    close = closest_name(name, names)
    return f", did you mean '{close}'?" if close else ""


def in_one_line(text: str) -> str:
    """Return a user's text with control characters escaped, truncated if it is long."""
    line = printable(text[: _SHOWN_LETTERS + 1])  # cut first: the text may be megabytes
    return line if len(line) <= _SHOWN_LETTERS else f"{line[:_SHOWN_LETTERS]}…"


def as_typed(value: Any) -> str:
    """Return a value in TOML, in one short line."""
    try:
        return in_one_line(_as_toml(value))
    except (RecursionError, ValueError):  # tables thousands deep, a number of thousands of digits
        return "a value too large to print"


def _as_toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_as_toml, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_as_toml(one)}' for key, one in value.items())} }}" if value else "{}"
    return repr(value) if isinstance(value, str | int | float) else str(value)


def problems_of(error: ValidationError, root: type[BaseModel], content: Any = None) -> Iterator[str]:
    """Yield one line per problem: the key's dotted name, what is wrong, and what was found.

    Args:
        error: pydantic's error.
        root: class of the table that was checked.
        content: its content, for hints that depend on neighbouring keys.
    """
    problems = error.errors()
    for problem in problems[:_SHOWN_PROBLEMS]:
        loc = problem["loc"]
        # pydantic inserts a block's kind after its index, as in blocks.0.conv.kernel; the file has no such level.
        last = len(loc) if problem["type"] == "value_error" else len(loc) - 1
        place = [part for number, part in enumerate(loc) if not _is_kind(loc, number) or number == last]
        where = in_one_line(".".join(str(part) for part in place))
        what = _explain(problem, root, content)
        yield f"{where}: {what}" if where else what
    if len(problems) > _SHOWN_PROBLEMS:
        yield f"and {len(problems) - _SHOWN_PROBLEMS} more"


def _is_kind(loc: tuple[int | str, ...], number: int) -> bool:
    """Return whether a part of a location is the tag by which pydantic names a block's kind, after its index."""
    return number > 0 and isinstance(loc[number], str) and isinstance(loc[number - 1], int)


def _explain(problem: Any, root: type[BaseModel], content: Any) -> str:
    kind, loc, found = problem["type"], problem["loc"], problem["input"]
    match kind:
        case "extra_forbidden":
            return _unknown_key(loc, root, content)
        case "missing":
            return "missing"
        case "kind":
            return _unknown_block(loc, found, root)
        case "value_error":
            return str(problem["ctx"]["error"])
    return f"{_expected(kind, problem['msg'], found)}, found {as_typed(found)}"


def _expected(kind: str, message: str, found: Any) -> str:
    """Return what was expected, in the terms of a job file."""
    # pydantic refuses an integer that no float can hold with the same error as a string.
    if kind == "float_type" and isinstance(found, int) and not isinstance(found, bool):
        return "input should be a number below 1e308"
    return f"input should be {_EXPECTED[kind]}" if kind in _EXPECTED else message[0].lower() + message[1:]


def _unknown_key(loc: tuple[int | str, ...], root: type[BaseModel], content: Any) -> str:
    sections, key = _sections_at(loc[:-1], root), str(loc[-1])
    for section in sections:
        if issubclass(section, Settings) and (now := section.place_now(key, _table_at(loc[:-1], content))):
            return now
    keys = list(dict.fromkeys(key for section in sections for key in section.model_fields))
    meant = near(key, keys) or _elsewhere(key, root)
    return f"no such key{meant or '; the keys are ' + ', '.join(keys)}"


def _table_at(loc: tuple[int | str, ...], content: Any) -> dict[str, Any]:
    """Return the table at a location of a job; an empty one if there is none."""
    for part in loc:
        content = content.get(part) if isinstance(content, dict) else None
    return content if isinstance(content, dict) else {}


def _unknown_block(loc: tuple[int | str, ...], found: Any, root: type[BaseModel]) -> str:
    kinds = [next(iter(section.model_fields)) for section in _sections_at(loc, root)]
    keys = list(found) if isinstance(found, dict) else []
    if len(several := [key for key in keys if key in kinds]) > 1:
        return f"several blocks in one, found {' and '.join(several)}; give each its own table"
    meant = next((meant for key in keys if (meant := near(key, kinds))), "")
    return f"no such block{meant}; a block has one of the keys {', '.join(kinds)}"


def _elsewhere(key: str, root: type[BaseModel]) -> str:
    """Suggest another table of the job that has such a key."""
    tables = {name: _sections_at((name,), root) for name in root.model_fields}
    found = [name for name, sections in tables.items() if any(key in one.model_fields for one in sections)]
    return f", did you mean '{found[0]}.{key}'?" if found else ""


def _sections_at(loc: tuple[int | str, ...], root: type[BaseModel]) -> list[type[BaseModel]]:
    """Return the classes of tables that are allowed at a location."""
    found = [root]
    for number, part in enumerate(loc):
        if _is_kind(loc, number):
            found = [section for section in found if next(iter(section.model_fields)) == part]
        elif isinstance(part, str):
            fields = [section.model_fields[part] for section in found if part in section.model_fields]
            found = [section for field in fields for section in sections_in(field.annotation)]
    return found


def sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the classes of tables in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from sections_in(inner)
