"""What a plan asks of the arrays' library: memory, and a task for each part of a step."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from cnnjob.nn.blocks import Activation
from cnnjob.nn.memory import Arena, Array, ArrayStore
from cnnjob.nn.operations import Operation
from cnnjob.nn.optimisers import Optimiser, Segment
from cnnjob.nn.pixels import Augmentation, PixelNormalisation, View
from cnnjob.nn.tensors import ForwardBackward, StepInputs, Task, Tensor


class Backend(ArrayStore, Protocol):
    """NumPy, or a device."""

    name: str
    dtype: np.dtype[np.floating]
    synchronous: bool
    """Whether what a task computes is there when it returns."""

    @property
    def cpu_seconds(self) -> float:
        """Processor time that was used so far."""

    def gather(
        self, arena: Arena, feed: StepInputs, x: Tensor, pixels: PixelNormalisation, change: Augmentation | View | None
    ) -> Task:
        """The batch, changed and normalised."""

    def block(
        self,
        arena: Arena,
        block: Operation,
        x: Tensor,
        y: Tensor,
        parameters: tuple[dict[str, Array], dict[str, Array]],
        feed: StepInputs,
        place: int,
    ) -> ForwardBackward:
        """One operation; its parameters, and the gradients of those that learn. It trains where y learns."""

    def join(self, arena: Arena, body: Tensor, shortcut: Tensor, y: Tensor, activation: Activation) -> ForwardBackward:
        """Plan y = activation(body + shortcut); backward gives the sum's gradient to the body."""

    def accumulate(self, arena: Arena, source: Array, target: Array) -> Task:
        """Plan target ← target + source, both (N, H, W, C)."""

    def loss(self, arena: Arena, feed: StepInputs, logits: Tensor, label_smoothing: float) -> Task:
        """Loss, hits, and the logits' gradient."""

    def mean_outputs(
        self, arena: Arena, feed: StepInputs, logits: Tensor, shares: Sequence[float]
    ) -> tuple[list[Task], Task]:
        """The softmax of a weighted mean of several views' logits: a task after each view, and the last.

        It becomes the step's rows of ``feed.probabilities``, and the position moves on by a step.
        """

    def update(
        self,
        arena: Arena,
        optimiser: Optimiser,
        segments: Sequence[Segment],
        buffers: tuple[Array, Array, dict[str, Array]],
        feed: StepInputs,
    ) -> Task:
        """Parameters, gradients and slots, as the optimiser says; and the position moves on by a step."""

    def whole(self, arena: Arena, feed: StepInputs, tasks: Iterable[Task]) -> Task:
        """One task of all those of a step, in order; what a backend gave before may be planned only here."""
