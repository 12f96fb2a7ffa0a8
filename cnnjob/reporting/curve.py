"""Learning curves as plottable numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

Split = Literal["train", "validation", "test"]
Measure = Literal["loss", "accuracy", "learning rate"]


@dataclass(frozen=True)
class Curve:
    """The learning curve of one run."""

    name: str
    history: Mapping[str, np.ndarray]
    """``epoch`` and any of ``train_loss``, ``validation_loss``, ``test_loss`` (nats per image), ``train_accuracy``,
    ``validation_accuracy``, ``test_accuracy`` (0..1), ``step``, ``learning_rate`` (that of the epoch's last step),
    ``seconds``, ``images_per_second`` and ``ended`` (POSIX time in seconds): each (E,) float64, NaN where unknown."""
    best_epoch: int | None = None
    """Epoch whose weights were chosen; None if unknown."""
    restarts: tuple[float, ...] = ()
    """Positions at which the run resumed, in epochs; fractional within an epoch."""

    @property
    def watched(self) -> Split:
        """The split evaluated after each epoch, ``validation`` or ``test``; ``train`` if neither was evaluated."""
        splits: tuple[Split, ...] = ("validation", "test")
        return next((split for split in splits if not np.isnan(self.values(split, "loss")).all()), "train")

    def values(self, split: Split, measure: Measure) -> np.ndarray:
        """Return the values to plot: (E,) float64, in nats per image or per cent, NaN where unknown.

        For the learning rate, ``split`` does not matter.
        """
        unknown = np.full(len(self.history["epoch"]), np.nan)
        key = "learning_rate" if measure == "learning rate" else f"{split}_{measure}"
        values = self.history.get(key, unknown)
        return values * 100 if measure == "accuracy" else values
