"""Benchmark engines: implementations of a training step, with their roles in the comparison."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Action = Callable[[], object]
Role = Literal["ours", "torch", "course", "products", "bytes"]

MEASUREMENTS_PER_TURN = 5
MAX_MEASUREMENTS_PER_TURN = 50
MIN_TURN_SECONDS = 0.2
"""Minimum duration of a fast engine's turn: in its first steps, the caches still contain another engine's data."""
MIN_MEASUREMENT_SECONDS = 0.005
"""Minimum total time over which asynchronous steps are timed together."""
MAX_STEPS_PER_MEASUREMENT = 200
MAX_STEPS_PER_TURN = MEASUREMENTS_PER_TURN * MAX_STEPS_PER_MEASUREMENT


def do_nothing() -> None:
    """Do nothing, for an engine that has nothing to prepare or wait for."""


@dataclass(frozen=True)
class Engine:
    """One implementation of a workload's step."""

    step: Action
    role: Role
    group: str = "cpu"
    """Device and precision; ratios are computed within a group."""
    begin: Action = do_nothing
    """Called before each turn, untimed."""
    wait: Action | None = None
    """Waits until all queued steps are done; None if each step is done when its call returns."""

    def warm_up(self) -> float:
        """Return the seconds per step, after steps that compile kernels, choose algorithms and record a graph."""
        self.begin()
        if self.wait:
            self.times(4, 1)
        return self.times(1, 1)[0]

    def turn(self, measurements: int, warm_seconds: float) -> list[float]:
        """Take one turn; return the seconds per step of each measurement."""
        self.begin()
        if self.wait:
            steps = max(1, round(MIN_MEASUREMENT_SECONDS / warm_seconds))
            return self.times(measurements, min(MAX_STEPS_PER_MEASUREMENT, steps))
        return self.times(max(measurements, min(MAX_MEASUREMENTS_PER_TURN, round(MIN_TURN_SECONDS / warm_seconds))), 1)

    def times(self, measurements: int, steps: int) -> list[float]:
        """Return the seconds per step of each measurement: the mean of ``steps`` steps timed together."""
        wait = self.wait or do_nothing
        seconds = []
        for _ in range(measurements):
            start = time.perf_counter()
            for _ in range(steps):
                self.step()
            wait()
            seconds.append((time.perf_counter() - start) / steps)
        return seconds
