"""The lines in the page's charts and in the figures, which share their values, labels, colours and axis ranges."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from cnnjob.reporting.curve import Curve, Measure, Split
from cnnjob.reporting.groups import Group, interval

COLOURS = ("#0072b2", "#d55e00", "#00805e", "#a8508a", "#8a6100", "#2a84b5", "#1a1a1a")
"""Colours of the first groups on a light background, safe for colour-blind readers; others are :data:`GREY`."""
GREY = "#8a8a8a"
DASHES = ((), (9, 4), (3, 4), (9, 4, 2, 4), (14, 4), (6, 3, 2, 3, 2, 3), ())
"""Dash pattern for each of :data:`COLOURS`: lengths of dash and gap in half line widths; empty for a solid line."""
TRAINING_DASH = (5, 4)
AXIS_LABELS: dict[Measure, str] = {
    "accuracy": "accuracy, %",
    "loss": "loss, nats per image",
    "learning rate": "learning rate",
}
DIVERGED_LOSS = 20.0
"""A run has diverged if its loss exceeds this, in nats per image; guessing among a million classes has a loss of 14."""
_LOG_RATIO = 30
"""A loss axis is logarithmic if the maximum is more than this many times the minimum."""
_MARGIN = 0.04
"""Space above and below the values, as a fraction of their range."""
_NARROWEST, _SMALLEST = 1e-9, 1e-30
"""Minimum relative length of a range that is not widened; minimum magnitude that does not count as zero."""

Style = Literal["thin", "mean", "dashed"]
XAxis = Literal["epoch", "time"]
_WATCHED: tuple[int, Style] = (0, "mean")
_UNWATCHED: tuple[int, Style] = (1, "dashed")
"""Colour and style of a run's line on the split that is watched, and of its line on the training images."""
_UNITS = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
_MIN_UNITS = 2
"""A time axis uses the largest unit in which the longest training time is at least this number."""


@dataclass(frozen=True)
class Line:
    """A line to draw, in data coordinates."""

    x: np.ndarray
    y: np.ndarray
    colour: int | None
    """Index into :data:`COLOURS`; None for grey."""
    style: Style
    title: str = ""
    label: str = ""
    """Entry of the line in a legend; empty for none. Several lines may share an entry."""
    half_width: np.ndarray | None = None
    """Half the width of the band around the line, same shape as ``y``, NaN where there is none; None for no band."""
    has_diverged: bool = False
    """True if the line belongs to a diverged run, or is a mean over runs of which at least one has diverged."""


@dataclass(frozen=True)
class Limits:
    """The range of a vertical axis."""

    low: float
    high: float
    is_logarithmic: bool = False


def run_lines(curve: Curve, measure: Measure) -> list[Line]:
    """Return one run's lines over its epochs.

    Returns:
        A dashed line for the training images and, drawn above it, a line for the split ``curve.watched``; a single line
        if the training images are watched, or for the learning rate.
    """
    epochs, diverged = curve.history["epoch"], has_diverged(curve)
    if measure == "learning rate":
        return [Line(epochs, curve.values("train", measure), 0, "mean", measure)]
    splits: list[Split] = ["train"] if curve.watched == "train" else ["train", curve.watched]
    lines = []
    for split in splits:
        title = "training images" if split == "train" else f"{split} images"
        colour, style = _WATCHED if split == curve.watched else _UNWATCHED
        lines.append(Line(epochs, curve.values(split, measure), colour, style, title, title, has_diverged=diverged))
    return lines


def time_unit(groups: Sequence[Group]) -> tuple[str, float]:
    """Return the name and length in seconds of the unit that suits the longest training of these groups."""
    times = (record.curve.history["seconds"] for group in groups for record in group.records if record.curve)
    longest = max((float(np.nansum(epochs)) for epochs in times), default=0.0)
    return next((unit for unit in _UNITS if longest >= _MIN_UNITS * unit[1]), _UNITS[-1])


def group_lines(groups: Sequence[Group], measure: Measure, over: XAxis = "epoch", unit: float = 1.0) -> list[Line]:
    """Return the groups' lines on each run's watched split: one thin line per seed, and the mean with its interval.

    Args:
        groups: the groups; the first ones have different colours, and all others are grey.
        measure: loss or accuracy.
        over: the x axis: epochs, or the time of training.
        unit: length of the unit of time, in seconds.

    Returns:
        The lines in the order in which they are drawn: means are above single seeds, and coloured lines are above grey
        lines.
    """
    lines = [line for index, group in enumerate(groups) for line in _lines_of_group(group, index, measure, over, unit)]
    return sorted(lines, key=lambda line: (line.style == "mean", line.colour is not None))


def _lines_of_group(group: Group, index: int, measure: Measure, over: XAxis, unit: float) -> Iterator[Line]:
    # One curve per seed, since a copy of a run is not a second measurement; the run in the tables takes precedence.
    curves: dict[Any, Curve] = {}
    for record in (*group.by_seed.values(), *group.records):
        if record.curve:
            curves.setdefault(record.row["seed"], record.curve)
    colour, label = (index, group.label) if index < len(COLOURS) else (None, "other groups")
    drawn = []
    for curve in curves.values():
        x = (curve.history["epoch"] if over == "epoch" else np.cumsum(curve.history["seconds"])) / unit
        if np.isfinite(x).all():
            drawn.append(Line(x, curve.values(curve.watched, measure), colour, "thin", curve.name,
                              has_diverged=has_diverged(curve)))  # fmt: skip
    if len(drawn) == 1:
        (line,) = drawn
        yield replace(line, style="mean", title=group.label, label=label)
    elif drawn:
        yield from drawn
        # The mean is taken epoch by epoch, over the epochs that all seeds have.
        n_epochs = min(len(line.x) for line in drawn)
        x = np.array([line.x[:n_epochs] for line in drawn])  # (seeds, epochs)
        y = np.array([line.y[:n_epochs] for line in drawn])  # (seeds, epochs)
        intervals = [interval(values) for values in y.T.tolist()]
        widths = np.array([math.nan if mean is None else mean.half_width for mean in intervals], np.float64)
        diverged = any(line.has_diverged for line in drawn)
        title = f"{group.label}, mean of {len(drawn)}"
        yield Line(x.mean(axis=0), y.mean(axis=0), colour, "mean", title, label, widths, diverged)


def has_diverged(curve: Curve) -> bool:
    """Return whether a loss of a run is larger than :data:`DIVERGED_LOSS`, or has stopped being finite."""
    losses = [values for name, values in curve.history.items() if name.endswith("_loss")]
    if any((values > DIVERGED_LOSS).any() for values in losses):  # False for NaN, which is also an unknown loss
        return True
    finite = np.isfinite(curve.history.get("train_loss", np.empty(0)))
    return bool(finite.any() and not finite.all())


def lines_beyond(lines: Sequence[Line], limits: Limits) -> list[Line]:
    """Return the lines that have a point beyond the ends of the vertical axis."""
    return [line for line in lines if ((line.y > limits.high) | (line.y < limits.low)).any()]


def finite_points(line: Line) -> tuple[np.ndarray, np.ndarray]:
    """Return the x and y coordinates of a line's finite points."""
    known = np.isfinite(line.x) & np.isfinite(line.y)
    return line.x[known], line.y[known]


def axis_limits(lines: Sequence[Line], measure: Measure, *, logarithmic: bool | None = None) -> Limits | None:
    """Return the range of the vertical axis: the range of the values, with a margin, ignoring runs that have diverged.

    Args:
        lines: the lines of a chart.
        measure: the measure of the lines; the axis does not extend above 100 % for accuracies, or below 0 if no value
            is negative; for learning rates, it begins at 0.
        logarithmic: whether the axis is logarithmic; by default, if the values are losses that differ by a factor of
            more than ``_LOG_RATIO``.

    Returns:
        The range; None if there is nothing to draw, or if a value on a logarithmic axis is not positive.
    """
    values = np.concatenate([np.empty(0), *(finite_points(line)[1] for line in lines if not line.has_diverged)])
    if not values.size:
        values = np.concatenate([np.empty(0), *(finite_points(line)[1] for line in lines)])
        values = values[values <= DIVERGED_LOSS] if measure == "loss" and (values <= DIVERGED_LOSS).any() else values
    if not values.size:
        return None
    low, high = widened(float(values.min()), float(values.max()))
    if logarithmic is None:
        logarithmic = measure == "loss" and bool(_SMALLEST < values.min() < values.max() / _LOG_RATIO)
    if logarithmic:
        if values.min() < _SMALLEST:
            return None
        factor = math.exp(_MARGIN * (math.log(high) - math.log(low)))  # high / low could overflow
        return Limits(low / factor, high * factor, is_logarithmic=True)
    if measure == "learning rate" and values.min() >= 0:
        low = 0.0  # otherwise, an axis of only a schedule's first epochs would have ticks such as 0.01998
    margin = _MARGIN * (high - low)
    bottom = 0.0 if values.min() >= 0 else -math.inf
    return Limits(max(low - margin, bottom), min(high + margin, 100.0 if measure == "accuracy" else math.inf))


def widened(low: float, high: float) -> tuple[float, float]:
    """Return the range, widened if its ends are too close together."""
    size = max(abs(low), abs(high))
    if high - low > _NARROWEST * max(size, _SMALLEST):
        return low, high
    half = (size if size > _SMALLEST else 1.0) / 2
    return low - half, high + half
