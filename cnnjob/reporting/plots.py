"""Matplotlib figures: learning curves, confusion matrices, first-layer filters.

Each figure is a ``matplotlib.figure.Figure`` owned by the caller, without pyplot or global state. It does not depend
on the user's ``matplotlibrc``, and :func:`to_bytes` returns the same bytes for the same figure. The palette is safe for
colour-blind readers. Names are printed literally and never parsed as formulas.

This module reads and writes no files; :mod:`cnnjob.reporting.report` does.
"""

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cnnjob.errors import plural
from cnnjob.reporting.curve import Curve, Measure, Split
from cnnjob.reporting.filter_grid import ENLARGED, PICTURE_CHANNELS, filter_tiles, join_tiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Format = Literal["pdf", "png", "svg"]

LEGEND_LIMIT = 50
"""With more curves than this, there is no legend, as it would be larger than the figure."""
COUNTS_LIMIT = 20
"""With more classes than this, a confusion matrix has no counts in its cells, as they would not fit."""
LABELS_LIMIT = 100
"""With more classes than this, a confusion matrix names only every second, third, … class."""

_STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.dpi": 150,
    "figure.titlesize": "medium",
    "grid.alpha": 0.3,
    "legend.fontsize": "small",
    "legend.frameon": False,
    "savefig.dpi": 150,
    "pdf.fonttype": 42,  # TrueType, not Type 3: text remains text
    "svg.hashsalt": "cnnjob",  # without this, the ids in an SVG are random
    "text.parse_math": False,  # a class name may contain $
}
_METADATA: dict[Format, dict[str, Any]] = {
    "pdf": {"CreationDate": None},
    "png": {"Software": None},
    "svg": {"Date": None},
}
_PANELS_WIDTH = 9.0  # inches, not including a legend
_COLOURS = 10
_DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (9, 3)))
_LEGEND_ROWS = 25
_NAME_LENGTH = 40
_LOG_RATIO = 30
"""The loss axis is logarithmic if the maximum is more than this many times the minimum."""
_DOTTED_EPOCHS = 30
"""Each epoch is marked with a dot if a curve has at most this many epochs."""


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib.style

    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        # Class names may use any script; Matplotlib draws a box for characters that its font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


@_style()
def to_bytes(figure: "Figure", kind: Format) -> bytes:
    """Render a figure as file content.

    Args:
        figure: a figure from this module.
        kind: ``png`` at 150 dots per inch, ``svg`` or ``pdf``.

    Returns:
        The content, without dates or random ids: the same bytes for the same figure.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the layout is computed only once for all formats
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=_METADATA[kind])
    return buffer.getvalue()


@_style()
def learning_curve(curve: Curve) -> "Figure":
    """Draw one run's loss and accuracy over its epochs, on the training images and on ``curve.watched``.

    Args:
        curve: a curve with at least one epoch. The best epoch is drawn as a star, restarts as dotted lines.

    Returns:
        A figure with two axes: loss and accuracy.
    """
    figure, panels = _panels(_PANELS_WIDTH, curve.name)
    blue, orange = _palette()[:2]
    for measure, axes in panels.items():
        _draw(axes, curve, "train", measure, color=blue, label="training")
        if curve.watched != "train":
            _draw(axes, curve, curve.watched, measure, color=orange, label=curve.watched)
        _mark(axes, curve, measure, [curve.best_epoch], marker="*", color="black", markersize=9, label="best epoch")
    _scale_loss(panels["loss"])
    for axes in panels.values():
        for index, restart in enumerate(curve.restarts):
            axes.axvline(restart, color="0.4", linestyle=":", label="" if index else "restart")
    handles, labels = panels["loss"].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


@_style()
def overlaid_curves(curves: Sequence[Curve]) -> "Figure":
    """Draw the loss and accuracy of several runs over their epochs, each on the split :attr:`Curve.watched`.

    Up to ten runs are distinguished by colour; if there are more, dashes are used as well. With more than
    ``LEGEND_LIMIT`` runs, the figure has no legend, and its title gives the reason. Best epochs are drawn as stars,
    restarts as vertical strokes.

    Args:
        curves: one or more curves with at least one epoch each.

    Returns:
        A figure with two axes: loss and accuracy.
    """
    n_columns = math.ceil(len(curves) / _LEGEND_ROWS) if len(curves) <= LEGEND_LIMIT else 0
    n_letters = max(len(_short_label(curve.name)) for curve in curves)
    star = 9 if len(curves) <= _COLOURS else 5
    legend = "; too many for a legend" if len(curves) > LEGEND_LIMIT else ""
    title = f"{plural(len(curves), 'run')}, each on its watched split  (★ best epoch, | restart{legend})"
    figure, panels = _panels(_PANELS_WIDTH + n_columns * (0.6 + 0.075 * n_letters), title)
    for measure, axes in panels.items():
        for index, curve in enumerate(curves):
            color, dashes = _palette()[index % _COLOURS], _DASHES[index // _COLOURS % len(_DASHES)]
            _draw(axes, curve, curve.watched, measure, color=color, linestyle=dashes, label=_short_label(curve.name))
            _mark(axes, curve, measure, curve.restarts, marker="|", color=color, markersize=12, mew=2)
            _mark(axes, curve, measure, [curve.best_epoch], marker="*", color=color, markersize=star)
    _scale_loss(panels["loss"])
    if n_columns:
        handles, labels = panels["loss"].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", ncols=n_columns)
    return figure


def _panels(width: float, title: str) -> tuple["Figure", dict[Measure, "Axes"]]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(width, 4.5), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    figure.suptitle(
        _short_label(title, 100), x=_PANELS_WIDTH / 2 / width
    )  # centred over the panels, without the legend
    loss.set_ylabel("loss (nats per image)")
    accuracy.set_ylabel("accuracy (%)")
    for axes in (loss, accuracy):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure, {"loss": loss, "accuracy": accuracy}


def _draw(axes: "Axes", curve: Curve, split: Split, measure: Measure, **line: Any) -> None:
    epochs = curve.history["epoch"]
    marker = "." if len(epochs) <= _DOTTED_EPOCHS else ""  # a line through a single epoch would be invisible
    axes.plot(epochs, curve.values(split, measure), marker=marker, linewidth=1.2, **line)


def _mark(axes: "Axes", curve: Curve, measure: Measure, epochs: Sequence[float | None], **style: Any) -> None:
    """Mark epochs, whole or fractional, on the watched split's curve."""
    known = [epoch for epoch in epochs if epoch is not None]
    if known:
        heights = np.interp(known, curve.history["epoch"], curve.values(curve.watched, measure))
        axes.plot(known, heights, linestyle="", zorder=3, **style)


def _scale_loss(axes: "Axes") -> None:
    """Make the loss axis logarithmic if the losses span more than a factor of ``_LOG_RATIO``."""
    from matplotlib.ticker import LogLocator

    losses = np.concatenate([np.asarray(line.get_ydata(), np.float64) for line in axes.lines])
    losses = losses[np.isfinite(losses)]
    if losses.size and 0 < losses.min() * _LOG_RATIO < losses.max():
        axes.set_yscale("log", subs=[])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylabel("loss (nats per image, logarithmic)")


@_style()
def confusion_matrix(counts: np.ndarray, class_names: Sequence[str], title: str) -> "Figure":
    """Draw a confusion matrix with counts in the cells; each cell's colour shows its share of the true class.

    The colour depends on the square root of the share, so that rare confusions are visible. With more than
    ``COUNTS_LIMIT`` classes, there are no counts; with more than ``LABELS_LIMIT``, only some classes are named.

    Args:
        counts: (K, K) integer; one row per true class, one column per predicted class.
        class_names: K names.
        title: the run's name.

    Returns:
        A figure with the matrix and its colour scale.
    """
    from matplotlib.figure import Figure

    K = len(counts)
    side = float(np.clip(0.5 * K, 3, 10) if K <= COUNTS_LIMIT else np.clip(0.13 * K, 10, 13))  # inches
    names = [_short_label(name, 24) for name in class_names]
    margin = 0.075 * max(len(name) for name in names)
    figure = Figure(figsize=(side + margin + 2, side + margin + 0.8), layout="constrained")
    axes = figure.subplots()
    # The font size, in points, at which the longest count fits into a cell of side / K inches.
    _heat(axes, counts, size=min(9.0, 72 * side / K / (0.7 * len(f"{counts.max():,d}"))))
    _name_classes(axes, names, size=min(9.0, 54 * side / K))
    axes.set_title(_short_label(title))
    return figure


def _heat(axes: "Axes", counts: np.ndarray, size: float) -> None:
    import seaborn as sns
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import PercentFormatter

    has_counts = len(counts) <= COUNTS_LIMIT
    sns.heatmap(
        counts / np.maximum(counts.sum(axis=1, keepdims=True), 1),  # rows of classes without images are zero
        ax=axes,
        annot=counts if has_counts else None,
        annot_kws={"fontsize": size},
        fmt=",d",
        cmap="Blues",
        norm=PowerNorm(0.5, 0, 1),
        square=True,
        cbar_kws={"label": "share of the true class", "format": PercentFormatter(1), "shrink": 0.8},
        xticklabels=False,
        yticklabels=False,
        rasterized=not has_counts,
    )
    axes.grid(visible=not has_counts)  # in a large matrix, the grid helps to find a cell's class names


def _name_classes(axes: "Axes", names: list[str], size: float) -> None:
    step = math.ceil(len(names) / LABELS_LIMIT)
    ticks = np.arange(0, len(names), step) + 0.5
    upright = max(len(name) for name in names) > len("10")
    axes.set_xticks(ticks, names[::step], fontsize=max(size, 6), rotation=90 if upright else 0)
    axes.set_yticks(ticks, names[::step], fontsize=max(size, 6), rotation=0)
    axes.set(xlabel="predicted class", ylabel="true class")


@_style()
def first_layer_filters(weights: np.ndarray, title: str) -> "Figure":
    """Draw first-layer filters as small images; see :func:`cnnjob.reporting.filter_grid.filter_tiles`.

    If some filters or channels are not shown, an axis label states how many there are.

    Args:
        weights: (K, K, C, F) floating point: C channels, F filters of K×K pixels.
        title: the run's name.

    Returns:
        A figure that contains one image.
    """
    from matplotlib.figure import Figure

    tiles = filter_tiles(weights)  # (R, Q, K, K, 3)
    n_rows, n_columns = tiles.shape[:2]
    side = min(0.6, 12 / max(n_rows, n_columns))  # inches
    figure = Figure(figsize=(max(4.0, n_columns * side) + 0.6, n_rows * side + 0.9), layout="constrained")
    axes = figure.subplots()
    axes.imshow(join_tiles(tiles), interpolation="nearest")
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    axes.set(title=_short_label(title), xticks=[], yticks=[])
    _name_tiles(axes, weights.shape, tiles.shape)
    return figure


def _name_tiles(axes: "Axes", weights: tuple[int, ...], tiles: tuple[int, ...]) -> None:
    K, _, C, F = weights
    R, Q = tiles[:2]
    if C in PICTURE_CHANNELS:
        axes.set_xlabel(f"{_limited_count(F, R * Q, 'filter')} of {K}×{K} pixels, row by row, each on its own scale")
        return
    (across, n_across), (down, n_down) = (("filter", F), ("channel", C))[:: 1 if F >= C else -1]
    for axis, name, n, shown in ((axes.xaxis, across, n_across, Q), (axes.yaxis, down, n_down, R)):
        indices = np.arange(0, shown, math.ceil(shown / 16))
        pitch = K * ENLARGED + 1
        axis.set_ticks(indices * pitch + pitch / 2, [str(index + 1) for index in indices])
        axis.set_label_text(name if n == shown else _limited_count(n, shown, name))


def _limited_count(n: int, limit: int, noun: str) -> str:
    total = plural(n, noun)
    return total if n <= limit else f"the first {limit} of {total}"


def _palette() -> list[tuple[float, float, float]]:
    import seaborn as sns

    return list(sns.color_palette("colorblind", _COLOURS))


def _short_label(name: str, n_letters: int = _NAME_LENGTH) -> str:
    """Return a name on one line, with the middle omitted if it is long.

    Matplotlib omits labels that begin with ``_`` from legends, so such a name gets a leading space.
    """
    line = " ".join(name.split())
    if len(line) > n_letters:
        line = f"{line[: n_letters * 2 // 3 - 1]}…{line[-n_letters // 3 :]}"
    return f" {line}" if line.startswith("_") else line
