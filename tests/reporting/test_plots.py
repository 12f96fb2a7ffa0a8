"""Figures, by what their axes hold."""

import io
import re
from importlib import resources
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cnnjob.reporting import plots
from cnnjob.reporting.curve import Curve
from cnnjob.reporting.groups import group_runs
from cnnjob.reporting.lines import COLOURS, DASHES, GREY, Line, group_lines, run_lines
from cnnjob.reporting.plots import Panels
from tests.helpers.records import group

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EPOCHS = np.arange(1.0, 6.0)


def curve(name: str = "run", split: str | None = "validation", epochs: np.ndarray = EPOCHS, **more: Any) -> Curve:
    history = {"epoch": epochs, "train_loss": 1 / epochs, "train_accuracy": 1 - 0.5 / epochs}
    if split:
        history |= {f"{split}_loss": 2 / epochs, f"{split}_accuracy": 1 - 0.8 / epochs}
    return Curve(name, history, **more)


def legend(figure: "Figure") -> list[str]:
    return [text.get_text() for each in figure.legends for text in each.get_texts()]


def panels(curve: Curve) -> Panels:
    """A run's panels, as the report draws them."""
    lines = {measure: run_lines(curve, measure) for measure in ("accuracy", "loss", "learning rate")}
    return Panels(curve.name, lines, curve.best_epoch, curve.restarts)  # type: ignore[arg-type]


def run_figure(curve: Curve) -> "Figure":
    return plots.learning_curves([panels(curve)])


def group_figure(*accuracies: float, n_groups: int = 1) -> "Figure":
    """The figure of groups of runs, each with one seed per accuracy."""
    records = [one for number in range(n_groups) for one in group(*accuracies, **{"train.learning_rate": number})]
    for record in records:
        record.curve = curve(record.name)
    return plots.learning_curves([Panels("tiny", {"accuracy": group_lines(group_runs(records), "accuracy")})])


def test_a_learning_curve_holds_both_splits_with_units() -> None:
    accuracy, loss, rate = run_figure(curve()).axes
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in loss.lines] == [  # type: ignore[arg-type]
        (EPOCHS.tolist(), (1 / EPOCHS).tolist()),
        (EPOCHS.tolist(), (2 / EPOCHS).tolist()),
    ]
    assert accuracy.lines[1].get_ydata() == pytest.approx(100 - 80 / EPOCHS)
    assert (loss.get_xlabel(), loss.get_ylabel()) == ("epoch", "loss, nats per image")
    assert (accuracy.get_xlabel(), accuracy.get_ylabel()) == ("epoch", "accuracy, %")
    assert rate.get_ylabel() == "learning rate"


def test_a_learning_curve_marks_the_best_epoch_and_the_restarts() -> None:
    figure = run_figure(curve(split="test", best_epoch=4, restarts=(1.5, 3.0)))
    loss = figure.axes[1]
    (star,) = [line for line in loss.lines if line.get_marker() == "*"]
    assert (list(star.get_xdata()), list(star.get_ydata())) == ([4], [0.5])  # type: ignore[arg-type]
    assert [line.get_xdata() for line in loss.lines if line.get_linestyle() == ":"] == [[1.5, 1.5], [3.0, 3.0]]
    assert legend(figure) == ["test images", "training images", "best epoch", "resumed"]


def test_a_learning_curve_without_a_watched_split_shows_the_training() -> None:
    assert legend(run_figure(curve(split=None, best_epoch=5))) == ["training images", "best epoch"]


def test_one_epoch_is_a_visible_point_on_a_whole_number() -> None:
    loss = run_figure(curve(epochs=np.array([1.0]))).axes[1]
    assert loss.lines[0].get_marker() == "o"
    low, high = loss.get_xlim()
    assert [tick for tick in loss.get_xticks() if low <= tick <= high] == [1]


def test_losses_of_several_magnitudes_get_a_logarithmic_axis() -> None:
    falling = Curve("run", {"epoch": EPOCHS, "train_loss": 10.0**-EPOCHS})
    accuracy, loss, _ = run_figure(falling).axes
    assert (loss.get_yscale(), accuracy.get_yscale()) == ("log", "linear")
    assert "logarithmic" in loss.get_ylabel()
    assert run_figure(curve()).axes[1].get_yscale() == "linear"


def test_a_history_without_a_number_is_drawn_empty() -> None:
    assert plots.to_bytes(run_figure(Curve("run", {"epoch": EPOCHS}, best_epoch=2)), "png")


def test_accuracies_are_within_0_and_100_and_a_diverged_run_leaves_the_axis() -> None:
    history = {
        "epoch": EPOCHS,
        "train_loss": np.array([2.0, 1, 30, 1e6, np.nan]),
        "train_accuracy": np.linspace(0, 1, 5),
    }
    accuracy, loss, _ = run_figure(Curve("run", history)).axes
    assert accuracy.get_ylim() == (0, 100)
    assert loss.get_ylim()[1] < 3
    assert loss.get_title("right") == "1 line beyond the axis"


def test_a_figure_has_the_groups_of_the_page_with_their_colours_and_labels() -> None:
    figure = group_figure(0.5, 0.6, n_groups=9)
    assert legend(figure) == [*(f"learning_rate {number}" for number in range(7)), "other groups"]
    colours = {str(line.get_color()) for line in figure.axes[0].lines if line.get_linewidth() > 1}
    assert colours == {*COLOURS, GREY}
    css = (resources.files("cnnjob.reporting.page") / "templates" / "style.css").read_text()
    assert all(f"--c{number}: {colour};" in css for number, colour in enumerate(COLOURS))
    dashes = {
        number: tuple(map(float, text.split()))
        for number, text in re.findall(r"mean\.k(\d) \{ stroke-dasharray: ([\d ]+);", css)
    }
    assert dashes == {str(number): dash for number, dash in enumerate(DASHES) if dash}


def test_the_legend_lies_beside_the_axes() -> None:
    records = group(0.5, **{"train.rather_long_name_of_a_setting": "x" * 50}) + group(0.6)
    for record in records:
        record.curve = curve(record.name)
    figure = plots.learning_curves([Panels("tiny", {"loss": group_lines(group_runs(records), "loss")})])
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= max(axes.get_window_extent().x1 for axes in figure.axes)
    assert box.x1 <= figure.bbox.x1
    assert box.y0 >= 0


def test_a_confusion_matrix_names_and_counts() -> None:
    counts = np.array([[1234, 6, 0], [1, 2, 1], [0, 0, 0]])
    figure = plots.confusion_matrix(counts, ["ant", "bee", "cat"], "tiny")
    matrix, scale = figure.axes
    counted = [(text.get_text(), *text.get_position()) for text in matrix.texts if text.get_text()[0].isdecimal()]
    assert counted == [("1,234", 0.5, 0.5), ("6", 1.5, 0.5), ("1", 0.5, 1.5), ("2", 1.5, 1.5), ("1", 2.5, 1.5)]
    names = [text.get_text() for text in matrix.texts if not text.get_text()[0].isdecimal()]
    assert names == [*("ant", "bee", "cat") * 2, "true class", "predicted class"]
    cells = np.asarray(matrix.images[0].get_array())[4::8, 4::8, :3].astype(int).sum(axis=-1)  # lighter is larger
    assert (cells[2] == cells[0, 2]).all()  # no image
    assert cells[0, 0] < cells[1, 1] < cells[1, 0] == cells[1, 2] < cells[0, 2]
    assert scale.get_ylabel() == "share of the true class"
    assert matrix.get_title("left") == "tiny"


@pytest.mark.parametrize("K", [2, 10, plots.COUNTS_LIMIT])
def test_counts_fit_their_cells(K: int) -> None:
    figure = plots.confusion_matrix(np.full((K, K), 123_456), ["a class of animals"] * K, "tiny")
    figure.draw_without_rendering()
    matrix = figure.axes[0]
    cell = matrix.get_window_extent().width / K
    assert all(text.get_window_extent().width < cell for text in matrix.texts if text.get_text() == "123,456")


def test_a_hundred_classes_are_named_without_overlap_and_not_counted() -> None:
    figure = plots.confusion_matrix(np.eye(100, dtype=np.int64), [f"class {k}" for k in range(100)], "tiny")
    figure.draw_without_rendering()
    labels = [text for text in figure.axes[0].texts if text.get_horizontalalignment() == "right"]
    boxes = [label.get_window_extent() for label in labels]
    assert [label.get_text() for label in labels] == [f"class {k}" for k in range(100)]
    assert len(figure.axes[0].texts) == 100 + 34 + 2
    assert all(upper.y0 >= lower.y1 - 1 for upper, lower in pairwise(boxes))
    assert all(box.x0 >= 0 for box in boxes)


def test_of_many_classes_some_are_named() -> None:
    figure = plots.confusion_matrix(np.eye(250, dtype=np.int64), [str(k) for k in range(250)], "tiny")
    assert [text.get_text() for text in figure.axes[0].texts if text.get_horizontalalignment() == "right"][:3] == [
        "0",
        "3",
        "6",
    ]


def filter_axes(weights: np.ndarray, shape: tuple[int, ...] | None = None) -> Any:
    return plots.convolution_filters([("conv1", weights, shape or weights.shape)], "tiny").axes[0]


def sheet(weights: np.ndarray) -> np.ndarray:
    return np.asarray(filter_axes(weights).images[0].get_array())


def test_grey_filters_are_each_scaled_to_their_own_range() -> None:
    weights = np.stack([np.linspace(0, 1, 9), np.linspace(-50, 50, 9), np.full(9, 7)], axis=-1).reshape(3, 3, 1, 3)
    drawn = sheet(weights)
    assert drawn.shape == (11, 31, 3)
    pictures = [drawn[2:10:3, 2 + 10 * place : 10 + 10 * place : 3] for place in range(3)]  # the pixels' centres
    ramp = np.linspace(0, 1, 9).reshape(3, 3, 1)
    assert pictures[0] == pytest.approx(np.broadcast_to(ramp, (3, 3, 3)))
    assert pictures[1] == pytest.approx(pictures[0])
    assert (pictures[2] == 0.5).all()


def test_filters_of_the_widest_range_are_scaled() -> None:
    assert sheet(np.array([-65504, 65504], np.float16).reshape(1, 1, 2, 1)).max() == 1


def test_filters_of_three_channels_are_in_colour() -> None:
    weights = np.zeros((1, 1, 3, 2))
    weights[0, 0, :, 0] = [1, 0.5, 0]
    weights[0, 0, :, 1] = [0, 0, 4]
    drawn = sheet(weights)
    assert drawn[1, 1].tolist() == [1, 0.5, 0]
    assert drawn[1, 5].tolist() == [0, 0, 1]


@pytest.mark.parametrize(("C", "F", "across", "down"), [(2, 5, "filter", "channel"), (5, 2, "channel", "filter")])
def test_filters_of_other_channels_have_a_picture_a_channel(C: int, F: int, across: str, down: str) -> None:
    axes = filter_axes(np.random.default_rng(0).normal(size=(3, 3, C, F)))
    assert axes.images[0].get_size() == (2 * 10 + 1, 5 * 10 + 1)
    assert (axes.get_xlabel(), axes.get_ylabel()) == (across, down)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "3", "4", "5"]


def filter_label(*shape: int) -> str:
    """The x label of a sheet of filters."""
    return str(filter_axes(np.zeros(shape)).get_xlabel())


def test_filters_and_channels_beyond_the_limit_are_counted() -> None:
    assert filter_label(1, 1, 65, 2) == "the first 64 of 65 channels"
    assert filter_label(1, 1, 1, 5000).startswith("the first 4096 of 5000")
    assert filter_label(1, 1, 1, 1).startswith("1 filter of 1×1 pixels")


def test_the_filters_of_all_convolutions_are_below_each_other() -> None:
    layers = [("conv1", np.zeros((5, 5, 1, 8)), (5, 5, 1, 8)), ("conv2", np.zeros((3, 3, 16, 32)), (3, 3, 64, 512))]
    first, second = plots.convolution_filters(layers, "tiny").axes
    assert [axes.get_title() for axes in (first, second)] == ["tiny: conv1", "tiny: conv2"]
    assert first.get_position().y0 > second.get_position().y1
    assert second.get_xlabel() == "the first 32 of 512 filters"
    assert second.get_ylabel() == "the first 16 of 64 channels"


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 70))
@settings(max_examples=20, deadline=None)
def test_any_number_of_filters_makes_a_sheet(K: int, C: int, F: int) -> None:
    weights = np.random.default_rng(K + C + F).normal(size=(K, K, C, F)).astype(np.float32)
    drawn = sheet(weights)
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    assert drawn.shape[0] % (3 * K + 1) == drawn.shape[1] % (3 * K + 1) == 1


STRANGE = ["$\\frac{1", "_hidden", "x" * 300, "two\nlines", "名前", "a & <b>"]


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_strange_names_are_printed_as_they_are(kind: plots.Format) -> None:
    figures = [
        plots.learning_curves([Panels(STRANGE[2], {"loss": [Line(EPOCHS, EPOCHS, 0, "mean", n, n) for n in STRANGE]})]),
        plots.confusion_matrix(np.eye(6, dtype=np.int64), STRANGE, STRANGE[0]),
        plots.convolution_filters([("conv1", np.zeros((3, 3, 1, 2)), (3, 3, 1, 2))], STRANGE[2]),
    ]
    assert [name.strip() for name in legend(figures[0])][:2] == ["$\\frac{1", "_hidden"]
    assert len(legend(figures[0])) == len(STRANGE)
    assert all(len(name) <= 41 for name in legend(figures[0]))
    assert all(plots.to_bytes(figure, kind) for figure in figures)


def test_files_open_and_equal_figures_give_equal_files() -> None:
    first, again = (run_figure(curve(best_epoch=2)) for _ in range(2))
    png, svg = plots.to_bytes(first, "png"), plots.to_bytes(first, "svg")
    assert Image.open(io.BytesIO(png)).size == (1991, 532)
    assert ET.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert (plots.to_bytes(again, "png"), plots.to_bytes(again, "svg")) == (png, svg)
    assert b"dc:date" not in svg


def test_the_users_own_settings_change_nothing_and_are_left_alone() -> None:
    import matplotlib as mpl

    plain = plots.to_bytes(run_figure(curve()), "svg")
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.hashsalt": None}):
        assert plots.to_bytes(run_figure(curve()), "svg") == plain
        assert mpl.rcParams["font.size"] == 30
