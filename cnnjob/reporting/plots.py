"""Matplotlib figures: learning curves, confusion matrices, filters.

Each figure is a ``matplotlib.figure.Figure`` owned by the caller, without pyplot or global state. It does not depend
on the user's ``matplotlibrc``, and :func:`to_bytes` returns the same bytes for the same figure. Names are printed
literally and never parsed as formulas.

Sizes are computed in inches from the lengths of the names, since Matplotlib's layout engines would draw each figure
several times. Rendering a piece of text takes a third of a millisecond, and so does each tick, because its label
is text too.

This module reads and writes no files; :mod:`cnnjob.reporting.report` does.
"""

import atexit
import io
import math
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cnnjob.errors import plural, shorten_middle
from cnnjob.reporting.curve import Measure
from cnnjob.reporting.filter_grid import ENLARGED, PICTURE_CHANNELS, filter_tiles, join_tiles
from cnnjob.reporting.lines import (
    AXIS_LABELS,
    COLOURS,
    DASHES,
    GREY,
    TRAINING_DASH,
    Limits,
    Line,
    axis_limits,
    finite_points,
    lines_beyond,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Format = Literal["pdf", "png", "svg"]

COUNTS_LIMIT = 20
"""With more classes than this, a confusion matrix has no counts in its cells, as they would not fit."""
LABELS_LIMIT, ACROSS_LIMIT = 100, 34
"""With more classes than this, a confusion matrix names only every second, third, … true or predicted class."""

_DPI = 150
_STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.dpi": _DPI,
    "figure.titlesize": "medium",
    "grid.alpha": 0.3,
    "legend.fontsize": "small",
    "legend.frameon": False,
    "text.hinting": "none",
    "pdf.fonttype": 42,  # TrueType, not Type 3, which journals refuse: text remains text
    "svg.fonttype": "none",  # text remains text here too
    "svg.hashsalt": "cnnjob",  # without this, the ids in an SVG are random
    "text.parse_math": False,  # a class name may contain $
}
_METADATA: dict[Format, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
_FONT = "DejaVu Sans"
_LETTERS = ((0x20, 0x7E), (0xA0, 0xFF), (0x2013, 0x2014), (0x2026, 0x2026), (0x2212, 0x2212), (0x2605, 0x2605))
_NAME_LENGTH = 40
_LETTER = 0.075
"""Width of a 9-point letter, in inches; most letters are narrower."""
_SMALL, _MIN_NAME_SIZE = 8, 5
"""Font size of notes, and minimum font size of class names, in points."""
_STAR: dict[str, Any] = {"marker": "*", "color": "black", "markersize": 9, "linestyle": ""}
_RESTART: dict[str, Any] = {"color": "0.4", "linestyle": ":"}
_CELL, _SMALL_CELL = 8, 4
"""Width of a cell of a confusion matrix in its image, in pixels; the small one is used above ``COUNTS_LIMIT``."""
_DARK_SHARE = 0.4
"""In cells whose share of the true class is larger than this, the count is written in white."""
_SHARES = (0, 0.01, 0.05, 0.2, 0.5, 1)
"""Ticks of the colour scale."""


@dataclass(frozen=True)
class Panels:
    """A row of learning curves in a figure."""

    title: str
    lines: Mapping[Measure, Sequence[Line]]
    """The lines of each panel, from left to right."""
    best_epoch: int | None = None
    restarts: tuple[float, ...] = ()
    """Positions at which the run resumed, in epochs."""


@cache
def _font_families() -> list[str]:
    """Return the font families of the figures: a small copy of Matplotlib's own font, and that font as a fallback.

    Even to embed a few letters, Matplotlib parses the whole font for each PDF file, and parsing its own font takes as
    long as drawing the figure. The copy contains only the letters of Western European languages and a few symbols; it
    is deleted when the process ends.
    """
    from fontTools import subset
    from matplotlib import font_manager

    folder = tempfile.mkdtemp(prefix="cnnjob-font-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / "font.ttf"
    options = subset.Options(layout_features=[], drop_tables=[*subset.Options().drop_tables, "FFTM"])
    with subset.load_font(font_manager.findfont(_FONT), options) as font:
        small = subset.Subsetter(options)
        small.populate(unicodes=[code for first, last in _LETTERS for code in range(first, last + 1)])
        small.subset(font)
        for number in (1, 4, 16):  # the names by which fonts are found
            font["name"].setName(f"{_FONT} Latin", number, 3, 1, 0x409)
            font["name"].setName(f"{_FONT} Latin", number, 1, 0, 0)
        font.save(path)
    font_manager.fontManager.addfont(path)
    return [f"{_FONT} Latin", _FONT]


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib.style

    style = {"font.family": _font_families()} | _STYLE
    with matplotlib.style.context(["default", style]), warnings.catch_warnings():
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
    buffer = io.BytesIO()
    if kind == "png":
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from PIL import Image  # noqa: PLC0415 - only figures and pages need Pillow

        canvas = FigureCanvasAgg(figure)
        canvas.draw()  # type: ignore[no-untyped-call]
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]  # the paper is opaque
        # Level 1 takes a quarter of the time of level 6.
        Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=1, dpi=(_DPI, _DPI))
    else:
        figure.savefig(buffer, format=kind, metadata=_METADATA[kind])
    return buffer.getvalue()


@_style()
def learning_curves(rows: Sequence[Panels]) -> "Figure":
    """Draw learning curves over epochs, with the lines, colours and labels of the page's charts.

    Args:
        rows: one row of panels for each run or dataset. The best epoch is drawn as a star, restarts as dotted lines.

    Returns:
        A figure with one legend beside each row.
    """
    from matplotlib.figure import Figure

    left, width, gap, height, above, below = 0.9, 2.8, 1.0, 2.4, 0.5, 0.65  # inches
    n_panels = max(len(row.lines) for row in rows)
    keys = [_legend_entries(row) for row in rows]
    letters = max(len(label) for key in keys for label in key)
    right = left + n_panels * width + (n_panels - 1) * gap
    figure = Figure(figsize=(right + 0.7 + letters * _LETTER, len(rows) * (above + height + below)))
    size = figure.get_size_inches()
    for index, (row, key) in enumerate(zip(rows, keys, strict=True)):
        bottom = (len(rows) - 1 - index) * (above + height + below) + below
        for column, (measure, lines) in enumerate(row.lines.items()):
            place = (left + column * (width + gap), bottom, width, height)
            _draw_panel(figure.add_axes(tuple(np.divide(place, [*size, *size]))), row, measure, lines)
        top = (bottom + height) / size[1]
        figure.text(left / size[0], top + 0.15 / size[1], _shorten_label(row.title, 100), fontsize="medium")
        figure.legend(key.values(), key.keys(), loc="upper left", bbox_to_anchor=(right / size[0], top))
    return figure


def _legend_entries(row: Panels) -> dict[str, Any]:
    """Return the legend of a row of panels: for each label, the artist that is shown beside it."""
    from matplotlib.lines import Line2D

    labelled = [line for line in next(iter(row.lines.values())) if line.label]
    ordered = sorted(labelled, key=lambda line: (line.colour is None, line.colour))  # not in the order of painting
    key = {_shorten_label(line.label): Line2D([], [], **_line_properties(line)) for line in ordered}
    if row.best_epoch is not None:
        key["best epoch"] = Line2D([], [], **_STAR)
    if row.restarts:
        key["resumed"] = Line2D([], [], **_RESTART)
    return key


def _line_properties(line: Line) -> dict[str, Any]:
    """Return the Matplotlib line properties that match the page's style sheet."""
    width = {"mean": 1.5, "dashed": 1.1, "thin": 0.75}[line.style]  # points
    dash = TRAINING_DASH if line.style == "dashed" else DASHES[line.colour or 0] if line.style == "mean" else ()
    return {
        "color": GREY if line.colour is None else COLOURS[line.colour],
        "linewidth": width,
        "linestyle": (0, [length / 2 for length in dash]) if dash else "-",
        "alpha": 0.45 if line.style == "thin" else 1,
    }


def _draw_panel(axes: "Axes", row: Panels, measure: Measure, lines: Sequence[Line]) -> None:
    from matplotlib.ticker import MaxNLocator

    n_bands = sum(line.half_width is not None for line in lines)
    for line in lines:
        properties = _line_properties(line)
        if line.half_width is not None:
            low, high = line.y - line.half_width, line.y + line.half_width
            axes.fill_between(line.x, low, high, color=properties["color"], alpha=min(0.18, 0.5 / n_bands), linewidth=0)
        is_point = len(finite_points(line)[0]) == 1  # a line through a single epoch would be invisible
        axes.plot(line.x, line.y, marker="o" if is_point else "", **properties)
    if row.best_epoch is not None and measure != "learning rate":
        height = np.interp(row.best_epoch, lines[-1].x, lines[-1].y)
        axes.plot([row.best_epoch], [height], zorder=3, **_STAR)
    for restart in row.restarts:
        axes.axvline(restart, **_RESTART)
    axes.set(xlabel="epoch", ylabel=AXIS_LABELS[measure])
    # Otherwise, Matplotlib measures all ticks once more.
    axes.xaxis.set_label_coords(0.5, -0.15)
    axes.yaxis.set_label_coords(-0.25, 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if limits := axis_limits(lines, measure):
        _set_scale(axes, limits)
        if beyond := lines_beyond(lines, limits):
            axes.set_title(f"{plural(len(beyond), 'line')} beyond the axis", loc="right", fontsize=_SMALL)


def _set_scale(axes: "Axes", limits: Limits) -> None:
    from matplotlib.ticker import LogLocator

    if limits.is_logarithmic:
        axes.set_yscale("log", subs=[])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylabel(f"{axes.get_ylabel()}, logarithmic")
    axes.set_ylim(limits.low, limits.high)


@_style()
def confusion_matrix(counts: np.ndarray, class_names: Sequence[str], title: str) -> "Figure":
    """Draw a confusion matrix with counts in the cells; each cell's colour shows its share of the true class.

    The colour depends on the square root of the share, so that rare confusions are visible. Cells without images have
    no count. With more than ``COUNTS_LIMIT`` classes, there are no counts; with more than ``ACROSS_LIMIT``, only some
    classes are named.

    Args:
        counts: (K, K) integer; one row per true class, one column per predicted class.
        class_names: K names.
        title: the run's name.

    Returns:
        A figure with the matrix and its colour scale.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    K = len(counts)
    side = float(np.clip(0.5 * K, 3, 10) if K <= COUNTS_LIMIT else 8)  # inches
    names = [_shorten_label(name, 24) for name in class_names]
    size = min(9.0, 54 * side / K)
    margin = 0.6 + max(size, _MIN_NAME_SIZE) / 9 * _LETTER * max(map(len, names))
    width, height = margin + side + 1.4, margin + side + 0.5
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((margin / width, margin / height, side / width, side / height))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # rows of classes without images are zero
    colours = ScalarMappable(PowerNorm(0.5, 0, 1), colormaps["Blues"])
    cells = colours.to_rgba(shares, bytes=True)
    width_px = _CELL if K <= COUNTS_LIMIT else _SMALL_CELL
    cells = cells.repeat(width_px, axis=0).repeat(width_px, axis=1)  # some viewers blur images of few pixels
    axes.imshow(cells, extent=(0, K, K, 0), interpolation="none", aspect="auto")
    if K <= COUNTS_LIMIT:
        _write_counts(axes, counts, shares, side)
    _name_classes(axes, names, size, margin / side * K)
    axes.set_title(_shorten_label(title), loc="left")
    scale = figure.add_axes(
        ((margin + side + 0.25) / width, (margin + 0.1 * side) / height, 0.2 / width, 0.8 * side / height)
    )
    figure.colorbar(colours, cax=scale, label="share of the true class", format=PercentFormatter(1), ticks=_SHARES)
    return figure


def _write_counts(axes: "Axes", counts: np.ndarray, shares: np.ndarray, side: float) -> None:
    """Write the counts that are not zero, in a font size at which the longest fits into a cell of side / K inches."""
    size = min(9.0, 72 * side / len(counts) / (0.7 * len(f"{counts.max():,d}")))
    for row, column in zip(*counts.nonzero(), strict=True):
        colour = "white" if shares[row, column] > _DARK_SHARE else "black"
        text = f"{counts[row, column]:,d}"
        axes.text(column + 0.5, row + 0.5, text, color=colour, fontsize=size, ha="center", va="center_baseline")


def _name_classes(axes: "Axes", names: list[str], size: float, margin: float) -> None:
    """Write the names of the classes as plain texts, which are faster to draw than ticks; ``margin`` is in cells."""
    K = len(names)
    upright = 90 if max(len(name) for name in names) > len("10") else 0
    axes.set(xticks=[], yticks=[])
    style: dict[str, Any] = {"fontsize": max(size, _MIN_NAME_SIZE)}
    for index in range(0, K, math.ceil(K / LABELS_LIMIT)):
        axes.text(-0.01 * K, index + 0.5, names[index], ha="right", va="center", **style)
    for index in range(0, K, math.ceil(K / ACROSS_LIMIT)):
        axes.text(index + 0.5, 1.01 * K, names[index], ha="center", va="top", rotation=upright, **style)
    style = {"fontsize": "medium", "ha": "center"}
    axes.text(-margin + 0.02 * K, K / 2, "true class", rotation=90, va="center", **style)
    axes.text(K / 2, K + margin - 0.02 * K, "predicted class", va="bottom", **style)


@_style()
def convolution_filters(layers: Sequence[tuple[str, np.ndarray, tuple[int, ...]]], title: str) -> "Figure":
    """Draw the filters of each convolution as small images; see :func:`cnnjob.reporting.filter_grid.filter_tiles`.

    If some filters or channels are not shown, an axis label states how many there are.

    Args:
        layers: for each convolution, its name, the weights that are shown, (K, K, C, F) floating point, and the shape
            of all its weights.
        title: the run's name.

    Returns:
        A figure that contains one image per convolution, one below the other.
    """
    from matplotlib.figure import Figure

    sheets = [filter_tiles(weights) for _, weights, _ in layers]  # (R, Q, K, K, 3) each
    sides = [min(0.6, 6 / max(tiles.shape[:2])) for tiles in sheets]  # inches
    heights = [len(tiles) * side + 1.1 for tiles, side in zip(sheets, sides, strict=True)]
    width = max(4.0, *(tiles.shape[1] * side for tiles, side in zip(sheets, sides, strict=True))) + 0.9
    figure, top = Figure(figsize=(width, sum(heights))), sum(heights)
    for (name, weights, shape), tiles, height in zip(layers, sheets, heights, strict=True):
        top -= height
        place = (0.6 / width, (top + 0.6) / sum(heights), 1 - 0.9 / width, (height - 1.1) / sum(heights))
        axes = figure.add_axes(place, label=name)
        axes.imshow(join_tiles(tiles), interpolation="none")
        axes.spines[:].set_visible(False)
        axes.grid(visible=False)
        axes.set(title=_shorten_label(title) if len(layers) == 1 else f"{_shorten_label(title)}: {name}")
        axes.set(xticks=[], yticks=[])
        _name_tiles(axes, weights.shape, shape, tiles.shape)
    return figure


def _name_tiles(axes: "Axes", weights: tuple[int, ...], shape: tuple[int, ...], tiles: tuple[int, ...]) -> None:
    """Label a sheet of tiles, given the shape of the weights that it shows and of all weights of the layer."""
    K, _, C, F = shape
    R, Q = tiles[:2]
    if C in PICTURE_CHANNELS:
        axes.set_xlabel(f"{_describe_count(F, R * Q, 'filter')} of {K}×{K} pixels, row by row, each on its own scale")
        return
    (across, n_across), (down, n_down) = (("filter", F), ("channel", C))[:: 1 if weights[3] >= weights[2] else -1]
    for axis, name, n, shown in ((axes.xaxis, across, n_across, Q), (axes.yaxis, down, n_down, R)):
        indices = np.arange(0, shown, math.ceil(shown / 8))
        pitch = K * ENLARGED + 1
        axis.set_ticks(indices * pitch + pitch / 2, [str(index + 1) for index in indices])
        axis.set_label_text(name if n == shown else _describe_count(n, shown, name))


def _describe_count(n: int, limit: int, noun: str) -> str:
    total = plural(n, noun)
    return total if n <= limit else f"the first {limit} of {total}"


def _shorten_label(name: str, n_letters: int = _NAME_LENGTH) -> str:
    """Return a name on one line, with the middle omitted if it is long.

    Matplotlib omits labels that begin with ``_`` from legends, so such a name gets a leading space.
    """
    line = shorten_middle(" ".join(name.split()), n_letters)
    return f" {line}" if line.startswith("_") else line
