"""Draw the figures of a report; figures that would not change are not drawn again.

A notes file next to the figures records digests of each figure's inputs and files. A requested figure is drawn
again if its numbers, its labels, the drawing code or one of its files does not match the notes. A figure that is not
requested is kept as long as it shows the current state of the runs.
"""

import ast
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cnnjob import files
from cnnjob.errors import DataError, JobError
from cnnjob.reporting import curve, filter_grid, lines, plots
from cnnjob.reporting.curve import Curve, Measure
from cnnjob.reporting.groups import Group
from cnnjob.reporting.plots import Format, Panels
from cnnjob.reporting.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS: tuple[Format, ...] = ("png", "svg", "pdf")
NOTES = ".figures.json"
_DRAWING_MODULES = (curve, filter_grid, lines, plots)

Notes = dict[str, dict[str, str]]


class Drawing(NamedTuple):
    """A figure to draw: a function and its arguments."""

    draw: "Callable[..., Figure]"
    """A function in :mod:`cnnjob.reporting.plots`."""
    arguments: tuple[Any, ...]
    """The function's arguments: arrays, dataclasses and JSON values."""


class PlannedFigure(NamedTuple):
    """A figure of a report, and the formats in which it is drawn."""

    stem: str
    """Path of its files without the suffix, relative to the report's folder."""
    drawing: Drawing
    inputs: str
    """Digest of the drawing function and its arguments."""
    formats: tuple[Format, ...]
    """All formats in which the report has this figure."""
    drawn: tuple[Format, ...]
    """The formats that are drawn anew; the files in the other formats are kept."""


def check_formats(names: Iterable[str]) -> list[Format]:
    """Return the formats with the given names, in the order of :data:`FORMATS`.

    Raises:
        JobError: one of the names is not that of a format.
    """
    wanted = list(names)
    if unknown := [name for name in wanted if name not in FORMATS]:
        raise JobError(f"report: not a figure format (found '{unknown[0]}'). Use one or more of {', '.join(FORMATS)}")
    return [kind for kind in FORMATS if kind in wanted]


def drawings(records: Sequence[Record], groups: Sequence[Group]) -> dict[str, Drawing]:
    """Return all figures of a report by file stem: the learning curves of all groups, and the figures of each run."""
    drawings: dict[str, Drawing] = {}
    datasets = dict.fromkeys(group.dataset for group in groups)
    on_dataset = {name: [group for group in groups if group.dataset == name] for name in datasets}
    measures: tuple[Measure, ...] = ("accuracy", "loss")
    panels = [
        Panels(name.partition(" ")[0], {measure: lines.group_lines(members, measure) for measure in measures})
        for name, members in on_dataset.items()
    ]
    if panels := [row for row in panels if any(row.lines.values())]:
        drawings["curves"] = Drawing(plots.learning_curves, (panels,))
    for record in records:
        if record.curve:
            drawings[f"{record.folder}/curves"] = Drawing(plots.learning_curves, ([_run_panels(record.curve)],))
        if record.counts is not None:
            arguments = record.counts, record.class_names, record.name
            drawings[f"{record.folder}/confusion"] = Drawing(plots.confusion_matrix, arguments)
        if record.convolutions:
            layers = [(layer.name, layer.weights, layer.shape) for layer in record.convolutions]
            drawings[f"{record.folder}/filters"] = Drawing(plots.convolution_filters, (layers, record.name))
    return drawings


def _run_panels(curve: Curve) -> Panels:
    measures: tuple[Measure, ...] = ("accuracy", "loss", "learning rate")
    return Panels(
        curve.name, {measure: lines.run_lines(curve, measure) for measure in measures}, curve.best_epoch, curve.restarts
    )


def plan_figures(out: Path, drawings: Mapping[str, Drawing], formats: Iterable[Format]) -> list[PlannedFigure]:
    """Decide which figures are drawn.

    A figure is drawn in each requested format, unless the current drawing code has already drawn it with the
    same arguments. A format that is not requested stays in the report if an earlier report drew the figure in it with
    the same arguments.

    Args:
        out: the folder that contains the files of the previous report, if any.
        drawings: figures by their file stem.
        formats: the requested formats.

    Returns:
        The figures of the report, each in at least one format.
    """
    wanted, notes = set(formats), _read_notes(out)
    planned = []
    for stem, drawing in drawings.items():
        inputs = files.sha256_of(drawing.draw.__name__.encode(), *_bytes_to_hash(drawing.arguments))
        note = notes.get(stem, {})
        unchanged = {kind for kind in FORMATS if note.get("inputs") == inputs and _is_as_noted(out, stem, kind, note)}
        drawn = wanted - unchanged if note.get("code") == _drawing_code_digest() else wanted
        if unchanged | wanted:
            figure_formats = (tuple(kind for kind in FORMATS if kind in kinds) for kinds in (unchanged | wanted, drawn))
            planned.append(PlannedFigure(stem, drawing, inputs, *figure_formats))
    return planned


def draw_planned(out: Path, planned: Iterable[PlannedFigure]) -> Iterator[tuple[str, bytes | None]]:
    """Draw the figures that have changed.

    Args:
        out: the folder that contains the files of the previous report, if any.
        planned: the figures from :func:`plan_figures`.

    Yields:
        The name and content of each file; the content is None if the file has not changed. The file :data:`NOTES`,
        with the digests of all figures, is yielded after each newly drawn figure, or at the end if no figure is drawn.
    """
    notes, has_drawn = _read_notes(out), False
    for stem, drawing, inputs, formats, drawn in planned:
        yield from ((f"{stem}.{kind}", None) for kind in formats if kind not in drawn)
        if drawn:
            figure = drawing.draw(*drawing.arguments)
            contents = {kind: plots.to_bytes(figure, kind) for kind in drawn}
            yield from ((f"{stem}.{kind}", content) for kind, content in contents.items())
            kept = {kind: notes[stem][kind] for kind in formats if kind not in drawn}
            note = {"inputs": inputs, "code": notes[stem].get("code", "") if kept else _drawing_code_digest()}
            notes[stem] = note | kept | {kind: files.sha256_of(content) for kind, content in contents.items()}
            has_drawn = True
            # The notes follow the figure's files at once, so that an interrupted report keeps what it has drawn.
            yield NOTES, files.canonical_json(notes).encode()
    if notes and not has_drawn:
        yield NOTES, files.canonical_json(notes).encode()


def _is_as_noted(out: Path, stem: str, kind: Format, note: Mapping[str, str]) -> bool:
    """Return whether a file of a figure exists and has the digest recorded in ``note``."""
    try:
        return kind in note and files.sha256_of(files.read_bytes(out / f"{stem}.{kind}")) == note[kind]
    except DataError:
        return False


def _read_notes(out: Path) -> Notes:
    """Return the notes for those figures that still exist; empty if the notes cannot be read."""
    try:
        notes = files.read_json(out / NOTES)
    except DataError:
        return {}
    entries = notes.items() if isinstance(notes, dict) else ()
    return {
        stem: note for stem, note in entries
        if isinstance(note, dict) and any((out / f"{stem}.{kind}").exists() for kind in FORMATS)
    }  # fmt: skip


@cache
def _drawing_code_digest() -> str:
    """Return a digest of the drawing code: Matplotlib's version and the statements in this package's modules."""
    statements = (statements_of(inspect.getsource(module)).encode() for module in _DRAWING_MODULES)
    return files.sha256_of(version("matplotlib").encode(), *statements)


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
