"""Tables of a job file or a profile: strict about names and types, and plain about what is wrong."""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

MOST_LETTERS = 200
"""Of a value in a message."""
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A table of the job file: frozen, and strict about names and types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _unless_false(value: Any) -> Any:
    """TOML has no null, so false says that there is none; and true, that there is one with its defaults."""
    return {} if value is True else None if value is False else value


OrFalse = BeforeValidator(_unless_false)
"""Of a table that may be left out: ``false`` is none, ``true`` one of defaults."""


def near(name: str, names: Iterable[str]) -> str:
    """Suggest the name that was probably meant."""
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    return f", did you mean '{close[0]}'?" if close else ""


def found_value(value: Any) -> str:
    """Return a value for a message, however long or deep it is."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deep, or a number of too many digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]}…"


def problems_of(error: ValidationError, root: type[BaseModel]) -> Iterator[str]:
    """One line a problem of a table of the given kind: its dotted name, what is wrong, what was found."""
    for problem in error.errors():
        loc = problem["loc"]
        place = [part for number, part in enumerate(loc) if not _is_kind(loc, number) or number == len(loc) - 1]
        where = ".".join(str(part) for part in place)
        yield f"{where}: {_explain(problem, root)}" if where else _explain(problem, root)


def _is_kind(loc: tuple[int | str, ...], number: int) -> bool:
    """Whether a part of a place names which of several kinds of tables stands there, as pydantic puts it."""
    return number > 0 and isinstance(loc[number], str) and isinstance(loc[number - 1], int)


def _explain(problem: Any, root: type[BaseModel]) -> str:
    kind, loc = problem["type"], problem["loc"]
    if kind == "extra_forbidden":
        keys = [key for section in _sections_at(loc[:-1], root) for key in section.model_fields]
        meant = near(str(loc[-1]), keys) or _elsewhere(str(loc[-1]), root)
        return f"no such key{meant or '; the keys are ' + ', '.join(dict.fromkeys(keys))}"
    if kind == "missing":
        return "missing"
    if kind == "kind":
        kinds = [next(iter(section.model_fields)) for section in _sections_at(loc, root)]
        keys = list(problem["input"]) if isinstance(problem["input"], dict) else []
        meant = next((meant for key in keys if (meant := near(key, kinds))), "")
        return f"no such block{meant}; a block has one of the keys {', '.join(kinds)}"
    if kind == "model_type":
        return f"input should be a table of its settings, found {found_value(problem['input'])}"
    if kind == "value_error":
        return str(problem["ctx"]["error"])
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{message}, found {found_value(problem['input'])}"


def _elsewhere(key: str, root: type[BaseModel]) -> str:
    """Where a key would be right: in another table of the job."""
    tables = {name: _sections_at((name,), root) for name in root.model_fields}
    found = [name for name, sections in tables.items() if any(key in one.model_fields for one in sections)]
    return f", did you mean '{found[0]}.{key}'?" if found else ""


def _sections_at(loc: tuple[int | str, ...], root: type[BaseModel]) -> list[type[BaseModel]]:
    """The kinds of tables that may stand at a place."""
    found = [root]
    for number, part in enumerate(loc):
        if _is_kind(loc, number):
            found = [section for section in found if next(iter(section.model_fields)) == part]
        elif isinstance(part, str):
            fields = [section.model_fields[part] for section in found if part in section.model_fields]
            found = [section for field in fields for section in _sections_in(field.annotation)]
    return found


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections_in(inner)
