"""Cross-checks of a finished run, which compare values that are recorded in two of its files.

Values that are recorded only once cannot be checked:

- in the result, ``train_seconds``, ``cpu_hours``, ``peak_memory_bytes`` and ``bits_may_differ_from_step``;
- in the history, ``seconds``, and the losses and accuracies, since checking them would require the images and each
  epoch's weights (the test loss and accuracy of the chosen weights are checked);
- in the predictions, the probabilities, labels and pixels, since checking them would require the dataset.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cnnjob.jobs.job import Job
from cnnjob.jobs.schema import in_one_line
from cnnjob.runs import metrics
from cnnjob.training.build import build_schedule

_TOLERANCE = 1e-6
"""Maximum difference between two values that agree: absolute below 1, relative above."""
_STATISTICS = ("/mean", "/variance")
"""Suffixes in the names of running statistics, which are stored with the weights but are not parameters."""
_SECONDS_ERROR, _RATE_ERROR = 0.0005, 0.05
"""Maximum rounding errors of ``seconds`` and ``images_per_second`` in the history."""
_LAST_VALUES = {"epochs": "epoch", "steps": "step"}
"""Result keys, each with the history column whose last value it repeats."""
_TRAIN_KEYS = {"selected_on": "select_on", "test_time_augmentation": "test_time_augmentation"}
"""Result keys, each with the key in the job's ``train`` table whose value it repeats."""

Table = Mapping[str, np.ndarray]
"""History columns by name: each (E,) float64 for E epochs, NaN where unknown."""


class Check(NamedTuple):
    """A value in one file and the value that another file implies for it."""

    file: str
    name: str
    value: Any
    source: str
    expected: Any

    @property
    def agrees(self) -> bool:
        """Return whether the two values are equal, within the tolerance for floats."""
        if isinstance(self.expected, float) and isinstance(self.value, int | float):
            return abs(self.value - self.expected) <= _TOLERANCE * max(1.0, abs(self.expected))
        return bool(self.value == self.expected)

    def __str__(self) -> str:
        """Return a message that states both values."""
        value, expected = (in_one_line(str(value)) for value in (self.value, self.expected))
        return f"{self.file}: {self.name} is {value}, but {self.source} gives {expected}"


def check_result(
    result: Mapping[str, Any], settings: Mapping[str, Any], environment: Mapping[str, Any]
) -> Iterator[Check]:
    """Check the result against the job, the environment and itself; missing fields are not compared.

    Args:
        result: content of ``result.json``.
        settings: the job's settings by dotted key.
        environment: content of ``environment.json``.
    """
    expected = [(name, "job.json", settings.get(f"train.{key}")) for name, key in _TRAIN_KEYS.items()]
    expected += [(name, "environment.json", environment.get(name)) for name in ("backend", "precision")]
    seconds = result.get("train_seconds")
    if isinstance(seconds, int | float):
        hours = seconds / 3600 if result.get("backend") == "cuda" else 0.0
        expected.append(("gpu_hours", "result.json", hours))
    yield from _compare_result(result, expected)


def check_figures(result: Mapping[str, Any], figures: Mapping[str, float]) -> Iterator[Check]:
    """Check the result's test accuracy and loss against those computed from the predictions."""
    yield from _compare_result(result, [(name, "predictions.npz", value) for name, value in figures.items()])


def check_weights(result: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> Iterator[Check]:
    """Check the number of parameters in the result against the weights; running statistics are not counted."""
    count = sum(array.size for name, array in weights.items() if not name.endswith(_STATISTICS))
    yield from _compare_result(result, [("parameters", "weights.npz", count)])


def check_attempts(result: Mapping[str, Any], attempts: Sequence[Mapping[str, Any]]) -> Iterator[Check]:
    """Check the result against the attempt that finished the run, or against the last attempt if none did."""
    finished = (attempt for attempt in attempts if attempt["why"] == "finished")
    if attempt := next(finished, attempts[-1] if attempts else None):
        expected = [("attempts", attempt["attempt"]), ("device", attempt.get("device"))]
        yield from _compare_result(result, [(name, "attempts/", value) for name, value in expected])


def check_history(result: Mapping[str, Any], table: Table, select_on: str) -> Iterator[Check]:
    """Check the result against the history.

    Args:
        result: content of ``result.json``.
        table: the history.
        select_on: the job's ``train.select_on``.
    """
    expected: list[tuple[str, Any]] = [
        (name, int(table[column][-1])) for name, column in _LAST_VALUES.items() if _is_whole(table, column)
    ]
    score = "epoch" if select_on == "last" else f"{select_on}_accuracy"
    if _is_whole(table, score):
        best = int(np.argmax(table[score]))  # the first of equal maxima, as in the trainer
        expected.append(("best_epoch", int(table["epoch"][best])))
        measures = ("test_accuracy", "test_loss") if select_on == "test" else ()
        expected += [(name, float(table[name][best])) for name in measures if _is_whole(table, name)]
    yield from _compare_result(result, [(name, "history.jsonl", value) for name, value in expected])


def check_epochs(table: Table, job: Job) -> Iterator[Check]:
    """Check that a finished run's history matches the run's job and is internally consistent.

    Args:
        table: the history, with epochs 1, 2, 3, …
        job: the job, in the current format.
    """
    if not _is_whole(table, "step") or table["step"][0] < 1:
        return
    epochs, steps = len(table["epoch"]), int(table["step"][0])
    yield Check("history.jsonl", "the number of epochs", epochs, "job.json", _find_last_epoch(table, job))
    total = job.train.epochs * steps
    # The history records the learning rate of each epoch's last step; steps are numbered from 0 here.
    rates = build_schedule(job.train).rates(range(steps - 1, epochs * steps, steps), total)
    for row in range(epochs):
        cells = {name: float(values[row]) for name, values in table.items()}
        where = f"of epoch {row + 1}"
        yield Check("history.jsonl", f"step {where}", cells["step"], "its first line", float((row + 1) * steps))
        if np.isfinite(cells["learning_rate"]):
            yield Check(
                "history.jsonl", f"learning_rate {where}", cells["learning_rate"], "job.json", float(rates[row])
            )
        seconds, rate = cells["seconds"], cells["images_per_second"]
        images = steps * job.train.batch_size
        # The two were rounded independently, so the rate may be anywhere in the interval that rounding allows.
        if (
            seconds > _SECONDS_ERROR
            and not images / (seconds + _SECONDS_ERROR) - _RATE_ERROR
            <= rate
            <= images / (seconds - _SECONDS_ERROR) + _RATE_ERROR
        ):
            yield Check("history.jsonl", f"images_per_second {where}", rate, "its time", images / seconds)


def _find_last_epoch(table: Table, job: Job) -> int:
    """Return the epoch after which training must have ended, given the accuracies in its history."""
    stopping, score = job.train.early_stopping, f"{job.train.select_on}_accuracy"
    if stopping and _is_whole(table, score):
        best = np.maximum.accumulate(table[score])
        # `best` never decreases, so searchsorted finds the epoch in which each maximum was first reached.
        waited = np.arange(len(best)) - np.searchsorted(best, best)
        if (waited >= stopping.patience).any():
            return int((waited >= stopping.patience).argmax()) + 1
    return job.train.epochs


def check_predictions(
    arrays: Mapping[str, np.ndarray], class_names: Sequence[str], shape: Sequence[int]
) -> Iterator[Check]:
    """Check that the predictions match the job's dataset and are internally consistent.

    Args:
        arrays: arrays in ``predictions.npz``.
        class_names: class names in ``job.json``; empty if the file has no class names.
        shape: image shape (H, W, C) in ``job.json``; empty if the file has no image shape.
    """
    names = [str(name) for name in arrays["class_names"]]
    if class_names:
        yield Check("predictions.npz", "class_names", names, "job.json", list(class_names))
    if "wrong_indices" in arrays and "wrong_images" in arrays:
        worst = metrics.most_confident_errors(arrays["probabilities"], arrays["labels"]).tolist()
        yield Check(
            "predictions.npz",
            "wrong_indices",
            arrays["wrong_indices"].tolist(),
            "the order of its probabilities",
            worst,
        )
        if shape:
            sizes = [len(worst), *shape]
            yield Check(
                "predictions.npz", "the shape of wrong_images", list(arrays["wrong_images"].shape), "job.json", sizes
            )


def _compare_result(result: Mapping[str, Any], expected: Sequence[tuple[str, str, Any]]) -> Iterator[Check]:
    """Yield one check per expected (name, source, value), except for values that are missing on either side."""
    for name, source, value in expected:
        if value is not None and result.get(name) is not None:
            yield Check("result.json", name, result[name], source, value)


def _is_whole(table: Table, column: str) -> bool:
    """Return whether the table has the column and all its values are finite."""
    return column in table and bool(np.isfinite(table[column]).all())
