"""Compare two runs of the same job bit for bit: an uninterrupted run, and one that was killed and resumed."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from cnnjob import files
from cnnjob.runs import environment
from cnnjob.runs.run import Run

COMPARED = ("weights", "predictions", "history", "result")
"""The parts of a run that are compared."""
TIMING_KEYS = {"seconds", "images_per_second", "ended"}
"""Keys of a history record whose values are measured times, and therefore differ between any two runs."""
COST_KEYS = {"train_seconds", "cpu_hours", "gpu_hours", "peak_memory_bytes", "attempts"}
"""Keys of the result whose values depend on the time, the memory or the number of attempts."""
MACHINE_KEYS = {"device", "bits_may_differ_from_step"}
"""Keys of the result whose values depend on the machine; :func:`remarks` reports whether the bits may differ."""


@dataclass(frozen=True)
class RunDifference:
    """The first difference between two runs in their weights, predictions, history or result."""

    part: str
    """One of :data:`COMPARED`."""
    where: str
    """Position in the part, such as ``1-conv/weights[0, 2, 1]``, ``epoch 3, train_loss`` or ``test_loss``."""
    uninterrupted: str
    killed: str


@dataclass(frozen=True)
class Kill:
    """An attempt that was killed with ``SIGKILL``."""

    attempt: int
    """Number of the attempt, from 1."""
    seconds: float
    """Time of the kill: seconds since training started in this attempt; on a cluster, since the last checkpoint."""
    step: int | None
    """Last step that the attempt had completed; None if unknown."""
    saved_step: int
    """Step of the newest checkpoint."""
    during: str
    """The activity that was interrupted: ``starting``, ``training``, ``evaluation`` or ``saving``; empty if unknown."""
    resumed_at_step: int | None = None
    """Step from which the next attempt resumed; None if the next attempt was killed before it resumed."""


@dataclass(frozen=True)
class RunComparison:
    """The comparison of an uninterrupted and a killed run."""

    run: str
    """Name, which is the same for both runs."""
    steps: int
    seed: int
    """Seed for the random times of the kills."""
    kills: list[Kill]
    attempts: int
    """Number of attempts of the killed run."""
    train_seconds: tuple[float, float]
    """Training times of the uninterrupted and of the killed run; the latter does not include lost work."""
    digests: dict[str, tuple[str, str]]
    """SHA-256 of each part in :data:`COMPARED`, for the uninterrupted and the killed run."""
    differences: list[RunDifference]
    remarks: list[str]
    """Reasons why the bits may differ without a defect, or why there were fewer kills than requested."""

    @property
    def same(self) -> bool:
        """True if no bit differs."""
        return not self.differences

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as a dict for JSON."""
        return {"same": self.same, **asdict(self)}


def digests(run: Run) -> dict[str, str]:
    """Return the SHA-256 of each output of a finished run.

    Values that depend on the time or the machine are left out of the hashed content.

    Args:
        run: a finished run.

    Returns:
        The digests of the weights file, the predictions file, the history and the result, by their names in
        :data:`COMPARED`.

    Raises:
        DataError: the run is damaged or not finished.
    """
    values = {"history": _key_history(run), "result": _result(run)}
    # Arrays may be larger than the default limit of read_bytes, which is meant for text.
    return {
        "weights": files.sha256_of(files.read_bytes(run.weights_file, sys.maxsize)),
        "predictions": files.sha256_of(files.read_bytes(run.predictions_file, sys.maxsize)),
        **{part: files.sha256_of(files.canonical_json(content).encode()) for part, content in values.items()},
    }


def compare(uninterrupted: Run, killed: Run) -> list[RunDifference]:
    """Compare two finished runs part by part, and return the first difference in each part that differs.

    Args:
        uninterrupted: the run that was not interrupted.
        killed: the run that was killed and resumed.

    Returns:
        At most one difference for each part in :data:`COMPARED`; none if all bits are equal.

    Raises:
        DataError: a run is damaged or not finished.
    """
    readers: dict[str, Callable[[Run], dict[str, Any]]] = {
        "weights": Run.weights, "predictions": Run.predictions, "history": _key_history, "result": _result,
    }  # fmt: skip
    differences = []
    expected, actual = digests(uninterrupted), digests(killed)
    for part in COMPARED:
        first, second = readers[part](uninterrupted), readers[part](killed)
        if expected[part] != actual[part]:
            # Files with equal arrays can still differ in the order of the arrays, or in bytes outside the arrays.
            whole_file = RunDifference(part, "the file", expected[part], actual[part])
            differences.append(next(_find_differences(part, first, second), whole_file))
    return differences


def _key_history(run: Run) -> dict[str, Any]:
    """Return a run's history without measured times, keyed by names such as ``epoch 3, train_loss``."""
    return {
        f"epoch {record.get('epoch', number)}, {key}": value
        for number, record in enumerate(run.history(), start=1)
        for key, value in record.items()
        if key not in TIMING_KEYS
    }


def _result(run: Run) -> dict[str, Any]:
    return {key: value for key, value in run.result().items() if key not in COST_KEYS | MACHINE_KEYS}


def _find_differences(part: str, first: dict[str, Any], second: dict[str, Any]) -> Iterator[RunDifference]:
    for name in {**first, **second}:
        a, b = first.get(name), second.get(name)
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and _describe_array(a) == _describe_array(b):
            if (index := _first_different_index(a, b)) is not None:
                where = f"{name}[{', '.join(map(str, index))}]" if index else name
                yield RunDifference(part, where, str(a[index]), str(b[index]))
        elif isinstance(a, np.ndarray) or isinstance(b, np.ndarray) or a != b:
            yield RunDifference(part, name, _format_difference(a), _format_difference(b))


def _first_different_index(a: np.ndarray, b: np.ndarray) -> tuple[int, ...] | None:
    """Return the first index where two arrays of equal dtype and shape differ; None if they are equal.

    Bytes are compared, not numbers: −0.0 differs from 0.0, and a NaN equals a NaN with the same bits.
    """
    # each of shape (elements, bytes per element)
    a_bytes, b_bytes = (np.frombuffer(x.tobytes(), np.uint8).reshape(-1, x.dtype.itemsize) for x in (a, b))
    positions = np.flatnonzero((a_bytes != b_bytes).any(axis=1))
    return tuple(map(int, np.unravel_index(positions[0], a.shape))) if len(positions) else None


def _describe_array(array: np.ndarray) -> str:
    return f"{array.dtype} {array.shape}"


def _format_difference(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return _describe_array(value)
    return "missing" if value is None else str(value)


def remarks(uninterrupted: Run, killed: Run) -> list[str]:
    """Return reasons why the bits of two runs may differ without a defect, such as different environments."""
    reasons = []
    if differing := environment.environment_differences(uninterrupted.environment(), killed.environment()):
        reasons.append(f"bits may differ: the killed run has {'; '.join(differing)}")
    for name, run in (("uninterrupted", uninterrupted), ("killed", killed)):
        if (step := run.result().get("bits_may_differ_from_step")) is not None:
            reasons.append(f"bits of the {name} run may differ from step {step} onwards: see {run.log_file}")
    return reasons


def compare_runs(uninterrupted: Run, killed: Run, kills: list[Kill], wanted: int, seed: int) -> RunComparison:
    """Compare two finished runs, and record for each kill the step from which the run was resumed.

    Args:
        uninterrupted: the run that was not interrupted.
        killed: the run that was killed and resumed.
        kills: the kills, in order.
        wanted: the requested number of kills.
        seed: the seed for the random times of the kills.

    Returns:
        The comparison.

    Raises:
        DataError: a run is damaged or not finished.
    """
    notes, attempts = remarks(uninterrupted, killed), killed.attempts()
    results = uninterrupted.result(), killed.result()
    if len(kills) < wanted:
        notes.append(f"only {len(kills)} of {wanted} kills: the run finished before the others")
    resumed = {attempt["attempt"]: attempt.get("resumed_at_step") for attempt in attempts}
    expected, actual = digests(uninterrupted), digests(killed)
    return RunComparison(
        run=killed.name,
        steps=results[0]["steps"],
        seed=seed,
        kills=[replace(kill, resumed_at_step=resumed.get(kill.attempt + 1)) for kill in kills],
        attempts=len(attempts),
        train_seconds=(results[0]["train_seconds"], results[1]["train_seconds"]),
        digests={part: (expected[part], actual[part]) for part in COMPARED},
        differences=compare(uninterrupted, killed),
        remarks=notes,
    )
