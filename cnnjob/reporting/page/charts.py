"""Learning curves as small SVG charts.

Every chart is 480 wide and 280 high, in SVG user units. The paths of its lines are in data coordinates (epochs or time,
and values or their decimal logarithms), which a nested ``svg`` element maps onto the chart. The page's script can
therefore read the values from the paths, and needs no other copy of the values. Long lines are reduced to as many
points as can be distinguished.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from cnnjob.reporting.curve import Curve, Measure
from cnnjob.reporting.groups import Group
from cnnjob.reporting.lines import (
    AXIS_LABELS,
    Limits,
    Line,
    XAxis,
    axis_limits,
    finite_points,
    group_lines,
    lines_beyond,
    run_lines,
    time_unit,
    widened,
)

WIDTH, HEIGHT = 480, 280
LEFT, RIGHT, TOP, BOTTOM = 60, 466, 10, 240
MAX_POINTS_PER_LINE = 100
"""Maximum number of points per line."""
MAX_POINTS_PER_CHART = 20_000
"""Approximate maximum number of points in a chart, over all its lines."""
_TICKS = 5
_TICK_FACTORS, _INTEGER_TICK_FACTORS = (1, 2, 2.5, 5, 10), (1, 2, 5, 10)
"""Steps between ticks, as multiples of a power of ten; the second tuple is for integers."""
_CLOSE = 0.3
"""The first epoch has its own tick unless the next tick is closer than this fraction of a tick step."""
_PADDING = 6
"""Width of the margin around the axes in which lines and points are still drawn, so that none is cut off."""
_LARGEST = 1e12
"""Limit on the coordinates of a path; larger values, from runs that have diverged, are drawn at this limit."""
_NAMED = 3
"""Maximum number of lines beyond the axis that are named."""
_SCALED: tuple[Measure, ...] = ("loss", "learning rate")
"""Measures whose axis can be switched to logarithmic."""


@dataclass(frozen=True)
class Mark:
    """A mark on a chart."""

    kind: Literal["best", "restart", "above", "below", "stop"]
    """The best epoch, a restart, the point at which a line leaves the chart, or a line's last finite value."""
    x: float
    y: float = math.nan
    title: str = ""


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
    band: int | None = None
    """Index of the line's band among the bands of the chart; None if the line has no band."""


@dataclass(frozen=True)
class Chart:
    """A chart, ready for the template to draw."""

    title: str
    x_label: str
    y_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    across: "Axis"
    up: "Axis"
    bands: list[CurvePath]
    lines: list[CurvePath]
    marks: list[Mark] = field(default_factory=list)
    note: str = ""
    scales: dict[str, Any] = field(default_factory=dict)
    """The vertical axes between which the page can switch, ``linear`` and ``log``: their end values and their ticks."""

    def view_box(self, padding: float = 0) -> str:
        """Return the SVG ``viewBox`` of the area between the axes, in the coordinates of the paths.

        The area is extended by ``padding`` on all sides, in SVG units.
        """
        (x0, x1), (y0, y1) = self.across.ends, self.up.ends
        dx, dy = (x1 - x0) / (RIGHT - LEFT), (y1 - y0) / (BOTTOM - TOP)
        box = (x0 - padding * dx, -y1 - padding * dy, x1 - x0 + 2 * padding * dx, y1 - y0 + 2 * padding * dy)
        return " ".join(f"{number:.9g}" for number in box)


def build_group_chart(groups: Sequence[Group], measure: Measure, over: XAxis) -> Chart | None:
    """Draw a dataset's groups in one chart: means with their intervals, and a thin line per seed.

    Args:
        groups: the groups; the first ones have different colours, and all others are grey.
        measure: loss or accuracy, on each run's watched split.
        over: the x axis: epochs, or training time in hours, minutes or seconds.

    Returns:
        The chart; None if there is nothing to draw.
    """
    unit, seconds = time_unit(groups) if over == "time" else ("", 1.0)
    x_name, x_label = (f"{unit} of training", f"{unit} of training") if unit else ("epochs", "epoch")
    lines = group_lines(groups, measure, over, seconds)
    return build_chart(f"{measure} of all groups over {x_name}", over, measure, lines, x_label=x_label)


def build_run_chart(curve: Curve, measure: Measure) -> Chart | None:
    """Draw a chart of one run, with marks for the best epoch and the restarts.

    One curve shows the watched split, and a dashed curve shows the training images.
    """
    lines = run_lines(curve, measure)
    marks = [Mark("restart", epoch, title="resumed") for epoch in curve.restarts]
    if curve.best_epoch is not None and measure != "learning rate":
        height = float(np.interp(curve.best_epoch, lines[-1].x, lines[-1].y))
        marks.append(Mark("best", curve.best_epoch, height, "best epoch"))
    period = "at the end of each epoch" if measure == "learning rate" else "over epochs"
    return build_chart(f"{measure} of {curve.name} {period}", "epoch", measure, lines, marks)


def build_chart(
    title: str, over: XAxis, measure: Measure, lines: Sequence[Line], marks: Sequence[Mark] = (), x_label: str = "epoch"
) -> Chart | None:
    """Return a chart of lines and marks; None if no line has a finite point."""
    limits = axis_limits(lines, measure)
    if limits is None:
        return None
    across = Axis.across(np.concatenate([finite_points(line)[0] for line in lines]))
    up = Axis.upward(limits)
    limit = max(12, min(MAX_POINTS_PER_LINE, MAX_POINTS_PER_CHART // len(lines)))
    beyond, stops = lines_beyond(lines, limits), list(_marks_at_ends(lines))
    bands, paths = [], []
    for line in lines:
        if band := _band(line, across, up, limit):
            bands.append(band)
        style = f"{line.style} diverged" if line.has_diverged else line.style
        d = _points(line.x, line.y, across, up, limit)
        paths.append(CurvePath(d, line.colour, style, line.title, len(bands) - 1 if band else None))
    return Chart(
        title=title,
        x_label=x_label,
        y_label=AXIS_LABELS[measure],
        x_ticks=across.ticks(whole=over == "epoch"),
        y_ticks=up.ticks(),
        across=across,
        up=up,
        bands=bands,
        lines=paths,
        marks=[Mark(mark.kind, float(across.at(mark.x)), float(up.at(mark.y)), mark.title)
               for mark in (*marks, *_marks_beyond(beyond, limits), *stops)
               if math.isfinite(mark.x) and (mark.kind == "restart" or math.isfinite(mark.y))],
        note=_note(beyond, has_stops=bool(stops)),
        scales=_scales(lines, measure) if measure in _SCALED else {},
    )  # fmt: skip


def _marks_beyond(beyond: Sequence[Line], limits: Limits) -> Iterator[Mark]:
    """Yield a mark where each line leaves the chart for the first time."""
    for line in beyond:
        x, y = finite_points(line)
        index = int(((y > limits.high) | (y < limits.low)).argmax())
        is_above = y[index] > limits.high
        edge = limits.high if is_above else limits.low
        crossing = x[index]
        if index:  # between this point and the one before it
            share = (edge - y[index - 1]) / (y[index] - y[index - 1])
            crossing = x[index - 1] + share * (x[index] - x[index - 1])
        extreme = f"up to {y.max():.3g}" if is_above else f"down to {y.min():.3g}"
        yield Mark("above" if is_above else "below", float(crossing), edge, f"{line.title}: {extreme}")


def _marks_at_ends(lines: Sequence[Line]) -> Iterator[Mark]:
    """For each line whose final value is not finite, yield a mark at the last finite value."""
    for line in lines:
        x, y = finite_points(line)
        if line.has_diverged and len(y) and not np.isfinite(line.y[-1]):
            yield Mark("stop", float(x[-1]), float(y[-1]), f"{line.title}: no longer finite")


def _note(beyond: Sequence[Line], *, has_stops: bool) -> str:
    """Return a note that names the lines beyond the axis, if possible as in the legend, and explains the crosses."""
    names = list(dict.fromkeys(line.label for line in beyond if line.label)) or [line.title for line in beyond]
    others = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    notes = [f"Leaving the chart: {', '.join(names[:_NAMED])}{others}."] if names else []
    return " ".join([*notes, "A cross is the last value before the loss was no longer finite."] if has_stops else notes)


def _scales(lines: Sequence[Line], measure: Measure) -> dict[str, Any]:
    both = {name: axis_limits(lines, measure, logarithmic=name == "log") for name in ("linear", "log")}
    axes = {name: Axis.upward(limits) for name, limits in both.items() if limits}
    if len(axes) < len(both):
        return {}
    return {
        name: [*(float(f"{end:.9g}") for end in axis.ends), [[tick.at, tick.label] for tick in axis.ticks()]]
        for name, axis in axes.items()
    }


@dataclass(frozen=True)
class Axis:
    """The mapping of the data range ``low`` to ``high`` onto the SVG coordinates ``first`` to ``last``."""

    low: float
    high: float
    first: float
    last: float
    is_logarithmic: bool = False

    @classmethod
    def across(cls, values: np.ndarray) -> "Axis":
        """Return the x axis, which spans exactly the values; a single value is centred."""
        return cls(*widened(float(values.min()), float(values.max())), LEFT, RIGHT)

    @classmethod
    def upward(cls, limits: Limits) -> "Axis":
        """Return the y axis."""
        return cls(limits.low, limits.high, BOTTOM, TOP, limits.is_logarithmic)

    @property
    def ends(self) -> tuple[float, float]:
        """The ends of the axis in the coordinates of the paths."""
        return (math.log10(self.low), math.log10(self.high)) if self.is_logarithmic else (self.low, self.high)

    def coordinates(self, values: np.ndarray) -> np.ndarray:
        """Return the paths' coordinates of data values, rounded to what can be seen and read from the chart."""
        low, high = self.ends
        n_digits = 3 - math.floor(math.log10(high - low))
        with np.errstate(divide="ignore", invalid="ignore"):  # the edge of a band may be negative
            numbers = np.log10(values) if self.is_logarithmic else values
        numbers = np.nan_to_num(numbers, nan=-_LARGEST, neginf=-_LARGEST)
        return np.asarray(np.clip(numbers, -_LARGEST, _LARGEST).round(max(n_digits, 2)))

    def at(self, values: np.ndarray | float) -> np.ndarray:
        """Return the SVG coordinates of data values, clipped to the axis."""
        scale = np.log if self.is_logarithmic else np.asarray
        inside = scale(np.clip(values, self.low, self.high))
        low, high = scale(self.low), scale(self.high)
        return np.asarray(self.first + (inside - low) / (high - low) * (self.last - self.first))

    def ticks(self, *, whole: bool = False) -> list[Tick]:
        """Return ticks at round numbers."""
        numbers = self._magnitudes() if self.is_logarithmic else self._steps(whole=whole)
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
        numbers = [float(f"{count * step:.12g}") for count in counts]
        starts_alone = whole and self.low.is_integer() and numbers[0] - self.low > step * _CLOSE
        return [self.low, *numbers] if starts_alone else numbers

    def _magnitudes(self) -> list[float]:
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        factors = (1, 2, 5) if len(powers) <= _TICKS else (1,)
        numbers = [float(f"{factor}e{power}") for power in powers for factor in factors]
        return [number for number in numbers if self.low <= number <= self.high]


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
    coordinates = zip(across.coordinates(x[finite]).tolist(), up.coordinates(y[finite]).tolist(), strict=True)
    path = "M" + "L".join(f"{left:.9g} {top:.9g}" for left, top in coordinates)
    return f"{path}h0" if len(finite) == 1 else path
