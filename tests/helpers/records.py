"""Records of finished runs, as the report reads them."""

from typing import Any

from cnnjob.reporting.record import COLUMNS, Record

DATA = "mnist 12345678"


def record(accuracy: float | None, seed: int = 0, *, state: str = "finished", **settings: Any) -> Record:
    """A run of this accuracy and these settings, as it would be read."""
    name = f"run-{seed}-{settings}"
    row = dict.fromkeys(COLUMNS) | {"run": name, "job": "tiny", "seed": seed, "state": state, "test_accuracy": accuracy}
    return Record(name, row, settings={"name": "tiny", "seed": seed, "dataset": DATA} | settings)


def group(*accuracies: float, **settings: Any) -> list[Record]:
    return [record(accuracy, seed, **settings) for seed, accuracy in enumerate(accuracies)]
