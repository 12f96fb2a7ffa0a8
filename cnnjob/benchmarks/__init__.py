"""What this machine does: training steps of named workloads, turn by turn with torch's, the course's, and the floors.

All engines take turns in one process, so that a change in the machine's speed meets all of them, and
ratios are taken turn by turn.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from cnnjob.benchmarks import course, floors, ours, rivals
from cnnjob.benchmarks.workloads import NAMES, Run, Workload, workload

__all__ = ["NAMES", "Row", "measure"]

STEPS_A_TURN = 5
SLOW_SECONDS = 0.25
"""A step that takes longer is run once a turn, and in the first turns only."""
SLOW_TURNS = 3


@dataclass(frozen=True)
class Row:
    """One engine on one workload; times are of one step."""

    workload: str
    engine: str
    batch_size: int
    median_ms: float
    """Of the turns, each the median of its steps."""
    min_ms: float
    max_ms: float
    epoch_seconds: float | None
    """The median times the steps of an epoch; none where the workload is a single block."""
    speed_against_torch: float | None
    """Time of torch in its better memory layout over this engine's, turn by turn, the median; above 1 is faster."""
    speed_against_torch_at_best: float | None
    """torch's fastest step, in either layout, over this engine's: least touched by what else the machine does."""
    speed_against_course: float | None
    """Median time of the course's algorithm over this engine's."""
    share_of_products: float | None
    """Median time of the matrix products alone over this engine's: 1 is the floor."""

    @property
    def steps_per_second(self) -> float:
        """At the median."""
        return 1000 / self.median_ms

    @property
    def images_per_second(self) -> float:
        """At the median."""
        return self.steps_per_second * self.batch_size

    def as_json(self) -> dict[str, Any]:
        """All figures by name."""
        return {
            **asdict(self),
            "steps_per_second": self.steps_per_second,
            "images_per_second": self.images_per_second,
        }


@dataclass(frozen=True)
class _Times:
    """Seconds of a step of one engine: each turn's median, and the fastest and slowest of all."""

    turns: list[float]
    least: float
    most: float

    @property
    def middle(self) -> float:
        return median(self.turns)


def measure(names: Sequence[str], rounds: int, *, torch: bool) -> Iterator[Row]:
    """Time the training steps of workloads on made-up images.

    Args:
        names: of :data:`NAMES`.
        rounds: how often each engine has its turn; one more goes before and is not counted.
        torch: whether to measure torch too, where it is installed.

    Yields:
        A row for each workload and engine.
    """
    for name in names:
        work = workload(name)
        with ExitStack() as stack:
            engines = {
                **stack.enter_context(ours.engines(work)),
                **(rivals.engines(work) if torch else {}),
                course.NAME: course.engine(work),
                **stack.enter_context(floors.engines(work)),
            }
            times = _take_turns(engines, rounds)
        yield from _rows(work, times)


def _take_turns(engines: dict[str, Run], rounds: int) -> dict[str, _Times]:
    warm = {name: _time(run, 1)[0] for name, run in engines.items()}
    found: dict[str, list[list[float]]] = {name: [] for name in engines}
    for turn in range(rounds):
        for name, run in engines.items():
            slow = warm[name] > SLOW_SECONDS
            if turn < SLOW_TURNS or not slow:
                found[name].append(_time(run, 1 if slow else STEPS_A_TURN))
    return {
        name: _Times([median(turn) for turn in turns], min(map(min, turns)), max(map(max, turns)))
        for name, turns in found.items()
    }


def _time(run: Run, steps: int) -> list[float]:
    """Seconds of each step of a turn."""
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds


def _rows(work: Workload, times: dict[str, _Times]) -> Iterator[Row]:
    layouts = [found for name, found in times.items() if name.startswith("torch")]
    torch = min(layouts, key=lambda found: found.middle, default=None)
    fastest = min((found.least for found in layouts), default=None)
    for name, found in times.items():
        yield Row(
            work.name,
            name,
            work.batch_size,
            median_ms=1000 * found.middle,
            min_ms=1000 * found.least,
            max_ms=1000 * found.most,
            epoch_seconds=work.steps * found.middle if work.steps else None,
            speed_against_torch=median(map(float.__truediv__, torch.turns, found.turns)) if torch else None,
            speed_against_torch_at_best=fastest / found.least if fastest else None,
            speed_against_course=times[course.NAME].middle / found.middle,
            share_of_products=times[floors.PRODUCTS].middle / found.middle,
        )
