"""Compare two runs of one job bit for bit: an unbroken one, and one that was killed and resumed."""

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
OF_THE_CLOCK = {"seconds", "images_per_second"}
"""Keys of a history record that depend on time, so that they differ between any two runs."""
OF_THE_COST = {"train_seconds", "cpu_hours", "gpu_hours", "peak_memory_bytes", "attempts"}
"""Keys of the result that depend on time, memory and the number of attempts."""
OF_THE_PLACE = {"device", "bits_may_differ_from_step"}
"""Keys of the result that depend on the machine; :func:`remarks` says whether that may have changed the bits."""


@dataclass(frozen=True)
class RunDifference:
    """The first difference between two runs, in one of the things compared."""

    what: str
    """One of :data:`COMPARED`."""
    where: str
    """Where it is: ``1-conv/weights[0, 2, 1]``, ``epoch 3, train_loss``, ``test_loss``."""
    unbroken: str
    killed: str


@dataclass(frozen=True)
class Kill:
    """An attempt that was ended by ``SIGKILL``."""

    life: int
    """Number of the attempt, from 1."""
    seconds: float
    """Seconds since its training started; on a cluster, since a checkpoint was seen."""
    step: int | None
    """Last step that it had done; None if that is not known."""
    saved_step: int
    """Step of the newest checkpoint."""
    during: str
    """``starting``, ``training``, ``evaluation`` or ``saving``; empty if that is not known."""
    resumed_at_step: int | None = None
    """Step from which the next attempt resumed; None if that was killed before it did."""


@dataclass(frozen=True)
class RunComparison:
    """The comparison of an unbroken and a killed run."""

    run: str
    """Name of the run, the same for both."""
    steps: int
    seed: int
    """Seed with which the moments of the kills were drawn."""
    kills: list[Kill]
    lives: int
    """Number of attempts of the killed run."""
    train_seconds: tuple[float, float]
    """Training time of the unbroken run, and of the killed one without the work that was lost."""
    digests: dict[str, tuple[str, str]]
    """SHA-256 of each of :data:`COMPARED`, of the unbroken and the killed run."""
    differences: list[RunDifference]
    remarks: list[str]
    """Why the bits may differ, and why there were fewer kills than wanted."""

    @property
    def same(self) -> bool:
        """Return whether no bit differs."""
        return not self.differences

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as a dict for JSON."""
        return {"same": self.same, **asdict(self)}


def digests(run: Run) -> dict[str, str]:
    """Return the SHA-256 of each output of a finished run, without values that depend on time and the machine.

    Args:
        run: a finished run.

    Returns:
        The digests of weights file, predictions file, history and result, by their names in :data:`COMPARED`.

    Raises:
        DataError: the run is not finished, or damaged.
    """
    read = {"history": _history(run), "result": _result(run)}
    # Arrays may be larger than the limit that read_bytes has for text.
    return {
        "weights": files.sha256_of(files.read_bytes(run.weights_file, sys.maxsize)),
        "predictions": files.sha256_of(files.read_bytes(run.predictions_file, sys.maxsize)),
        **{what: files.sha256_of(files.canonical_json(values).encode()) for what, values in read.items()},
    }


def compare(unbroken: Run, killed: Run) -> list[RunDifference]:
    """Find the first difference of each kind between two finished runs.

    Args:
        unbroken: the run that was not interrupted.
        killed: the run that was killed and resumed.

    Returns:
        At most one difference for each of :data:`COMPARED`; none if all bits are the same.

    Raises:
        DataError: a run is not finished, or damaged.
    """
    readers: dict[str, Callable[[Run], dict[str, Any]]] = {
        "weights": Run.weights, "predictions": Run.predictions, "history": _history, "result": _result,
    }  # fmt: skip
    found = []
    before, after = digests(unbroken), digests(killed)
    for what in COMPARED:
        first, second = readers[what](unbroken), readers[what](killed)
        if before[what] != after[what]:
            # Files with equal arrays can still differ, in the order of the arrays or the bytes around them.
            whole = RunDifference(what, "the file", before[what], after[what])
            found.append(next(_differences(what, first, second), whole))
    return found


def _history(run: Run) -> dict[str, Any]:
    """Return a run's history, without timings, as values by names such as ``epoch 3, train_loss``."""
    return {
        f"epoch {record.get('epoch', number)}, {key}": value
        for number, record in enumerate(run.history(), start=1)
        for key, value in record.items()
        if key not in OF_THE_CLOCK
    }


def _result(run: Run) -> dict[str, Any]:
    return {key: value for key, value in run.result().items() if key not in OF_THE_COST | OF_THE_PLACE}


def _differences(what: str, first: dict[str, Any], second: dict[str, Any]) -> Iterator[RunDifference]:
    for name in {**first, **second}:
        one, other = first.get(name), second.get(name)
        if isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and _kind(one) == _kind(other):
            if (index := _first_index(one, other)) is not None:
                place = f"[{', '.join(map(str, index))}]" if index else ""
                yield RunDifference(what, f"{name}{place}", str(one[index]), str(other[index]))
        elif isinstance(one, np.ndarray) or isinstance(other, np.ndarray) or one != other:
            yield RunDifference(what, name, _shown(one), _shown(other))


def _first_index(one: np.ndarray, other: np.ndarray) -> tuple[int, ...] | None:
    """Return the first index where two arrays of equal dtype and shape differ; None if they are equal.

    Bytes are compared, not numbers: −0.0 differs from 0.0, and a NaN equals a NaN with the same bits.
    """
    size = one.dtype.itemsize
    # (elements, bytes per element) each
    bytes_of = (np.frombuffer(array.tobytes(), np.uint8).reshape(-1, size) for array in (one, other))
    places = np.flatnonzero(np.not_equal(*bytes_of).any(1))
    return tuple(map(int, np.unravel_index(places[0], one.shape))) if len(places) else None


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype} {array.shape}"


def _shown(value: Any) -> str:
    return _kind(value) if isinstance(value, np.ndarray) else "missing" if value is None else str(value)


def remarks(unbroken: Run, killed: Run) -> list[str]:
    """Return why the bits of two runs may differ although nothing is wrong: environments that differ."""
    said = []
    if differing := environment.environment_differences(unbroken.environment(), killed.environment()):
        said.append(f"bits may differ, the killed run has {'; '.join(differing)}")
    for name, run in (("unbroken", unbroken), ("killed", killed)):
        if (step := run.result().get("bits_may_differ_from_step")) is not None:
            said.append(f"bits of the {name} run may differ from step {step}, see {run.log_file}")
    return said


def compare_runs(unbroken: Run, killed: Run, kills: list[Kill], wanted: int, seed: int) -> RunComparison:
    """Compare both runs once they are finished, and record the step from which each killed attempt was resumed.

    Args:
        unbroken: the run that was not interrupted.
        killed: the run that was killed and resumed.
        kills: the kills, in order.
        wanted: how many kills there should have been.
        seed: the seed with which their moments were drawn.

    Returns:
        The comparison.

    Raises:
        DataError: a run is not finished, or damaged.
    """
    said, attempts, results = remarks(unbroken, killed), killed.attempts(), (unbroken.result(), killed.result())
    if len(kills) < wanted:
        said.append(f"{len(kills)} of {wanted} kills, the run was finished before the others")
    resumed = {attempt["attempt"]: attempt.get("resumed_at_step") for attempt in attempts}
    before, after = digests(unbroken), digests(killed)
    return RunComparison(
        run=killed.name,
        steps=results[0]["steps"],
        seed=seed,
        kills=[replace(kill, resumed_at_step=resumed.get(kill.life + 1)) for kill in kills],
        lives=len(attempts),
        train_seconds=(results[0]["train_seconds"], results[1]["train_seconds"]),
        digests={what: (before[what], after[what]) for what in COMPARED},
        differences=compare(unbroken, killed),
        remarks=said,
    )
