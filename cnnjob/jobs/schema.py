"""Base classes for the tables in job files and profiles, and error messages in terms of those files."""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Annotated, Any, get_args, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import core_schema

from cnnjob.errors import closest_name, printable


def _require_below_one(share: float) -> float:
    """Refuse a fraction that rounds to 1 in float32."""
    if share >= 1 - _HALF_STEP:
        raise ValueError(f"input should be less than 1 in float32 (at most 0.9999999), found {share}")
    return share


Fraction = Annotated[float, Field(ge=0, lt=1), AfterValidator(_require_below_one)]

# In float32, a dropout rate that rounds to 1 causes a division by zero, and a learning rate of 1e-300 trains nothing.
_SMALLEST, _HALF_STEP = 2.0**-126, 2.0**-25
"""The smallest normal number of float32, and half the spacing of its numbers just below 1."""
_NAMES_KEY = re.compile(r"[a-z_.0-9]+: ")
_SHOWN_LETTERS = 80
_SHOWN_PROBLEMS = 50
_EXPECTED = {
    "bool_type": "true or false",
    "dataclass_type": "a table of settings",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_from_float": "an integer",
    "int_type": "an integer",
    "model_type": "a table of settings",
    "string_too_short": "a non-empty string",
    "string_type": "a string",
    "tuple_type": "an array",
}
"""Descriptions of the expected values in messages, by pydantic's error type."""


def _require_float32(value: Any) -> Any:
    """Replace -0.0, which would change the digest, with 0.0; refuse numbers too close to 0 for a normal float32."""
    if not isinstance(value, float):
        return value
    if 0 < abs(value) < _SMALLEST:
        raise ValueError(f"input should be 0, or at least {_SMALLEST:g} (the smallest normal float32), found {value:g}")
    return value + 0.0  # -0.0 + 0.0 is 0.0


class Settings(BaseModel):
    """A table in a job file or profile: frozen, and strict about names and types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    _floats = field_validator("*", mode="after")(_require_float32)


class Table:
    """An annotation that turns a dataclass into a job-file table, as strict as :class:`Settings`, keyed by its fields.

    If the dataclass has a ``kind``, as blocks do, the first field's key is the kind: ``{ conv = 32, kernel = 5 }``.
    """

    def __init__(
        self,
        source: type[Any],
        *,
        about: str = "",
        fixed: Mapping[str, Any] | None = None,
        annotations: Mapping[str, Any] | None = None,
    ) -> None:
        """Describe the table.

        Args:
            source: the dataclass.
            about: description of the table; by default the first paragraph of the dataclass's docstring.
            fixed: fields that are not keys of the table, with their values.
            annotations: annotations that replace the dataclass's own, by field name.
        """
        self.source, self.fixed = source, fixed or {}
        self.about = about or (inspect.getdoc(source) or "").split("\n\n")[0]
        self._annotations = get_type_hints(source, include_extras=True) | dict(annotations or {})
        names = [field.name for field in fields(source)]
        renamed = {names[0]: source.kind} if hasattr(source, "kind") else {}
        self.keys = {name: renamed.get(name, name) for name in names if name not in self.fixed}
        """The key of each field."""
        self.model_fields = {
            # ``...`` is pydantic's default for a required field.
            key: FieldInfo.from_annotated_attribute(self._annotations[name], getattr(source, name, ...))
            for name, key in self.keys.items()
        }
        """Each key's type, limits and default, as in a pydantic model."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Return the schema of the table (called by pydantic)."""
        arguments = []
        for name, key in self.keys.items():
            schema = handler.generate_schema(self._annotations[name])
            schema = core_schema.no_info_after_validator_function(_require_float32, schema)
            if hasattr(source, name):
                schema = core_schema.with_default_schema(schema, default=getattr(source, name))
            arguments.append(core_schema.dataclass_field(name, schema, validation_alias=key, serialization_alias=key))
        for name, value in self.fixed.items():
            schema = core_schema.with_default_schema(core_schema.any_schema(), default=value)
            arguments.append(core_schema.dataclass_field(name, schema, init=False, serialization_exclude=True))
        return core_schema.dataclass_schema(
            source,
            core_schema.dataclass_args_schema(source.__name__, arguments),
            [field.name for field in fields(source)],
            post_init=hasattr(source, "__post_init__"),
            # A strict dataclass would refuse tables; its fields are strict.
            strict=False,
            config=core_schema.CoreConfig(
                strict=True, allow_inf_nan=False, extra_fields_behavior="forbid", serialize_by_alias=True
            ),
        )


Section = type[BaseModel] | Table
"""The schema of one table: its ``model_fields`` are the table's keys."""


class OneOf(Settings):
    """A table with exactly one key, whose value is a table of settings.

    The name of a key may be given instead of the table; its settings then have their default values.
    """

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if isinstance(value, str) and value in cls.model_fields:
            return {value: {}}
        if not isinstance(value, dict | cls) or (
            isinstance(value, dict) and not _has_one_kind(value, cls.model_fields)
        ):
            *some, last = map(repr, cls.model_fields)
            kinds = f"{', '.join(some)} or {last}"
            suggestion = suggest_name(value, cls.model_fields) if isinstance(value, str) else ""
            raise ValueError(
                f"input should be {kinds}, or a table with one of these keys, found {format_value(value)}"
                f"{suggestion and f'.{suggestion}'}"
            )
        return value

    @property
    def kind(self) -> str:
        """Name of the key that is set."""
        return next(key for key in type(self).model_fields if getattr(self, key) is not None)

    @model_serializer(mode="wrap")
    def _dump_without_none(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Without the other kinds' None values, a dump can be written as TOML and read back.
        return {key: value for key, value in handler(self).items() if value is not None}


def _has_one_kind(table: dict[str, Any], kinds: Iterable[str]) -> bool:
    """Return whether a table selects exactly one kind.

    The result is also True if the table selects no kind but has an unknown key, since a later check reports that key
    and suggests a known one.
    """
    known = [kind for kind in kinds if table.get(kind) is not None and table[kind] is not False]
    return len(known) == 1 or (not known and any(key not in kinds for key in table))


def is_older(info: ValidationInfo) -> bool:
    """Return whether a job in an older format is being read.

    In the older formats, a job may contain settings that have no effect. The current format refuses such settings.
    """
    return bool(info.context and info.context.get("older"))


def _expand_flag(value: Any) -> Any:
    """Map ``false`` to None and ``true`` to a table of defaults, since TOML has no null."""
    return {} if value is True else None if value is False else value


OrFalse = BeforeValidator(_expand_flag)
"""Validator for an optional table: ``false`` means no table, ``true`` a table of defaults."""
NumberOrFalse = BeforeValidator(lambda value: None if value is False else value)
"""Validator for an optional number: ``false`` means no number."""


def suggest_name(name: str, names: Iterable[str]) -> str:
    """Return a suggestion for a misspelt name, to be appended to a message; empty if no known name is close."""
    close = closest_name(name, names)
    return f" Did you mean '{close}'?" if close else ""


def in_one_line(text: str) -> str:
    """Return a user's text with control characters escaped; long text is truncated."""
    line = printable(text[: _SHOWN_LETTERS + 1])  # truncated first: the text may be megabytes long
    return line if len(line) <= _SHOWN_LETTERS else f"{line[:_SHOWN_LETTERS]}…"


def format_value(value: Any) -> str:
    """Return a value as TOML, on one short line."""
    try:
        return in_one_line(_as_toml(value))
    except (RecursionError, ValueError):  # tables nested thousands deep, a number with thousands of digits
        return "a value too large to print"


def _as_toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_as_toml, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_as_toml(item)}' for key, item in value.items())} }}" if value else "{}"
    return repr(value) if isinstance(value, str | int | float) else str(value)


def describe_problems(error: ValidationError, root: type[BaseModel], content: Any = None) -> Iterator[str]:
    """Yield one line per problem: the key's dotted name, what is wrong, and what was found.

    Args:
        error: pydantic's error.
        root: class of the table that was checked.
        content: the table's content, for hints that depend on neighbouring keys.
    """
    problems = error.errors()
    for problem in problems[:_SHOWN_PROBLEMS]:
        loc = problem["loc"]
        # pydantic inserts a block's kind after its index, as in blocks.0.conv.kernel; the file has no such level.
        last = len(loc) if problem["type"] == "value_error" else len(loc) - 1
        parts = [str(part) for number, part in enumerate(loc) if not _is_kind(loc, number) or number == last]
        where = in_one_line(".".join(parts))
        what = _explain(problem, root, content)
        # A check of a whole table names the wrong key itself, as in ``bias_init: there is no bias``.
        separator = "." if _NAMES_KEY.match(what) else ": "
        yield f"{where}{separator}{what}" if where else what
    if len(problems) > _SHOWN_PROBLEMS:
        yield f"and {len(problems) - _SHOWN_PROBLEMS} more"


def _is_kind(loc: tuple[int | str, ...], number: int) -> bool:
    """Return whether a part of a problem's location is a block kind, which pydantic inserts after a block's index."""
    return number > 0 and isinstance(loc[number], str) and isinstance(loc[number - 1], int)


def _explain(problem: Any, root: type[BaseModel], content: Any) -> str:
    error_type, loc, value = problem["type"], problem["loc"], problem["input"]
    match error_type:
        case "extra_forbidden" | "unexpected_keyword_argument":
            return _unknown_key(loc, root, content)
        case "missing":
            return "missing"
        case "kind":
            return _unknown_block(loc, value, root)
        case "value_error":
            return str(problem["ctx"]["error"])
    message = problem["msg"][0].lower() + problem["msg"][1:]
    if error_type == "float_type" and isinstance(value, int) and not isinstance(value, bool):
        # For an integer too large for a float, pydantic reports the same error as for a string.
        message = "input should be a number below 1e308"
    elif error_type in _EXPECTED:
        message = f"input should be {_EXPECTED[error_type]}"
    alternatives = re.findall("'([^']*)'", message) if isinstance(value, str) else []
    suggestion = suggest_name(value, alternatives) if alternatives else ""
    return f"{message}, found {format_value(value)}{suggestion and f'.{suggestion}'}"


def _unknown_key(loc: tuple[int | str, ...], root: type[BaseModel], content: Any) -> str:
    sections, key = _sections_at(loc[:-1], root), str(loc[-1])
    table = content
    for part in loc[:-1]:
        table = table.get(part) if isinstance(table, dict) else None
    for section in sections:
        if hasattr(section, "explain_moved_key") and (new_spelling := section.explain_moved_key(key, table or {})):
            return str(new_spelling)
    keys = list(dict.fromkeys(key for section in sections for key in section.model_fields))
    if suggestion := suggest_name(key, keys):
        return f"no such key.{suggestion}"
    for name in root.model_fields:
        if any(key in section.model_fields for section in _sections_at((name,), root)):
            return f"no such key. Did you mean '{name}.{key}'?"
    return f"no such key. The keys are {', '.join(keys)}"


def _unknown_block(loc: tuple[int | str, ...], value: Any, root: type[BaseModel]) -> str:
    kinds = [next(iter(section.model_fields)) for section in _sections_at(loc, root)]
    keys = list(value) if isinstance(value, dict) else []
    if len(present := [key for key in keys if key in kinds]) > 1:
        return f"several blocks in one table (found {' and '.join(present)}). Put each in its own table"
    suggestions = filter(None, (suggest_name(key, kinds) for key in keys))
    return f"no such block.{next(suggestions, '')} A block has one of the keys {', '.join(kinds)}"


def _sections_at(loc: tuple[int | str, ...], root: type[BaseModel]) -> list[Section]:
    """Return the schemas of the tables that are allowed at a location."""
    sections: list[Section] = [root]
    for number, part in enumerate(loc):
        if _is_kind(loc, number):
            sections = [section for section in sections if next(iter(section.model_fields)) == part]
        elif isinstance(part, str):
            matching = [section.model_fields[part] for section in sections if part in section.model_fields]
            sections = [section for field in matching for section in tables_in(field)]
    return sections


def tables_in(field: FieldInfo) -> Iterator[Section]:
    """Yield the schemas of the tables that a key accepts."""
    # pydantic moves an annotation's metadata to the field, but not the metadata of a union's members.
    tables = [part for part in field.metadata if isinstance(part, Table)]
    yield from tables or _tables_in(field.annotation)


def _tables_in(annotation: Any) -> Iterator[Section]:
    if isinstance(annotation, Table) or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        yield annotation
    for inner in get_args(annotation):
        yield from _tables_in(inner)
