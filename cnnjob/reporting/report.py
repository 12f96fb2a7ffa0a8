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
.figures.json                 what the figures were drawn from

Run folders are only read, and nothing but them: a copy on a laptop is enough. Whatever cannot be read is said beside
what can. Equal runs give equal bytes; a file that would not change is not touched, and a figure not drawn again.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from cnnjob import files
from cnnjob.errors import DataError, JobError, printable
from cnnjob.reporting import figures, groups, plots, tables
from cnnjob.reporting.figures import Drawing
from cnnjob.reporting.groups import Group
from cnnjob.reporting.page import page
from cnnjob.reporting.record import COLUMNS, Record, read
from cnnjob.runs import metrics
from cnnjob.runs.run import Run, looks_like_a_run


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
    groups: list[Group]
    """Runs that differ by nothing but their seed, the best group first; ``group`` in a row is the label of its own."""


def report(
    runs: Iterable[Run], out: Path = Path("report"), *, named: Iterable[Run] = (), figures_limit: int = 50
) -> Report:
    """Report runs as a page, tables and figures.

    An unfinished, damaged or foreign run is listed with its reason and what can be read of it.

    Args:
        runs: in any order; the same folder counts once, and a report's folder is none of them.
        out: the folder to write to; made where there is none. Other files in it are left alone.
        named: those of the runs that get figures of their own however many runs there are.
        figures_limit: of more runs than this, no others get figures of their own, nor are all curves overlaid in one.

    Returns:
        The rows, the files, and what was left out.

    Raises:
        DataError: there is no run.
        JobError: ``out`` cannot be written, or its files would lie in a run's folder.
    """
    folders = _named(runs, out)
    if not folders:
        raise DataError("report: no runs to report, none were found; train one with `cnnjob train JOB`")
    few, chosen = len(folders) <= figures_limit, {run.path.resolve() for run in named}
    drawn = {name for name, run in folders.items() if few or run.path.resolve() in chosen}
    on_page = len(folders) <= page.PICTURED_RUNS
    records = [read(run, name, pictures=on_page or name in drawn) for name, run in folders.items()]
    sets = groups.grouped(records)
    pictured = [record for record in records if record.name in drawn]
    drawings = dict(_drawings(records if few else [], pictured))
    contents = [_texts(records, sets, pictured, overlaid="curves" in drawings), figures.contents(out, drawings)]
    changed = {out / name: _update(out / name, content) for name, content in chain.from_iterable(contents)}
    _remove_stale(out, records, changed)
    return Report(
        rows=[record.row for record in records],
        files=list(changed),
        written=[path for path, is_new in changed.items() if is_new],
        skipped=[(record.name, record.row["reason"]) for record in records if record.reasons],
        without_figures=[record.name for record in records if record.name not in drawn],
        groups=sets,
    )


def _named(runs: Iterable[Run], out: Path) -> dict[str, Run]:
    """Each folder once, by its name, or by its path where several share the name; in order of name."""
    folders = {path: run for run in runs if not _is_of_a_report(path := run.path.resolve(), out.resolve())}
    if inside := [path for path in folders if _is_written_to(path, out.resolve())]:
        raise JobError(f"{out}: its files would lie in {inside[0]}, and no run is written to; give another folder")
    names = [path.name for path in folders]
    titles = (path.name if names.count(path.name) == 1 else str(path) for path in folders)
    return dict(sorted(zip(map(printable, titles), folders.values(), strict=True)))


def _is_of_a_report(path: Path, out: Path) -> bool:
    """Whether a folder is no run but this report, another, or where one has the figures of runs."""
    report = path.parent if path.name == "runs" else path
    return not looks_like_a_run(path) and (path == out or (report / "metrics.json").is_file())


def _is_written_to(path: Path, out: Path) -> bool:
    return path == out or path.parent == out / "runs"


def _texts(
    records: Sequence[Record], sets: Sequence[Group], drawn: Sequence[Record], *, overlaid: bool
) -> Iterator[tuple[str, bytes]]:
    """Every file but the figures: its name and its content."""
    yield "index.html", page.render(records, sets).encode()
    yield "groups.csv", tables.csv(tables.group_rows(sets))
    yield "groups.md", tables.groups_as_markdown(sets).encode()
    yield "groups.tex", tables.groups_as_latex(sets).encode()
    yield "metrics.csv", tables.csv([record.row for record in records], COLUMNS)
    yield "metrics.json", files.readable_json([record.row for record in records]).encode()
    yield "metrics.md", tables.runs_as_markdown(records, drawn, overlaid=overlaid).encode()
    yield "metrics.tex", tables.runs_as_latex(records).encode()
    yield "classes.csv", tables.csv(_class_rows(records), ("run", "class", *metrics.PerClass._fields))


def _drawings(overlaid: Sequence[Record], drawn: Sequence[Record]) -> Iterator[tuple[str, Drawing]]:
    """The figure of some runs' curves, and each run's own, by the stems of their files."""
    if curves := [record.curve for record in overlaid if record.curve]:
        yield "curves", Drawing(plots.overlaid_curves, (curves,))
    for record in drawn:
        yield from ((f"{record.folder}/{stem}", drawing) for stem, drawing in record.drawings().items())


def _class_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    return [
        {"run": record.name, "class": name} | dict(zip(metrics.PerClass._fields, numbers, strict=True))
        for record in records
        if record.classes
        for name, *numbers in zip(record.class_names, *(values.tolist() for values in record.classes), strict=True)
    ]


def _update(path: Path, content: bytes | None) -> bool:
    """Write a file if it would change; say whether it did. None is what is there already."""
    if content is None:
        return False
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
    for path in {out / f"{stem}.{kind}" for stem in stems for kind in figures.FORMATS} - set(kept):
        path.unlink(missing_ok=True)
