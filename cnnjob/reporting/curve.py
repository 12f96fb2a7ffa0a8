"""Learning curves as numbers to draw."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

Split = Literal["train", "validation", "test"]
Measure = Literal["loss", "accuracy"]


@dataclass(frozen=True)
class Curve:
    """The learning curve of one run."""

    name: str
    history: Mapping[str, np.ndarray]
    """``epoch`` (E,), and any of ``train_loss``, ``validation_loss``, ``test_loss`` (nats per image) and
    ``train_accuracy``, ``validation_accuracy``, ``test_accuracy`` (0..1): (E,) float64, NaN where unknown."""
    best_epoch: int | None = None
    """Epoch whose weights were chosen."""
    restarts: tuple[float, ...] = ()
    """Where the run resumed, in epochs; fractional within an epoch."""

    @property
    def watched(self) -> Split:
        """The split that was evaluated after each epoch; ``train`` if there was none."""
        splits: tuple[Split, ...] = ("validation", "test")
        return next((split for split in splits if not np.isnan(self.values(split, "loss")).all()), "train")

    def values(self, split: Split, measure: Measure) -> np.ndarray:
        """Return the values to draw: (E,) float64, nats per image or per cent, NaN where unknown."""
        unknown = np.full(len(self.history["epoch"]), np.nan)
        values = self.history.get(f"{split}_{measure}", unknown)
        return values * 100 if measure == "accuracy" else values
