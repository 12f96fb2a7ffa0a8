"""Errors that a user can act on, with their exit codes; and text from outside made safe to print in them.

    CnnjobError            one message on stderr, no traceback                          1
    ├── JobError           a job file, an option or an argument asks for something
    │                      that cannot be                                               2
    ├── DataError          a source, a dataset, a checkpoint or a run folder is
    │                      missing, damaged, or not the one that was meant              3
    ├── SchedulerError     SLURM refused, or is not there                               4
    ├── BusyError          another process is writing this run                          5
    └── TrainingError      the job itself failed: the loss is no longer a number        1

A message says where, what is wrong, what was found, and what to do:
``<where>: <what is wrong>, <what was found>; <what to do>``. Anything that is not a
``CnnjobError`` is a bug and keeps its traceback.

Two more exit codes belong to no error: 75, stopped on purpose before the end (run the
same command again), and 130, interrupted.
"""

import json
import re
from collections.abc import Callable
from unicodedata import bidirectional, category

EXIT_STOPPED = 75
EXIT_INTERRUPTED = 130
_INVISIBLE = {"Cc", "Cn", "Cs", "Zl", "Zp"}
"""Unicode's categories of controls, unassigned characters, halves of surrogate pairs, and separators of lines."""
_TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
"""Unicode's controls that change the direction of what follows."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_BROKEN: set[str] = set()
"""Names with a line break or a tab that were met."""


class CnnjobError(Exception):
    """A mistake or a misfortune that the user can act on."""

    exit_code = 1


class JobError(CnnjobError):
    """A job file, an option or an argument asks for something that cannot be."""

    exit_code = 2


class DataError(CnnjobError):
    """A source, dataset, checkpoint or run folder is missing, damaged or not the one meant."""

    exit_code = 3


class SchedulerError(CnnjobError):
    """SLURM refused, or is not there.

    Attributes:
        silent: whether SLURM did not answer, so that it may have done what it was asked, or may do it in a while.
    """

    exit_code = 4

    def __init__(self, message: str, *, silent: bool = False) -> None:
        """Make one with its message."""
        super().__init__(message)
        self.silent = silent


class BusyError(CnnjobError):
    """Another process is writing this run."""

    exit_code = 5


class TrainingError(CnnjobError):
    """The job itself failed: its loss is no longer a number."""


def note_names(path: object) -> None:
    """Remember the names in a path, or in a word of a command, that would break a line.

    A text of several lines does not show which of its breaks are a name's, so :func:`printable_lines` must know.
    """
    text = str(path)
    if "\n" in text or "\t" in text:
        names = (name for name in re.split("[/=]", text) if "\n" in name or "\t" in name)
        _BROKEN.update(name for name in names if name.strip())


def printable(text: str) -> str:
    """Return a text in one line, with each control character as Python writes it between quotes."""
    return _escaped(text, "", lambda letter: letter.encode("unicode_escape").decode())


def printable_lines(text: str) -> str:
    """Return a text of several lines as :func:`printable` does each of them; tabs stay, but those of names."""
    for name in sorted(_BROKEN, key=len, reverse=True):
        text = text.replace(name, printable(name))
    return _escaped(text, "\n\t", lambda letter: letter.encode("unicode_escape").decode())


def printable_json(text: str) -> str:
    """Return JSON with its control characters as JSON's own escape sequences."""
    return _escaped(text, "\n", lambda letter: json.dumps(letter)[1:-1])


def _escaped(text: str, kept: str, escape: Callable[[str], str]) -> str:
    if text.isprintable():
        return text
    return "".join(escape(letter) if _is_hidden(letter) and letter not in kept else letter for letter in text)


def _is_hidden(letter: str) -> bool:
    return category(letter) in _INVISIBLE or bidirectional(letter) in _TURNING


def spreadsheet_cell(value: object) -> object:
    """Return a cell of a CSV table: text that a spreadsheet takes for a formula has an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
