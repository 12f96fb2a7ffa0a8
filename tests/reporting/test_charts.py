"""Learning curves to the coordinates of a chart, against numbers by hand."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnjob.reporting.curve import Curve
from cnnjob.reporting.groups import Group, group_runs
from cnnjob.reporting.lines import Line, axis_limits
from cnnjob.reporting.page.charts import (
    BOTTOM,
    LEFT,
    MAX_POINTS_PER_LINE,
    RIGHT,
    TOP,
    Axis,
    build_chart,
    build_group_chart,
    build_run_chart,
)
from tests.helpers.records import group


def line(y: list[float]) -> Line:
    return Line(np.arange(1.0, len(y) + 1), np.array(y), 0, "mean")


def numbers(path: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?[\d.]+", path.replace("h0", ""))]


@given(st.lists(st.floats(0, 19), min_size=1, max_size=20), st.booleans())
def test_every_value_lies_on_its_axis(values: list[float], logarithmic: bool) -> None:  # noqa: FBT001
    limits = axis_limits([line(values)], "loss", logarithmic=logarithmic)
    if limits is None:
        assert logarithmic
        assert min(values) <= 1e-30
        return
    axis = Axis.upward(limits)
    assert limits.low <= min(values)
    assert limits.high >= max(values)
    assert 0 <= len(axis.ticks()) <= 40
    assert all(TOP - 0.1 <= tick.at <= BOTTOM + 0.1 for tick in axis.ticks())


@given(st.lists(st.floats(0, 100), min_size=1, max_size=20))
def test_the_axis_of_accuracies_is_within_0_and_100(values: list[float]) -> None:
    limits = axis_limits([line(values)], "accuracy")
    assert limits is not None
    assert 0 <= limits.low < limits.high <= 100


def test_a_line_goes_through_what_is_known_in_data_coordinates() -> None:
    drawn = build_chart("accuracy", "epoch", "accuracy", [line([0, np.nan, 98.764])])
    assert drawn is not None
    assert drawn.lines[0].d == "M1 0L3 98.76"
    assert drawn.view_box() == "1 -100 2 100"
    assert [tick.label for tick in drawn.x_ticks] == ["1", "2", "3"]
    assert [tick.label for tick in drawn.y_ticks] == ["0", "20", "40", "60", "80", "100"]


def test_losses_of_several_magnitudes_have_a_logarithmic_axis() -> None:
    drawn = build_chart("loss", "epoch", "loss", [line([1.0, 0.1, 0.01])])
    assert drawn is not None
    assert drawn.up.is_logarithmic
    assert drawn.lines[0].d == "M1 0L2 -1L3 -2"
    assert [tick.label for tick in drawn.y_ticks] == ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"]
    assert drawn.scales["log"][2] == [[tick.at, tick.label] for tick in drawn.y_ticks]
    assert set(drawn.scales) == {"linear", "log"}


def test_a_loss_of_zero_has_no_logarithmic_axis() -> None:
    drawn = build_chart("loss", "epoch", "loss", [line([1.0, 0.1, 0.0])])
    assert drawn is not None
    assert not drawn.up.is_logarithmic
    assert not drawn.scales


def test_a_run_that_diverges_does_not_change_the_range_of_the_others() -> None:
    sane, diverged = folders_of(
        {"loss": [2.0, 1.0, 0.5], "accuracy": [0.8, 0.9, 0.9]},
        {"loss": [2.0, 1e6, np.nan], "accuracy": [0.1, 0.2, 0.1]},
    )
    alone = build_group_chart([sane], "loss", "epoch")
    both = build_group_chart([sane, diverged], "loss", "epoch")
    assert alone is not None
    assert both is not None
    assert both.view_box() == alone.view_box()
    assert [mark.kind for mark in both.marks] == ["above", "stop"]
    assert both.marks[0].x == pytest.approx(LEFT, abs=0.01)
    assert both.marks[0].y == TOP
    cross = "A cross is the last value before the loss was no longer finite."
    assert both.note == f"Leaving the chart: {diverged.label}. {cross}"
    accuracy = build_group_chart([sane, diverged], "accuracy", "epoch")
    assert accuracy is not None
    assert accuracy.up.low > 50
    assert [mark.kind for mark in accuracy.marks] == ["below"]


def folders_of(*histories: dict[str, list[float]]) -> list[Group]:
    """Groups of one run each with these measures on the training images; an accuracy of 0.9 unless it is given."""
    records = [one for number in range(len(histories)) for one in group(0.9 - 0.1 * number, **{"train.x": number})]
    for record, history in zip(records, histories, strict=True):
        n = len(history["loss"])
        measures = {"accuracy": [0.9] * n} | history
        values = {f"train_{name}": np.array(each) for name, each in measures.items()}
        record.curve = Curve(record.name, {"epoch": np.arange(1.0, n + 1), "seconds": np.ones(n)} | values)
    return group_runs(records)


def test_a_run_that_diverges_alone_shows_what_was_before() -> None:
    history = {"epoch": np.arange(1.0, 5), "train_loss": np.array([2.0, 1.0, 1e9, 1e30])}
    drawn = build_run_chart(Curve("odd", history), "loss")
    assert drawn is not None
    assert drawn.up.high < 3
    assert "1e+12" in drawn.lines[0].d


def test_a_long_line_keeps_what_can_be_seen_and_a_point_is_a_dot() -> None:
    drawn = build_chart("accuracy", "epoch", "accuracy", [line(list(range(10_000))), line([5.0])])
    assert drawn is not None
    assert len(numbers(drawn.lines[0].d)) == 2 * MAX_POINTS_PER_LINE
    assert drawn.lines[1].d.endswith("h0")


def test_nothing_known_is_no_chart() -> None:
    assert build_chart("loss", "epoch", "loss", []) is None
    assert build_chart("loss", "epoch", "loss", [line([np.nan])]) is None
    assert build_group_chart([], "loss", "time") is None


def test_a_run_has_its_best_epoch_and_its_restarts() -> None:
    epochs = np.arange(1.0, 5)
    history = {"epoch": epochs, "train_loss": 1 / epochs, "validation_loss": 2 / epochs}
    drawn = build_run_chart(Curve("tiny", history, best_epoch=4, restarts=(2.5,)), "loss")
    assert drawn is not None
    assert [(path.title, path.style) for path in drawn.lines] == [
        ("training images", "dashed"),
        ("validation images", "mean"),
    ]
    assert [(mark.kind, mark.x) for mark in drawn.marks] == [("restart", (LEFT + RIGHT) / 2), ("best", RIGHT)]


def test_a_run_has_the_learning_rate_of_its_history() -> None:
    history = {"epoch": np.arange(1.0, 4), "train_loss": np.ones(3), "learning_rate": np.array([0.1, 0.05, 0.0])}
    drawn = build_run_chart(Curve("tiny", history, best_epoch=2), "learning rate")
    assert drawn is not None
    assert drawn.lines[0].d == "M1 0.1L2 0.05L3 0"
    assert not drawn.marks
    assert build_run_chart(Curve("tiny", history | {"learning_rate": np.full(3, np.nan)}), "learning rate") is None
    slow = build_run_chart(
        Curve("tiny", history | {"learning_rate": np.array([0.02, 0.01999, 0.01998])}), "learning rate"
    )
    assert slow is not None
    assert slow.up.ends[0] == 0
    assert max(len(tick.label) for tick in slow.up.ticks()) <= len("0.005")


def test_a_group_has_its_seeds_and_their_mean_with_a_band() -> None:
    records = group(0.5, 0.6, 0.7)
    for number, record in enumerate(records):
        n = 3 + number  # the runs are of three, four and five epochs
        history = {
            "epoch": np.arange(1.0, n + 1),
            "seconds": np.full(n, 360.0),
            "validation_loss": np.full(n, 1.0 + number),
        }
        record.curve = Curve(record.name, history)
    (one,) = group_runs(records)
    drawn = build_group_chart([one], "loss", "epoch")
    assert drawn is not None
    assert [path.style for path in drawn.lines] == ["thin"] * 3 + ["mean"]
    assert len(numbers(drawn.lines[-1].d)) == 2 * 3  # as far as all three go
    assert len(numbers(drawn.bands[0].d)) == 2 * 2 * 3
    minutes = build_group_chart([one], "loss", "time")
    assert minutes is not None
    # From the end of the first epoch to that of the last: the mean ends where the shortest run does.
    assert minutes.view_box().split()[::2] == ["6", "24"]
    assert numbers(minutes.lines[-1].d)[::2] == [6, 12, 18]


def test_over_time_the_mean_of_seeds_is_taken_at_the_end_of_each_epoch() -> None:
    records = group(0.5, 0.6)
    for record, seconds in zip(records, (1.0, 3.0), strict=True):
        history = {"epoch": np.arange(1.0, 3), "seconds": np.full(2, seconds), "train_loss": np.array([seconds, 1])}
        record.curve = Curve(record.name, history)
    drawn = build_group_chart(group_runs(records), "loss", "time")
    assert drawn is not None
    assert drawn.lines[-1].d == "M2 2L4 1"


def test_a_copy_of_a_run_is_no_second_seed() -> None:
    records = [*group(0.5, 0.6), *group(0.7)]
    for record in records:
        record.curve = Curve(record.name, {"epoch": np.arange(1.0, 3), "validation_loss": np.full(2, 1.0)})
    assert [record.row["seed"] for record in records] == [0, 1, 0]
    drawn = build_group_chart(group_runs(records), "loss", "epoch")
    assert drawn is not None
    assert [path.style for path in drawn.lines] == ["thin", "thin", "mean"]


def test_losses_of_any_magnitude_are_drawn() -> None:
    history = {"epoch": np.arange(1.0, 3), "train_loss": np.array([1e-300, 3e38]), "validation_loss": np.ones(2)}
    assert build_run_chart(Curve("odd", history), "loss") is not None


@pytest.mark.parametrize(
    ("seconds", "unit"),
    [(0.1, "seconds"), (30.0, "seconds"), (60.0, "minutes"), (3600.0, "hours"), (np.nan, "seconds")],
)
def test_time_has_the_unit_that_suits_the_longest_training(seconds: float, unit: str) -> None:
    records = group(0.5, 0.6)
    for number, record in enumerate(records):
        history = {"epoch": np.arange(1.0, 3), "seconds": np.full(2, (1.0, seconds)[number]), "train_loss": np.ones(2)}
        record.curve = Curve(record.name, history)
    drawn = build_group_chart(group_runs(records), "loss", "time")
    assert drawn is not None
    assert drawn.x_label == f"{unit} of training"
    assert drawn.title.endswith(f"over {unit} of training")
