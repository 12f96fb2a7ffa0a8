"""The job decides when to stop; a signal only asks.

A handler runs between any two bytecodes, in the middle of an update too. So it sets a flag, and the
training looks at the flag after each step, where everything that must be saved is whole.
"""

import signal
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """While it is entered, the stop signals ask instead of killing; a second Ctrl-C kills."""

    def __init__(self) -> None:
        """Nobody has asked yet."""
        self.asked_by: str | None = None
        self._kept: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Take over the signals."""
        self._kept = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._kept.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the interpreter's form
        if self.asked_by == "SIGINT" and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked_by = signal.Signals(number).name
