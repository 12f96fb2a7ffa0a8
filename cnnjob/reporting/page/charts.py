"""Learning curves as coordinates of small SVG charts.

Every chart is 480 wide and 280 high, in SVG user units. Coordinates are rounded to tenths, and long lines are reduced
to the number of points that can be distinguished.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from cnnjob.reporting.curve import Curve, Measure, Split
from cnnjob.reporting.groups import Group, interval

WIDTH, HEIGHT = 480, 280
LEFT, RIGHT, TOP, BOTTOM = 60, 466, 10, 240
N_COLOURS = 7
"""Number of groups that have their own colour; the others are grey."""
MAX_POINTS_PER_LINE = 100
"""Maximum number of points per line."""
MAX_POINTS_PER_CHART = 20_000
"""Approximate maximum number of points in a chart, over all its lines."""
_NARROWEST, _SMALLEST = 1e-9, 1e-200
"""Minimum relative length of a range that is not widened; minimum magnitude that does not count as zero."""
_TICKS = 5
_TICK_FACTORS, _INTEGER_TICK_FACTORS = (1, 2, 2.5, 5, 10), (1, 2, 5, 10)
"""Steps between ticks, as multiples of a power of ten; the second tuple is for integers."""
_CLOSE = 0.3
"""The first epoch has its own tick unless the next tick is closer than this fraction of a tick step."""
_LOG_RATIO = 30
"""The loss axis is logarithmic if the maximum is more than this many times the minimum."""
_MARGIN = 0.04
"""Space above and below the values, as a fraction of their range."""

XAxis = Literal["epoch", "time"]
_UNITS = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
_MIN_UNITS = 2
"""A time axis uses the largest unit in which the longest training time is at least this number."""


@dataclass(frozen=True)
class Line:
    """A line to draw, in data coordinates."""

    x: np.ndarray
    y: np.ndarray
    colour: int | None
    """Index of the line's colour; None for grey."""
    style: Literal["thin", "mean", "dashed"]
    title: str = ""
    half_width: np.ndarray | None = None
    """Half the width of the band around the line, same shape as ``y``, NaN where there is none; None for no band."""


@dataclass(frozen=True)
class Mark:
    """A mark on a chart: a point for the best epoch, or a position on the x axis for a restart."""

    kind: Literal["best", "restart"]
    x: float
    y: float = math.nan


@dataclass(frozen=True)
class Tick:
    """A tick's label and its position along the axis, in SVG units."""

    at: float
    label: str


@dataclass(frozen=True)
class CurvePath:
    """A line or band as SVG path data."""

    d: str
    colour: int | None
    style: str
    title: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart in SVG coordinates, ready for the template to draw."""

    title: str
    x_label: str
    y_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    bands: list[CurvePath]
    lines: list[CurvePath]
    marks: list[Mark] = field(default_factory=list)


def build_group_chart(groups: Sequence[Group], measure: Measure, over: XAxis) -> Chart | None:
    """Draw a dataset's groups in one chart: means with their intervals, and a thin line per seed.

    Args:
        groups: the groups; each of the first ``N_COLOURS`` has its own colour.
        measure: loss or accuracy, on each run's watched split.
        over: the x axis: epochs, or training time in hours, minutes or seconds.

    Returns:
        The chart; None if there is nothing to draw.
    """
    unit, seconds = "", 1.0
    if over == "time":
        times = (record.curve.history["seconds"] for group in groups for record in group.records if record.curve)
        longest = max((float(np.nansum(epochs)) for epochs in times), default=0.0)
        unit, seconds = next((unit for unit in _UNITS if longest >= _MIN_UNITS * unit[1]), _UNITS[-1])
    lines = [line for index, group in enumerate(groups) for line in _group_lines(group, index, measure, over, seconds)]
    # SVG paints in document order: means must come after single seeds, and coloured lines after grey ones.
    lines.sort(key=lambda line: (line.style == "mean", line.colour is not None))
    x_name = f"{unit} of training" if unit else "epochs"
    x_label = x_name if unit else "epoch"
    return build_chart(f"{measure} of all groups over {x_name}", over, measure, lines, x_label=x_label)


def _group_lines(group: Group, index: int, measure: Measure, over: XAxis, unit: float) -> Iterator[Line]:
    """Yield each seed's curve, then the mean of these curves; times are divided by ``unit``, in seconds."""
    # One curve per seed, since a copy of a run is not a second measurement; the run in the tables takes precedence.
    curves: dict[Any, Curve] = {}
    for record in (*group.by_seed.values(), *group.records):
        if record.curve:
            curves.setdefault(record.row["seed"], record.curve)
    colour = index if index < N_COLOURS else None
    drawn = []
    for curve in curves.values():
        x = (curve.history["epoch"] if over == "epoch" else np.cumsum(curve.history["seconds"])) / unit
        if np.isfinite(x).all():
            drawn.append((x, curve.values(curve.watched, measure), curve.name))
    for x, y, name in drawn:
        yield Line(x, y, colour, "mean" if len(drawn) == 1 else "thin", name)
    if len(drawn) > 1 and (mean := _mean_line([(x, y) for x, y, _ in drawn], over)):
        yield Line(mean[0], mean[1], colour, "mean", f"{group.label}, mean of {len(drawn)}", mean[2])


def _mean_line(lines: list[tuple[np.ndarray, np.ndarray]], over: XAxis) -> tuple[np.ndarray, ...] | None:
    """Return x, mean and interval half-width over the range that all lines cover; None if they have no common range."""
    start, end = max(np.nanmin(x) for x, _ in lines), min(np.nanmax(x) for x, _ in lines)
    if start > end:
        return None
    longest = max((x for x, _ in lines), key=len)
    grid = (
        longest[(longest >= start) & (longest <= end)]
        if over == "epoch"
        else np.linspace(start, end, MAX_POINTS_PER_LINE)
    )
    values = np.array([np.interp(grid, x, y) for x, y in lines])  # (seeds, points)
    intervals = [interval(column.tolist()) for column in values.T]
    widths = [math.nan if mean is None or mean.half_width is None else mean.half_width for mean in intervals]
    return grid, values.mean(axis=0), np.array(widths)


def build_run_chart(curve: Curve, measure: Measure) -> Chart | None:
    """Draw a chart of one run, with marks for the best epoch and the restarts.

    One curve shows the watched split, and a dashed curve shows the training images.
    """
    splits: list[Split] = ["train"] if curve.watched == "train" else ["train", curve.watched]
    epochs = curve.history["epoch"]
    names = {"train": "training images"}
    lines = [
        Line(epochs, curve.values(split, measure), colour, "mean" if split == curve.watched else "dashed",
             names.get(split, f"{split} images"))
        for colour, split in reversed(list(enumerate(reversed(splits))))
    ]  # fmt: skip
    marks = [Mark("restart", epoch) for epoch in curve.restarts]
    if curve.best_epoch is not None:
        height = float(np.interp(curve.best_epoch, epochs, curve.values(curve.watched, measure)))
        marks.append(Mark("best", curve.best_epoch, height))
    return build_chart(f"{measure} of {curve.name} over epochs", "epoch", measure, lines, marks)


def build_chart(
    title: str, over: XAxis, measure: Measure, lines: Sequence[Line], marks: Sequence[Mark] = (), x_label: str = "epoch"
) -> Chart | None:
    """Return a chart of lines and marks; None if no line has a finite point."""
    points = [
        (line.x[finite], line.y[finite])
        for line in lines
        if (finite := np.isfinite(line.x) & np.isfinite(line.y)).any()
    ]
    if not points:
        return None
    x, y = (np.concatenate(values) for values in zip(*points, strict=True))
    logarithmic = measure == "loss" and bool(0 < y.min() * _LOG_RATIO < y.max())
    across, up = Axis.across(x, zero=over == "time"), Axis.upward(y, logarithmic=logarithmic)
    y_label = "loss, nats per image" if measure == "loss" else "accuracy, %"
    limit = max(12, min(MAX_POINTS_PER_LINE, MAX_POINTS_PER_CHART // len(lines)))
    return Chart(
        title=title,
        x_label=x_label,
        y_label=f"{y_label}, logarithmic" if logarithmic else y_label,
        x_ticks=across.ticks(whole=over == "epoch"),
        y_ticks=up.ticks(),
        bands=[path for line in lines if (path := _band(line, across, up, limit))],
        lines=[CurvePath(_points(line.x, line.y, across, up, limit), line.colour, line.style, line.title)
               for line in lines],
        marks=[Mark(mark.kind, float(across.at(mark.x)), float(up.at(mark.y))) for mark in marks
               if math.isfinite(mark.x) and (mark.kind == "restart" or math.isfinite(mark.y))],
    )  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """Mapping of the data range ``low`` to ``high`` onto the SVG coordinates ``first`` to ``last``."""

    low: float
    high: float
    first: float
    last: float
    logarithmic: bool = False

    @classmethod
    def across(cls, values: np.ndarray, *, zero: bool) -> "Axis":
        """Return the x axis, which spans exactly the values (from zero if ``zero``); a single value is centred."""
        return cls(*_widened(0.0 if zero else float(values.min()), float(values.max())), LEFT, RIGHT)

    @classmethod
    def upward(cls, values: np.ndarray, *, logarithmic: bool) -> "Axis":
        """Return the y axis, with a small margin beyond the values."""
        low, high = _widened(float(values.min()), float(values.max()))
        if logarithmic:
            low = max(low, _SMALLEST)
            factor = math.exp(_MARGIN * (math.log(high) - math.log(low)))  # high / low could overflow
            return cls(low / factor, high * factor, BOTTOM, TOP, logarithmic=True)
        margin = _MARGIN * (high - low)
        return cls(low - margin, high + margin, BOTTOM, TOP)

    def at(self, values: np.ndarray | float) -> np.ndarray:
        """Return the SVG coordinates of data values, clipped to the axis."""
        scale = np.log if self.logarithmic else np.asarray
        inside = scale(np.clip(values, self.low, self.high))
        low, high = scale(self.low), scale(self.high)
        return np.asarray(self.first + (inside - low) / (high - low) * (self.last - self.first))

    def ticks(self, *, whole: bool = False) -> list[Tick]:
        """Return ticks at round numbers."""
        numbers = self._magnitudes() if self.logarithmic else self._steps(whole=whole)
        return [Tick(round(float(self.at(number)), 1), f"{number:g}") for number in numbers]

    def _steps(self, *, whole: bool) -> list[float]:
        rough = (self.high - self.low) / _TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(
            factor * power for factor in (_INTEGER_TICK_FACTORS if whole else _TICK_FACTORS) if factor * power >= rough
        )
        step = max(step, 1.0) if whole else step
        # The tolerance keeps ticks that rounding has moved just outside the axis.
        counts = range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)
        numbers = [round(count * step, 12) for count in counts]
        starts_alone = whole and self.low.is_integer() and numbers[0] - self.low > step * _CLOSE
        return [self.low, *numbers] if starts_alone else numbers

    def _magnitudes(self) -> list[float]:
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        factors = (1, 2, 5) if len(powers) <= _TICKS else (1,)
        numbers = [float(f"{factor}e{power}") for power in powers for factor in factors]
        return [number for number in numbers if self.low <= number <= self.high]


def _widened(low: float, high: float) -> tuple[float, float]:
    """Return the range, widened if its ends are too close together."""
    size = max(abs(low), abs(high))
    if high - low > _NARROWEST * max(size, _SMALLEST):
        return low, high
    half = (size if size > _SMALLEST else 1.0) / 2
    return low - half, high + half


def _band(line: Line, across: Axis, up: Axis, limit: int) -> CurvePath | None:
    if line.half_width is None or not np.isfinite(line.half_width).any():
        return None
    upper = _points(line.x, line.y + line.half_width, across, up, limit)
    lower = _points(line.x[::-1], (line.y - line.half_width)[::-1], across, up, limit)
    return CurvePath(f"{upper}L{lower[1:]}Z", line.colour, "band") if upper and lower else None


def _points(x: np.ndarray, y: np.ndarray, across: Axis, up: Axis, limit: int) -> str:
    """Return the SVG data of a path through the finite points; empty if there are none.

    A single point becomes a zero-length stroke (``h0``), which round line caps show as a dot.
    """
    finite = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    if not len(finite):
        return ""
    if len(finite) > limit:
        finite = finite[np.linspace(0, len(finite) - 1, limit).round().astype(int)]  # includes both ends
    coordinates = zip(across.at(x[finite]).round(1).tolist(), up.at(y[finite]).round(1).tolist(), strict=True)
    path = "M" + "L".join(f"{left:g} {top:g}" for left, top in coordinates)
    return f"{path}h0" if len(finite) == 1 else path
