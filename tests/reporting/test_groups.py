"""Runs to groups, means and intervals: against scipy, numbers by hand, and common sense."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cnnjob.reporting.groups import differing_settings, group_runs, interval, short_names
from cnnjob.reporting.record import BLOCKS, COLUMNS, Record
from tests.helpers.records import group, record
from tests.helpers.run_folders import finished_run


def test_the_interval_by_hand() -> None:
    found = interval([1.0, 2.0, 3.0])
    assert found is not None
    assert (found.mean, found.n) == (2, 3)
    assert found.half_width == pytest.approx(4.302653 / np.sqrt(3))  # t of two degrees at 97.5 %, deviation 1


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30))
def test_the_interval_is_that_of_scipy(values: list[float]) -> None:
    found = interval(values)
    assert found is not None
    assert found.half_width is not None
    if np.std(values) > 1e-9:
        low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert found.mean - found.half_width == pytest.approx(low, rel=1e-6, abs=1e-6)
        assert found.mean + found.half_width == pytest.approx(high, rel=1e-6, abs=1e-6)


def test_one_value_has_no_interval_and_none_has_no_mean() -> None:
    one = interval([0.5])
    assert one is not None
    assert (one.mean, one.half_width, one.n, one.excludes_zero) == (0.5, None, 1, False)
    assert interval([]) is None


def test_runs_that_differ_by_the_seed_alone_are_a_group() -> None:
    records = [*group(0.8, 0.9, rate=0.1), *group(0.5, 0.6, rate=0.2), Record("foreign", dict.fromkeys(COLUMNS))]
    found = group_runs(reversed(records))
    assert [one.label for one in found] == ["rate 0.1", "rate 0.2"]
    assert [one.settings for one in found] == [{"rate": 0.1}, {"rate": 0.2}]
    assert [list(one.by_seed) for one in found] == [[0, 1], [0, 1]]
    mean = found[0].interval("test_accuracy")
    assert mean is not None
    assert mean.mean == pytest.approx(0.85)


def test_what_does_not_decide_the_result_does_not_part_runs() -> None:
    indifferent: dict[str, Any] = {"resources.backend": "numpy", "train.checkpoint_seconds": 5.0}
    records = [record(0.5, 0), record(0.6, 1, **indifferent)]
    assert len(group_runs(records)) == 1
    assert len(group_runs([record(0.5), record(0.6, dataset="mnist 87654321")])) == 2


def test_other_optimisers_are_told_apart_by_their_names(tmp_path: Path) -> None:
    from cnnjob.reporting import record as records

    kinds: tuple[Any, ...] = ("sgd", "adamw", {"sgd": {"momentum": 0.5}}, {"sgd": {"nesterov": True}})
    runs = [finished_run(tmp_path, optimiser=kind) for kind in kinds]
    found = [records.read_record(run, run.name, pictures=False) for run in runs]
    assert {one.label for one in group_runs(found[:2])} == {"optimiser sgd", "optimiser adamw"}
    assert {one.label for one in group_runs([found[0], found[2]])} == {"sgd.momentum 0.9", "sgd.momentum 0.5"}
    labels = {one.label for one in group_runs(found)}
    assert labels == {
        "optimiser sgd, sgd.momentum 0.9, sgd.nesterov false", "optimiser sgd, sgd.momentum 0.5, sgd.nesterov false",
        "optimiser sgd, sgd.momentum 0.9, sgd.nesterov true", "optimiser adamw, sgd.momentum –, sgd.nesterov –",
    }  # fmt: skip


def test_a_copy_of_a_run_is_no_second_measurement() -> None:
    records = [record(0.5, 0), record(0.5, 0), record(0.7, 1), record(None, 2, state="stopped")]
    (one,) = group_runs(records)
    mean = one.interval("test_accuracy")
    assert mean is not None
    assert (mean.n, len(one.records)) == (2, 4)
    assert mean.mean == pytest.approx(0.6)


def test_a_group_is_called_by_its_job_by_what_differs_or_by_a_number() -> None:
    jobs = group_runs([record(0.5, a="x"), record(0.6, a="y")])
    assert [one.label for one in jobs] == ["a y", "a x"]
    long: dict[str, Any] = {"a": "x" * 120}
    assert [one.label for one in group_runs([record(0.5, **long), record(0.6)])] == ["a –", "tiny 2"]
    other = record(0.5, a="x")
    other.row["job"] = "other"
    assert [one.label for one in group_runs([other, record(0.6)])] == ["tiny", "other"]
    three = group_runs([other, record(0.7, a="y"), record(0.6, a="z")])
    assert [one.label for one in three] == ["tiny, a y", "tiny, a z", "other"]


def test_networks_of_other_shapes_are_compared_as_a_whole() -> None:
    deep: dict[str, Any] = {BLOCKS: "conv 8, dense 4", f"{BLOCKS}.1.conv": 8, f"{BLOCKS}.2.dense": 4}
    flat: dict[str, Any] = {BLOCKS: "dense 4", f"{BLOCKS}.1.dense": 4}
    wide: dict[str, Any] = {BLOCKS: "dense 9", f"{BLOCKS}.1.dense": 9}
    assert [list(one.settings) for one in group_runs([record(0.6, **deep), record(0.5, **flat)])] == [["blocks"]] * 2
    assert [one.settings for one in group_runs([record(0.6, **flat), record(0.5, **wide)])] == [
        {"dense": 4},
        {"dense": 9},
    ]


def test_shortcuts_make_other_shapes() -> None:
    plain: dict[str, Any] = {BLOCKS: "conv 4, conv 4"}
    shortcut: dict[str, Any] = {BLOCKS: "conv 4, residual (conv 4 + conv 4)", f"{BLOCKS}.2.residual.1.conv": 4}
    dropped: dict[str, Any] = {BLOCKS: "conv 4, residual (conv 4 + dropout 0.1 + conv 4)"}
    wider: dict[str, Any] = {BLOCKS: "conv 4, residual (conv 8 + conv 4)", f"{BLOCKS}.2.residual.1.conv": 8}
    for other in (plain, dropped):
        found = group_runs([record(0.6, **shortcut), record(0.5, **other)])
        assert [one.settings for one in found] == [{"blocks": shortcut[BLOCKS]}, {"blocks": other[BLOCKS]}]
    found = group_runs([record(0.6, **shortcut), record(0.5, **wider)])
    assert [one.settings for one in found] == [{"conv": 4}, {"conv": 8}]


def test_a_table_that_some_leave_out_is_one_difference() -> None:
    norm = f"{BLOCKS}.1.batch_norm"
    plain: dict[str, Any] = {norm: None, "train.momentum": 0.9}
    first: dict[str, Any] = {f"{norm}.momentum": 0.1, f"{norm}.eps": 1e-5, "train.momentum": 0.9}
    second = first | {f"{norm}.momentum": 0.4}
    assert [one.settings for one in group_runs([record(0.6, **plain), record(0.5, **first)])] == [
        {"batch_norm": None},
        {"batch_norm": True},
    ]
    three = group_runs([record(0.6, **plain), record(0.5, **first), record(0.4, **second)])
    assert [one.label for one in three] == [
        "batch_norm –, batch_norm.momentum –",
        "batch_norm true, batch_norm.momentum 0.1",
        "batch_norm true, batch_norm.momentum 0.4",
    ]
    both = group_runs([record(0.5, **first), record(0.4, **second)])
    assert [one.settings for one in both] == [{"batch_norm.momentum": 0.1}, {"batch_norm.momentum": 0.4}]


def test_a_table_without_effect_is_not_in_the_label_if_the_groups_differ_otherwise() -> None:
    full: dict[str, Any] = {"train.epochs": 12, "train.early_stopping.patience": 5}
    short: dict[str, Any] = {"train.epochs": 2, "train.early_stopping": None}
    assert [one.label for one in group_runs([record(0.6, **full), record(0.5, **short)])] == ["epochs 12", "epochs 2"]
    never = full | {"train.early_stopping": None}
    del never["train.early_stopping.patience"]
    found = group_runs([record(0.6, **full), record(0.5, **never)])
    assert [one.label for one in found] == ["early_stopping true", "early_stopping –"]


def test_differing_settings_and_their_names() -> None:
    assert differing_settings([{"a": 1, "b": 2}, {"a": 1, "b": 3, "c": None}, {"a": 1, "b": 2, "c": 4}]) == ["b", "c"]
    assert short_names(["train.rate", "model.1.init", "model.2.init"]) == {
        "train.rate": "rate", "model.1.init": "1.init", "model.2.init": "2.init",
    }  # fmt: skip


@given(st.lists(st.text("ab.", min_size=1, max_size=6), unique=True, max_size=6))
def test_short_names_are_each_of_one_key(keys: list[str]) -> None:
    names = short_names(keys)
    assert len(set(names.values())) == len(keys)
