"""What a run's jobs have written: the log of its newest job, and how to follow it from life to life."""

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cnnjob.errors import DataError
from cnnjob.files import open_regular, read_tail
from cnnjob.runs.run import Run
from cnnjob.runs.summary import submission_of

LOOK_SECONDS = 0.5
"""Between two looks at a log that is followed."""
_APART_SECONDS = 60.0
"""A ``log.txt`` so much newer than the newest job's log was written without a job."""
_TAIL_BYTES = 65536
_MOST_BYTES = 64 * _TAIL_BYTES
"""Of a log without line ends, so much is shown, and so much read at once."""
_MOST_LETTERS = 1000
"""A longer line is cut: a pattern may look at each letter of a line once for each other."""
_LIFE = re.compile(r"^.*--- attempt \d+ on .*$|^cnnjob: .*: job \d+(?:_\d+)? (?:is requeued|goes on).*$", re.MULTILINE)
_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+), in (?P<function>.*)$', re.MULTILINE)
_OWN = re.compile(r"^cnnjob: (.+)$", re.MULTILINE)
_ERROR = re.compile(r"^\S.*$", re.MULTILINE)


def log_of(run: Run) -> Path:
    """The log of the run's newest job, which has what ``log.txt`` has and what ended it; else ``log.txt``."""
    said = submission_of(run).get("log")
    written = sorted(filter(_is_file, run.slurm_folder.glob("*_log.out")), key=_changed)
    candidates = [*([Path(str(said))] if said else []), *reversed(written)]
    newest = next(filter(_is_file, candidates), run.log_file)
    return run.log_file if _changed(run.log_file) > _changed(newest) + _APART_SECONDS else newest


def _is_file(path: Path) -> bool:
    """Return whether a path is a regular file; one that cannot be looked at is none."""
    return os.path.isfile(path)  # noqa: PTH113 - Path's raises


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def last_life(run: Run) -> str:
    """What was written in the last life that wrote anything, as far as the end of its log tells."""
    text = capped(read_tail(log_of(run), _TAIL_BYTES))
    lives = [part for part in _LIFE.split(text) if part.strip()]
    return lives[-1] if lives else ""


def capped(text: str) -> str:
    """Return a text with a line feed after each line, also of a progress bar, and with the ends alone of long lines."""
    half = _MOST_LETTERS // 2
    lines = text.splitlines()
    return "\n".join(line if len(line) <= _MOST_LETTERS else f"{line[:half]} … {line[-half:]}" for line in lines)


def line_with(pattern: re.Pattern[str], text: str) -> str:
    """Return the first line in which a pattern occurs; empty without one."""
    return next((line.strip() for line in text.splitlines() if pattern.search(line)), "")


def last_error(text: str) -> str:
    """The last traceback of a text in one line: ``KeyError: 'x' at train.py:12 in step``; empty without one."""
    _, found, trace = text.rpartition("Traceback (most recent call last):\n")
    frames = list(_FRAME.finditer(trace)) if found else []
    if not frames:
        return ""
    error = _ERROR.search(trace, frames[-1].end())
    place = f"{frames[-1]['file']}:{frames[-1]['line']} in {frames[-1]['function']}"
    return f"{error[0] if error else 'an error'} at {place}"


def own_message(text: str, decision: str = "") -> str:
    """Return cnnjob's last message in a text, which is not the batch script's decision; empty without one."""
    messages = [message for message in _OWN.findall(text) if not decision or not message.endswith(decision)]
    return str(messages[-1]) if messages else ""


def last_words(text: str) -> str:
    """The last line of a text that is not of cnnjob's own batch script; empty without one."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("cnnjob: ")]
    return lines[-1] if lines else ""


def last_lines(path: Path, count: int) -> str:
    """The last lines of a file."""
    size = _TAIL_BYTES
    while True:
        text = read_tail(path, size)
        lines = text.splitlines(keepends=True)
        if len(lines) > count or size >= min(_MOST_BYTES, _size(path)):
            return "".join(lines[-count:]) if count else ""
        size *= 4


def follow(run: Run, count: int, is_over: Callable[[], bool]) -> Iterator[str]:
    """What is written from now on, over requeues and successors, after the last lines of before.

    Args:
        run: its newest job's log is followed, wherever that goes on.
        count: how many lines of before to begin with.
        is_over: whether nothing more will come.

    Yields:
        Text as it comes, whole lines or not.
    """
    path = log_of(run)
    position = _size(path)
    yield last_lines(path, count)
    over = False
    while True:
        text, position = _rest(path, position)
        yield text
        if len(text) > _TAIL_BYTES:
            continue  # there may be more
        newest = log_of(run)
        if newest != path:
            yield _rest(path, position)[0]
            path, position = newest, 0
        elif over:
            return
        else:
            over = is_over()  # what was written before it was over is read once more
            time.sleep(LOOK_SECONDS)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _rest(path: Path, position: int) -> tuple[str, int]:
    """What stands after a position, from the start where the file has become shorter; whole lines of much."""
    try:
        with open_regular(path) as file:
            size = file.seek(0, 2)
            start = file.seek(position if position <= size else 0)
            content = file.read(_MOST_BYTES)
    except (DataError, OSError):
        return "", position
    if len(content) == _MOST_BYTES:
        content = content[: content.rfind(b"\n") + 1 or None]
    return content.decode(errors="replace"), start + len(content)
