"""Progress callbacks for training, and formatting of progress as text."""

from contextlib import suppress
from typing import Any, Protocol

from cnnjob.jobs.job import Job

_DIVERGED = 1e5


class ProgressCallback(Protocol):
    """A callback that receives the progress events of a training run."""

    def say(self, text: str) -> None:
        """Receive a log line."""

    def start(self, job: Job, steps: int) -> None:
        """Receive the job and its number of steps per epoch, before the first step of an attempt."""

    def step(self, epoch: int, step: int) -> None:
        """Receive the epoch number and the step number within the epoch, both starting at 1, after each step."""


class NoProgress:
    """A callback that ignores all progress events."""

    def say(self, text: str) -> None:
        """Do nothing."""

    def start(self, job: Job, steps: int) -> None:
        """Do nothing."""

    def step(self, epoch: int, step: int) -> None:
        """Do nothing."""


class SafeProgress:
    """A wrapper that passes events on to a callback and ignores the callback's output errors.

    A closed pipe, a lost terminal or a full disk must not end training.
    """

    def __init__(self, callback: ProgressCallback) -> None:
        """Wrap a callback."""
        self._callback = callback

    def say(self, text: str) -> None:
        """Pass on a log line."""
        with suppress(OSError):
            self._callback.say(text)

    def start(self, job: Job, steps: int) -> None:
        """Pass on the job and its number of steps per epoch."""
        with suppress(OSError):
            self._callback.start(job, steps)

    def step(self, epoch: int, step: int) -> None:
        """Pass on the epoch and step numbers after a step."""
        with suppress(OSError):
            self._callback.step(epoch, step)


def format_loss(loss: float) -> str:
    """Return a loss with four decimal places, or in scientific notation if training has diverged."""
    return f"{loss:.4f}" if abs(loss) < _DIVERGED else f"{loss:.3e}"


def format_epoch(record: dict[str, Any], epochs: int) -> str:
    """Return an epoch's history record as one line of text."""
    scores = "; ".join(
        f"{name} loss {format_loss(record[f'{name}_loss'])}, accuracy {record[f'{name}_accuracy']:.4f}"
        for name in ("train", "validation", "test")
        if f"{name}_loss" in record
    )
    speed = f"{record['seconds']:.1f} s, {record['images_per_second']:,.0f} images/s"
    return f"epoch {record['epoch']}/{epochs}: {scores}; {speed}"
