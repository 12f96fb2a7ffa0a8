"""Tables of runs and groups: CSV for programs, Markdown for readers, LaTeX (booktabs) for papers."""

import csv as csv_format
import html
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from cnnjob.errors import spreadsheet_cell
from cnnjob.files import short_digest
from cnnjob.reporting.curve import Curve
from cnnjob.reporting.groups import Group, Interval, setting_text
from cnnjob.reporting.record import COLUMNS, HISTORY_COLUMNS, Record

FIGURE_TITLES = {"curves": "learning curves", "confusion": "confusion matrix", "filters": "filters"}
"""Titles of a run's own figures by file stem."""
HISTORY_FILE = "history.csv"
"""Name of the table of a run's epochs, which is in the folder for that run in the report."""
_UNITS = (
    "Accuracy, precision, recall and F1 on the test images are fractions from 0 to 1; `_macro` is a mean over classes. "
    "The loss is in nats per image."
)
_LINKED = ("svg", "png", "pdf")
"""Formats of figures, in order of preference for links; each figure is linked in one format."""
_OF_GROUPS = "Mean ± half the width of the 95 % interval (Student's t) over the n finished seeds."
GROUP_HEADER = ("group", "test accuracy, %", "n", "test loss")
_PAPER_COLUMNS = ("run", "seed", "state", "test_accuracy", "test_loss", "f1_macro", "epochs")
_MAX_PAPER_SETTINGS = 3
"""Maximum number of settings for which ``metrics.tex`` has columns; a page is not wide enough for more."""
_SAME_AS_COLUMNS = ("batch_size", "learning_rate", "test_time_augmentation")
"""Settings that have a column in every metrics table."""
_UNREMARKABLE = {"selected_on": (None, "validation", "last"), "test_time_augmentation": (None, "none")}
"""Columns that qualify an accuracy, each with the values that do not need to be mentioned in a paper."""
_MEASURES = ("test_accuracy", "test_loss", "epochs", "train_seconds")
_ROUNDED = {
    **dict.fromkeys(("test_accuracy", "test_loss", "precision_macro", "recall_macro", "f1_macro"), 4),
    "train_seconds": 1,
}
"""Number of decimal places of measured values in tables for readers; settings are written in full."""
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": r"\textendash{}", "±": r"$\pm$",
    "|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}", '"': r"\textquotedbl{}",
}  # fmt: skip


def csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> bytes:
    """Format rows as CSV with full precision and empty cells for unknown values.

    Cells that a spreadsheet would evaluate as formulas are escaped.

    Args:
        rows: one dict per row.
        columns: all columns in order; by default, those of the rows in order of first appearance.

    Returns:
        The file's content.
    """
    text = io.StringIO()
    names = columns or list(dict.fromkeys(key for row in rows for key in row))
    writer = csv_format.writer(text, lineterminator="\n")  # the default is \r\n
    for cells in (names, *([row.get(name) for name in names] for row in rows)):
        writer.writerow(map(spreadsheet_cell, cells))
    return text.getvalue().encode()


def run_rows(records: Iterable[Record], groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return the rows of the metrics tables: the values of ``COLUMNS``, and the settings that differ between groups.

    A setting has the same name as in the tables of groups, but with the prefix ``train.`` if that is also the name of a
    column of results, such as ``epochs``.
    """
    by_run = {record.name: group.settings for group in groups for record in group.records}
    names = [name for name in (groups[0].settings if groups else ()) if name not in _SAME_AS_COLUMNS]
    columns = {name: f"train.{name}" if name in COLUMNS else name for name in names}
    at = COLUMNS.index("state")
    rows = []
    for record in records:
        settings = {column: by_run.get(record.name, {}).get(name) for name, column in columns.items()}
        cells = [(column, record.row[column]) for column in COLUMNS]
        rows.append(dict([*cells[:at], *settings.items(), *cells[at:]]))
    return rows


def history_rows(curve: Curve) -> list[dict[str, Any]]:
    """Return the known values of each epoch, by the names in ``HISTORY_COLUMNS``; ``ended`` is a POSIX time."""
    rows = []
    for values in zip(*(curve.history[column].tolist() for column in HISTORY_COLUMNS), strict=True):
        cells = zip(HISTORY_COLUMNS, values, strict=True)
        row: dict[str, Any] = {column: value for column, value in cells if not math.isnan(value)}
        row |= {column: int(row[column]) for column in ("epoch", "step") if column in row}
        rows.append(row)
    return rows


def history_csv(curve: Curve) -> bytes:
    """Return the content of ``history.csv``: one row per epoch of a run, with the columns ``HISTORY_COLUMNS``."""
    rows = history_rows(curve)
    for row in rows:
        if "ended" in row:
            row["ended"] = datetime.fromtimestamp(row["ended"], UTC).isoformat()
    return csv(rows, HISTORY_COLUMNS)


def group_rows(groups: Iterable[Group]) -> list[dict[str, Any]]:
    """Return one row per group: settings, n, seeds, remarks, and each measure's mean and interval half-width."""
    return [{"group": group.label} | group.settings | dict(_iterate_numbers(group)) for group in groups]


def _iterate_numbers(group: Group) -> Iterator[tuple[str, Any]]:
    yield "n", len(group.by_seed)
    for column in _MEASURES:
        interval = group.interval(column)
        yield f"{column}_mean", interval and interval.mean
        yield f"{column}_half_width", interval and interval.half_width
    yield "seeds", " ".join(str(seed) for seed in group.by_seed)
    yield "remarks", "; ".join(group.remarks)


def group_cells(group: Group) -> list[str]:
    """Return a group's formatted cells: label, mean accuracy in %, n, mean loss."""
    accuracy, loss = group.interval("test_accuracy"), group.interval("test_loss")
    return [group.label, format_interval(accuracy, 100, 2), str(len(group.by_seed)), format_interval(loss, 1, 4)]


def _group_table(groups: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows, with a column of remarks only if there are any."""
    header = [*GROUP_HEADER, *(groups[0].settings if groups else ())]
    rows = [[*group_cells(group), *map(setting_text, group.settings.values())] for group in groups]
    if any(group.remarks for group in groups):
        header.append("remarks")
        for row, group in zip(rows, groups, strict=True):
            row.append("; ".join(group.remarks))
    return header, rows


def format_interval(interval: Interval | None, factor: float, digits: int) -> str:
    """Return an interval formatted like ``99.14 ± 0.12``, or a dash if it is None."""
    if interval is None:
        return "–"
    half = "" if interval.half_width is None else f" ± {factor * interval.half_width:.{digits}f}"
    return f"{factor * interval.mean:z.{digits}f}{half}"


def groups_as_markdown(groups: Sequence[Group]) -> str:
    """Return the content of ``groups.md``."""
    return f"# Groups\n\n{_format_markdown_table(*_group_table(groups))}\n\n{_OF_GROUPS}\n"


def groups_as_latex(groups: Sequence[Group]) -> str:
    """Return the content of ``groups.tex``."""
    header, rows = _group_table(groups)
    return _format_latex_table(header, rows, "lrrr" + "l" * (len(header) - len(GROUP_HEADER)))


def runs_as_latex(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the content of ``metrics.tex``, with only as many columns as fit on a page.

    The columns include up to three of the settings that differ. ``selected_on`` and ``test_time_augmentation`` are
    included only if readers need them to interpret the accuracy of a run.
    """
    qualifying = [name for name, plain in _UNREMARKABLE.items() if any(row[name] not in plain for row in rows)]
    varied = [
        name
        for name in (rows[0] if rows else ())
        if name not in COLUMNS or (name in _SAME_AS_COLUMNS and len({row[name] for row in rows}) > 1)
    ]
    settings = [name for name in varied if name not in qualifying][:_MAX_PAPER_SETTINGS]
    columns = [*_PAPER_COLUMNS[:2], *settings, *_PAPER_COLUMNS[2:], *qualifying]
    cells = ([_format_readable(column, row[column]) for column in columns] for row in rows)
    alignment = "lr" + "l" * len(settings) + "lrrrr" + "l" * len(qualifying)
    return _format_latex_table([column.replace("_", " ") for column in columns], cells, alignment)


def runs_as_markdown(
    records: Sequence[Record], rows: Sequence[Mapping[str, Any]], drawn: Mapping[str, Sequence[str]]
) -> str:
    """Return a readable overview of the runs: rounded numbers, remarks and links to the figures.

    Args:
        records: records of all runs.
        rows: the runs' rows, from :func:`run_rows`.
        drawn: formats of the report's figures, by file stem.

    Returns:
        The content of ``metrics.md``.
    """
    table = _format_markdown_table(list(rows[0]), ([_format_readable(*cell) for cell in row.items()] for row in rows))
    remarks = []
    for record in records:
        parent = [f"fine-tuned from {_escape_markdown(record.parent)}"] if record.parent else []
        remarks += [f"- {_escape_markdown(record.name)}: {remark}" for remark in (*parent, *record.remarks)]
    linked = {stem: next(kind for kind in _LINKED if kind in formats) for stem, formats in drawn.items()}
    overlay = f"![Learning curves of all runs](curves.{linked['curves']})" if "curves" in linked else ""
    links = []
    for record in records:
        stems = {stem: title for name, title in FIGURE_TITLES.items() if (stem := f"{record.folder}/{name}") in linked}
        if stems:
            figures = (f"[{title}]({quote(f'{stem}.{linked[stem]}')})" for stem, title in stems.items())
            links.append(f"- {_escape_markdown(record.name)}: {' · '.join(figures)}")
    parts = ["# Runs", table, "\n".join(remarks), _UNITS, overlay, "\n".join(links)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _format_readable(column: str, value: Any) -> str:
    if isinstance(value, float) and column in _ROUNDED:
        return f"{value:.{_ROUNDED[column]}f}"
    if column in {"commit", "data_sha256"} and value:
        digits, *dirty = str(value).split("-")
        return "-".join([short_digest(digits), *dirty])
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def _format_markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (f"| {' | '.join(map(_escape_markdown, row))} |" for row in rows)
    return "\n".join([f"| {' | '.join(map(_escape_markdown, header))} |", f"|{' --- |' * len(header)}", *lines])


def _escape_markdown(text: str) -> str:
    # Markdown passes HTML through unchanged, and a | would begin a new cell.
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")


def _format_latex_table(header: Sequence[str], rows: Iterable[Sequence[str]], columns: str) -> str:
    """Return a booktabs-style ``tabular``."""
    lines = [" & ".join(map(_escape_latex, row)) + r" \\" for row in (header, *rows)]
    body = "\n".join(lines[1:])
    return (
        "% needs \\usepackage{booktabs} and \\usepackage[T1]{fontenc}; non-Latin letters need LuaLaTeX\n"
        f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{lines[0]}\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"
    )


def _escape_latex(text: str) -> str:
    """Escape a cell so that LaTeX prints its text literally.

    A leading ``[`` or ``*`` would be read as an argument of the preceding row end (two backslashes), and ``--`` would
    become a dash.
    """
    words = "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))
    # Replaced twice: in ---, the first pass replaces one pair and leaves another.
    cell = words.replace("--", "-{}-").replace("--", "-{}-")
    return f"{{}}{cell}" if cell.startswith(("[", "*")) else cell
