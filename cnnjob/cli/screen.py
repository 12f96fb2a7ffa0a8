"""Output that the commands share: tables, JSON, notes, and the progress of a training."""

import io
import math
import os
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any, Self, TextIO

import typer

from cnnjob.errors import printable, printable_json, printable_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from cnnjob.jobs.job import Job
    from cnnjob.runs.run import Run

GIGABYTE, MEGABYTE = 1e9, 1e6
LONG_TABLE = 200
"""A table with more rows is printed as plain text: rich takes more than a second for a thousand rows."""
LAST_WIDTH = 16
"""Smallest width of a last column that is folded, in characters."""


def warn_of_clocks(runs: "Iterable[Run]") -> None:
    """Warn on stderr if this machine's clock differs from that of the file system of some runs."""
    from cnnjob.runs import clock

    for folder in sorted({run.path.parent for run in runs}):
        if skew := clock.describe_skew(folder):
            typer.echo(f"cnnjob: {skew}", err=True)


class Printable(io.TextIOBase):
    """A stream that escapes control characters, so that no folder name, class name or log can control the terminal.

    Rich prints past it (:func:`console`), since its control sequences are intended.
    """

    def __init__(self, stream: TextIO) -> None:
        """Wrap a stream."""
        self.stream = stream

    def write(self, text: str) -> int:
        """Write text with its control characters escaped; return the number of characters given."""
        self.stream.write(printable_lines(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self.stream.flush()

    def close(self) -> None:
        """Leave the wrapped stream open, as it belongs to the caller."""

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return self.stream.isatty()

    def fileno(self) -> int:
        """Return the stream's file descriptor."""
        return self.stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Encoding of the wrapped stream."""
        return self.stream.encoding


@contextmanager
def printable_streams() -> "Iterator[None]":
    """Escape control characters in everything that is printed to stdout and stderr within the block."""
    with redirect_stdout(Printable(sys.stdout)), redirect_stderr(Printable(sys.stderr)):
        yield


def terminal(stream: TextIO) -> TextIO:
    """Return the stream that a :class:`Printable` wraps, or the stream itself."""
    return stream.stream if isinstance(stream, Printable) else stream


def print_last(text: str) -> None:
    """Print the line after a training; a closed pipe does not change the exit code of the training."""
    with suppress(OSError):
        typer.echo(text)
    for stream in (terminal(sys.stdout), terminal(sys.stderr)):
        try:
            stream.flush()
        except OSError:
            # At exit the interpreter flushes what is left in the buffer; a failure there is exit code 120.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_table(
    header: "Sequence[str]", rows: "Sequence[Sequence[str]]", *, spare: "Sequence[str] | None" = None
) -> None:
    """Print a table to stdout.

    Args:
        header: one title per column.
        rows: the cells of each row.
        spare: titles of the columns to leave out on a narrow terminal, the first to go first; the last column is folded
            then. None prints all columns.
    """
    # Rich prints past Printable; and an escape is wider than its character, which the widths of columns must know.
    rows = [[printable(cell) for cell in row] for row in rows]
    is_long = len(rows) > LONG_TABLE
    if spare is not None:
        header, rows = fit_columns(header, rows, spare, sys.maxsize if is_long else console().width)
    if is_long:
        typer.echo(_plain(header, rows))
    else:
        console().print(build_table(header, rows, narrow=spare is not None))


def print_notes(run: "Run") -> None:
    """Print notes on stderr about a run whose job was written by an older version."""
    from cnnjob.runs.run import version_notes

    for note in version_notes(run.manifest()):
        typer.echo(f"cnnjob: {run.path}: {note}", err=True)


def print_json(content: Any) -> None:
    """Print a value as JSON; numbers that are not finite become null."""
    from cnnjob.files import readable_json

    typer.echo(printable_json(readable_json(_without_nan(content))), nl=False)


def _without_nan(value: Any) -> Any:
    """Replace NaN and infinities, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {key: _without_nan(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(member) for member in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(header: "Sequence[str]", rows: "Sequence[Sequence[str]]") -> str:
    """Format a table without rich."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    sides = [str.rjust if _are_numbers(column[1:]) else str.ljust for column in columns]

    def line(row: "Sequence[str]") -> str:
        return "   ".join(side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)).rstrip()

    return "\n".join([line(header), "─" * (sum(widths) + 3 * len(widths) - 3), *map(line, rows)])


def _are_numbers(cells: "Iterable[str]") -> bool:
    return all(cell.replace(",", "").replace(".", "").strip("-").isdecimal() or not cell for cell in cells)


def console() -> "Console":
    """Return a rich console on stdout, 160 characters wide if that is not a terminal."""
    from rich.console import Console

    return Console(file=terminal(sys.stdout), width=None if sys.stdout.isatty() else 160, highlight=False, markup=False)


def build_table(header: "Sequence[str]", rows: "Sequence[Sequence[str]]", *, narrow: bool = False) -> "Table":
    """Build a rich table; columns of numbers are aligned to the right.

    Args:
        header: one title per column.
        rows: the cells of each row.
        narrow: leave less space between the columns, and fold only the last.

    Returns:
        The table, for rich to print.
    """
    from rich import box
    from rich.table import Table

    padding = (0, 1, 0, 0) if narrow else (0, 1)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=padding)
    for column, title in enumerate(header):
        cells = [row[column] for row in rows]
        numbers = _are_numbers(cells) and bool(cells)
        is_unfolded = narrow and column < len(header) - 1
        table.add_column(title, justify="right" if numbers else "left", overflow="fold", no_wrap=is_unfolded)
    for row in rows:
        table.add_row(*row)
    return table


def fit_columns(
    header: "Sequence[str]", rows: "Sequence[Sequence[str]]", spare: "Iterable[str]", width: int
) -> tuple[list[str], list[list[str]]]:
    """Drop the empty columns of a table and, as far as the width requires, its spare columns.

    Args:
        header: one title per column; the last column may be folded.
        rows: the cells of each row.
        spare: titles of columns that may be dropped, the first to go first.
        width: width of the terminal, in characters.

    Returns:
        The remaining header and rows.
    """
    widths = {
        title: max(len(row[column]) for row in (header, *rows))
        for column, title in enumerate(header)
        if any(row[column] for row in rows)
    }
    # The last column may be folded, so only its smallest width counts.
    if header[-1] in widths:
        widths[header[-1]] = LAST_WIDTH
    for title in spare:
        if sum(widths.values()) + 2 * len(widths) > width:
            widths.pop(title, None)
    columns = [header.index(title) for title in widths]
    return list(widths), [[row[column] for column in columns] for row in rows]


def gigabytes(count: float) -> str:
    """Format a number of bytes: ``1.20 GB``, ``340.0 MB``."""
    return f"{count / GIGABYTE:.2f} GB" if count >= GIGABYTE else f"{count / MEGABYTE:.1f} MB"


class Screen:
    """The progress callback of the command line: a progress bar on a terminal, and one line per epoch."""

    def __init__(self) -> None:
        """Show nothing yet."""
        self._epochs = 0
        self._bar: Progress | None = None
        self._task: Any = None

    def __enter__(self) -> Self:
        """Return itself; the bar appears when the training starts."""
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the bar, even if the terminal has been closed."""
        if self._bar:
            with suppress(OSError):
                self._bar.stop()

    def start(self, job: "Job", steps: int) -> None:
        """Show the bar, if stderr is a terminal."""
        self._epochs = job.train.epochs
        if sys.stderr.isatty():  # elsewhere, as in a job of SLURM, rich is not imported
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            self._bar = Progress(*columns, console=Console(file=terminal(sys.stderr)), transient=True)
            self._task = self._bar.add_task("epoch", total=steps)
            self._bar.start()

    def step(self, epoch: int, step: int) -> None:
        """Advance the bar."""
        if self._bar:
            self._bar.update(self._task, completed=step, description=f"epoch {epoch}")

    def say(self, text: str) -> None:
        """Print a line to stderr, above the bar if there is one."""
        if self._bar:
            self._bar.console.print(printable_lines(text), markup=False, highlight=False)
        else:
            typer.echo(text, err=True)
