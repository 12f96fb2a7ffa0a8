"""The learning rate of every step, as a function of the step alone."""

from math import pi
from typing import Literal

import numpy as np

from cnnjob.nn.memory import Array

Schedule = Literal["constant", "cosine"]


def learning_rates(schedule: Schedule, first: float, steps: range, total: int) -> Array:
    """The rates of some steps of a training.

    Args:
        schedule: ``constant``, or ``cosine``: first · (1 + cos(π t / total)) / 2 (Loshchilov & Hutter
            2017, eq. 5, without restarts).
        first: the rate of step 0.
        steps: which steps, counted from the start of the training.
        total: steps of the whole training.

    Returns:
        float64 (len(steps),).
    """
    if schedule == "constant":
        return np.full(len(steps), first)
    return first * (1 + np.cos(pi * np.asarray(steps) / total)) / 2
