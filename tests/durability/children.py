"""Forked children: a process of its own in milliseconds, with everything imported."""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from cnnjob.errors import CnnjobError

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    signal: int
    """The signal that killed it, or 0."""
    value: Any = None
    """What its function returned."""
    error: str = ""
    """The class of what it raised."""
    text: str = ""
    """Its message; the whole traceback of anything but a :class:`CnnjobError`."""
    expected: bool = True
    """Whether it returned or raised a :class:`CnnjobError`."""


@dataclass(frozen=True)
class Child:
    """A forked child that computes a function."""

    pid: int
    answers: int
    """Where it writes what came of it."""

    @classmethod
    def start(cls, function: Callable[[], Any]) -> "Child":
        """Fork; the child never returns."""
        sys.stdout.flush()
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reading)
            _compute(function, writing)
        os.close(writing)
        return cls(pid, reading)

    def kill(self) -> None:
        """``kill -9``."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> Ended:
        """Wait for its end."""
        with os.fdopen(self.answers, encoding="utf-8") as answers:
            text = answers.read()
        _, status = os.waitpid(self.pid, 0)
        killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        return Ended(killed, **json.loads(text)) if text and not killed else Ended(killed)


def in_child(function: Callable[[], Any]) -> Ended:
    """Compute a function in a forked child."""
    return Child.start(function).wait()


def _compute(function: Callable[[], Any], writing: int) -> NoReturn:
    try:
        answer = {"value": function()}
    except CnnjobError as error:
        answer = {"error": type(error).__name__, "text": str(error)}
    except BaseException as error:  # noqa: BLE001 - the parent tells the user
        answer = {"error": type(error).__name__, "text": traceback.format_exc(), "expected": False}
    os.write(writing, json.dumps(answer).encode())
    os._exit(0)
