"""Figures as files: what would be drawn as before is not drawn again.

Beside them lies a note of what each was drawn from, and of its files. A figure is drawn anew when its numbers, its
names, the way it is drawn or one of its files is not as noted.
"""

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
_DRAWN_BY = ("matplotlib", "seaborn")
_DRAWN_WITH = (curve, plots, filter_grid)

Notes = dict[str, dict[str, str]]


class Drawing(NamedTuple):
    """A figure that can be drawn."""

    draw: "Callable[..., Figure]"
    """Of :mod:`cnnjob.reporting.plots`."""
    arguments: tuple[Any, ...]
    """Arrays, dataclasses, and what JSON can say."""


def contents(out: Path, drawings: Mapping[str, Drawing]) -> Iterator[tuple[str, bytes | None]]:
    """Draw what has changed.

    Args:
        out: the folder of the files.
        drawings: by the stems of their files, ``curves`` or ``runs/NAME/curves``.

    Yields:
        Every file's name with its content, None where it is there as it would be; the note after each that is drawn.
    """
    notes, way, drawn_anew = _notes(out), _way(), False
    for stem, drawing in drawings.items():
        source = files.sha256_of(way, drawing.draw.__name__.encode(), *_parts(drawing.arguments))
        note = notes.get(stem, {})
        if note.get("source") == source and _is_there(out / stem, note):
            yield from ((f"{stem}.{kind}", None) for kind in FORMATS)
        else:
            figure = drawing.draw(*drawing.arguments)
            drawn = {kind: plots.to_bytes(figure, kind) for kind in FORMATS}
            note = {"source": source} | {kind: files.sha256_of(content) for kind, content in drawn.items()}
            yield from ((f"{stem}.{kind}", content) for kind, content in drawn.items())
            notes[stem], drawn_anew = note, True
            yield NOTES, files.canonical_json(notes).encode()
    if notes and not drawn_anew:
        yield NOTES, files.canonical_json(notes).encode()


def _is_there(stem: Path, note: Mapping[str, str]) -> bool:
    """Whether all files of a figure are as they were written."""
    try:
        contents = ((kind, files.read_bytes(Path(f"{stem}.{kind}"))) for kind in FORMATS)
        return all(files.sha256_of(content) == note.get(kind) for kind, content in contents)
    except DataError:
        return False


def _notes(out: Path) -> Notes:
    """What earlier reports noted of figures that are there; nothing where it cannot be read."""
    try:
        notes = files.read_json(out / NOTES)
    except DataError:
        return {}
    named = notes.items() if isinstance(notes, dict) else ()
    return {stem: note for stem, note in named if isinstance(note, dict) and (out / f"{stem}.png").exists()}


def _way() -> bytes:
    """How figures are drawn: what else their bytes depend on."""
    sources = [inspect.getsource(module).encode() for module in _DRAWN_WITH]
    return files.sha256_of(*(version(name).encode() for name in _DRAWN_BY), *sources).encode()


def _parts(value: Any) -> Iterator[bytes]:
    """A value as bytes, each part with what tells it from others of the same bytes."""
    if isinstance(value, np.ndarray):
        yield from (f"{value.dtype.str} {value.shape}".encode(), np.ascontiguousarray(value).tobytes())
    elif is_dataclass(value) and not isinstance(value, type):
        yield from _parts(asdict(value))
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from (f"key {key}".encode(), *_parts(inner))
    elif isinstance(value, list | tuple):
        yield f"{len(value)} values".encode()
        yield from (part for inner in value for part in _parts(inner))
    else:
        yield f"{type(value).__name__} {value!r}".encode()
