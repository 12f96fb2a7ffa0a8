"""Deferred planning: a step's parts are described first and then planned together, so neighbours can be fused."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cnnjob.nn.arena import Array
from cnnjob.nn.blocks import Activation
from cnnjob.nn.cuda.device_api import in_order
from cnnjob.nn.operations import Operation
from cnnjob.nn.pixels import PixelNormalisation
from cnnjob.nn.tensors import ForwardBackward, StepInputs, Task, Tensor

NO_TASKS = ForwardBackward(in_order([]), in_order([]))
"""Tasks of a part that is computed together with another part."""


@dataclass(frozen=True, eq=False)
class DeferredPart:
    """One part of a training or evaluation step, to be planned later.

    Parts are used as dictionary keys, so they are compared by identity.
    """

    reads: tuple[Tensor, ...]
    """The part's inputs."""
    plan_alone: Callable[[], ForwardBackward]
    """Function that plans the part without its neighbours."""

    @property
    def tasks(self) -> ForwardBackward:
        """Return placeholders for the part's tasks; :func:`resolve_tasks` replaces them."""
        return ForwardBackward(DeferredTask(self, forward=True), DeferredTask(self, forward=False))


@dataclass(frozen=True, eq=False)
class DeferredBatch(DeferredPart):
    """The part of a step that loads a batch; its ``reads`` contains the tensor to which the images are written."""

    inputs: StepInputs
    pixels: PixelNormalisation
    changes: bool
    """True if images are augmented or shown in another view."""

    @property
    def x(self) -> Tensor:
        """Return the tensor that receives the images."""
        return self.reads[0]


@dataclass(frozen=True, eq=False)
class DeferredOperation(DeferredPart):
    """One operation, from x to y."""

    operation: Operation
    x: Tensor
    y: Tensor
    weights: dict[str, Array]
    """The operation's parameters by short name."""
    gradients: dict[str, Array]
    """Gradients of the trainable parameters; empty for evaluation."""


@dataclass(frozen=True, eq=False)
class DeferredJoin(DeferredPart):
    """The end of a residual block, y = activation(body + shortcut); its ``reads`` contains the two."""

    y: Tensor
    activation: Activation


@dataclass(frozen=True, eq=False)
class DeferredAccumulation(DeferredPart):
    """The addition of one gradient to another; its only task is the forward one."""

    target: Array


@dataclass(frozen=True, eq=False)
class DeferredLoss(DeferredPart):
    """The loss and its gradient with respect to the logits."""

    inputs: StepInputs
    label_smoothing: float
    mixes: bool
    """True if labels are mixed in pairs."""


@dataclass(frozen=True, eq=False)
class DeferredTask:
    """A placeholder for a part's forward or backward task."""

    part: DeferredPart
    forward: bool

    def __call__(self) -> None:
        """Raise an error: a placeholder must be replaced before the step runs."""
        raise RuntimeError(f"{type(self.part).__name__}: its task was called before it was planned")


def parts_of(tasks: Iterable[Task]) -> list[DeferredPart]:
    """Return the parts whose placeholders are among the tasks, in order and without duplicates."""
    return list(dict.fromkeys(task.part for task in tasks if isinstance(task, DeferredTask)))


def resolve_tasks(tasks: Iterable[Task], planned: dict[DeferredPart, ForwardBackward]) -> list[Task]:
    """Return the tasks with all placeholders replaced; a part that is not in ``planned`` is planned by itself."""
    tasks = list(tasks)
    # All at once: both placeholders of a part belong to the same plan, which is made only once.
    plans = {part: planned.get(part) or part.plan_alone() for part in parts_of(tasks)}

    def resolve(task: Task) -> Task:
        if not isinstance(task, DeferredTask):
            return task
        plan = plans[task.part]
        return plan.forward if task.forward else plan.backward

    return [resolve(task) for task in tasks]
