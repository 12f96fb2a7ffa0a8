"""Errors that a user can act on, with their exit codes, and helpers for messages.

    CnnjobError            one message on stderr, no traceback                          1
    ├── JobError           a job file, an option or an argument requests something
    │                      impossible                                                   2
    ├── DataError          a run, a job, a dataset, an image or another file that the
    │                      user names is missing, damaged, or not the expected one      3
    ├── SchedulerError     SLURM refused a request, or is not available                 4
    ├── BusyError          another process is writing this run                          5
    └── TrainingError      training itself failed: the loss is no longer finite         1

A message states where the problem is, what is wrong, what was found, and what to do:
``<where>: <what is wrong> (found <value>). <What to do>``. Anything that is not a ``CnnjobError`` is a bug and keeps
its traceback.

Two more exit codes do not correspond to an error: 75 means a deliberate stop before the end (run the same command to
resume), and 130 an interruption.

The helpers format plurals and durations, suggest names, and make untrusted text safe to print.
"""

import json
import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from unicodedata import bidirectional, category

EXIT_STOPPED = 75
EXIT_INTERRUPTED = 130
REPR_WIDTH = 88
"""Maximum length of a line of an object's ``repr``, in characters."""
_INVISIBLE = {"Cc", "Cn", "Cs", "Zl", "Zp"}
"""Unicode general categories: control characters, unassigned characters, surrogates, line and paragraph separators."""
_BIDI_CONTROLS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
"""Unicode bidirectional controls, which change the direction of the text that follows."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters that make a spreadsheet treat a CSV cell as a formula."""
_UNITS = (
    (("d", 86_400), ("h", 3600)),
    (("h", 3600), ("min", 60)),
    (("min", 60), ("s", 1)),
)
"""Pairs of adjacent units of time, with their lengths in seconds, largest first."""
_BROKEN: set[str] = set()
"""Names that contain a line break or a tab, recorded by :func:`note_names`."""


class CnnjobError(Exception):
    """An error that the user can act on."""

    exit_code = 1


class JobError(CnnjobError):
    """A job file, an option or an argument requests something impossible."""

    exit_code = 2


class DataError(CnnjobError):
    """A run, job, dataset, source, checkpoint or other file is missing, damaged or not the expected one."""

    exit_code = 3


class SchedulerError(CnnjobError):
    """SLURM refused a request, or is not available.

    Attributes:
        silent: True if SLURM did not answer; it may then have carried out the request, or may still do so.
    """

    exit_code = 4

    def __init__(self, message: str, *, silent: bool = False) -> None:
        """Create the error with its message."""
        super().__init__(message)
        self.silent = silent


class BusyError(CnnjobError):
    """Another process is writing to the run."""

    exit_code = 5


class TrainingError(CnnjobError):
    """Training itself failed: the loss is no longer finite."""


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: ``1 image``, ``2 images``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def format_seconds(seconds: float) -> str:
    """Return a duration in its two largest units: ``4 s``, ``12 min 30 s``, ``3 h 20 min``, ``2 d 4 h``, ``2 h``."""
    total = max(0, round(seconds))
    larger, smaller = next((pair for pair in _UNITS if total >= pair[0][1]), _UNITS[-1])
    first, rest = divmod(round(total / smaller[1]), larger[1] // smaller[1])
    parts = [f"{first} {larger[0]}"] if first else []
    return " ".join([*parts, f"{rest} {smaller[0]}"] if rest or not first else parts)


def shorten_middle(text: str, width: int) -> str:
    """Return a text with the middle replaced by an ellipsis if the text is longer than ``width`` (at least 1)."""
    if len(text) <= width:
        return text
    end = (width - 1) // 2
    return f"{text[: width - 1 - end]}…{text[len(text) - end :]}"


def three_lines(*lines: str) -> str:
    """Join up to three lines into a ``repr``; each is shortened in the middle to at most ``REPR_WIDTH`` characters."""
    return "\n".join(shorten_middle(printable(line), REPR_WIDTH) for line in lines[:3])


def closest_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that was probably meant, ignoring case; None if no name is similar."""
    by_lower = {other.lower(): other for other in known}
    return next((by_lower[lower] for lower in get_close_matches(name.lower(), by_lower, 1)), None)


def note_names(path: object) -> None:
    """Record the names in a path or command-line argument that contain a line break or a tab.

    In multi-line text, a line break inside a name would look like the end of a line. :func:`printable_lines` therefore
    escapes line breaks and tabs in the recorded names, but nowhere else.
    """
    text = str(path)
    if "\n" in text or "\t" in text:
        names = (name for name in re.split("[/=]", text) if "\n" in name or "\t" in name)
        _BROKEN.update(name for name in names if name.strip())


def printable(text: str) -> str:
    """Return the text on one line, with each control character replaced by its Python escape sequence."""
    return _escaped(text, "", lambda letter: letter.encode("unicode_escape").decode())


def printable_lines(text: str) -> str:
    """Apply :func:`printable` to each line of a text; keep tabs, except in names recorded by :func:`note_names`."""
    for name in sorted(_BROKEN, key=len, reverse=True):  # longest first: one name may be part of another
        text = text.replace(name, printable(name))
    return _escaped(text, "\n\t", lambda letter: letter.encode("unicode_escape").decode())


def printable_json(text: str) -> str:
    """Return JSON text with its control characters replaced by JSON escape sequences."""
    return _escaped(text, "\n", lambda letter: json.dumps(letter)[1:-1])


def _escaped(text: str, kept: str, escape: Callable[[str], str]) -> str:
    if text.isprintable():
        return text
    hidden = {
        letter
        for letter in set(text) - set(kept)
        if category(letter) in _INVISIBLE or bidirectional(letter) in _BIDI_CONTROLS
    }
    return "".join(escape(letter) if letter in hidden else letter for letter in text)


def spreadsheet_cell(value: object) -> object:
    """Return a value for a CSV cell, with an apostrophe before text that a spreadsheet would treat as a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
