"""Report on runs: a folder of tables and figures.

report/
index.html                           one page with everything
groups.csv · .md · .tex              one row per group of runs that differ only in their seed
metrics.csv · .md · .tex · .json     one row per run, in any state
classes.csv                          one row per run and class
curves.png · .svg · .pdf             if requested: learning curves of all groups
runs/NAME/curves.png · .svg · .pdf   for one run: learning curves,
          confusion.…                confusion matrix,
          filters.…                  filters of all convolutions
          history.csv                one row per epoch
.figures.json                        digests of the figures' inputs and files

Only the run folders are read, and nothing in them is changed, so the report can also be written from copies of the
folders, for example on a laptop. Anything that cannot be read is listed with the reason. The same runs give the same
bytes. A file whose content has not changed is not written again, and an unchanged figure is not drawn again. Figures
that are not requested are kept if an earlier report drew them and they still show these runs; otherwise, they are
removed.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from cnnjob import files
from cnnjob.errors import DataError, JobError, plural, printable, three_lines
from cnnjob.reporting import figures, groups, tables
from cnnjob.reporting.groups import Group
from cnnjob.reporting.page import page
from cnnjob.reporting.plots import Format
from cnnjob.reporting.record import Record, read_record
from cnnjob.runs import metrics
from cnnjob.runs.run import Run, looks_like_a_run

Item = TypeVar("Item")


@dataclass(frozen=True)
class Report:
    """A report that has been written."""

    rows: list[dict[str, Any]]
    """Rows of the metrics tables: one dict per run, ordered by name, with the keys ``COLUMNS`` and the settings that
    differ between groups. For a run that is not reported in full, ``reason`` states why."""
    files: list[Path]
    """All files in the report."""
    written: list[Path]
    """The files that are new or have changed."""
    groups: list[Group]
    """Groups of runs that differ only in their seed, best first; a row's ``group`` is its group's label."""

    def __repr__(self) -> str:
        """Return the path of the page, the states of the runs and the best result, on three lines."""
        page_file = next((path for path in self.files if path.name == "index.html"), Path("index.html"))
        states = ", ".join(f"{count} {state}" for state, count in Counter(row["state"] for row in self.rows).items())
        measured = [row for row in self.rows if row["test_accuracy"] is not None]
        best = max(measured, key=lambda row: row["test_accuracy"], default=None)
        return three_lines(
            f"Report {page_file}: {plural(len(self.rows), 'run')} ({states})",
            f"  best: {best['run']}, test accuracy {100 * best['test_accuracy']:.2f} %" if best else "  no results yet",
            f"  {len(self.written)} of {plural(len(self.files), 'file')} changed",
        )


def report(
    runs: Iterable[Run],
    out: Path = Path("report"),
    *,
    formats: Sequence[Format] = (),
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Report:
    """Write a report on runs: a page, tables and, if requested, figures.

    Unfinished and damaged runs, and folders that are not runs, are listed with the reason and whatever can be read.

    Args:
        runs: the runs in any order; duplicates count once, and report folders are ignored.
        out: the folder to write to, created if missing. Other files in this folder are not changed.
        formats: formats in which figures are drawn: ``png``, ``svg``, ``pdf``. Figures of an earlier report in other
            formats are kept if they still show these runs, and removed otherwise.
        on_progress: called with the current activity, the number of runs or figures that are done, and their total.

    Returns:
        The rows and files of the report.

    Raises:
        DataError: there are no runs.
        JobError: ``out`` cannot be written, or its files would be inside a run folder.
    """
    folders = _run_names(runs, out)
    if not folders:
        raise DataError("report: no runs found. To train one:\n  cnnjob train JOB")
    has_figures = bool(formats) or (out / figures.NOTES).exists()
    pictures = has_figures or len(folders) <= page.MAX_PICTURED_RUNS
    found = _with_progress(list(folders.items()), "reading runs", on_progress)
    records = [read_record(run, name, pictures=pictures) for name, run in found]
    run_groups = groups.group_runs(records)
    rows = tables.run_rows(records, run_groups)
    drawings = figures.drawings(records, run_groups) if has_figures else {}
    planned = figures.plan_figures(out, drawings, formats)
    # Generators, so that each file is written as soon as it is ready, and an interrupted report keeps those files.
    contents = [
        _text_files(records, rows, run_groups, {figure.stem: figure.formats for figure in planned}),
        figures.draw_planned(out, _with_progress(planned, "drawing figures", on_progress)),
    ]
    changed = {out / name: _update(out / name, content) for name, content in chain.from_iterable(contents)}
    # Remove files of these runs that an earlier report wrote and this report does not contain. Only files with the
    # names of report files are removed, since any other file in the folder belongs to the user.
    stems = ["curves", *(f"{record.folder}/{stem}" for record in records for stem in tables.FIGURE_TITLES)]
    names = [f"{stem}.{kind}" for stem in stems for kind in figures.FORMATS]
    names += [f"{record.folder}/{tables.HISTORY_FILE}" for record in records]
    for path in {out / name for name in names} - set(changed):
        path.unlink(missing_ok=True)
    return Report(
        rows=rows,
        files=list(changed),
        written=[path for path, is_new in changed.items() if is_new],
        groups=run_groups,
    )


def _with_progress(
    items: Sequence[Item], activity: str, on_progress: Callable[[str, int, int], None] | None
) -> Iterator[Item]:
    """Yield items; before each one, report how many have been processed."""
    for done, item in enumerate(items):
        if on_progress:
            on_progress(activity, done, len(items))
        yield item


def _run_names(runs: Iterable[Run], out: Path) -> dict[str, Run]:
    """Return each run once, sorted and keyed by folder name, or by path if several folders have the same name."""
    folders = {path: run for run in runs if not _is_report_folder(path := run.path.resolve(), out.resolve())}
    target = out.resolve()
    if inside := [path for path in folders if path == target or path.parent == target / "runs"]:
        raise JobError(f"{out}: the report would be written into the run {inside[0]}. Choose another folder")
    names = [path.name for path in folders]
    titles = (path.name if names.count(path.name) == 1 else str(path) for path in folders)
    return dict(sorted(zip(map(printable, titles), folders.values(), strict=True)))


def _is_report_folder(path: Path, out: Path) -> bool:
    """Return whether a folder is not a run but a report (this one or another), or the ``runs/`` folder of a report."""
    report = path.parent if path.name == "runs" else path
    return not looks_like_a_run(path) and (path == out or (report / "metrics.json").is_file())


def _text_files(
    records: Sequence[Record],
    rows: Sequence[dict[str, Any]],
    run_groups: Sequence[Group],
    drawn: Mapping[str, Sequence[Format]],
) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of each file except figures."""
    yield "index.html", page.render(records, run_groups).encode()
    yield "groups.csv", tables.csv(tables.group_rows(run_groups))
    yield "groups.md", tables.groups_as_markdown(run_groups).encode()
    yield "groups.tex", tables.groups_as_latex(run_groups).encode()
    yield "metrics.csv", tables.csv(rows)
    yield "metrics.json", files.readable_json(rows).encode()
    yield "metrics.md", tables.runs_as_markdown(records, rows, drawn).encode()
    yield "metrics.tex", tables.runs_as_latex(rows).encode()
    yield "classes.csv", tables.csv(_class_rows(records), ("run", "class", *metrics.PerClass._fields))
    for record in records:
        if record.curve:
            yield f"{record.folder}/{tables.HISTORY_FILE}", tables.history_csv(record.curve)


def _class_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    return [
        {"run": record.name, "class": name} | dict(zip(metrics.PerClass._fields, numbers, strict=True))
        for record in records
        if record.classes
        for name, *numbers in zip(record.class_names, *(values.tolist() for values in record.classes), strict=True)
    ]


def _update(path: Path, content: bytes | None) -> bool:
    """Write a file if ``content`` is not None and differs from the file's content; return whether it was written."""
    if content is None:
        return False
    try:
        if path.is_file() and path.read_bytes() == content:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not flushed, which takes 10 ms per file: the next report would replace a file that a power cut has emptied.
        files.write_whole(path, content, flush=False)
    except OSError as error:
        raise JobError(f"{path}: cannot be written ({error}). Choose another folder for the report") from error
    return True
