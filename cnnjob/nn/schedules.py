"""The learning rate of every step, as a function of the step alone."""

from dataclasses import dataclass
from math import pi
from typing import Literal

import numpy as np

from cnnjob.nn.memory import Array


@dataclass(frozen=True)
class Schedule:
    """How the learning rate goes: up over the warm-up, and then along a shape to the end.

    With p from 0 to 1 over what follows the warm-up: ``constant`` stays at the peak; ``cosine`` is
    end + (peak − end)(1 + cos πp)/2 (Loshchilov & Hutter 2017, eq. 5, without restarts); ``triangular`` is the straight
    line from peak to end (Smith 2017).
    """

    peak: float
    shape: Literal["constant", "cosine", "triangular"] = "constant"
    warmup: float = 0.0
    """Share of all steps over which the rate rises in a straight line."""
    start_factor: float = 0.0
    """Of the peak, the rate of step 0 where there is a warm-up."""
    end_factor: float = 0.0
    """Of the peak, the rate that the shape leads to."""

    def rates(self, steps: range, total: int) -> Array:
        """The rates of some steps of a training.

        Args:
            steps: which, counted from the start of the training.
            total: steps of the whole training.

        Returns:
            float64 (len(steps),).
        """
        at, rising = np.asarray(steps, np.float64), self.warmup * total
        p = (at - rising) / (total - rising)
        fall = {"constant": np.zeros_like(p), "cosine": (1 - np.cos(pi * p)) / 2, "triangular": p}[self.shape]
        factors = 1 - (1 - self.end_factor) * fall
        if rising:
            factors = np.where(at < rising, self.start_factor + (1 - self.start_factor) * at / rising, factors)
        return self.peak * factors
