"""Whoever wants to hear how a training goes."""

from contextlib import suppress
from typing import Any, Protocol

from cnnjob.jobs.job import Job

_RUN_AWAY = 1e5


class ProgressCallback(Protocol):
    """Whoever wants to hear how a training goes."""

    def say(self, text: str) -> None:
        """Hear a line of the log."""

    def start(self, job: Job, steps: int) -> None:
        """Hear how many steps an epoch has."""

    def step(self, epoch: int, step: int) -> None:
        """Hear that a step of an epoch is done."""


class NoProgress:
    """Hears everything and says nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def start(self, job: Job, steps: int) -> None:
        """Nothing."""

    def step(self, epoch: int, step: int) -> None:
        """Nothing."""


class SafeProgress:
    """Passes events on; a closed pipe, a lost terminal or a full disk stops no training."""

    def __init__(self, listener: ProgressCallback) -> None:
        """Pass them on to this one."""
        self._listener = listener

    def say(self, text: str) -> None:
        """Pass on a line of the log."""
        with suppress(OSError):
            self._listener.say(text)

    def start(self, job: Job, steps: int) -> None:
        """Pass on how many steps an epoch has."""
        with suppress(OSError):
            self._listener.start(job, steps)

    def step(self, epoch: int, step: int) -> None:
        """Pass on that a step of an epoch is done."""
        with suppress(OSError):
            self._listener.step(epoch, step)


def loss_in_words(loss: float) -> str:
    """Four digits behind the point; of a loss that has run away its magnitude."""
    return f"{loss:.4f}" if abs(loss) < _RUN_AWAY else f"{loss:.3e}"


def line_of(record: dict[str, Any], epochs: int) -> str:
    """A record of the history as one line for people."""
    splits = [name for name in ("train", "validation", "test") if f"{name}_loss" in record]
    scores = "; ".join(
        f"{name} loss {loss_in_words(record[f'{name}_loss'])}, accuracy {record[f'{name}_accuracy']:.4f}"
        for name in splits
    )
    speed = f"{record['seconds']:.1f} s, {record['images_per_second']:,.0f} images/s"
    return f"epoch {record['epoch']}/{epochs}: {scores}; {speed}"
