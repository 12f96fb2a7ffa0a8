"""Runs to a folder of tables and figures.

report/
metrics.csv · .md · .json     a row a run, whatever state it is in
classes.csv                   a row a run and class
curves.png · .svg             the learning curves of all runs
runs/NAME/curves.png · .svg   of one run: learning curves,
          confusion.…         confusion matrix,
          filters.…           filters of the first convolution

Run folders are only read, and nothing but them: a copy on a laptop is enough. Whatever cannot be read is said beside
what can. Equal runs give equal bytes, and a file that would not change is not touched.
"""

import html
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pandas as pd

from cnnjob import files, metrics, plots
from cnnjob.errors import DataError, JobError
from cnnjob.records import COLUMNS, Record, printable, read
from cnnjob.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_UNITS = (
    "Accuracy, precision, recall and F1 are shares of one, of the test images; `_macro` is the mean over the classes. "
    "The loss is in nats per image."
)
_TOO_MANY = "These are too many runs for figures of each; name some of them to see theirs."
_FORMATS: tuple[plots.Format, ...] = ("png", "svg")
_FIGURES = {"curves": "learning curves", "confusion": "confusion matrix", "filters": "first-layer filters"}
_HASH_LETTERS = 8


@dataclass(frozen=True)
class Report:
    """What was reported, and where."""

    rows: list[dict[str, Any]]
    """Of the metrics tables, a dict a run in order of name, with the keys ``COLUMNS``."""
    files: list[Path]
    """Every file of the report."""
    written: list[Path]
    """Those of them that are new or have changed."""
    skipped: list[tuple[str, str]]
    """Runs that are not reported in full, and why."""
    without_figures: list[str]
    """Runs that have no figures of their own, because there are more of them than the limit."""


def report(runs: Iterable[Run], out: Path = Path("report"), *, figures_limit: int = 50) -> Report:
    """Report runs as tables and figures.

    An unfinished, damaged or foreign run is listed with its reason and what can be read of it.

    Args:
        runs: in any order; the same folder counts once, and ``out`` is none of them.
        out: the folder to write to; made where there is none. Other files in it are left alone.
        figures_limit: more runs than this get no figures of their own, only tables and overlaid curves.

    Returns:
        The rows, the files, and what was left out.

    Raises:
        DataError: there is no run.
        JobError: ``out`` cannot be written.
    """
    records = [read(run, name) for name, run in _named(runs, out).items()]
    if not records:
        raise DataError("report: no runs to report, none were found; train one with `cnnjob train JOB`")
    drawn = records if len(records) <= figures_limit else []
    contents = ((out / name, content) for name, content in _contents(records, drawn))
    changed = {path: _update(path, content) for path, content in contents}
    _remove_stale(out, records, changed)
    return Report(
        rows=[record.row for record in records],
        files=list(changed),
        written=[path for path, is_new in changed.items() if is_new],
        skipped=[(record.name, record.row["reason"]) for record in records if record.reasons],
        without_figures=[] if drawn else [record.name for record in records],
    )


def _named(runs: Iterable[Run], out: Path) -> dict[str, Run]:
    """Each folder once, by its name, or by its path where several share the name; in order of name."""
    folders = {run.path.resolve(): run for run in runs}
    folders.pop(out.resolve(), None)
    names = [path.name for path in folders]
    titles = (path.name if names.count(path.name) == 1 else str(path) for path in folders)
    return dict(sorted(zip(map(printable, titles), folders.values(), strict=True)))


def _contents(records: Sequence[Record], drawn: Sequence[Record]) -> Iterator[tuple[str, bytes]]:
    """Every file of the report: its name and its content."""
    yield "metrics.csv", _csv([record.row for record in records], COLUMNS)
    yield "metrics.json", _json([record.row for record in records])
    yield "metrics.md", _markdown(records, drawn).encode()
    yield "classes.csv", _csv(_class_rows(records), ("run", "class", *metrics.PerClass._fields))
    curves = [record.curve for record in records if record.curve]
    if curves:
        yield from _files_of("curves", plots.overlaid_curves(curves))
    for record in drawn:
        for stem, draw in record.drawings().items():
            yield from _files_of(f"{record.folder}/{stem}", draw())


def _files_of(stem: str, figure: "Figure") -> Iterator[tuple[str, bytes]]:
    for kind in _FORMATS:
        yield f"{stem}.{kind}", plots.to_bytes(figure, kind)


def _csv(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> bytes:
    table = pd.DataFrame(rows, columns=list(columns), dtype=object)  # object: a whole number beside None stays whole
    return table.to_csv(index=False, lineterminator="\n").encode()


def _json(rows: Sequence[dict[str, Any]]) -> bytes:
    return (json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _class_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    return [
        {"run": record.name, "class": name} | dict(zip(metrics.PerClass._fields, numbers, strict=True))
        for record in records
        if record.classes
        for name, *numbers in zip(record.class_names, *(values.tolist() for values in record.classes), strict=True)
    ]


def _markdown(records: Sequence[Record], drawn: Sequence[Record]) -> str:
    """The metrics for a reader: rounded, with what they must know beside them."""
    header = f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}"
    rows = (f"| {' | '.join(_readable(*cell) for cell in record.row.items())} |" for record in records)
    remarks = (f"- {_escaped(record.name)}: {remark}" for record in records for remark in record.remarks)
    overlay = "![Learning curves of all runs](curves.svg)" if any(record.curve for record in records) else ""
    links = "\n".join(_links(record) for record in drawn)
    parts = ["# Runs", "\n".join([header, *rows]), "\n".join(remarks), _UNITS, overlay, links or _TOO_MANY]
    return "\n\n".join(part for part in parts if part) + "\n"


def _readable(column: str, value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1f}" if column == "train_seconds" else f"{value:.4f}"
    if column in {"commit", "data_sha256"} and value:
        digits, *dirty = str(value).split("-")
        return _escaped("-".join([digits[:_HASH_LETTERS], *dirty]))
    return "" if value is None else _escaped(str(value))


def _escaped(text: str) -> str:
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")


def _links(record: Record) -> str:
    links = (f"[{_FIGURES[stem]}]({quote(f'{record.folder}/{stem}.svg')})" for stem in record.drawings())
    return f"- {_escaped(record.name)}: {' · '.join(links) or 'no figures'}"


def _update(path: Path, content: bytes) -> bool:
    """Write a file if it would change; say whether it did."""
    try:
        if path.is_file() and path.read_bytes() == content:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(path, content)
    except OSError as error:
        raise JobError(f"{path}: cannot be written, {error}; give another folder for the report") from error
    return True


def _remove_stale(out: Path, records: Sequence[Record], kept: Iterable[Path]) -> None:
    """Remove the figures that an earlier report of these runs had and this one has not."""
    stems = ["curves", *(f"{record.folder}/{stem}" for record in records for stem in _FIGURES)]
    for path in {out / f"{stem}.{kind}" for stem in stems for kind in _FORMATS} - set(kept):
        path.unlink(missing_ok=True)
