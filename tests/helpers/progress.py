"""Progress callbacks for trainings in tests."""

import os
import signal

from cnnjob.training.progress import NoProgress


class StopsAt(NoProgress):
    """Asks to stop, by a real signal, during one step."""

    def __init__(self, step: int, number: int = signal.SIGUSR1) -> None:
        self.steps_left, self.number = step, number
        self.lines: list[str] = []

    def step(self, epoch: int, step: int) -> None:
        self.steps_left -= 1
        if self.steps_left == 0:
            os.kill(os.getpid(), self.number)

    def say(self, text: str) -> None:
        self.lines.append(text)


class Recorder(StopsAt):
    """Records the lines and never asks to stop."""

    def __init__(self) -> None:
        super().__init__(-1)
