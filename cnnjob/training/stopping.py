"""Stop requests by signal or deadline: they set a flag, and training stops at the end of the current step.

A signal handler can run between any two bytecodes, including in the middle of an update. It therefore only sets a flag,
which the training loop reads after each step, when everything that must be saved is consistent.

Sources of each signal, and its effect on training:

    SIGINT              Ctrl-C at a terminal                             save and stop; if repeated, end at once
    SIGQUIT             a terminal, or a service manager                 save and stop
    SIGHUP              the terminal or session is closed                save and stop
    SIGTERM             kill, scancel, time limit or preemption          save and stop
    SIGUSR1, SIGUSR2    a scheduler, before the time limit               save and stop
    SIGXCPU             CPU time reached its soft limit                  save and stop
    SIGPWR              power failure, or a container is shut down       save and stop
    SIGALRM             cnnjob.slurm.node.deadlines: time is up          end at once
    SIGPIPE, SIGXFSZ    output without a reader, file size limit         ignored by Python: the write fails
    others              timers, terminals, faults                        the system's default

A signal that was ignored when the process started, such as SIGHUP under nohup, stays ignored. SIGINT is an exception,
since shells make every background job ignore it.
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
"""The signals that make training save and stop."""


def handled_signals() -> list[signal.Signals]:
    """Return the members of ``SIGNALS`` that this process should handle: SIGINT and all others that are not ignored."""
    return [number for number in SIGNALS if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN]


@dataclass
class Deadline:
    """The time at which training must save and stop."""

    time: float = math.inf
    """Seconds since the Unix epoch, as returned by ``time.time()``."""
    time_now: Callable[[], float | None] | None = None
    """A function that is called once ``time`` has passed. It returns the current deadline, which may have been moved;
    None if the deadline is unknown."""

    def is_over(self) -> bool:
        """Return whether the deadline has passed, after checking whether it was moved."""
        if time.time() <= self.time:
            return False
        moved = self.time_now() if self.time_now else None
        self.time = self.time if moved is None else moved
        return time.time() > self.time


class StopRequest:
    """A context manager that turns stop signals into a stop request; a second Ctrl-C still ends the process."""

    def __init__(self, deadline: Deadline | None = None) -> None:
        """Prepare to catch stop signals, and to request a stop when the deadline passes."""
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
        """Restore the previous handlers."""
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    @property
    def requested_by(self) -> str | None:
        """The source of the stop request: a signal name, or ``time limit``; None if there is no request."""
        if self._requested_by is None and self._deadline.is_over():
            self._requested_by = "time limit"
        return self._requested_by

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - required by signal.signal
        if self._requested_by == "SIGINT" and number == signal.SIGINT:
            raise KeyboardInterrupt  # in the middle of a step: the work since the last checkpoint is lost
        self._requested_by = signal.Signals(number).name
