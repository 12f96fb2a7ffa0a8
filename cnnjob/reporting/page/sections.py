"""The section of the page on one run: its provenance, attempts and mistakes, as text and numbers for the template."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from cnnjob.errors import format_seconds
from cnnjob.reporting.page import charts, pictures
from cnnjob.reporting.page.charts import Chart
from cnnjob.reporting.record import DIGEST_LETTERS, Mistake, Record
from cnnjob.runs.attempts import Attempt
from cnnjob.runs.metrics import PerClass

MANY = 100
"""With more runs than this a section has no images, curves and matrices."""
_THUMBNAILS = ((5, 24, 64, None), (20, 24, 64, 64), (MANY, 8, 44, 64))
"""Runs on the page up to which a row applies; then test images per run, their largest side in pixels, their colours."""
MATRIX_CLASSES = 20
"""With more classes than this a matrix is an image: numbers in its cells could not be read."""
WORST_PAIRS = 5
"""Number of confusions that are listed."""
_LIFE_WIDTH = 720
"""Width of the timeline, in SVG units."""
_SHORTEST = 2.0
"""Least width of an interval on it, so that a short attempt is visible."""


@dataclass(frozen=True)
class Stretch:
    """An interval on the timeline of a run, in SVG units."""

    kind: str
    """``waiting``, ``running`` or ``unknown``."""
    x: float
    width: float
    title: str


@dataclass(frozen=True)
class RunSection:
    """One run as the template shows it."""

    record: Record
    anchor: str
    provenance: list[str]
    charts: list[Chart]
    life: list[Stretch]
    matrix: list[list[tuple[int, float]]]
    """Confusion matrix by rows: counts, and their shares of the row; empty if there are many classes."""
    matrix_picture: str
    worst_pairs: list[tuple[str, str, int, float]]
    """True class, predicted class, images, share of the true class; the most images first."""
    classes: list[tuple[str, float, float, float, int]]
    thumbnails: list[tuple[Mistake, str]]
    filters: tuple[str, int, int] | None
    filters_shape: tuple[int, ...]


def of(record: Record, anchor: str, n_runs: int) -> RunSection:
    """Build the section of a run.

    Args:
        record: the run's record.
        anchor: the section's ``id`` on the page.
        n_runs: number of runs on the page; the more there are, the less is drawn of each.

    Returns:
        The section.
    """
    detailed = n_runs <= MANY
    counts = record.counts if detailed else None
    curve = record.curve if detailed else None
    measured: tuple[Any, ...] = ("accuracy", "loss")
    few = len(counts) <= MATRIX_CLASSES if counts is not None else True
    return RunSection(
        record=record,
        anchor=anchor,
        provenance=list(provenance(record)),
        charts=[chart for measure in measured if curve and (chart := charts.of_run(curve, measure))],
        life=life_line(record.lives),
        matrix=_matrix(counts) if counts is not None and few else [],
        matrix_picture="" if counts is None or few else pictures.confusion(counts),
        worst_pairs=worst_pairs(counts, record.class_names) if counts is not None else [],
        classes=_classes(record.classes, record.class_names) if record.classes and detailed else [],
        thumbnails=_thumbnails(record.mistakes, n_runs),
        filters=pictures.filters(record.filters) if record.filters is not None and detailed else None,
        filters_shape=record.filters.shape if record.filters is not None else (),
    )


def _thumbnails(mistakes: list[Mistake], n_runs: int) -> list[tuple[Mistake, str]]:
    for limit, n, pixels, colours in _THUMBNAILS:
        if n_runs <= limit:
            return [(one, pictures.thumbnail(one.image, pixels, colours)) for one in mistakes[:n]]
    return []


def provenance(record: Record) -> Iterator[str]:
    """Yield the provenance of a run in short statements: commit, data, device, packages, choice of the model."""
    row, environment = record.row, record.environment
    if row["commit"]:
        digits, *dirty = str(row["commit"]).split("-")
        yield f"commit {digits[:DIGEST_LETTERS]}{', with changes that were not committed' if dirty else ''}"
    elif environment:
        yield "commit not known"
    if row["data_sha256"]:
        yield f"data {str(row['data_sha256'])[:DIGEST_LETTERS]}"
    if row["device"]:
        yield str(row["device"])
    if environment.get("python"):
        yield f"Python {environment['python']}"
    if isinstance(packages := environment.get("packages"), dict) and packages:
        yield ", ".join(f"{name} {version}" for name, version in packages.items())
    if len(record.lives) > 1:
        yield f"resumed {len(record.lives) - 1} time{'s' * (len(record.lives) > 2)}"  # noqa: PLR2004 - one is singular
    if row["selected_on"]:
        yield _selection(row)
    if (views := record.result.get("test_time_augmentation", "none")) != "none":
        yield f"test-time augmentation: {views}"
    if (step := record.result.get("bits_may_differ_from_step")) is not None:
        yield f"bits may differ from step {step}"


def _selection(row: dict[str, Any]) -> str:
    if row["selected_on"] == "last":
        return f"model of the last epoch, {row['epochs']}"
    return f"model chosen on {row['selected_on']} images, epoch {row['best_epoch']} of {row['epochs']}"


def life_line(lives: list[Attempt]) -> list[Stretch]:
    """Return the attempts as intervals on one line: waiting, running and unknown."""
    if not lives:
        return []
    stretches = list(_stretches(lives))
    first, last = min(one[1] for one in stretches), max(one[2] for one in stretches)
    whole = (last - first).total_seconds() or 1.0  # a single attempt whose end is unknown has no length
    return [
        Stretch(kind, round((start - first).total_seconds() / whole * _LIFE_WIDTH, 1),
                round(max((end - start).total_seconds() / whole * _LIFE_WIDTH, _SHORTEST), 1), title)
        for kind, start, end, title in stretches
    ]  # fmt: skip


def _stretches(lives: list[Attempt]) -> Iterator[tuple[str, datetime, datetime, str]]:
    for life, later in zip(lives, [*lives[1:], None], strict=True):
        if life.waited_from:
            seconds = (life.started - life.waited_from).total_seconds()
            yield "waiting", life.waited_from, life.started, f"waited {format_seconds(seconds)} for life {life.number}"
        if life.ended:
            seconds = (life.ended - life.started).total_seconds()
            yield "running", life.started, life.ended, f"life {life.number} ran {format_seconds(seconds)}: {life.why}"
        else:
            # Killed without a record: it ended at the latest when the next attempt was queued or began.
            end = max(later.waited_from or later.started, life.started) if later else life.started
            yield "unknown", life.started, end, f"life {life.number}: when it ended is not known"


def _matrix(counts: np.ndarray) -> list[list[tuple[int, float]]]:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return [list(zip(*rows, strict=True)) for rows in zip(counts.tolist(), shares.tolist(), strict=True)]


def worst_pairs(counts: np.ndarray, names: tuple[str, ...]) -> list[tuple[str, str, int, float]]:
    """Return the most frequent confusions: true class, predicted class, images, share of the true class."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:WORST_PAIRS]  # stable: ties are in order of the classes
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [
        (names[true], names[guessed], int(wrong[true, guessed]), float(wrong[true, guessed] / counts[true].sum()))
        for true, guessed in pairs
        if wrong[true, guessed]
    ]


def _classes(classes: PerClass, names: tuple[str, ...]) -> list[tuple[str, float, float, float, int]]:
    return list(zip(names, *(values.tolist() for values in classes), strict=True))
