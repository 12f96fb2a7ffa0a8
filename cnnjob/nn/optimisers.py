"""What an optimiser is told: its constants, and which stretch of the parameters learns how."""

from dataclasses import dataclass

import numpy as np

from cnnjob.nn.blocks import Network
from cnnjob.nn.memory import Array, Layout


@dataclass(frozen=True)
class Lookahead:
    """A slow copy of the weights, which the fast ones go back to (Zhang et al. 2019, alg. 1).

    Every so many steps, and after the last, slow ← α·slow + (1 − α)·fast and fast ← slow, with
    α = decay^n · (t / T)^power after t of T steps, n of them since the time before (Jordan 2024, §3.4, whose last steps
    are lost unless ``every`` divides T).
    """

    every: int = 5
    decay: float = 0.95
    power: float = 3.0

    def shares(self, steps: range, total: int) -> Array:
        """α after each of some steps, counted from the start of the training; −1 where nothing is done.

        Returns:
            float64 (len(steps),).
        """
        done = np.asarray(steps) + 1
        since = np.where(done % self.every, done % self.every, self.every)
        alpha = self.decay**since * (done / total) ** self.power
        return np.where((since == self.every) | (done == total), alpha, -1.0)


@dataclass(frozen=True)
class _Rule:
    """What the optimisers have in common."""

    momentum: float = 0.0
    weight_decay: float = 0.0
    lookahead: Lookahead | None = None

    @property
    def slots(self) -> tuple[str, ...]:
        """The arrays it keeps beside the parameters, each of their shape."""
        return (*self._own_slots, *(("slow",) if self.lookahead else ()))

    @property
    def _own_slots(self) -> tuple[str, ...]:
        return ("velocity",) if self.momentum else ()


@dataclass(frozen=True)
class Sgd(_Rule):
    """Stochastic gradient descent with momentum (Sutskever et al. 2013, eq. 1 and 3, in torch's form).

    g ← g + λw,  v ← μv + g,  w ← w − ηv, with η the learning rate, μ ``momentum`` and λ ``weight_decay``.
    Nesterov's form takes w ← w − η(g + μv). Decoupled decay leaves g alone and takes w ← w − ηλw first
    (Loshchilov & Hutter 2019, alg. 1).
    """

    nesterov: bool = False
    decoupled: bool = False


@dataclass(frozen=True)
class AdamW(_Rule):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, alg. 2, in torch's form).

    w ← w − ηλw,  m ← β₁m + (1 − β₁)g,  v ← β₂v + (1 − β₂)g²,  w ← w − η·m̂/(√v̂ + eps), with m̂ = m/(1 − β₁ᵗ) and
    v̂ = v/(1 − β₂ᵗ) at the t-th step; β₁ is ``momentum``.
    """

    momentum: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    @property
    def _own_slots(self) -> tuple[str, ...]:
        return ("first_moment", "second_moment")


Optimiser = Sgd | AdamW


@dataclass(frozen=True)
class Segment:
    """A stretch of the flat parameter buffer that learns in one way."""

    place: slice
    learning_rate_factor: float
    decays: bool


def segments(network: Network, layout: Layout) -> list[Segment]:
    """One segment a parameter that the optimiser changes."""
    return [
        Segment(layout.slices(name), parameter.learning_rate_factor, parameter.decays)
        for name, parameter in network.parameters.items()
        if parameter.trainable
    ]
