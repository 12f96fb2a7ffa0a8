"""Parts of the page: folded rows, dates, parallel coordinates, the table of a network, folded attempts."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cnnjob.jobs.job import Job
from cnnjob.reporting.attempts import Attempt
from cnnjob.reporting.groups import group_runs
from cnnjob.reporting.network_table import layer_rows
from cnnjob.reporting.page import parallel, results, sections
from cnnjob.reporting.page.parallel import build_parallel_chart
from cnnjob.reporting.record import Record, read_record
from tests.helpers import run_folders as folders
from tests.helpers.records import group, record
from tests.helpers.run_folders import JOB

START = datetime(2026, 11, 30, 23, 50, tzinfo=UTC)


def attempt(number: int, minutes: float = 5, why: str = "stopped: SIGTERM", **facts: int) -> Attempt:
    """An attempt that began after the attempts before it, each of ten minutes, and waited for a minute."""
    started = START + timedelta(minutes=10 * number)
    waited_from = started - timedelta(minutes=1)
    lost_steps = facts.get("lost_steps", 0)
    ended = started + timedelta(minutes=minutes)
    return Attempt(number, "node", "17", waited_from, started, ended, None, 100, lost_steps, why, "")


def unfinished(count: int, state: str, reason: str) -> list[Record]:
    records = [record(None, seed, state=state) for seed in range(count)]
    for each in records:
        each.row["reason"] = reason
    return records


def test_equal_unfinished_runs_share_a_row() -> None:
    pending = unfinished(900, "pending", "pending: not started yet")
    few = unfinished(3, "failed", "failed: no memory")
    running = unfinished(4, "running", "")
    for number, each in enumerate(running):
        each.row["reason"] = f"running on node{number}"
    folds = results.fold_runs([*pending, *few, *running, *group(*[0.9] * 5)])
    assert [(len(fold.records), fold.state) for fold in folds] == [
        (900, "pending"),
        *[(1, "failed")] * 3,
        (4, "running"),
        *[(1, "finished")] * 5,
    ]
    assert [fold.reason for fold in folds[:5]] == ["pending: not started yet", *["failed: no memory"] * 3, ""]


def test_states_are_counted_in_a_fixed_order() -> None:
    records = [*unfinished(2, "failed", "x"), *group(0.9), *unfinished(1, "foreign", "x")]
    assert results.count_states(records) == [("finished", 1), ("failed", 2), ("foreign", 1)]


def test_the_period_is_of_all_attempts_in_utc() -> None:
    records = group(0.9, 0.8)
    assert results.describe_period(records) == ""
    records[0].attempts = [attempt(0)]
    assert results.describe_period(records) == "30 Nov 2026, 23:50–23:55 UTC"
    records[0].attempts = [attempt(0, minutes=0.5)]
    assert results.describe_period(records) == "30 Nov 2026, 23:50 UTC"
    records[1].attempts = [attempt(1)]
    assert results.describe_period(records) == "30 Nov 2026, 23:50 – 1 Dec 2026, 00:05 UTC"
    records[1].row["state"] = "running"
    assert results.describe_period(records) == "since 30 Nov 2026, 23:50 UTC"


def test_a_single_setting_has_no_column_of_its_own() -> None:
    (one,) = results.build_results(group_runs([*group(0.9, rate=0.1), *group(0.8, rate=0.2)]))
    assert (one.settings, one.columns) == (["rate"], [])
    assert [entry.name for entry in one.entries] == ["rate 0.1", "rate 0.2"]
    (two,) = results.build_results(group_runs([*group(0.9, rate=0.1, mode="a"), *group(0.8, 0.7, rate=0.2, mode="b")]))
    assert two.columns == ["rate", "mode"]
    assert [entry.name for entry in two.entries] == [two.groups[0].records[0].name, "tiny"]


def test_the_best_result_is_stated_with_its_basis() -> None:
    (result,) = results.build_results(group_runs([*group(0.9, 0.92, rate=0.1), *group(0.8, 0.81, rate=0.2)]))
    assert result.basis.startswith("mean of 2 seeds")
    assert result.lead.startswith("rate 0.1")
    (single,) = results.build_results(group_runs(group(0.9)))
    assert single.basis.startswith("one run, seed 0")
    assert single.lead == ""
    (none,) = results.build_results(group_runs(unfinished(1, "pending", "x")))
    assert (none.basis, none.entries) == ("", [])


def heights(path: str) -> list[float]:
    return [float(point.split()[1]) for point in re.split("[ML]", path)[1:]]


def test_parallel_coordinates_have_log_axes_categories_and_titles() -> None:
    runs = [
        each
        for accuracy, rate, kind in [(0.9, 0.001, "sgd"), (0.8, 0.01, "adamw"), (0.7, 0.1, "sgd"), (0.6, 0.1, None)]
        for each in group(accuracy, rate=rate, kind=kind)
    ]
    runs += unfinished(1, "pending", "not started")
    groups = group_runs(runs)
    chart = build_parallel_chart(groups, ["rate", "kind"])
    assert chart
    assert [axis.title for axis in chart.axes] == ["rate", "kind", "test accuracy, %"]
    assert [label.title for label in chart.axes[0].labels] == ["0.001", "0.01", "0.1"]
    steps = [label.at for label in chart.axes[0].labels]
    assert steps[0] - steps[1] == pytest.approx(steps[1] - steps[2], abs=0.2)  # logarithmic
    assert {label.title for label in chart.axes[1].labels} == {"sgd", "adamw", "–"}
    best = chart.lines[-1]
    assert (best.share, best.title) == (100, "90.00 %: rate 0.001, kind sgd")
    assert heights(best.d)[0] == parallel.BOTTOM
    assert heights(best.d)[-1] == parallel.TOP
    assert [line.share for line in chart.lines] == [0, 33, 67, 100]
    assert "Best: 90.00 %: rate 0.001, kind sgd" in chart.alternative


def test_parallel_coordinates_need_groups_and_settings_that_differ() -> None:
    groups = group_runs([*group(0.9, rate=1), *group(0.8, rate=2)])
    assert build_parallel_chart(groups, ["rate"]) is None
    groups = group_runs([*group(0.9, rate=1), *group(0.8, rate=2), *group(0.9, rate=3)])
    assert build_parallel_chart(groups, []) is None
    chart = build_parallel_chart(groups, ["rate"])
    assert chart
    assert [label.text for label in chart.axes[0].labels] == ["1", "2", "3"]


def test_many_values_and_long_names_are_shortened_on_an_axis() -> None:
    name = "a_setting_with_a_very_long_name"
    many = [each for index in range(40) for each in group(index / 50, **{name: "word" * 5 + f"{index}", "rate": index})]
    chart = build_parallel_chart(group_runs(many), [name, "rate"])
    assert chart
    assert all(len(axis.labels) <= 13 for axis in chart.axes)
    assert "…" in chart.axes[0].text
    assert chart.axes[0].title == name
    assert all(len(label.text) <= 14 for label in chart.axes[0].labels)


def test_equal_accuracies_are_drawn_in_the_middle() -> None:
    same = [each for rate in (0, 1, 10) for each in group(0.5, rate=rate)]
    chart = build_parallel_chart(group_runs(same), ["rate"])
    assert chart
    assert {heights(line.d)[1] for line in chart.lines} == {(parallel.TOP + parallel.BOTTOM) / 2}
    assert {line.share for line in chart.lines} == {100}


def test_a_network_is_a_table_of_layers() -> None:
    blocks = [
        {"conv": 16, "kernel": 5, "pool": 2, "batch_norm": True},
        {"residual": [{"conv": 32, "activation": "none"}]},
        {"dropout": 0.25},
        {"dense": 64, "activation": "gelu", "frozen": True},
    ]
    job = Job.checked({**JOB, "model": {"blocks": blocks}}, "a test")
    rows = layer_rows(job.model, (28, 28, 3), 10)
    assert [(row.name, row.output_shape, row.n_parameters) for row in rows] == [
        ("conv1", "14×14×16", 5 * 5 * 3 * 16 + 2 * 16),
        ("residual1", "14×14×32", 9 * 16 * 32 + 32 + 16 * 32 + 32),
        ("residual1/conv1", "14×14×32", 9 * 16 * 32 + 32),
        ("residual1/projection", "14×14×32", 16 * 32 + 32),
        ("dropout1", "14×14×32", 0),
        ("dense1", "64", 14 * 14 * 32 * 64 + 64),
        ("classifier", "10", 650),
    ]
    assert [row.is_inner for row in rows] == [False, False, True, True, False, False, False]
    assert rows[0].settings == "16 filters, kernel 5, pool 2, batch norm, relu"
    assert rows[2].settings == "32 filters, kernel 3, no activation"
    assert rows[4].settings == "0.25"
    assert rows[5].settings == "64 units, gelu, frozen weights"


def test_a_run_has_its_layers_and_the_settings_that_matter(tmp_path: Path) -> None:
    run = folders.finished_run(tmp_path, label_smoothing=0.1)
    names = ["ant", "bee", "cat", "dog"]
    folders.change_job(run, data=run.manifest()["data"] | {"image_shape": [6, 6, 1], "class_names": names})
    shown = read_record(run, run.name)
    assert shown.layers[-1].output_shape == "4"
    assert {"train.epochs", "train.batch_size", "train.learning_rate", "train.optimiser"} <= set(shown.chosen)
    assert shown.chosen["train.label_smoothing"] == 0.1
    assert "train.weight_decay" not in shown.chosen
    section = sections.build_section(shown, "run-1", 1)
    assert section.chosen["label_smoothing"] == 0.1


def test_settings_of_all_runs_are_common() -> None:
    records = [record(0.9, rate=0.1, epochs=5), record(0.8, seed=1, rate=0.1, epochs=6)]
    assert sections.common_settings(records) == {"name": "tiny", "dataset": records[0].settings["dataset"], "rate": 0.1}
    assert sections.common_settings(records[:1]) == {}
    assert sections.common_settings([]) == {}


def test_attempts_that_ended_alike_share_a_row() -> None:
    attempts = [
        attempt(1, why="failed: x"),
        *(attempt(n, lost_steps=10) for n in range(2, 50)),
        attempt(50, why="finished"),
    ]
    folds = sections.fold_attempts(attempts)
    assert [len(fold.attempts) for fold in folds] == [1, 48, 1]
    assert (folds[1].waited_seconds, folds[1].lost_steps) == (48 * 60, 480)
    assert [len(fold.attempts) for fold in sections.fold_attempts(attempts[:4])] == [1, 1, 1, 1]
