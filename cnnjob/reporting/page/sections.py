"""Sections of the page about individual runs, as text and numbers for the template."""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cnnjob.errors import format_seconds, plural
from cnnjob.files import short_digest
from cnnjob.reporting.attempts import Attempt
from cnnjob.reporting.examples import ClassifiedImage
from cnnjob.reporting.groups import short_names
from cnnjob.reporting.page import charts, pictures
from cnnjob.reporting.page.charts import Chart
from cnnjob.reporting.page.layers import MAX_RUNS_WITH_LAYERS, NetworkPictures, build_network_pictures
from cnnjob.reporting.page.results import MIN_FOLDED, describe_period
from cnnjob.reporting.record import Record
from cnnjob.runs import metrics

if TYPE_CHECKING:
    from cnnjob.reporting.curve import Measure

MAX_DETAILED_RUNS = 100
"""With more runs than this, the runs' sections have no images or matrices."""
MAX_CHARTED_RUNS = 1000
"""With more runs than this, the runs' sections have no curves."""
_THUMBNAILS = ((5, 24, 64, None), (20, 24, 64, 64), (MAX_DETAILED_RUNS, 8, 44, 64))
"""Limits on the test images of a run. Each row applies up to a number of runs on the page.

A row contains this number of runs, the number of images per run, and the maximum size in pixels and the maximum number
of colours of an image; None is no limit.
"""
MAX_MATRIX_CLASSES = 20
"""With more classes than this, a matrix is drawn as an image, as numbers in its cells would be illegible."""
WORST_PAIRS = 5
"""Number of class pairs that are listed as most often confused."""
_TIMELINE_WIDTH = 720
"""Width of the timeline, in SVG units."""
_MIN_BAR_WIDTH = 2.0
"""Minimum width of a bar on the timeline, in SVG units, so that short attempts are visible."""


@dataclass(frozen=True)
class TimelineBar:
    """A bar on a run's timeline, in SVG units."""

    kind: str
    """``waiting``, ``running`` or ``unknown``."""
    x: float
    width: float
    title: str


class Timeline(NamedTuple):
    """The times at which a run waited and ran, as bars on a scale from ``first`` to ``last``."""

    bars: list[TimelineBar]
    first: datetime
    last: datetime


class AttemptFold(NamedTuple):
    """One attempt, or several consecutive attempts that ended for the same reason."""

    attempts: list[Attempt]
    waited_seconds: float
    """Total time that the attempts waited, as far as it is known."""
    lost_steps: int
    """Total number of steps that had to be repeated, as far as it is known."""


class Family(NamedTuple):
    """The run from which a run was fine-tuned, and the runs that were fine-tuned from it, if they are on the page."""

    parent: str
    """Anchor of the run from which this run was fine-tuned; empty if there is no such run on the page."""
    children: list[tuple[str, str]]
    """Names and anchors of the runs on the page that were fine-tuned from this run."""


@dataclass(frozen=True)
class EvaluationSection:
    """An evaluation of a run on another dataset or split, as the template displays it."""

    record: dict[str, Any]
    """The metrics, as described by :class:`cnnjob.runs.schemas.EvaluationRecord`."""
    class_names: tuple[str, ...]
    """Names of the network's classes; empty if no confusion matrix is shown."""
    matrix: list[list[tuple[int, float]]]
    """Rows of the confusion matrix, as in :class:`RunSection`."""
    matrix_picture: str
    worst_pairs: list[tuple[str, str, int, float]]
    classes: list[tuple[str, float, float, float, int]]


@dataclass(frozen=True)
class RunSection:
    """One run's section, as the template displays it."""

    record: Record
    anchor: str
    family: Family
    period: str
    """When the run was trained; empty if it has not started."""
    chosen: dict[str, Any]
    """The settings that matter most, by their shortest unambiguous name."""
    settings: dict[str, Any]
    """All settings by dotted key, without those that are the same for all runs on the page."""
    provenance: list[str]
    charts: list[Chart]
    timeline: Timeline | None
    """None if there would be fewer than two bars, which show nothing that the table does not."""
    attempts: list[AttemptFold]
    matrix: list[list[tuple[int, float]]]
    """Rows of the confusion matrix, with counts and their shares of the row; empty if there are many classes."""
    matrix_picture: str
    worst_pairs: list[tuple[str, str, int, float]]
    """True class, predicted class, number of images, share of the true class; most frequent first."""
    classes: list[tuple[str, float, float, float, int]]
    thumbnails: list[tuple[ClassifiedImage, str]]
    network: NetworkPictures
    evaluations: list[EvaluationSection]
    dataset_name: str
    layers_limit: int = MAX_RUNS_WITH_LAYERS


def common_settings(records: Sequence[Record]) -> dict[str, Any]:
    """Return the settings that are the same for all runs that have settings; empty if there is only one such run."""
    first, *others = [record.settings for record in records if record.settings] or [{}]
    if not others:
        return {}
    # repr, because 1, 1.0 and True are equal.
    shown = [{key: repr(value) for key, value in settings.items()} for settings in others]
    return {key: value for key, value in first.items() if all(each.get(key) == repr(value) for each in shown)}


def find_families(records: Sequence[Record], anchors: Mapping[str, str]) -> dict[str, Family]:
    """Return the family of each run that was fine-tuned from another run on the page, and of each parent of such a run.

    Args:
        records: the runs; if there are several copies of a run, only the first of them can be a parent.
        anchors: the ``id`` of each run's section, by the run's name.
    """
    by_digest = {record.digest: record.name for record in reversed(records) if record.digest}
    families: dict[str, Family] = {}
    for record in records:
        parent = by_digest.get(record.parent_digest) if record.parent_digest else None
        if parent:
            families.setdefault(record.name, Family("", []))
            families[record.name] = families[record.name]._replace(parent=anchors[parent])
            families.setdefault(parent, Family("", [])).children.append((record.name, anchors[record.name]))
    return families


def build_section(
    record: Record, anchor: str, n_runs: int, common: Container[str] = (), family: Family | None = None
) -> RunSection:
    """Build a run's section.

    Args:
        record: the run's record.
        anchor: the section's ``id`` on the page.
        n_runs: number of runs on the page; if there are many, each section shows less.
        common: keys of the settings that are shown once for all runs.
        family: the runs on the page that share weights with this run, if there are any.

    Returns:
        The section.
    """
    detailed = n_runs <= MAX_DETAILED_RUNS
    counts = record.counts if detailed else None
    curve = record.curve if n_runs <= MAX_CHARTED_RUNS else None
    measures: tuple[Measure, ...] = ("accuracy", "loss", "learning rate") if detailed else ("accuracy",)
    names = short_names(record.chosen)
    has_numbers = counts is None or len(counts) <= MAX_MATRIX_CLASSES
    # Per class: name, precision, recall, F1 and number of images.
    columns = [values.tolist() for values in record.classes] if record.classes and detailed else []
    return RunSection(
        record=record,
        anchor=anchor,
        family=family or Family("", []),
        period=describe_period([record]),
        settings={key: value for key, value in record.settings.items() if key not in common},
        chosen={names[key]: value for key, value in record.chosen.items()},
        provenance=list(provenance(record)),
        charts=[chart for measure in measures if curve and (chart := charts.build_run_chart(curve, measure))],
        timeline=build_timeline(record.attempts),
        attempts=fold_attempts(record.attempts),
        matrix=_matrix(counts) if counts is not None and has_numbers else [],
        matrix_picture="" if counts is None or has_numbers else pictures.confusion_picture(counts),
        worst_pairs=worst_pairs(counts, record.class_names) if counts is not None else [],
        classes=list(zip(record.class_names, *columns, strict=True)) if columns else [],
        thumbnails=_thumbnails(record.mistakes, n_runs),
        evaluations=[_evaluation_section(each, record.class_names, n_runs) for each in record.evaluations],
        network=build_network_pictures(record, n_runs) if detailed else NetworkPictures(),
        dataset_name=str(record.settings.get("dataset", "DATASET")).partition(" ")[0],
    )


def _evaluation_section(evaluation: dict[str, Any], class_names: tuple[str, ...], n_runs: int) -> EvaluationSection:
    """Build the section of an evaluation; the matrix is omitted if there are many runs or the classes differ."""
    counts = evaluation["counts"]
    if n_runs > MAX_RUNS_WITH_LAYERS or len(counts) != len(class_names):
        return EvaluationSection(evaluation, (), [], "", [], [])
    has_numbers = len(counts) <= MAX_MATRIX_CLASSES
    return EvaluationSection(
        evaluation,
        class_names,
        _matrix(counts) if has_numbers else [],
        "" if has_numbers else pictures.confusion_picture(counts),
        worst_pairs(counts, class_names),
        list(zip(class_names, *(values.tolist() for values in metrics.per_class(counts)), strict=True)),
    )


def _thumbnails(mistakes: list[ClassifiedImage], n_runs: int) -> list[tuple[ClassifiedImage, str]]:
    for limit, n, pixels, colours in _THUMBNAILS:
        if n_runs <= limit:
            return [(mistake, pictures.thumbnail(mistake.image, pixels, colours)) for mistake in mistakes[:n]]
    return []


def provenance(record: Record) -> Iterator[str]:
    """Yield a run's provenance as short phrases, such as its commit, data, device, packages and choice of model."""
    row, environment = record.row, record.environment
    if row["commit"]:
        digits, *dirty = str(row["commit"]).split("-")
        yield f"commit {short_digest(digits)}{', with uncommitted changes' if dirty else ''}"
    elif environment:
        yield "commit unknown"
    if row["data_sha256"]:
        yield f"data {short_digest(str(row['data_sha256']))}"
    if row["device"]:
        yield str(row["device"])
    if environment.get("python"):
        yield f"Python {environment['python']}"
    if isinstance(packages := environment.get("packages"), dict) and packages:
        yield ", ".join(f"{name} {version}" for name, version in packages.items())
    if len(record.attempts) > 1:
        yield f"resumed {plural(len(record.attempts) - 1, 'time')}"
    if row["selected_on"] == "last":
        yield f"model from the last epoch, {row['epochs']}"
    elif row["selected_on"]:
        yield f"model chosen on {row['selected_on']} images, epoch {row['best_epoch']} of {row['epochs']}"
    if (views := record.result.get("test_time_augmentation", "none")) != "none":
        yield f"test-time augmentation: {views}"
    if (step := record.result.get("bits_may_differ_from_step")) is not None:
        yield f"bits may differ from step {step} onwards"


def build_timeline(attempts: list[Attempt]) -> Timeline | None:
    """Return the attempts as timeline bars: waiting, running and unknown; None if there are fewer than two bars."""
    phases = list(_timeline_phases(attempts)) if attempts else []
    if len(phases) < 2:  # noqa: PLR2004
        return None
    first, last = min(start for _, start, _, _ in phases), max(end for _, _, end, _ in phases)
    total = (last - first).total_seconds() or 1.0  # a single attempt whose end is unknown has zero length
    scale = _TIMELINE_WIDTH / total
    bars = [
        TimelineBar(kind, round((start - first).total_seconds() * scale, 1),
                    round(max((end - start).total_seconds() * scale, _MIN_BAR_WIDTH), 1), title)
        for kind, start, end, title in phases
    ]  # fmt: skip
    return Timeline(bars, first, last)


def fold_attempts(attempts: list[Attempt]) -> list[AttemptFold]:
    """Fold consecutive attempts that ended for the same reason, if there are at least ``MIN_FOLDED``."""
    folds = []
    for _, equal in groupby(attempts, key=lambda attempt: (attempt.why, attempt.decision)):
        members = list(equal)
        parts = [members] if len(members) >= MIN_FOLDED else [[attempt] for attempt in members]
        for part in parts:
            waits = (attempt.started - attempt.waited_from for attempt in part if attempt.waited_from)
            waited_seconds = sum(wait.total_seconds() for wait in waits)
            folds.append(AttemptFold(part, waited_seconds, sum(attempt.lost_steps or 0 for attempt in part)))
    return folds


def _timeline_phases(attempts: list[Attempt]) -> Iterator[tuple[str, datetime, datetime, str]]:
    """Yield the kind, start, end and title of each phase of the attempts."""
    for attempt, successor in zip(attempts, [*attempts[1:], None], strict=True):
        name, started, ended = f"attempt {attempt.number}", attempt.started, attempt.ended
        if attempt.waited_from:
            waited = format_seconds((started - attempt.waited_from).total_seconds())
            yield "waiting", attempt.waited_from, started, f"{name}: waited {waited}"
        if ended:
            yield (
                "running",
                started,
                ended,
                f"{name}: ran {format_seconds((ended - started).total_seconds())}, {attempt.why}",
            )
        else:
            # Killed without a record: it ended no later than when the next attempt was queued or began.
            latest = max(successor.waited_from or successor.started, started) if successor else started
            yield "unknown", started, latest, f"{name}: end unknown"


def _matrix(counts: np.ndarray) -> list[list[tuple[int, float]]]:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return [list(zip(*rows, strict=True)) for rows in zip(counts.tolist(), shares.tolist(), strict=True)]


def worst_pairs(counts: np.ndarray, names: tuple[str, ...]) -> list[tuple[str, str, int, float]]:
    """Return the most frequent confusions: true class, predicted class, number of images, share of the true class."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:WORST_PAIRS]  # stable: ties are in class order
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [
        (names[true], names[predicted], int(wrong[true, predicted]), float(wrong[true, predicted] / counts[true].sum()))
        for true, predicted in pairs
        if wrong[true, predicted]
    ]
