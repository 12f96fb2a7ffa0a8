"""Benchmark engines: implementations of a training step, each with a role in the comparison."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Action = Callable[[], object]
Role = Literal["ours", "torch", "course", "products", "bytes"]

MEASUREMENTS_PER_TURN = 5
MAX_MEASUREMENTS_PER_TURN = 50
MIN_TURN_SECONDS = 0.2
"""Minimum duration of a fast engine's turn, since its first steps find another engine's data in the caches."""
MIN_MEASUREMENT_SECONDS = 0.005
"""Minimum total duration of asynchronous steps that are timed together."""
MAX_STEPS_PER_MEASUREMENT = 200
MAX_STEPS_PER_TURN = MEASUREMENTS_PER_TURN * MAX_STEPS_PER_MEASUREMENT


def do_nothing() -> None:
    """Do nothing; used for engines that have nothing to prepare or to wait for."""


@dataclass(frozen=True)
class Engine:
    """An implementation of a workload's training step."""

    step: Action
    role: Role
    group: str = "cpu"
    """Device and precision; ratios are computed within a group."""
    begin: Action = do_nothing
    """Called before each turn; not timed."""
    wait: Action | None = None
    """Waits until all queued steps are done; None if a step is done when the call to it returns."""

    def warm_up(self) -> float:
        """Time one step; on a GPU, first run the steps that compile kernels, choose algorithms and record a graph.

        Returns:
            The duration of the timed step, in seconds.
        """
        self.begin()
        if self.wait:
            self.times(4, 1)
        return self.times(1, 1)[0]

    def turn(self, measurements: int, warm_seconds: float) -> list[float]:
        """Run this engine for one turn, and return the seconds per step for each measurement."""
        self.begin()
        if self.wait:
            steps = max(1, round(MIN_MEASUREMENT_SECONDS / warm_seconds))
            return self.times(measurements, min(MAX_STEPS_PER_MEASUREMENT, steps))
        return self.times(max(measurements, min(MAX_MEASUREMENTS_PER_TURN, round(MIN_TURN_SECONDS / warm_seconds))), 1)

    def times(self, measurements: int, steps: int) -> list[float]:
        """Time ``steps`` consecutive steps, ``measurements`` times; return the seconds per step of each measurement."""
        wait = self.wait or do_nothing
        seconds = []
        for _ in range(measurements):
            start = time.perf_counter()
            for _ in range(steps):
                self.step()
            wait()
            seconds.append((time.perf_counter() - start) / steps)
        return seconds
