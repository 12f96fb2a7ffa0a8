"""The parts of a step, described first, so that neighbours can be planned at once, and then planned together."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cnnjob.nn.memory import Array
from cnnjob.nn.operations import Operation
from cnnjob.nn.pixels import PixelNormalisation
from cnnjob.nn.tensors import ForwardBackward, StepInputs, Task, Tensor


@dataclass(frozen=True, eq=False)
class Part:
    """What a plan asks for, and how it is planned alone."""

    reads: tuple[Tensor, ...]
    alone: Callable[[], ForwardBackward]

    @property
    def step(self) -> ForwardBackward:
        """Its halves, which are put in place by :func:`in_place`."""
        return ForwardBackward(Half(self, forward=True), Half(self, forward=False))


@dataclass(frozen=True, eq=False)
class GatherPart(Part):
    """The images of a step, into what it "reads"."""

    feed: StepInputs
    pixels: PixelNormalisation
    changes: bool
    """Whether they are flipped or moved."""

    @property
    def x(self) -> Tensor:
        """Where they are put."""
        return self.reads[0]


@dataclass(frozen=True, eq=False)
class LayerPart(Part):
    """A block."""

    block: Operation
    x: Tensor
    y: Tensor
    weights: dict[str, Array]
    gradients: dict[str, Array]
    """Empty in an evaluation."""


@dataclass(frozen=True, eq=False)
class Loss(Part):
    """The loss of the logits."""

    feed: StepInputs
    label_smoothing: float


@dataclass(frozen=True, eq=False)
class Half:
    """A part's forward or backward task."""

    part: Part
    forward: bool

    def __call__(self) -> None:
        """It cannot be run before it is planned."""
        raise RuntimeError(f"a half of a {type(self.part).__name__} that was not planned")


def parts_of(tasks: Iterable[Task]) -> list[Part]:
    """The parts that tasks are halves of, in order."""
    return list(dict.fromkeys(task.part for task in tasks if isinstance(task, Half)))


def in_place(tasks: Iterable[Task], planned: dict[Part, ForwardBackward]) -> list[Task]:
    """The tasks, halves replaced by what was planned for their parts, or by what plans them alone."""
    tasks = list(tasks)
    steps = {part: planned.get(part) or part.alone() for part in parts_of(tasks)}

    def put(task: Task) -> Task:
        if not isinstance(task, Half):
            return task
        step = steps[task.part]
        return step.forward if task.forward else step.backward

    return [put(task) for task in tasks]
