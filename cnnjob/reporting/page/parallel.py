"""Parallel coordinates: one axis per setting that differs between the groups, one for accuracy, and a line per group.

Inselberg, "The plane with parallel coordinates" (1985).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cnnjob.errors import shorten_middle
from cnnjob.reporting.groups import Group, setting_text

MIN_GROUPS = 3
"""Minimum number of groups for which the chart is drawn; with fewer groups, the results table is clear enough."""
MAX_LINES = 1000
"""Maximum number of groups that are drawn; if there are more, the best ones are drawn."""
LEFT, TOP, BOTTOM = 90, 44, 264
"""Horizontal position of the first axis, and vertical positions of the two ends of every axis, in SVG units."""
_WIDTH, _MIN_STEP = 720, 140
"""Distance between the first and the last axis, and the minimum distance between axes, in SVG units."""
_LOG_RATIO = 10
"""A numeric axis is logarithmic if all values are positive and the maximum is at least this many times the minimum."""
_MAX_LABELS = 12
"""Maximum number of values that are written along an axis."""
_LABEL_DISTANCE = 13.0
"""Minimum distance between labels on a numeric axis, in SVG units."""
_TITLE_LETTERS, _LABEL_LETTERS = 20, 14


class Label(NamedTuple):
    """A value on an axis: its height in SVG units, its text shortened to fit, and its full text."""

    at: float
    text: str
    title: str


class SettingAxis(NamedTuple):
    """An axis with its position in SVG units."""

    x: int
    text: str
    title: str
    labels: list[Label]


class GroupLine(NamedTuple):
    """A group as a line through its values."""

    d: str
    share: int
    """Position of the group's accuracy between the lowest and the highest accuracy, in per cent."""
    title: str


@dataclass(frozen=True)
class ParallelChart:
    """A chart in SVG coordinates, ready for the template to draw."""

    width: int
    axes: list[SettingAxis]
    lines: list[GroupLine]
    """The lines in the order in which they are drawn, the best one last."""
    alternative: str
    """A description for readers who do not see the chart."""
    n_omitted: int


def build_parallel_chart(groups: Sequence[Group], settings: Sequence[str]) -> ParallelChart | None:
    """Draw the groups of a dataset over the settings that differ between them.

    Args:
        groups: the groups, best first; those without a test accuracy are not drawn.
        settings: names of the settings that differ.

    Returns:
        The chart; None if no setting differs or if there are fewer than ``MIN_GROUPS`` groups with an accuracy.
    """
    measured = [group for group in groups if group.by_seed]
    drawn = measured[:MAX_LINES]
    varied = [name for name in settings if len({setting_text(group.settings[name]) for group in drawn}) > 1]
    if len(drawn) < MIN_GROUPS or not varied:
        return None
    means = [100 * mean.mean for group in drawn if (mean := group.interval("test_accuracy"))]
    columns = [[group.settings[name] for group in drawn] for name in varied]
    scales = [*map(_setting_heights, columns), _numeric_heights(means, logarithmic=False)]
    step = max(_MIN_STEP, _WIDTH // len(varied))
    axes = [
        SettingAxis(LEFT + step * index, shorten_middle(name, _TITLE_LETTERS), name, labels)
        for index, (name, (_, labels)) in enumerate(zip([*varied, "test accuracy, %"], scales, strict=True))
    ]
    low, high = min(means), max(means)
    lines = []
    for row, (group, mean_accuracy) in enumerate(zip(drawn, means, strict=True)):
        points = (f"{axis.x} {heights[row]:g}" for axis, (heights, _) in zip(axes, scales, strict=True))
        share = round(100 * (mean_accuracy - low) / (high - low)) if high > low else 100
        values = ", ".join(f"{name} {setting_text(group.settings[name])}" for name in varied)
        lines.append(GroupLine("M" + "L".join(points), share, f"{mean_accuracy:.2f} %: {values}"))
    return ParallelChart(
        width=axes[-1].x + LEFT,
        axes=axes,
        lines=lines[::-1],
        alternative=f"Test accuracy of {len(drawn)} groups over {', '.join(varied)}. "
        f"Best: {lines[0].title}. Worst: {lines[-1].title}. The results table has the same values.",
        n_omitted=len(measured) - len(drawn),
    )


def _setting_heights(values: Sequence[Any]) -> tuple[list[float], list[Label]]:
    """Return the height of each value on its axis, and the axis's labels."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in values):
        return _numeric_heights(values, logarithmic=0 < min(values) * _LOG_RATIO <= max(values))
    # Numbers in numeric order, then words in the order of their first appearance.
    texts = list(dict.fromkeys(setting_text(value) for value in sorted(values, key=_category_order)))
    heights = {text: _height(index, 0, len(texts) - 1) for index, text in enumerate(texts)}
    every = math.ceil(len(texts) / _MAX_LABELS)
    labels = [Label(heights[text], shorten_middle(text, _LABEL_LETTERS), text) for text in texts[::every]]
    return [heights[setting_text(value)] for value in values], labels


def _category_order(value: Any) -> tuple[bool, float]:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return not is_number, float(value) if is_number else 0.0


def _numeric_heights(values: Sequence[float], *, logarithmic: bool) -> tuple[list[float], list[Label]]:
    scale = math.log10 if logarithmic else float
    low, high = scale(min(values)), scale(max(values))
    distinct = sorted(set(values))
    if len(distinct) > _MAX_LABELS:
        steps = [low + (high - low) * index / 4 for index in range(5)]
        distinct = [float(f"{10**step if logarithmic else step:.3g}") for step in steps]
    labels: list[Label] = []
    for value in distinct:
        at = _height(scale(value), low, high)
        if TOP - 1 <= at <= BOTTOM + 1 and (not labels or labels[-1].at - at >= _LABEL_DISTANCE):
            text = f"{value:.4g}"
            labels.append(Label(at, text, text))
    return [_height(scale(value), low, high) for value in values], labels


def _height(value: float, low: float, high: float) -> float:
    """Return the SVG height of a value on its axis: the middle if all values on the axis are the same."""
    share = (value - low) / (high - low) if high > low else 0.5
    return round(BOTTOM - share * (BOTTOM - TOP), 1)
