"""Figure files; figures that would not change are not drawn again.

A notes file next to the figures records digests of each figure's inputs and files. A figure is drawn again if its
numbers, its labels, the drawing code or one of its files does not match the notes.
"""

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cnnjob import files
from cnnjob.errors import DataError
from cnnjob.reporting import curve, filter_grid, plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS: tuple[plots.Format, ...] = ("png", "svg", "pdf")
NOTES = ".figures.json"
_LIBRARIES = ("matplotlib", "seaborn")
_DRAWING_MODULES = (curve, plots, filter_grid)

Notes = dict[str, dict[str, str]]


class Drawing(NamedTuple):
    """A figure to draw: a function and its arguments."""

    draw: "Callable[..., Figure]"
    """A function in :mod:`cnnjob.reporting.plots`."""
    arguments: tuple[Any, ...]
    """The function's arguments: arrays, dataclasses and JSON values."""


def draw_changed(out: Path, drawings: Mapping[str, Drawing]) -> Iterator[tuple[str, bytes | None]]:
    """Draw the figures that have changed.

    Args:
        out: the folder that contains the files of the previous report, if any.
        drawings: figures by their file stem, such as ``curves`` or ``runs/NAME/curves``.

    Yields:
        The name and content of each file; the content is None if the file has not changed. The file :data:`NOTES`,
        with the digests of all figures, is yielded after each newly drawn figure, or at the end if no figure is drawn.
    """
    notes, code, drawn_anew = _read_notes(out), _drawing_code_digest(), False
    for stem, drawing in drawings.items():
        source = files.sha256_of(code, drawing.draw.__name__.encode(), *_bytes_to_hash(drawing.arguments))
        note = notes.get(stem, {})
        if note.get("source") == source and _has_recorded_content(out / stem, note):
            yield from ((f"{stem}.{kind}", None) for kind in FORMATS)
        else:
            figure = drawing.draw(*drawing.arguments)
            drawn = {kind: plots.to_bytes(figure, kind) for kind in FORMATS}
            note = {"source": source} | {kind: files.sha256_of(content) for kind, content in drawn.items()}
            yield from ((f"{stem}.{kind}", content) for kind, content in drawn.items())
            notes[stem], drawn_anew = note, True
            # The notes follow the figure's files at once, so that an interrupted report keeps what it has drawn.
            yield NOTES, files.canonical_json(notes).encode()
    if notes and not drawn_anew:
        yield NOTES, files.canonical_json(notes).encode()


def _has_recorded_content(stem: Path, note: Mapping[str, str]) -> bool:
    """Return whether all files of a figure exist and have the digests recorded in ``note``."""
    try:
        contents = ((kind, files.read_bytes(Path(f"{stem}.{kind}"))) for kind in FORMATS)
        return all(files.sha256_of(content) == note.get(kind) for kind, content in contents)
    except DataError:
        return False


def _read_notes(out: Path) -> Notes:
    """Return the notes for those figures that still exist; empty if the notes cannot be read."""
    try:
        notes = files.read_json(out / NOTES)
    except DataError:
        return {}
    entries = notes.items() if isinstance(notes, dict) else ()
    return {stem: note for stem, note in entries if isinstance(note, dict) and (out / f"{stem}.png").exists()}


def _drawing_code_digest() -> bytes:
    """Return a digest of the drawing code: library versions and the statements in this package's plotting modules."""
    statements = (statements_of(inspect.getsource(module)).encode() for module in _DRAWING_MODULES)
    return files.sha256_of(*(version(name).encode() for name in _LIBRARIES), *statements).encode()


def statements_of(source: str) -> str:
    """Return the syntax tree of a module as text, without comments and docstrings.

    Figures are drawn again when the tree changes, so an edited comment or docstring must not change the tree.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [
                child
                for child in node.body
                if not (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant))
            ]
    return ast.dump(tree)


def _bytes_to_hash(value: Any) -> Iterator[bytes]:
    """Yield a value as bytes to hash, with types, shapes and lengths, so that different values give different bytes."""
    if isinstance(value, np.ndarray):
        # dtype.str includes the byte order, and tobytes() of a contiguous copy does not depend on the strides.
        yield from (f"{value.dtype.str} {value.shape}".encode(), np.ascontiguousarray(value).tobytes())
    elif is_dataclass(value) and not isinstance(value, type):
        yield from _bytes_to_hash(asdict(value))
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from (f"key {key}".encode(), *_bytes_to_hash(inner))
    elif isinstance(value, list | tuple):
        yield f"{len(value)} values".encode()
        yield from (part for inner in value for part in _bytes_to_hash(inner))
    else:
        yield f"{type(value).__name__} {value!r}".encode()
