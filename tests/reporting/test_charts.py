"""Learning curves to the coordinates of a chart, against numbers by hand."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnjob.reporting.curve import Curve
from cnnjob.reporting.page.charts import (
    BOTTOM,
    LEFT,
    MAX_POINTS_PER_LINE,
    RIGHT,
    TOP,
    Axis,
    Line,
    build_chart,
    build_group_chart,
    build_run_chart,
)
from tests.helpers.records import group


def line(y: list[float]) -> Line:
    return Line(np.arange(1.0, len(y) + 1), np.array(y), 0, "mean")


def numbers(path: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?[\d.]+", path.replace("h0", ""))]


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=20))
def test_every_value_lies_on_its_axis(values: list[float]) -> None:
    axis = Axis.upward(np.array(values), logarithmic=False)
    places = axis.at(np.array(values))
    assert ((places >= TOP) & (places <= BOTTOM)).all()
    assert 1 <= len(axis.ticks()) <= 11


def test_a_line_goes_from_edge_to_edge_through_what_is_known() -> None:
    drawn = build_chart("accuracy", "epoch", "accuracy", [line([0, np.nan, 100])])
    assert drawn is not None
    left, low, right, high = numbers(drawn.lines[0].d)
    assert (left, right) == (LEFT, RIGHT)
    assert BOTTOM > low > high > TOP
    assert [tick.label for tick in drawn.x_ticks] == ["1", "2", "3"]
    assert [tick.label for tick in drawn.y_ticks] == ["0", "25", "50", "75", "100"]


def test_losses_of_several_magnitudes_have_a_logarithmic_axis() -> None:
    drawn = build_chart("loss", "epoch", "loss", [line([1.0, 0.1, 0.01])])
    assert drawn is not None
    assert drawn.y_label.endswith("logarithmic")
    places = numbers(drawn.lines[0].d)[1::2]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.2)
    assert [tick.label for tick in drawn.y_ticks] == ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"]


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


def test_a_group_has_its_seeds_and_their_mean_with_a_band() -> None:
    from cnnjob.reporting.groups import group_runs

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
    hours = build_group_chart([one], "loss", "time")
    assert hours is not None
    assert numbers(hours.lines[-1].d)[-2] == pytest.approx(LEFT + 3 / 5 * (RIGHT - LEFT), abs=0.1)


def test_a_copy_of_a_run_is_no_second_seed() -> None:
    from cnnjob.reporting.groups import group_runs

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
    from cnnjob.reporting.groups import group_runs

    records = group(0.5, 0.6)
    for number, record in enumerate(records):
        history = {"epoch": np.arange(1.0, 3), "seconds": np.full(2, (1.0, seconds)[number]), "train_loss": np.ones(2)}
        record.curve = Curve(record.name, history)
    drawn = build_group_chart(group_runs(records), "loss", "time")
    assert drawn is not None
    assert drawn.x_label == f"{unit} of training"
    assert drawn.title.endswith(f"over {unit} of training")
