"""Learning rate schedules: each step's rate is a function of the step number alone."""

from dataclasses import dataclass
from math import pi
from typing import Literal

import numpy as np

from cnnjob.nn.arena import Array


@dataclass(frozen=True)
class Schedule:
    """Learning rate schedule: a linear warm-up to the peak, then a decay of the given shape.

    Let p rise from 0 to 1 over the steps after the warm-up. ``constant`` stays at the peak; ``cosine`` is
    end + (peak − end)(1 + cos πp)/2 (Loshchilov & Hutter 2017, eq. 5, without restarts); ``triangular`` is the straight
    line from peak to end (Smith 2017).
    """

    peak: float
    """Maximum learning rate."""
    shape: Literal["constant", "cosine", "triangular"] = "constant"
    """Shape of the decay after the warm-up."""
    warmup: float = 0.0
    """Length of the warm-up as a fraction of all steps."""
    start_factor: float = 0.0
    """Rate at step 0 as a fraction of the peak, if there is a warm-up."""
    end_factor: float = 0.0
    """Rate at the end of the decay as a fraction of the peak."""

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
        p = (step - warmup_steps) / (total - warmup_steps)
        decay = {"constant": np.zeros_like(p), "cosine": (1 - np.cos(pi * p)) / 2, "triangular": p}[self.shape]
        factors = 1 - (1 - self.end_factor) * decay
        if warmup_steps:
            rising = self.start_factor + (1 - self.start_factor) * step / warmup_steps
            factors = np.where(step < warmup_steps, rising, factors)
        return self.peak * factors
