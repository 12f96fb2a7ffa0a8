"""Benchmark the training steps of cnnjob, torch and a simple NumPy implementation, with lower bounds (floors).

All engines take turns in one process, so that a change in the machine's speed affects all of them. Ratios to torch are
computed for each turn, and only between engines on the same device with the same precision.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from cnnjob.checks.benchmarks import course, floors, gpu, gpu_rivals, ours, rivals
from cnnjob.checks.benchmarks.engines import MEASUREMENTS_PER_TURN, Engine
from cnnjob.checks.benchmarks.workloads import NAMES, Workload, find_workload
from cnnjob.errors import JobError
from cnnjob.nn.cuda.availability import why_unavailable

__all__ = ["NAMES", "Row", "measure"]

SLOW_SECONDS = 0.25
"""Step time above which an engine runs only one step per turn and takes only ``SLOW_TURNS`` turns."""
SLOW_TURNS = 3


@dataclass(frozen=True)
class Row:
    """The result of one engine on one workload. Times are per step, except for ``epoch_seconds``."""

    workload: str
    engine: str
    batch_size: int
    median_ms: float
    """Median over the turns of the median step time of each turn."""
    min_ms: float
    max_ms: float
    epoch_seconds: float | None
    """Median step time multiplied by the steps per epoch; None if the workload is a single block."""
    speed_against_torch: float | None
    """torch's step time in its faster memory layout divided by this engine's step time: the median of the ratios of all
    turns. If it is above 1, this engine is faster than torch. None if torch was not measured."""
    speed_against_torch_at_best: float | None
    """Minimum step time of torch, in either layout, divided by this engine's minimum step time: the ratio that is least
    affected by other load on the machine. None if torch was not measured."""
    speed_against_course: float | None
    """Median step time of the course's algorithm divided by this engine's; None if it does not support all blocks."""
    share_of_products: float | None
    """Median time of the matrix products of direct convolutions alone divided by this engine's median step time.

    It is above 1 only if Winograd's method saves more time than the rest of the step takes.
    """

    @property
    def steps_per_second(self) -> float:
        """Steps per second at the median step time."""
        return 1000 / self.median_ms

    @property
    def images_per_second(self) -> float:
        """Images per second at the median step time."""
        return self.steps_per_second * self.batch_size

    def as_json(self) -> dict[str, Any]:
        """Return the row as a dict for JSON."""
        return {
            **asdict(self),
            "steps_per_second": self.steps_per_second,
            "images_per_second": self.images_per_second,
        }


@dataclass(frozen=True)
class _Times:
    """An engine's step times in seconds.

    Engines take turns: ``turns`` contains the median step time of each turn, while ``min`` and ``max`` are taken over
    the steps of all turns.
    """

    turns: list[float]
    min: float
    max: float

    @property
    def median(self) -> float:
        return median(self.turns)


def measure(names: Sequence[str], rounds: int, *, torch: bool, on_gpu: bool = False) -> Iterator[Row]:
    """Time the training steps of workloads on random images.

    Args:
        names: workload names from :data:`NAMES`.
        rounds: number of turns that each engine takes, after a warm-up that is not timed; slow engines take fewer.
        torch: whether to measure torch as well, if it is installed.
        on_gpu: whether to use a GPU, which must be available, instead of the CPU.

    Yields:
        One row per workload and engine.

    Raises:
        JobError: a GPU was requested but none can be used.
    """
    if on_gpu and (reason := why_unavailable()):
        raise JobError(f"--device gpu: {reason}")
    for name in names:
        work = find_workload(name, on_gpu=on_gpu)
        with ExitStack() as stack:
            if on_gpu:
                engines = {**gpu.gpu_engines(work), **(gpu_rivals.torch_gpu_engines(work) if torch else {})}
            else:
                engines = {
                    **stack.enter_context(ours.numpy_engines(work)),
                    **(rivals.torch_engines(work) if torch else {}),
                    **stack.enter_context(floors.floor_engines(work)),
                }
            if course.supports(work):
                engines[course.NAME] = Engine(course.build_step(work), "course")
            times = _take_turns(engines, rounds)
        yield from _result_rows(work, engines, times)


def _take_turns(engines: dict[str, Engine], rounds: int) -> dict[str, _Times]:
    # Each engine's seconds per step determine the number of steps per turn.
    warm_seconds = {name: engine.warm_up() for name, engine in engines.items()}
    measured: dict[str, list[list[float]]] = {name: [] for name in engines}
    for turn in range(rounds):
        for name, engine in engines.items():
            is_slow = warm_seconds[name] > SLOW_SECONDS
            if turn < SLOW_TURNS or not is_slow:
                measured[name].append(engine.turn(1 if is_slow else MEASUREMENTS_PER_TURN, warm_seconds[name]))
    return {
        name: _Times([median(turn) for turn in turns], min(map(min, turns)), max(map(max, turns)))
        for name, turns in measured.items()
    }


def _result_rows(work: Workload, engines: dict[str, Engine], times: dict[str, _Times]) -> Iterator[Row]:
    for name, own in times.items():
        peers = [(engine.role, times[peer]) for peer, engine in engines.items() if engine.group == engines[name].group]
        layouts = [peer for role, peer in peers if role == "torch"]
        torch = min(layouts, key=lambda layout: layout.median, default=None)
        fastest = min((layout.min for layout in layouts), default=None)
        products = next((peer for role, peer in peers if role == "products"), None)
        yield Row(
            work.name,
            name,
            work.batch_size,
            median_ms=1000 * own.median,
            min_ms=1000 * own.min,
            max_ms=1000 * own.max,
            epoch_seconds=work.steps * own.median if work.steps else None,
            speed_against_torch=median(map(float.__truediv__, torch.turns, own.turns)) if torch else None,
            speed_against_torch_at_best=fastest / own.min if fastest else None,
            speed_against_course=times[course.NAME].median / own.median if course.NAME in times else None,
            share_of_products=products.median / own.median if products else None,
        )
