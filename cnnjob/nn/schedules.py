"""Learning rate schedules: each step's rate is a function of the step number alone."""

from dataclasses import dataclass
from math import pi
from typing import Literal

import numpy as np

from cnnjob.nn.arena import Array

Anneal = Literal["cosine", "linear"]


@dataclass(frozen=True)
class Schedule:
    """A learning rate schedule: a linear warm-up to the peak, then a decay of the given shape.

    Let p rise from 0 to 1 over the steps after the warm-up. ``constant`` stays at the peak; ``cosine`` is
    end + (peak − end)(1 + cos πp)/2 (Loshchilov & Hutter 2017, eq. 5, without restarts); ``triangular`` is the straight
    line from peak to end (Smith 2017). ``step`` is peak·gammaⁿ after n milestones (PyTorch's ``MultiStepLR``).
    ``one_cycle`` rises to the peak and falls to the end along half cosines or straight lines (Smith & Topin 2018, as in
    PyTorch's ``OneCycleLR``): the peak is at step warmup·total − 1, and the end is reached in the last step.
    """

    peak: float
    """Maximum learning rate."""
    shape: Literal["constant", "cosine", "triangular", "step", "one_cycle"] = "constant"
    """Shape of the decay after the warm-up."""
    warmup: float = 0.0
    """Length of the warm-up as a fraction of all steps."""
    start_factor: float = 0.0
    """Rate at step 0 as a fraction of the peak, if there is a warm-up."""
    end_factor: float = 0.0
    """Rate at the end of the decay as a fraction of the peak."""
    milestones: tuple[float, ...] = ()
    """Fractions of all steps after which ``step`` multiplies the rate by ``gamma``, ascending."""
    gamma: float = 1.0
    """Factor by which ``step`` multiplies the rate after each milestone."""
    anneal: Anneal = "cosine"
    """Shape of the rise and of the fall of ``one_cycle``."""
    base_momentum: float | None = None
    """Momentum at the peak of ``one_cycle``; None if the momentum stays the same."""

    def rates(self, steps: range, total: int) -> Array:
        """Return the learning rates of the given steps.

        Args:
            steps: the steps, counted from the start of training.
            total: total number of training steps.

        Returns:
            The rates, float64 (len(steps),).
        """
        # Computed from the step number alone, so a resumed run gets the same rates as an uninterrupted one.
        step, warmup_steps = np.asarray(steps, np.float64), self.warmup * total
        if self.shape == "one_cycle":
            rise, fall = self._cycle(step, total)
            return self.peak * (self.start_factor + (1 - self.start_factor) * rise - (1 - self.end_factor) * fall)
        p = (step - warmup_steps) / (total - warmup_steps)
        if self.shape == "step":
            factors = self.gamma ** np.searchsorted(self.milestone_steps(total), step, side="right")
        else:
            decay = {"constant": np.zeros_like(p), "cosine": (1 - np.cos(pi * p)) / 2, "triangular": p}[self.shape]
            factors = 1 - (1 - self.end_factor) * decay
        if warmup_steps:
            rising = self.start_factor + (1 - self.start_factor) * step / warmup_steps
            factors = np.where(step < warmup_steps, rising, factors)
        return self.peak * factors

    def momentum_drops(self, steps: range, total: int, momentum: float) -> Array:
        """Return by how much the momentum of each of the given steps is less than ``momentum``.

        With ``one_cycle``, the momentum falls to ``base_momentum`` while the rate rises, and rises again while the rate
        falls.

        Args:
            steps: the steps, counted from the start of training.
            total: total number of training steps.
            momentum: the optimiser's momentum.

        Returns:
            The differences, float64 (len(steps),).
        """
        if self.base_momentum is None:
            return np.zeros(len(steps))
        rise, fall = self._cycle(np.asarray(steps, np.float64), total)
        return (momentum - self.base_momentum) * (rise - fall)

    def milestone_steps(self, total: int) -> Array:
        """Return the first step after each milestone, float64 (milestones,), if training takes ``total`` steps."""
        # 0.07 · 100 is slightly more than 7: without the factor, rounding up would yield 8.
        return np.ceil(np.array(self.milestones) * total * (1 - 1e-12))

    def _cycle(self, step: Array, total: int) -> tuple[Array, Array]:
        """Return how far ``one_cycle`` has risen and fallen at the given steps, each from 0 to 1."""
        top = self.warmup * total - 1
        rise = np.clip(step / top, 0, 1) if top > 0 else np.ones_like(step)
        fall = np.clip((step - top) / (total - 1 - top), 0, 1)
        if self.anneal == "linear":
            return rise, fall
        return (1 - np.cos(pi * rise)) / 2, (1 - np.cos(pi * fall)) / 2
