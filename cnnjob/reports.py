"""Runs to a folder of tables and figures.

report/
index.html                    one page of all, for people
groups.csv · .md · .tex       a row a group of runs that differ by their seed alone
metrics.csv · .md · .tex · .json  a row a run, whatever state it is in
classes.csv                   a row a run and class
curves.png · .svg · .pdf             the learning curves of all runs
runs/NAME/curves.png · .svg · .pdf   of one run: learning curves,
          confusion.…         confusion matrix,
          filters.…           filters of the first convolution

Run folders are only read, and nothing but them: a copy on a laptop is enough. Whatever cannot be read is said beside
what can. Equal runs give equal bytes, and a file that would not change is not touched.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnjob import files, groups, metrics, pages, plots, tables
from cnnjob.errors import DataError, JobError
from cnnjob.records import COLUMNS, Record, printable, read
from cnnjob.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FORMATS: tuple[plots.Format, ...] = ("png", "svg", "pdf")


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


def report(
    runs: Iterable[Run], out: Path = Path("report"), *, named: Iterable[Run] = (), figures_limit: int = 50
) -> Report:
    """Report runs as a page, tables and figures.

    An unfinished, damaged or foreign run is listed with its reason and what can be read of it.

    Args:
        runs: in any order; the same folder counts once, and ``out`` is none of them.
        out: the folder to write to; made where there is none. Other files in it are left alone.
        named: those of the runs that get figures of their own however many runs there are.
        figures_limit: of more runs than this, no others get figures of their own, nor are all curves overlaid in one.

    Returns:
        The rows, the files, and what was left out.

    Raises:
        DataError: there is no run.
        JobError: ``out`` cannot be written.
    """
    folders = _named(runs, out)
    if not folders:
        raise DataError("report: no runs to report, none were found; train one with `cnnjob train JOB`")
    few, chosen = len(folders) <= figures_limit, {run.path.resolve() for run in named}
    drawn = {name for name, run in folders.items() if few or run.path.resolve() in chosen}
    on_page = len(folders) <= pages.PICTURED_RUNS
    records = [read(run, name, pictures=on_page or name in drawn) for name, run in folders.items()]
    contents = _contents(records, [record for record in records if record.name in drawn], overlaid=few)
    changed = {out / name: _update(out / name, content) for name, content in contents}
    _remove_stale(out, records, changed)
    return Report(
        rows=[record.row for record in records],
        files=list(changed),
        written=[path for path, is_new in changed.items() if is_new],
        skipped=[(record.name, record.row["reason"]) for record in records if record.reasons],
        without_figures=[record.name for record in records if record.name not in drawn],
    )


def _named(runs: Iterable[Run], out: Path) -> dict[str, Run]:
    """Each folder once, by its name, or by its path where several share the name; in order of name."""
    folders = {run.path.resolve(): run for run in runs}
    folders.pop(out.resolve(), None)
    names = [path.name for path in folders]
    titles = (path.name if names.count(path.name) == 1 else str(path) for path in folders)
    return dict(sorted(zip(map(printable, titles), folders.values(), strict=True)))


def _contents(records: Sequence[Record], drawn: Sequence[Record], *, overlaid: bool) -> Iterator[tuple[str, bytes]]:
    """Every file of the report: its name and its content."""
    curves = [record.curve for record in records if record.curve] if overlaid else []
    sets = groups.grouped(records)
    yield "index.html", pages.render(records, sets).encode()
    yield "groups.csv", tables.csv(tables.group_rows(sets))
    yield "groups.md", tables.groups_as_markdown(sets).encode()
    yield "groups.tex", tables.groups_as_latex(sets).encode()
    yield "metrics.csv", tables.csv([record.row for record in records], COLUMNS)
    yield "metrics.json", _json([record.row for record in records])
    yield "metrics.md", tables.runs_as_markdown(records, drawn, overlaid=bool(curves)).encode()
    yield "metrics.tex", tables.runs_as_latex(records).encode()
    yield "classes.csv", tables.csv(_class_rows(records), ("run", "class", *metrics.PerClass._fields))
    if curves:
        yield from _files_of("curves", plots.overlaid_curves(curves))
    for record in drawn:
        for stem, draw in record.drawings().items():
            yield from _files_of(f"{record.folder}/{stem}", draw())


def _files_of(stem: str, figure: "Figure") -> Iterator[tuple[str, bytes]]:
    for kind in _FORMATS:
        yield f"{stem}.{kind}", plots.to_bytes(figure, kind)


def _json(rows: Sequence[dict[str, Any]]) -> bytes:
    return (json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _class_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    return [
        {"run": record.name, "class": name} | dict(zip(metrics.PerClass._fields, numbers, strict=True))
        for record in records
        if record.classes
        for name, *numbers in zip(record.class_names, *(values.tolist() for values in record.classes), strict=True)
    ]


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
    stems = ["curves", *(f"{record.folder}/{stem}" for record in records for stem in tables.FIGURES)]
    for path in {out / f"{stem}.{kind}" for stem in stems for kind in _FORMATS} - set(kept):
        path.unlink(missing_ok=True)
