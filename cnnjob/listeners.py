"""Whoever wants to hear how a training goes."""

from typing import Any, Protocol

from cnnjob.jobs import Job


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


def line_of(record: dict[str, Any], epochs: int) -> str:
    """A record of the history as one line for people."""
    splits = [name for name in ("train", "validation", "test") if f"{name}_loss" in record]
    scores = "; ".join(
        f"{name} loss {record[f'{name}_loss']:.4f}, accuracy {record[f'{name}_accuracy']:.4f}" for name in splits
    )
    speed = f"{record['seconds']:.1f} s, {record['images_per_second']:,.0f} images/s"
    return f"epoch {record['epoch']}/{epochs}: {scores}; {speed}"
