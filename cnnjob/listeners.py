"""Whoever wants to hear how a training goes."""

from typing import Any, Protocol

from cnnjob.jobs import Job

_RUN_AWAY = 1e5


class Listener(Protocol):
    """Whoever wants to hear how a training goes."""

    def say(self, text: str) -> None:
        """Hear a line of the log."""

    def start(self, job: Job, steps: int) -> None:
        """Hear how many steps an epoch has."""

    def step(self, epoch: int, step: int) -> None:
        """Hear that a step of an epoch is done."""


class Silent:
    """Hears everything and says nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def start(self, job: Job, steps: int) -> None:
        """Nothing."""

    def step(self, epoch: int, step: int) -> None:
        """Nothing."""


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
