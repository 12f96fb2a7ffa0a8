"""Progress callbacks for trainings in tests."""

import os
import signal

from cnnjob.training.progress import NoProgress


class StopsAt(NoProgress):
    """Asks to stop, by a real signal, during one step."""

    def __init__(self, step: int, number: int = signal.SIGUSR1) -> None:
        self.left, self.number = step, number
        self.lines: list[str] = []

    def step(self, epoch: int, step: int) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)

    def say(self, text: str) -> None:
        self.lines.append(text)


class Recorder(StopsAt):
    """Listens, and never asks."""

    def __init__(self) -> None:
        super().__init__(-1)
