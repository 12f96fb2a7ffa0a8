"""Stop requests by signal or deadline: they set a flag, and the training stops itself at the end of a step.

A signal handler runs between any two bytecodes, also in the middle of an update. So it sets a flag only, and the
training reads that flag after each step, when everything that must be saved is consistent.

What each signal does to a training, and who sends it:

    SIGINT              Ctrl-C at a terminal                             saves and stops; a second one ends it at once
    SIGQUIT             a terminal, or a manager of services             saves and stops
    SIGHUP              the terminal or session is closed                saves and stops
    SIGTERM             kill, scancel, a scheduler's end or preemption   saves and stops
    SIGUSR1, SIGUSR2    a scheduler before the end of a job              saves and stops
    SIGXCPU             the processor time reached its soft limit        saves and stops
    SIGPWR              the power fails, or a container is shut down     saves and stops
    SIGALRM             cnnjob.slurm.node.deadlines: no reaction at the end   ends it
    SIGPIPE, SIGXFSZ    output without a reader, a file at its limit     ignored by Python: the write fails
    others              timers, terminals, faults                        the system's default

A signal that was ignored when the process started, as nohup does with SIGHUP, stays ignored; except SIGINT, since a
shell makes every background job ignore it.
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
"""The signals that ask a training to save and stop."""


def handled_signals() -> list[signal.Signals]:
    """Return those of ``SIGNALS`` that this process is to handle: SIGINT, and all that are not ignored."""
    return [number for number in SIGNALS if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN]


@dataclass
class Deadline:
    """The time at which a training must save and stop."""

    time: float = math.inf
    """In seconds since the epoch, as ``time.time()``."""
    time_now: Callable[[], float | None] | None = None
    """Returns the deadline as it is now, since it may be moved; None if unknown. Called once ``time`` has passed."""

    def is_over(self) -> bool:
        """Return whether the deadline has passed, after asking whether it was moved."""
        if time.time() <= self.time:
            return False
        moved = self.time_now() if self.time_now else None
        self.time = self.time if moved is None else moved
        return time.time() > self.time


class StopRequest:
    """A context in which the stop signals request a stop instead of killing the process; a second Ctrl-C ends it."""

    def __init__(self, deadline: Deadline | None = None) -> None:
        """Start without a request; one is made when the deadline passes."""
        self._requested_by: str | None = None
        self._deadline = deadline or Deadline()
        self._previous_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Install the signal handlers."""
        self._previous_handlers = {number: signal.signal(number, self._handle) for number in handled_signals()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the handlers that were installed before."""
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    @property
    def requested_by(self) -> str | None:
        """What requested a stop: the name of a signal, or ``time limit``; None if nothing has."""
        if self._requested_by is None and self._deadline.is_over():
            self._requested_by = "time limit"
        return self._requested_by

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the interpreter's form
        if self._requested_by == "SIGINT" and number == signal.SIGINT:
            raise KeyboardInterrupt  # in the middle of a step: the work since the last checkpoint is lost
        self._requested_by = signal.Signals(number).name
