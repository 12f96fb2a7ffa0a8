"""Optimisers as data: their constants, and the segments of the flat parameter buffer that they update.

The arithmetic is in the backends: :mod:`cnnjob.nn.cpu.updates` and :mod:`cnnjob.nn.cuda.updates`.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from cnnjob.nn.arena import Array, BufferLayout
from cnnjob.nn.blocks import Network


@dataclass(frozen=True)
class Lookahead:
    """A slow copy of the weights, to which the fast weights are reset at intervals (Zhang et al. 2019, alg. 1).

    Every ``every`` steps, and after the last step of training, slow ← α·slow + (1 − α)·fast and fast ← slow.
    Here α = decay^n · (t / T)^power, where T is the total number of steps, t the number of completed steps, and n the
    number of steps since the previous reset (Jordan 2024, §3.4; in Jordan's version, the final steps are lost unless
    ``every`` divides T).
    """

    every: int = 5
    """Number of steps between resets."""
    decay: float = 0.95
    """Factor applied to α for each step since the last reset."""
    power: float = 3.0
    """Exponent of t / T, the completed fraction of training."""

    def alphas(self, steps: range, total: int) -> Array:
        """Return Lookahead's α for each of the given steps, or −1 for steps after which the weights are not reset.

        Args:
            steps: the steps, counted from the start of training.
            total: total number of training steps.

        Returns:
            α, float64 (len(steps),).
        """
        steps_done = np.asarray(steps) + 1
        steps_since_reset = np.where(steps_done % self.every, steps_done % self.every, self.every)
        alphas = self.decay**steps_since_reset * (steps_done / total) ** self.power
        return np.where((steps_since_reset == self.every) | (steps_done == total), alphas, -1.0)


@dataclass(frozen=True)
class _Rule:
    """The fields shared by all optimisers."""

    momentum: float = 0.0
    weight_decay: float = 0.0
    lookahead: Lookahead | None = None
    clip_norm: float = field(default=0.0, kw_only=True)
    """Maximum L2 norm of all gradients together, or 0 for no limit. Gradients of a larger norm n are multiplied by
    ``clip_norm`` / (n + 10⁻⁶) before the update (Pascanu et al. 2013, alg. 1, in PyTorch's form)."""

    @property
    def slots(self) -> tuple[str, ...]:
        """Return the names of the optimiser's own flat buffers, each as large as the parameter buffer."""
        return (*self._rule_slots, "slow") if self.lookahead else self._rule_slots

    @property
    def _rule_slots(self) -> tuple[str, ...]:
        return ("velocity",) if self.momentum else ()


@dataclass(frozen=True)
class Sgd(_Rule):
    """Stochastic gradient descent with momentum (Sutskever et al. 2013, eq. 1 and 3, in PyTorch's form).

    g ← g + λw,  v ← μv + g,  w ← w − ηv, with η the learning rate, μ ``momentum`` and λ ``weight_decay``.
    With Nesterov momentum, the last formula is w ← w − η(g + μv). Decoupled decay leaves g unchanged and starts with
    w ← w − ηλw (Loshchilov & Hutter 2019, alg. 1).
    """

    nesterov: bool = False
    decoupled: bool = False


@dataclass(frozen=True)
class Adam(_Rule):
    """Adam with weight decay added to the gradient (Kingma & Ba 2015, alg. 1, in PyTorch's form).

    g ← g + λw,  m ← β₁m + (1 − β₁)g,  v ← β₂v + (1 − β₂)g²,  w ← w − η·m̂/(√v̂ + eps), with m̂ = m/(1 − β₁ᵗ) and
    v̂ = v/(1 − β₂ᵗ) at the t-th step; β₁ is ``momentum``.
    """

    momentum: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    decoupled: ClassVar[bool] = False

    @property
    def _rule_slots(self) -> tuple[str, ...]:
        return ("first_moment", "second_moment")


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, alg. 2, in PyTorch's form).

    It leaves g unchanged, and starts with w ← w − ηλw; the other formulas are those of :class:`Adam`.
    """

    decoupled: ClassVar[bool] = True


Optimiser = Sgd | Adam
CLIP_EPS = 1e-6
"""Added to the gradients' norm before dividing by it, as torch.nn.utils.clip_grad_norm_ does."""


@dataclass(frozen=True)
class Segment:
    """A segment of the flat parameter buffer with a single learning rate factor and decay setting."""

    elements: slice
    """Slice of the buffer that the segment covers."""
    learning_rate_factor: float
    """Factor by which the step's learning rate is multiplied."""
    decays: bool
    """True if weight decay applies."""


def trainable_segments(network: Network, layout: BufferLayout) -> list[Segment]:
    """Return one segment per trainable parameter."""
    return [
        Segment(layout.slice_of(name), parameter.learning_rate_factor, parameter.decays)
        for name, parameter in network.parameters.items()
        if parameter.trainable
    ]
