"""Output shared by the commands: tables, JSON, notes and training progress."""

import io
import math
import os
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any, Self, TextIO

import typer

from cnnjob.errors import printable, printable_json, printable_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from cnnjob.jobs.job import Job
    from cnnjob.runs.run import Run
    from cnnjob.training.progress import ProgressText

GIGABYTE, MEGABYTE = 1e9, 1e6
LONG_TABLE = 200
"""Maximum number of rows that rich prints; rich takes over a second per 1000 rows, so longer ones are plain text."""
STATE_COLOURS = {
    "finished": "green", "running": "cyan", "stopped": "yellow", "failed": "red", "lost": "red", "damaged": "red",
}  # fmt: skip
"""Colours of the states of runs in tables; other states keep the terminal's colour."""
MIN_BAR_WIDTH = 5
"""Width of the progress bar on a narrow terminal, in characters; the text beside it leaves at least this much room."""
MAX_TABLE_WIDTH = 2000
"""Maximum width of a table that is printed with all columns, whatever the width of the terminal, in characters."""
LAST_WIDTH = 16
"""Minimum width of a folded last column, in characters."""


def warn_of_clocks(runs: "Iterable[Run]") -> None:
    """Warn on stderr if this machine's clock differs from the clock of a file system that contains some of the runs."""
    from cnnjob.runs import clock

    for folder in sorted({run.path.parent for run in runs}):
        if skew := clock.describe_skew(folder):
            print_warning(skew)


class Printable(io.TextIOBase):
    """A stream that escapes control characters, so that no folder name, class name or log can control the terminal.

    Rich writes to the wrapped stream directly (see :func:`console`), because its control sequences are intended.
    """

    def __init__(self, stream: TextIO) -> None:
        """Wrap a stream."""
        self.stream = stream

    def write(self, text: str) -> int:
        """Write text with its control characters escaped; return the length of the original text."""
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


def print_error(text: str) -> None:
    """Print an error to stderr after ``cnnjob:``, which is red on a terminal unless ``NO_COLOR`` is set."""
    _print_message(text, "31")


def print_warning(text: str) -> None:
    """Print a warning to stderr like :func:`print_error`, but with yellow instead of red."""
    _print_message(f"warning: {text}", "33")


def _print_message(text: str, colour: str) -> None:
    stream = terminal(sys.stderr)
    is_plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    name = "cnnjob:" if is_plain or not stream.isatty() else f"\x1b[{colour}mcnnjob:\x1b[0m"
    stream.write(f"{name} {printable_lines(text)}\n")  # Printable would escape the colour
    stream.flush()


def print_last(text: str) -> None:
    """Print the last line of a training command's output; a closed pipe does not change the exit code."""
    with suppress(OSError):
        typer.echo(text)
    for stream in (terminal(sys.stdout), terminal(sys.stderr)):
        try:
            stream.flush()
        except OSError:
            # At exit, the interpreter flushes the rest of the buffer; a failure there changes the exit code to 120.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def print_table(
    header: "Sequence[str]",
    rows: "Sequence[Sequence[str]]",
    *,
    spare: "Sequence[str] | None" = None,
    wide: bool = False,
    advice: str = "--json shows all of them",
) -> None:
    """Print a table to stdout.

    Args:
        header: one title per column.
        rows: the cells of each row.
        spare: titles of the columns that may be dropped if the terminal is too narrow, in the order in which they are
            dropped. If ``spare`` is given, empty columns are always dropped, and only the last column may be folded; if
            it is None, all columns are printed.
        wide: whether to print all columns that are not empty, however narrow the terminal is.
        advice: how the user can see the dropped columns.
    """
    # Rich bypasses Printable, and an escape sequence is wider than its character, so cells are escaped before layout.
    rows = [[printable(cell) for cell in row] for row in rows]
    is_long = len(rows) > LONG_TABLE
    filled = [title for title, *cells in zip(header, *rows, strict=True) if title and any(cells)]
    if spare is not None:
        header, rows = fit_columns(header, rows, spare, sys.maxsize if is_long or wide else console().width)
    if is_long:
        typer.echo(_plain(header, rows))
    else:
        console(wide=wide).print(build_table(header, rows, narrow=spare is not None))
    if hidden := [title for title in filled if title not in header]:
        console().print(f"hidden on this narrow terminal: {', '.join(hidden)}; {advice}")


def print_notes(run: "Run") -> None:
    """Print notes to stderr if an older version wrote the run's job."""
    from cnnjob.runs.run import version_notes

    for note in version_notes(run.manifest()):
        typer.echo(f"cnnjob: {run.path}: {note}", err=True)


def print_json(content: Any) -> None:
    """Print a value as JSON; non-finite numbers become null."""
    from cnnjob.files import readable_json

    typer.echo(printable_json(readable_json(_without_nan(content))), nl=False)


def _without_nan(value: Any) -> Any:
    """Return the value with NaN and infinities, which JSON cannot express, replaced with None."""
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


def console(*, wide: bool = False) -> "Console":
    """Return a rich console on stdout, 160 characters wide if stdout is no terminal, or wide enough for any table."""
    from rich.console import Console

    return Console(
        file=terminal(sys.stdout),
        width=MAX_TABLE_WIDTH if wide else None if sys.stdout.isatty() else 160,
        color_system=None if os.environ.get("NO_COLOR") else "auto",  # otherwise, NO_COLOR leaves bold headers
        highlight=False,
        markup=False,
    )


def build_table(header: "Sequence[str]", rows: "Sequence[Sequence[str]]", *, narrow: bool = False) -> "Table":
    """Build a rich table; numeric columns are right-aligned.

    Args:
        header: one title per column.
        rows: the cells of each row.
        narrow: whether to leave less space between columns, and to fold long cells only in the last column.

    Returns:
        The table, for rich to print.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    padding = (0, 1, 0, 0) if narrow else (0, 1)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=padding)
    for column, title in enumerate(header):
        cells = [row[column] for row in rows]
        numbers = _are_numbers(cells) and bool(cells)
        is_unfolded = narrow and column < len(header) - 1
        table.add_column(title, justify="right" if numbers else "left", overflow="fold", no_wrap=is_unfolded)
    for row in rows:
        styled: list[Text | str] = [
            Text(cell, STATE_COLOURS.get(cell, "")) if title == "state" else cell
            for title, cell in zip(header, row, strict=True)
        ]
        table.add_row(*styled)
    return table


def fit_columns(
    header: "Sequence[str]", rows: "Sequence[Sequence[str]]", spare: "Iterable[str]", width: int
) -> tuple[list[str], list[list[str]]]:
    """Drop a table's empty columns and, if it is too wide, as many of its spare columns as necessary.

    Args:
        header: one title per column; the last column may be folded.
        rows: the cells of each row.
        spare: titles of the columns that may be dropped, in the order in which they are dropped.
        width: width of the terminal, in characters.

    Returns:
        The remaining header and rows.
    """
    widths = {
        title: max(len(row[column]) for row in (header, *rows))
        for column, title in enumerate(header)
        if any(row[column] for row in rows)
    }
    # The last column may be folded, so only its minimum width counts.
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


@contextmanager
def progress_bar() -> "Iterator[Callable[[str, int, int], None] | None]":
    """Show a bar on stderr during a long activity, if stderr is a terminal.

    Yields:
        A function that takes the activity, the number of completed items and the total number of items; None if stderr
        is not a terminal.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(file=terminal(sys.stderr)), transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def show(activity: str, done: int, total: int) -> None:
            for other in tasks.values():
                bar.update(other, visible=False)
            if activity not in tasks:
                tasks[activity] = bar.add_task(activity, total=total)
            bar.update(tasks[activity], completed=done, visible=True)

        yield show


class Screen:
    """A progress callback that shows a progress bar on a terminal and prints one line per epoch."""

    def __init__(self, *, quiet: bool = False) -> None:
        """Create the callback; the progress bar appears when training starts.

        Args:
            quiet: whether to print only warnings and show no progress bar.
        """
        self._quiet = quiet
        self._bar: Progress | None = None
        self._task: Any = None
        self._text: ProgressText | None = None

    def __enter__(self) -> Self:
        """Return this callback; the progress bar appears when training starts."""
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the bar, even if the terminal has been closed."""
        if self._bar:
            with suppress(OSError):
                self._bar.stop()

    def start(self, job: "Job", steps: int) -> None:
        """Show the bar, if stderr is a terminal."""
        if sys.stderr.isatty() and not self._quiet:  # otherwise, for example in a SLURM job, rich is not imported
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            from cnnjob.training.progress import BAR_WIDTH, ProgressText

            self._text = ProgressText(steps, job.train.epochs)
            columns = BarColumn(BAR_WIDTH), TextColumn("{task.description}", markup=False)
            self._bar = Progress(*columns, console=Console(file=terminal(sys.stderr)), transient=True)
            self._task = self._bar.add_task("", total=steps)
            self._bar.start()

    def loss(self, loss: float) -> None:
        """Add the loss of a step to the mean over the epoch."""
        if self._text:
            self._text.loss(loss)

    def step(self, epoch: int, step: int) -> None:
        """Advance the bar."""
        if self._bar and self._text:
            text = self._text.step(epoch, step, self._bar.console.width - MIN_BAR_WIDTH - 1)
            self._bar.update(self._task, completed=step, description=text)

    def end_epoch(self, record: dict[str, Any]) -> None:
        """Store the accuracy after an epoch for the progress bar."""
        if self._text:
            self._text.end_epoch(record)

    def say(self, text: str) -> None:
        """Print a line to stderr, above the bar if there is one."""
        if self._quiet and not text.startswith("warning"):
            return
        if self._bar:
            from rich.text import Text

            line = Text(printable_lines(text))
            line.highlight_regex(r"^warning:", "yellow")
            self._bar.console.print(line)
        elif text.startswith("warning: "):
            print_warning(text.removeprefix("warning: "))
        else:
            typer.echo(text, err=True)
