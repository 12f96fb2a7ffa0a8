"""Engines of a benchmark: something that does steps, with its role in the comparison."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Run = Callable[[], object]
Role = Literal["ours", "torch", "course", "products", "bytes"]

LOOKS_A_TURN = 5
MOST_LOOKS_A_TURN = 50
TURN_SECONDS = 0.2
"""Shortest turn of a fast engine: during its first steps the caches still hold another engine's data."""
LOOK_SECONDS = 0.005
"""Asynchronous steps are timed together, over at least this time."""
MOST_STEPS_A_LOOK = 200
MOST_STEPS_A_TURN = LOOKS_A_TURN * MOST_STEPS_A_LOOK


def nothing() -> None:
    """Do nothing: for an engine that has nothing to prepare or to wait for."""


@dataclass(frozen=True)
class Engine:
    """One implementation of a workload's step."""

    step: Run
    role: Role
    group: str = "cpu"
    """Device and precision; ratios are taken within a group."""
    begin: Run = nothing
    """Called before each turn, untimed."""
    wait: Run | None = None
    """Waits until all queued steps are done; None if a step is done when it returns."""

    def warm_up(self) -> float:
        """Return the seconds of a step, after steps that compile kernels, choose algorithms and record a graph."""
        self.begin()
        if self.wait:
            self.times(4, 1)
        return self.times(1, 1)[0]

    def turn(self, looks: int, warm_seconds: float) -> list[float]:
        """Take one turn; return the seconds per step of each of its measurements."""
        self.begin()
        if self.wait:
            return self.times(looks, min(MOST_STEPS_A_LOOK, max(1, round(LOOK_SECONDS / warm_seconds))))
        return self.times(max(looks, min(MOST_LOOKS_A_TURN, round(TURN_SECONDS / warm_seconds))), 1)

    def times(self, looks: int, steps: int) -> list[float]:
        """Measure ``looks`` times; return the seconds per step, each the mean of ``steps`` steps timed together."""
        wait = self.wait or nothing
        seconds = []
        for _ in range(looks):
            start = time.perf_counter()
            for _ in range(steps):
                self.step()
            wait()
            seconds.append((time.perf_counter() - start) / steps)
        return seconds
