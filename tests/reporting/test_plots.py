"""Figures, by what their axes hold."""

import io
from collections.abc import Iterator
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

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EPOCHS = np.arange(1.0, 6.0)


def curve(name: str = "run", split: str | None = "validation", epochs: np.ndarray = EPOCHS, **more: Any) -> Curve:
    history = {"epoch": epochs, "train_loss": 1 / epochs, "train_accuracy": 1 - 0.5 / epochs}
    if split:
        history |= {f"{split}_loss": 2 / epochs, f"{split}_accuracy": 1 - 0.8 / epochs}
    return Curve(name, history, **more)


def lines(axes: "Axes") -> dict[str, tuple[list[float], list[float]]]:
    return {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}  # type: ignore[arg-type]


def legend(figure: "Figure") -> list[str]:
    return [text.get_text() for each in figure.legends for text in each.get_texts()]


def title(figure: "Figure") -> str:
    return figure.get_suptitle() or figure.axes[0].get_title()


def texts(figure: "Figure") -> Iterator[str]:
    return (text.get_text() for text in figure.axes[0].texts)


def test_a_learning_curve_holds_both_splits_with_units() -> None:
    loss, accuracy = plots.learning_curve(curve()).axes
    assert lines(loss) == {
        "training": (EPOCHS.tolist(), (1 / EPOCHS).tolist()),
        "validation": (EPOCHS.tolist(), (2 / EPOCHS).tolist()),
    }
    assert lines(accuracy)["validation"][1] == pytest.approx(100 - 80 / EPOCHS)
    assert (loss.get_xlabel(), loss.get_ylabel()) == ("epoch", "loss (nats per image)")
    assert (accuracy.get_xlabel(), accuracy.get_ylabel()) == ("epoch", "accuracy (%)")


def test_a_learning_curve_marks_the_best_epoch_and_the_restarts() -> None:
    figure = plots.learning_curve(curve(split="test", best_epoch=4, restarts=(1.5, 3.0)))
    loss = figure.axes[0]
    assert lines(loss)["best epoch"] == ([4], [0.5])
    assert [line.get_xdata() for line in loss.lines if line.get_linestyle() == ":"] == [[1.5, 1.5], [3.0, 3.0]]
    assert legend(figure) == ["training", "test", "best epoch", "restart"]


def test_a_learning_curve_without_a_watched_split_shows_the_training() -> None:
    figure = plots.learning_curve(curve(split=None, best_epoch=5))
    assert legend(figure) == ["training", "best epoch"]
    assert lines(figure.axes[0])["best epoch"] == ([5], [0.2])


def test_one_epoch_is_a_visible_point_on_a_whole_number() -> None:
    figure = plots.learning_curve(curve(epochs=np.array([1.0])))
    loss = figure.axes[0]
    assert loss.lines[0].get_marker() == "."
    low, high = loss.get_xlim()
    assert [tick for tick in loss.get_xticks() if low <= tick <= high] == [1]


def test_losses_of_several_magnitudes_get_a_logarithmic_axis() -> None:
    falling = Curve("run", {"epoch": EPOCHS, "train_loss": 10.0**-EPOCHS})
    loss, accuracy = plots.overlaid_curves([falling]).axes
    assert (loss.get_yscale(), accuracy.get_yscale()) == ("log", "linear")
    assert "logarithmic" in loss.get_ylabel()
    assert plots.learning_curve(curve()).axes[0].get_yscale() == "linear"


def test_a_history_without_a_number_is_drawn_empty() -> None:
    figure = plots.learning_curve(Curve("run", {"epoch": EPOCHS}, best_epoch=2))
    assert plots.to_bytes(figure, "png")


def test_overlaid_curves_follow_the_split_that_each_watched() -> None:
    runs = [curve("a", "validation", best_epoch=2, restarts=(1.5,)), curve("b", "test"), curve("c", None)]
    figure = plots.overlaid_curves(runs)
    drawn = lines(figure.axes[0])
    assert [drawn[name][1][0] for name in "abc"] == [2, 2, 1]
    assert legend(figure) == ["a", "b", "c"]
    assert [line.get_marker() for line in figure.axes[0].lines] == [".", "|", "*", ".", "."]
    assert title(figure).startswith("3 runs")


@pytest.mark.parametrize("n_runs", [1, 30, plots.LEGEND_LIMIT])
def test_overlaid_curves_can_be_told_apart(n_runs: int) -> None:
    figure = plots.overlaid_curves([curve(f"run-{number}") for number in range(n_runs)])
    looks = {(line.get_color(), str(line._dash_pattern)) for line in figure.axes[0].lines}  # type: ignore[attr-defined]
    assert len(looks) == len(legend(figure)) == n_runs


def test_the_legend_lies_beside_the_axes() -> None:
    figure = plots.overlaid_curves([curve(f"a-rather-long-name-of-a-run-{number}") for number in range(30)])
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= max(axes.get_window_extent().x1 for axes in figure.axes)
    assert box.x1 <= figure.bbox.x1
    assert box.y0 >= 0
    assert figure._suptitle.get_window_extent().x1 <= box.x0  # type: ignore[attr-defined]


def test_too_many_curves_have_no_legend_and_the_title_says_so() -> None:
    figure = plots.overlaid_curves([curve(f"run-{number}") for number in range(plots.LEGEND_LIMIT + 1)])
    assert not figure.legends
    assert "too many for a legend" in title(figure)


def test_a_confusion_matrix_names_and_counts() -> None:
    counts = np.array([[1234, 6, 0], [1, 2, 1], [0, 0, 0]])
    figure = plots.confusion_matrix(counts, ["ant", "bee", "cat"], "tiny")
    matrix, scale = figure.axes
    assert list(texts(figure)) == ["1,234", "6", "0", "1", "2", "1", "0", "0", "0"]
    assert [label.get_text() for label in matrix.get_xticklabels()] == ["ant", "bee", "cat"]
    assert [label.get_text() for label in matrix.get_yticklabels()] == ["ant", "bee", "cat"]
    assert (matrix.get_xlabel(), matrix.get_ylabel()) == ("predicted class", "true class")
    shares = np.asarray(matrix.collections[0].get_array()).reshape(3, 3)
    assert shares[1].tolist() == [0.25, 0.5, 0.25]
    assert shares[2].tolist() == [0, 0, 0]
    assert scale.get_ylabel() == "share of the true class"
    assert title(figure) == "tiny"


@pytest.mark.parametrize("K", [2, 10, plots.COUNTS_LIMIT])
def test_counts_fit_their_cells(K: int) -> None:
    figure = plots.confusion_matrix(np.full((K, K), 123_456), ["a class of animals"] * K, "tiny")
    figure.draw_without_rendering()
    matrix = figure.axes[0]
    cell = matrix.get_window_extent().width / K
    assert all(text.get_window_extent().width < cell for text in matrix.texts)


def test_a_hundred_classes_are_named_without_overlap_and_not_counted() -> None:
    figure = plots.confusion_matrix(np.eye(100, dtype=np.int64), [f"class {k}" for k in range(100)], "tiny")
    figure.draw_without_rendering()
    labels = figure.axes[0].get_yticklabels()
    boxes = [label.get_window_extent() for label in labels]
    assert len(labels) == 100
    assert not list(texts(figure))
    assert all(upper.y0 >= lower.y1 - 1 for upper, lower in pairwise(boxes))
    assert all(box.x0 >= 0 for box in boxes)


def test_of_many_classes_some_are_named() -> None:
    figure = plots.confusion_matrix(np.eye(250, dtype=np.int64), [str(k) for k in range(250)], "tiny")
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()][:3] == ["0", "3", "6"]


def sheet(weights: np.ndarray) -> np.ndarray:
    return np.asarray(plots.first_layer_filters(weights, "tiny").axes[0].images[0].get_array())


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
    axes = plots.first_layer_filters(np.random.default_rng(0).normal(size=(3, 3, C, F)), "tiny").axes[0]
    assert axes.images[0].get_size() == (2 * 10 + 1, 5 * 10 + 1)
    assert (axes.get_xlabel(), axes.get_ylabel()) == (across, down)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "3", "4", "5"]


def filter_label(*shape: int) -> str:
    """The x label of a sheet of filters."""
    return plots.first_layer_filters(np.zeros(shape), "tiny").axes[0].get_xlabel()


def test_filters_and_channels_beyond_the_limit_are_counted() -> None:
    assert filter_label(1, 1, 65, 2) == "the first 64 of 65 channels"
    assert filter_label(1, 1, 1, 5000).startswith("the first 4096 of 5000")
    assert filter_label(1, 1, 1, 1).startswith("1 filter of 1×1 pixels")


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
        plots.overlaid_curves([curve(name) for name in STRANGE]),
        plots.confusion_matrix(np.eye(6, dtype=np.int64), STRANGE, STRANGE[0]),
        plots.first_layer_filters(np.zeros((3, 3, 1, 2)), STRANGE[2]),
    ]
    assert [name.strip() for name in legend(figures[0])][:2] == ["$\\frac{1", "_hidden"]
    assert len(legend(figures[0])) == len(STRANGE)
    assert all(len(name) <= 41 for name in legend(figures[0]))
    assert all(plots.to_bytes(figure, kind) for figure in figures)


def test_files_open_and_equal_figures_give_equal_files() -> None:
    first, again = (plots.learning_curve(curve(best_epoch=2)) for _ in range(2))
    png, svg = plots.to_bytes(first, "png"), plots.to_bytes(first, "svg")
    assert Image.open(io.BytesIO(png)).size == (1350, 675)
    assert ET.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert (plots.to_bytes(again, "png"), plots.to_bytes(again, "svg")) == (png, svg)
    assert b"dc:date" not in svg


def test_the_users_own_settings_change_nothing_and_are_left_alone() -> None:
    import matplotlib as mpl

    plain = plots.to_bytes(plots.learning_curve(curve()), "svg")
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.hashsalt": None}):
        assert plots.to_bytes(plots.learning_curve(curve()), "svg") == plain
        assert mpl.rcParams["font.size"] == 30
