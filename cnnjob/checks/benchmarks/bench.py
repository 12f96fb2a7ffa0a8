"""What this machine does: training steps of named workloads, turn by turn with torch's, the course's, and the floors.

All engines take turns in one process, so that a change in the machine's speed meets all of them, and
ratios are taken turn by turn, of engines on one device in one precision.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from cnnjob.checks.benchmarks import course, floors, gpu, gpu_rivals, ours, rivals
from cnnjob.checks.benchmarks.engines import LOOKS_A_TURN, Engine
from cnnjob.checks.benchmarks.workloads import NAMES, Workload, workload
from cnnjob.errors import JobError
from cnnjob.nn.cuda.availability import why_unavailable

__all__ = ["NAMES", "Row", "measure"]

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
    """Median time of the course's algorithm over this engine's; none where the course had no such blocks."""
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


def measure(names: Sequence[str], rounds: int, *, torch: bool, on_gpu: bool = False) -> Iterator[Row]:
    """Time the training steps of workloads on made-up images.

    Args:
        names: of :data:`NAMES`.
        on_gpu: on a GPU, which must be there; else on the processor.
        rounds: how often each engine has its turn; one more goes before and is not counted.
        torch: whether to measure torch too, where it is installed.

    Yields:
        A row for each workload and engine.

    Raises:
        JobError: a GPU is asked for, and none can be used.
    """
    if on_gpu and (lacking := why_unavailable()):
        raise JobError(f"--device gpu: {lacking}")
    for name in names:
        work = workload(name)
        with ExitStack() as stack:
            if on_gpu:
                engines = {**gpu.engines(work), **(gpu_rivals.engines(work) if torch else {})}
            else:
                engines = {
                    **stack.enter_context(ours.engines(work)),
                    **(rivals.engines(work) if torch else {}),
                    **stack.enter_context(floors.engines(work)),
                }
            if course.computes(work):
                engines[course.NAME] = Engine(course.engine(work), "course")
            times = _take_turns(engines, rounds)
        yield from _rows(work, engines, times)


def _take_turns(engines: dict[str, Engine], rounds: int) -> dict[str, _Times]:
    warm = {name: engine.warm_up() for name, engine in engines.items()}
    found: dict[str, list[list[float]]] = {name: [] for name in engines}
    for turn in range(rounds):
        for name, engine in engines.items():
            slow = warm[name] > SLOW_SECONDS
            if turn < SLOW_TURNS or not slow:
                found[name].append(engine.turn(1 if slow else LOOKS_A_TURN, warm[name]))
    return {
        name: _Times([median(turn) for turn in turns], min(map(min, turns)), max(map(max, turns)))
        for name, turns in found.items()
    }


def _rows(work: Workload, engines: dict[str, Engine], times: dict[str, _Times]) -> Iterator[Row]:
    for name, found in times.items():
        group = {role: _of(engines, times, role, engines[name].group) for role in ("torch", "products")}
        torch = min(group["torch"], key=lambda times: times.middle, default=None)
        fastest = min((times.least for times in group["torch"]), default=None)
        products = group["products"]
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
            speed_against_course=times[course.NAME].middle / found.middle if course.NAME in times else None,
            share_of_products=products[0].middle / found.middle if products else None,
        )


def _of(engines: dict[str, Engine], times: dict[str, _Times], role: str, group: str) -> list[_Times]:
    """The times of a group's engines of one role."""
    return [times[name] for name, engine in engines.items() if (engine.role, engine.group) == (role, group)]
