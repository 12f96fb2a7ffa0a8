"""Functions that find a run's newest log, read what the last attempt wrote, and follow the log across restarts."""

import os
import re
import time
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator
from pathlib import Path

from cnnjob.errors import DataError
from cnnjob.files import open_regular, read_tail
from cnnjob.runs.restart_log import read_slurm_records
from cnnjob.runs.run import Run

POLL_SECONDS = 0.5
"""Polling interval, in seconds, when following a log."""
_APART_SECONDS = 60.0
"""If ``log.txt`` is newer than the newest SLURM job's log by more than this, training outside SLURM wrote it."""
_TAIL_BYTES = 65536
_MOST_BYTES = 64 * _TAIL_BYTES
"""Maximum number of bytes read at once; also the maximum that is shown of a log without line breaks."""
_MOST_LETTERS = 1000
"""Maximum line length in characters; longer lines are shortened, since pattern matching may take quadratic time."""
_ATTEMPT_START = re.compile(
    r"^.*--- attempt \d+ on .*$|^cnnjob: .*: job \d+(?:_\d+)? (?:is requeued|resumes the run|goes on).*$", re.MULTILINE
)
_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+), in (?P<function>.*)$', re.MULTILINE)
_OWN = re.compile(r"^cnnjob: (.+)$", re.MULTILINE)
_ERROR = re.compile(r"^\S.*$", re.MULTILINE)


def newest_log(run: Run) -> Path:
    """Return the log of the run's newest SLURM job, or ``log.txt`` if there is none.

    A SLURM job's log contains everything in ``log.txt``, plus the output of the batch script, of SLURM and of crashed
    processes.
    """
    recorded = read_slurm_records(run).submission.get("log")
    # The recorded log comes first; if that job is waiting and has no log yet, the log last written is the newest.
    written = sorted(filter(_is_file, run.slurm_folder.glob("*_log.out")), key=_changed)
    candidates = [*([Path(str(recorded))] if recorded else []), *reversed(written)]
    newest = next(filter(_is_file, candidates), run.log_file)
    return run.log_file if _changed(run.log_file) > _changed(newest) + _APART_SECONDS else newest


def _is_file(path: Path) -> bool:
    """Return whether a path is a regular file; False if its status cannot be read."""
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises if access is denied


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def last_attempt_log(run: Run) -> str:
    """Return the output of the last attempt that wrote anything, or as much of it as the tail of the log contains."""
    text = shorten_lines(read_tail(newest_log(run), _TAIL_BYTES))
    parts = [part for part in _ATTEMPT_START.split(text) if part.strip()]
    return parts[-1] if parts else ""


def shorten_lines(text: str) -> str:
    """Return a text with long lines shortened to their beginning and end, and with line feeds between lines.

    Carriage returns, such as those of a progress bar, also end lines.
    """
    half = _MOST_LETTERS // 2
    lines = text.splitlines()
    return "\n".join(line if len(line) <= _MOST_LETTERS else f"{line[:half]} … {line[-half:]}" for line in lines)


def first_line_with(pattern: re.Pattern[str], text: str) -> str:
    """Return the first line in which a pattern occurs; empty if there is none."""
    return next((line.strip() for line in text.splitlines() if pattern.search(line)), "")


def last_error(text: str) -> str:
    """Return the last traceback in a log as one line; empty if there is none.

    The line has the form ``KeyError: 'x' at train.py:12 in step``.
    """
    _, header, trace = text.rpartition("Traceback (most recent call last):\n")
    frames = list(_FRAME.finditer(trace)) if header else []
    if not frames:
        return ""
    error = _ERROR.search(trace, frames[-1].end())
    where = f"{frames[-1]['file']}:{frames[-1]['line']} in {frames[-1]['function']}"
    return f"{error[0] if error else 'an error'} at {where}"


def last_own_message(text: str, decision: str = "") -> str:
    """Return cnnjob's last message in a text, ignoring the batch script's decision; empty if there is none."""
    messages = [message for message in _OWN.findall(text) if not decision or not message.endswith(decision)]
    return str(messages[-1]) if messages else ""


def last_program_line(text: str) -> str:
    """Return the last line of a text that cnnjob's batch script did not write; empty if there is none."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("cnnjob: ")]
    return lines[-1] if lines else ""


def last_lines(path: Path, count: int) -> str:
    """Return at most ``count`` lines from the end of a file."""
    size = _TAIL_BYTES
    while True:
        text = read_tail(path, size)
        lines = text.splitlines(keepends=True)
        if len(lines) > count or size >= min(_MOST_BYTES, _size(path)):
            return "".join(lines[-count:]) if count else ""
        size *= 4


def follow(run: Run, count: int, is_over: Callable[[], bool]) -> Iterator[str]:
    """Yield the last lines of a run's log, then everything that is appended, across requeues and successor jobs.

    Args:
        run: the run; whenever a newer SLURM job appears, that job's log is followed.
        count: number of existing lines to begin with.
        is_over: function that returns whether nothing more will be written.

    Yields:
        Text as it is read, which may end in the middle of a line and may be empty.
    """
    path = newest_log(run)
    position = _size(path)
    yield last_lines(path, count)
    over = False
    while True:
        text, position = _read_rest(path, position)
        yield text
        if len(text) > _TAIL_BYTES:
            continue  # there may be more
        newest = newest_log(run)
        if newest != path:
            yield _read_rest(path, position)[0]  # the old job's output after the read above
            path, position = newest, 0
        elif over:
            return
        else:
            over = is_over()  # if so, read once more, since something may have been written after the read above
            time.sleep(POLL_SECONDS)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _read_rest(path: Path, position: int) -> tuple[str, int]:
    """Return the text after a position in a file, and the new position.

    If the file is now shorter than ``position``, it is read from the beginning. If the text is cut at ``_MOST_BYTES``,
    it ends at a line break.
    """
    try:
        with open_regular(path) as file:
            size = file.seek(0, 2)
            start = file.seek(position if position <= size else 0)
            content = file.read(_MOST_BYTES)
    except (DataError, OSError):
        return "", position
    if len(content) == _MOST_BYTES:
        content = content[: content.rfind(b"\n") + 1 or None]
    decoder, n_bytes = getincrementaldecoder("utf-8")(errors="replace"), len(content)
    text = decoder.decode(content)
    return text, start + n_bytes - len(decoder.getstate()[0])  # a partly written character is read again
