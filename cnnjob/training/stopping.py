"""The job decides when to stop; a signal only asks.

A handler runs between any two bytecodes, in the middle of an update too. So it sets a flag, and the
training looks at the flag after each step, where everything that must be saved is whole.

What a signal does to a training is decided by who sends it:

    SIGINT              Ctrl-C at a terminal                             saves and stops; a second one ends it at once
    SIGQUIT             a terminal, or a manager of services             saves and stops
    SIGHUP              the terminal or session is closed                saves and stops
    SIGTERM             kill, scancel, a scheduler's end or preemption   saves and stops
    SIGUSR1, SIGUSR2    a scheduler before the end of a job              saves and stops
    SIGXCPU             the processor time reached its soft limit        saves and stops
    SIGPWR              the power fails, or a container is shut down     saves and stops
    SIGALRM             cnnjob.slurm.node.deadlines: no reaction at the end   ends it
    SIGPIPE, SIGXFSZ    output without a reader, a file at its limit     ignored by Python: the write fails
    others              timers, terminals, faults                        as the system has it

One that was ignored when the process started, as nohup does with SIGHUP, stays ignored, save SIGINT, which a shell
ignores for every job in the background.
"""

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM),
    *(signal.SIGXCPU, signal.SIGPWR),
)
"""Those that ask a training to save and stop."""


def heeded() -> list[signal.Signals]:
    """Return those of the signals that are not to stay ignored in this process."""
    return [one for one in SIGNALS if one == signal.SIGINT or signal.getsignal(one) is not signal.SIG_IGN]


@dataclass
class Deadline:
    """When a training must save and stop."""

    time: float = math.inf
    """In ``time.time()``'s seconds."""
    time_now: Callable[[], float | None] | None = None
    """Asked once ``time`` is over: it may have been moved meanwhile. None where that is not known."""

    def is_over(self) -> bool:
        """Return whether the time is over, after asking whether it was moved."""
        if time.time() <= self.time:
            return False
        moved = self.time_now() if self.time_now else None
        self.time = self.time if moved is None else moved
        return time.time() > self.time


class StopRequest:
    """While it is entered, the stop signals ask instead of killing; a second Ctrl-C kills."""

    def __init__(self, deadline: Deadline | None = None) -> None:
        """Nobody has asked yet; when the deadline is over, the clock does."""
        self._asked_by: str | None = None
        self._deadline = deadline or Deadline()
        self._kept: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Take over the signals."""
        self._kept = {number: signal.signal(number, self._ask) for number in heeded()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._kept.items():
            signal.signal(number, handler)

    @property
    def asked_by(self) -> str | None:
        """The signal's name, ``time limit``, or None."""
        if self._asked_by is None and self._deadline.is_over():
            self._asked_by = "time limit"
        return self._asked_by

    def _ask(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the interpreter's form
        if self._asked_by == "SIGINT" and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked_by = signal.Signals(number).name
