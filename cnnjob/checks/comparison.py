"""Two runs of one job: what each made, the first places where they differ, and what the one of them went through."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from cnnjob import files
from cnnjob.runs import environment
from cnnjob.runs.run import Run

COMPARED = ("weights", "predictions", "history", "result")
OF_THE_CLOCK = {"seconds", "images_per_second"}
"""What a record of the history holds that no two runs share."""
OF_THE_COST = {"train_seconds", "cpu_hours", "gpu_hours", "peak_memory_bytes", "attempts"}
"""Likewise of the result."""
OF_THE_PLACE = {"device", "bits_may_differ_from_step"}
"""What the result says of the machine; :func:`remarks` tells whether it decides the bits."""


@dataclass(frozen=True)
class RunDifference:
    """The first place where two runs differ."""

    what: str
    """One of :data:`COMPARED`."""
    where: str
    """``1-conv/weights[0, 2, 1]``, ``epoch 3, train_loss``, ``test_loss``."""
    unbroken: str
    killed: str


@dataclass(frozen=True)
class Kill:
    """A life that was ended by ``SIGKILL``."""

    life: int
    """From 1 on."""
    seconds: float
    """How long it had trained; on a cluster, how long after a checkpoint was seen."""
    step: int | None
    """The last step it had done; None where that is not known."""
    saved_step: int
    """That of its newest checkpoint."""
    during: str
    """``starting``, ``training``, ``evaluation``, ``saving``; empty where that is not known."""
    resumed_at_step: int | None = None
    """Where the next life went on; None when that was killed before it did."""


@dataclass(frozen=True)
class RunComparison:
    """What came of both runs."""

    run: str
    """Its name, the same for both."""
    steps: int
    seed: int
    """What the moments of the kills were drawn with."""
    kills: list[Kill]
    lives: int
    """Of the killed run."""
    train_seconds: tuple[float, float]
    """Unbroken, and killed without the work that was lost."""
    digests: dict[str, tuple[str, str]]
    """SHA-256 of each of :data:`COMPARED`, unbroken and killed."""
    differences: list[RunDifference]
    remarks: list[str]
    """Why the bits may differ, or why there were fewer kills."""

    @property
    def same(self) -> bool:
        """Whether no bit differs."""
        return not self.differences

    def as_json(self) -> dict[str, Any]:
        """All of it for machines."""
        return {"same": self.same, **asdict(self)}


def digests(run: Run) -> dict[str, str]:
    """SHA-256 of what a finished run made, without what the clock and the machine put in.

    Args:
        run: finished.

    Returns:
        Those of the two files, of the history and of the result, by their names in :data:`COMPARED`.

    Raises:
        DataError: the run is not finished, or damaged.
    """
    read = {"history": _history(run), "result": _result(run)}
    return {
        "weights": files.sha256_of(files.read_bytes(run.weights_file, sys.maxsize)),
        "predictions": files.sha256_of(files.read_bytes(run.predictions_file, sys.maxsize)),
        **{what: files.sha256_of(files.canonical_json(values).encode()) for what, values in read.items()},
    }


def compare(unbroken: Run, killed: Run) -> list[RunDifference]:
    """Find the first difference of each kind between two finished runs.

    Args:
        unbroken: the one.
        killed: the other.

    Returns:
        At most one for each of :data:`COMPARED`; none when all bits are the same.

    Raises:
        DataError: one of them is not finished, or damaged.
    """
    readers: dict[str, Callable[[Run], dict[str, Any]]] = {
        "weights": Run.weights, "predictions": Run.predictions, "history": _history, "result": _result,
    }  # fmt: skip
    found = []
    before, after = digests(unbroken), digests(killed)
    for what in COMPARED:
        first, second = readers[what](unbroken), readers[what](killed)
        if before[what] != after[what]:
            whole = RunDifference(what, "the file", before[what], after[what])
            found.append(next(_differences(what, first, second), whole))
    return found


def _history(run: Run) -> dict[str, Any]:
    """What a run recorded, but for the clock, under names that tell the place."""
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
    """Where the bytes of two arrays of one kind first differ: so −0.0 is not 0.0, and a NaN can equal itself."""
    size = one.dtype.itemsize
    bytes_of = (np.frombuffer(array.tobytes(), np.uint8).reshape(-1, size) for array in (one, other))
    places = np.flatnonzero(np.not_equal(*bytes_of).any(1))
    return tuple(map(int, np.unravel_index(places[0], one.shape))) if len(places) else None


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype} {array.shape}"


def _shown(value: Any) -> str:
    return _kind(value) if isinstance(value, np.ndarray) else "missing" if value is None else str(value)


def remarks(unbroken: Run, killed: Run) -> list[str]:
    """Why the bits of two runs may differ although nothing is wrong: they, or their lives, had other environments."""
    said = []
    if differing := environment.environment_differences(unbroken.environment(), killed.environment()):
        said.append(f"bits may differ, the killed run has {'; '.join(differing)}")
    for name, run in (("unbroken", unbroken), ("killed", killed)):
        if (step := run.result().get("bits_may_differ_from_step")) is not None:
            said.append(f"bits of the {name} run may differ from step {step}, see {run.log_file}")
    return said


def compare_runs(unbroken: Run, killed: Run, kills: list[Kill], wanted: int, seed: int) -> RunComparison:
    """Compare both runs when they are finished, and say where each kill was made good.

    Args:
        unbroken: the one.
        killed: the other.
        kills: what it went through.
        wanted: how many kills there should have been.
        seed: what their moments were drawn with.

    Returns:
        The verdict.

    Raises:
        DataError: one of them is not finished, or damaged.
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
