"""Reference of the job-file keys, one line per key, generated from the docstrings of the schema's fields.

``python -m cnnjob.jobs.reference > docs/job-file.md`` writes the page.
"""

import ast
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from functools import cache
from itertools import groupby, pairwise
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cnnjob.jobs.job import Job
from cnnjob.jobs.schema import OneOf, Section, Table, format_value, tables_in

_BOUNDS = {"ge": "from {}", "gt": "above {}", "le": "to {}", "lt": "below {}"}
_MADE_BY = "Made by `python -m cnnjob.jobs.reference > docs/job-file.md` from the fields' docstrings."
_WORDS = {int: "integer", float: "number", bool: "true or false", str: "string"}


@dataclass(frozen=True)
class Key:
    """A key of a job file."""

    table: str
    """Dotted name of the key's table, or the block's key as ``{ conv = … }``; empty at the top level."""
    name: str
    takes: str
    """Types and limits of the key's values, in words."""
    default: str
    """The default as TOML; ``required`` for a key without a default."""
    meaning: str
    """The field's docstring, on one line."""


def list_keys() -> list[Key]:
    """Return every key of a job file, table by table, outer tables first."""
    # dict(): conv and dropout occur twice, as blocks of the network and inside a residual block.
    return [
        Key(table, name, _takes(field), _default(field), _one_line(_docstrings(section).get(name, "")))
        for table, section in dict(_tables(Job, "")).items()
        for name, field in section.model_fields.items()
    ]


def format_markdown() -> str:
    """Return the reference as Markdown, with one Markdown table per job-file table."""
    tables, about = dict(_tables(Job, "")), _one_line(inspect.getdoc(Job) or "")
    lines = ["# The keys of a job file", "", f"{about} `cnnjob show --keys` prints the same.", "", _MADE_BY]
    for table, rows in groupby(list_keys(), key=lambda key: key.table):
        if table:
            section = tables[table]
            description = section.about if isinstance(section, Table) else inspect.getdoc(section) or ""
            lines += ["", f"## `{table}`", "", _one_line(description)]
        lines += ["", "| key | takes | default | meaning |", "|---|---|---|---|"]
        lines += [f"| `{key.name}` | {key.takes} | {key.default} | {key.meaning} |" for key in rows]
    return "\n".join(lines) + "\n"


def _tables(section: Section, name: str) -> Iterator[tuple[str, Section]]:
    """Yield a table and all tables below it by dotted name; a block is named after its own key."""
    yield name, section
    for key, field in section.model_fields.items():
        for inner in tables_in(field):
            is_block = get_origin(field.annotation) is tuple
            block_name = f"{{ {next(iter(inner.model_fields))} = … }}"
            yield from _tables(inner, block_name if is_block else f"{name}.{key}".strip("."))


@cache
def _docstrings(section: Section) -> dict[str, str]:
    """Return the docstring of each key: the one below its field in the class or in one of its bases."""
    source, names = (section.source, section.keys) if isinstance(section, Table) else (section, {})
    texts: dict[str, str] = {}
    # Python does not keep attribute docstrings, so they are read from the source; later classes override bases.
    for base in reversed([base for base in source.__mro__ if base.__module__.startswith("cnnjob.")]):
        body = ast.parse(inspect.getsource(base)).body[0]
        statements = body.body if isinstance(body, ast.ClassDef) else []
        for statement, following in pairwise(statements):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                match following:
                    case ast.Expr(value=ast.Constant(value=str(text))):
                        name = statement.target.id
                        texts[names.get(name, name)] = inspect.cleandoc(text)
    return texts


def _one_line(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


def _takes(field: FieldInfo) -> str:
    """Return the types and limits of a key's values."""
    bounds = [
        _BOUNDS[name].format(f"{getattr(limit, name):,}")
        for limit in field.metadata for name in _BOUNDS if hasattr(limit, name)
    ]  # fmt: skip
    kinds = dict.fromkeys(_kinds(field.annotation))
    return " or ".join(" ".join([kind, *bounds]) if kind in {"integer", "number"} else kind for kind in kinds)


def _kinds(annotation: Any) -> Iterator[str]:
    """Yield the names of an annotation's types, as used in the reference."""
    if annotation in _WORDS:
        yield _WORDS[annotation]
    elif get_origin(annotation) is Literal:
        yield from map(_code_string, get_args(annotation))
    elif get_origin(annotation) is tuple:
        yield "array"
    elif isinstance(annotation, type) and issubclass(annotation, OneOf):
        yield from (*map(_code_string, annotation.model_fields), "table")
    elif isinstance(annotation, type) and (issubclass(annotation, BaseModel) or is_dataclass(annotation)):
        yield "table"
    else:
        for inner in get_args(annotation):
            yield from _kinds(inner)


def _code_string(word: str) -> str:
    return f'`"{word}"`'


def _default(field: FieldInfo) -> str:
    match field.default:
        case _ if field.is_required():
            return "required"
        case None:
            return "–"
        case OneOf() as default:
            return _code_string(default.kind)
        case default if isinstance(default, BaseModel) or is_dataclass(default):
            return "its keys' defaults"
        case default:
            return f"`{format_value(default)}`".replace("'", '"')


if __name__ == "__main__":
    sys.stdout.write(format_markdown())
