"""How a run learned, as numbers to draw."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

Split = Literal["train", "validation", "test"]
Measure = Literal["loss", "accuracy"]


@dataclass(frozen=True)
class Curve:
    """How one run learned."""

    name: str
    history: Mapping[str, np.ndarray]
    """``epoch`` (E,), and any of ``train_loss``, ``validation_loss``, ``test_loss`` (nats per image) and
    ``train_accuracy``, ``validation_accuracy``, ``test_accuracy`` (0..1): (E,) float64, NaN where unknown."""
    best_epoch: int | None = None
    """The epoch whose weights were chosen."""
    restarts: tuple[float, ...] = ()
    """Where the run went on after a stop, in epochs."""

    @property
    def watched(self) -> Split:
        """The split that was watched while training; the training images where there was none."""
        splits: tuple[Split, ...] = ("validation", "test")
        return next((split for split in splits if not np.isnan(self.values(split, "loss")).all()), "train")

    def values(self, split: Split, measure: Measure) -> np.ndarray:
        """The values as drawn: (E,) float64, nats per image or per cent, NaN where unknown."""
        unknown = np.full(len(self.history["epoch"]), np.nan)
        values = self.history.get(f"{split}_{measure}", unknown)
        return values * 100 if measure == "accuracy" else values
