"""What takes turns: something that does steps, and what its rows are compared with."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Run = Callable[[], object]
Role = Literal["ours", "torch", "course", "products", "bytes"]

LOOKS_A_TURN = 5
MOST_LOOKS_A_TURN = 50
TURN_SECONDS = 0.2
"""Quick steps are looked at for so long: the first ones find caches that hold what another engine left."""
LOOK_SECONDS = 0.005
"""Steps that are asked for ahead are timed together, for at least so long."""
MOST_STEPS_A_LOOK = 200
MOST_STEPS_A_TURN = LOOKS_A_TURN * MOST_STEPS_A_LOOK


def nothing() -> None:
    """Of an engine that has nothing to begin or to wait for."""


@dataclass(frozen=True)
class Engine:
    """One way to do a step."""

    step: Run
    role: Role
    group: str = "cpu"
    """Where and how precisely it computes; ratios are of engines of one group."""
    begin: Run = nothing
    """Before each turn, untimed."""
    wait: Run | None = None
    """Until the steps that were asked for are done; none where they are done on return."""

    def warm_up(self) -> float:
        """Seconds of a step, after those that compile, choose, and are recorded as a graph."""
        self.begin()
        if self.wait:
            self.times(4, 1)
        return self.times(1, 1)[0]

    def turn(self, looks: int, warm_seconds: float) -> list[float]:
        """Seconds of a step, of each look of a turn."""
        self.begin()
        if self.wait:
            return self.times(looks, min(MOST_STEPS_A_LOOK, max(1, round(LOOK_SECONDS / warm_seconds))))
        return self.times(max(looks, min(MOST_LOOKS_A_TURN, round(TURN_SECONDS / warm_seconds))), 1)

    def times(self, looks: int, steps: int) -> list[float]:
        """Seconds of a step, each the mean of some steps that were timed together."""
        wait = self.wait or nothing
        seconds = []
        for _ in range(looks):
            start = time.perf_counter()
            for _ in range(steps):
                self.step()
            wait()
            seconds.append((time.perf_counter() - start) / steps)
        return seconds
