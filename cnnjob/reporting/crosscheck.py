"""What the files of a finished run say twice: the figures of one that another one gives.

No other file gives the rest. Of the result: ``train_seconds``, ``cpu_hours``, ``peak_memory_bytes`` and
``bits_may_differ_from_step``, which only the process knew. Of the history: ``seconds``, and the losses and accuracies,
which need the images and each epoch's weights; but those of the test images by the chosen weights are compared. Of the
predictions: probabilities, labels and pixels, which need the dataset.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cnnjob.jobs.job import Job
from cnnjob.jobs.schema import in_one_line
from cnnjob.runs import metrics

_TOLERANCE = 1e-6
"""Of a figure, and of its relative size."""
_RUNNING = ("/mean", "/variance")
"""Ends of names of weights that count as no parameters."""
_SECONDS, _RATE = 0.0005, 0.05
"""By which the history rounds an epoch's seconds and its images per second, at most."""
_LAST = {"epochs": "epoch", "steps": "step"}
"""Of the result, and the column of the history whose last value it is."""
_OF_JOB = {"selected_on": "select_on", "test_time_augmentation": "test_time_augmentation"}
"""Of the result, and the key of ``train`` that it repeats."""

Table = Mapping[str, np.ndarray]
"""The history's columns, float64 (E,), NaN where unknown."""


class Check(NamedTuple):
    """A figure of one file, and what another one gives."""

    file: str
    name: str
    said: Any
    source: str
    given: Any

    @property
    def agrees(self) -> bool:
        """Return whether both are the same, as far as they were rounded."""
        if isinstance(self.given, float) and isinstance(self.said, int | float):
            return abs(self.said - self.given) <= _TOLERANCE * max(1.0, abs(self.given))
        return bool(self.said == self.given)

    def __str__(self) -> str:
        """Say both."""
        said, given = (in_one_line(str(value)) for value in (self.said, self.given))
        return f"{self.file}: {self.name} is {said}, but {self.source} gives {given}"


def of_result(
    result: Mapping[str, Any], settings: Mapping[str, Any], environment: Mapping[str, Any]
) -> Iterator[Check]:
    """Yield what the result repeats of the job, its environment and itself; a field that is missing is not compared.

    Args:
        result: ``result.json``.
        settings: the job's, by dotted key.
        environment: ``environment.json``.
    """
    given = [(name, "job.json", settings.get(f"train.{key}")) for name, key in _OF_JOB.items()]
    given += [(name, "environment.json", environment.get(name)) for name in ("backend", "precision")]
    seconds = result.get("train_seconds")
    if isinstance(seconds, int | float):
        hours = seconds / 3600 if result.get("backend") == "cuda" else 0.0
        given.append(("gpu_hours", "result.json", hours))
    yield from _of_result(result, given)


def of_figures(result: Mapping[str, Any], figures: Mapping[str, float]) -> Iterator[Check]:
    """Yield the accuracy and the loss of the predictions."""
    yield from _of_result(result, [(name, "predictions.npz", value) for name, value in figures.items()])


def of_weights(result: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> Iterator[Check]:
    """Yield the number of parameters; running statistics are none."""
    count = sum(array.size for name, array in weights.items() if not name.endswith(_RUNNING))
    yield from _of_result(result, [("parameters", "weights.npz", count)])


def of_attempts(result: Mapping[str, Any], attempts: Sequence[Mapping[str, Any]]) -> Iterator[Check]:
    """Yield what the result repeats of the attempt that finished the run, the last one where none says so."""
    finished = (one for one in attempts if one["why"] == "finished")
    if attempt := next(finished, attempts[-1] if attempts else None):
        given = [("attempts", attempt["attempt"]), ("device", attempt.get("device"))]
        yield from _of_result(result, [(name, "attempts/", value) for name, value in given])


def of_history(result: Mapping[str, Any], table: Table, select_on: str) -> Iterator[Check]:
    """Yield what the result repeats of the history.

    Args:
        result: ``result.json``.
        table: the history.
        select_on: the job's key.
    """
    given: list[tuple[str, Any]] = [
        (name, int(table[column][-1])) for name, column in _LAST.items() if _is_whole(table, column)
    ]
    score = "epoch" if select_on == "last" else f"{select_on}_accuracy"
    if _is_whole(table, score):
        best = int(np.argmax(table[score]))  # the first of equals
        given.append(("best_epoch", int(table["epoch"][best])))
        measures = ("test_accuracy", "test_loss") if select_on == "test" else ()
        given += [(name, float(table[name][best])) for name in measures if _is_whole(table, name)]
    yield from _of_result(result, [(name, "history.jsonl", value) for name, value in given])


def of_epochs(table: Table, job: Job) -> Iterator[Check]:
    """Yield what the history of a finished run repeats of its job and of itself.

    Args:
        table: the history, of epochs 1, 2, 3, …
        job: of today's format.
    """
    if not _is_whole(table, "step") or table["step"][0] < 1:
        return
    from cnnjob.training.build import build_schedule  # noqa: PLC0415 - the network, which nothing else of a report needs

    epochs, steps = len(table["epoch"]), int(table["step"][0])
    yield Check("history.jsonl", "the number of epochs", epochs, "job.json", _last_epoch(table, job))
    total = job.train.epochs * steps
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
        if (
            seconds > _SECONDS
            and not images / (seconds + _SECONDS) - _RATE <= rate <= images / (seconds - _SECONDS) + _RATE
        ):
            yield Check("history.jsonl", f"images_per_second {where}", rate, "its time", images / seconds)


def _last_epoch(table: Table, job: Job) -> int:
    """Return the epoch after which the training ends by the accuracies of its history."""
    stopping, score = job.train.early_stopping, f"{job.train.select_on}_accuracy"
    if stopping and _is_whole(table, score):
        best = np.maximum.accumulate(table[score])
        waited = np.arange(len(best)) - np.searchsorted(best, best)  # since the first of the highest
        if (waited >= stopping.patience).any():
            return int((waited >= stopping.patience).argmax()) + 1
    return job.train.epochs


def of_predictions(
    arrays: Mapping[str, np.ndarray], class_names: Sequence[str], shape: Sequence[int]
) -> Iterator[Check]:
    """Yield what the predictions repeat of the job's data and of themselves.

    Args:
        arrays: ``predictions.npz``.
        class_names: those of ``job.json``; empty where it says none.
        shape: (H, W, C), likewise.
    """
    said = [str(name) for name in arrays["class_names"]]
    if class_names:
        yield Check("predictions.npz", "class_names", said, "job.json", list(class_names))
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


def _of_result(result: Mapping[str, Any], given: Sequence[tuple[str, str, Any]]) -> Iterator[Check]:
    """Yield a check per name, source and value; what either does not say is not compared."""
    for name, source, value in given:
        if value is not None and result.get(name) is not None:
            yield Check("result.json", name, result[name], source, value)


def _is_whole(table: Table, column: str) -> bool:
    """Return whether a column is there without a gap."""
    return column in table and bool(np.isfinite(table[column]).all())
