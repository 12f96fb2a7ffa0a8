"""Deferred planning: the parts of a step are described first and planned together, so that neighbours can be fused."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cnnjob.nn.memory import Array
from cnnjob.nn.operations import Operation
from cnnjob.nn.pixels import PixelNormalisation
from cnnjob.nn.tensors import ForwardBackward, StepInputs, Task, Tensor


@dataclass(frozen=True, eq=False)
class Part:
    """One part of a step that is not planned yet.

    Parts are dictionary keys, so they are compared by identity.
    """

    reads: tuple[Tensor, ...]
    """Its inputs."""
    alone: Callable[[], ForwardBackward]
    """Function that plans it without its neighbours."""

    @property
    def step(self) -> ForwardBackward:
        """Return placeholders for its two tasks, which :func:`in_place` replaces."""
        return ForwardBackward(Half(self, forward=True), Half(self, forward=False))


@dataclass(frozen=True, eq=False)
class GatherPart(Part):
    """Loading of a batch; ``reads`` is the tensor that it writes."""

    feed: StepInputs
    pixels: PixelNormalisation
    changes: bool
    """True if images are flipped or moved."""

    @property
    def x(self) -> Tensor:
        """Return the tensor that receives the images."""
        return self.reads[0]


@dataclass(frozen=True, eq=False)
class LayerPart(Part):
    """One operation, from x to y."""

    block: Operation
    x: Tensor
    y: Tensor
    weights: dict[str, Array]
    """Its parameters by short name."""
    gradients: dict[str, Array]
    """Gradients of the trainable ones; empty in an evaluation."""


@dataclass(frozen=True, eq=False)
class Loss(Part):
    """Loss and its gradient with respect to the logits."""

    feed: StepInputs
    label_smoothing: float


@dataclass(frozen=True, eq=False)
class Half:
    """Placeholder for the forward or the backward task of a part."""

    part: Part
    forward: bool

    def __call__(self) -> None:
        """Raise an error: a placeholder must be replaced before the step runs."""
        raise RuntimeError(f"a half of a {type(self.part).__name__} that was not planned")


def parts_of(tasks: Iterable[Task]) -> list[Part]:
    """Return the parts whose placeholders are among the tasks, in order and without repetitions."""
    return list(dict.fromkeys(task.part for task in tasks if isinstance(task, Half)))


def in_place(tasks: Iterable[Task], planned: dict[Part, ForwardBackward]) -> list[Task]:
    """Return the tasks with all placeholders replaced; parts that are not in ``planned`` are planned alone."""
    tasks = list(tasks)
    # All at once: the two placeholders of a part belong to one plan, which is made once.
    steps = {part: planned.get(part) or part.alone() for part in parts_of(tasks)}

    def put(task: Task) -> Task:
        if not isinstance(task, Half):
            return task
        step = steps[task.part]
        return step.forward if task.forward else step.backward

    return [put(task) for task in tasks]
