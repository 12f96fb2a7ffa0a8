"""``cnnjob bench``: the table, the file, the ratios."""

import json
import math
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cnnjob.cli.main import app


def cnnjob(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_figures_agree_with_one_another() -> None:
    found = cnnjob("bench", "mnist-baseline", "--rounds", "1", "--json")
    assert found.exit_code == 0, found.output
    engines = ["cnnjob numpy", "course float64", "floor: products", "floor: bytes"]
    rows = {row["engine"]: row for row in json.loads(found.stdout)}
    assert {*engines} <= {*rows} <= {*engines, "torch NCHW", "torch NHWC"}
    ours, course = rows["cnnjob numpy"], rows["course float64"]
    assert ours["speed_against_course"] == pytest.approx(course["median_ms"] / ours["median_ms"])
    assert ours["epoch_seconds"] == pytest.approx(0.937 * ours["median_ms"])
    assert ours["images_per_second"] == pytest.approx(64_000 / ours["median_ms"])


def test_one_block_without_torch() -> None:
    alone = cnnjob("bench", "conv-64-128", "--rounds", "1", "--against", "none")
    assert alone.exit_code == 0, alone.output
    assert "torch NCHW" not in alone.stdout
    for engine in ("cnnjob numpy", "course float64", "floor: products", "floor: bytes"):
        assert re.search(rf"^conv-64-128 +{engine} +[\d.]+ +", alone.stdout, re.MULTILINE)


def test_reading_is_measured_and_its_files_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = cnnjob("bench", "data", "--gigabytes", "0.001", "--rounds", "1", "--json")
    assert found.exit_code == 0, found.output
    rows = json.loads(found.stdout)
    assert [row["image_shape"] for row in rows] == [[32, 32, 3]] * 5 + [[224, 224, 3]] * 5
    for row in rows:
        size = math.prod(row["image_shape"])
        assert row["megabytes_per_second"] == pytest.approx(row["images_per_second"] * size / 1e6)
    assert list(tmp_path.iterdir()) == []
    table = cnnjob("bench", "data", "--gigabytes", "0.001", "--rounds", "1")
    assert re.search(r"^32×32×3 +random batches of 128, page cache +[\d,]+ +[\d,]+$", table.stdout, re.MULTILINE)


def test_a_mistake_is_one_message() -> None:
    found = cnnjob("bench", "nothing")
    assert (found.exit_code, found.stdout) == (2, "")
    assert "nothing: unknown workload. Choose from mnist-baseline, " in found.stderr
