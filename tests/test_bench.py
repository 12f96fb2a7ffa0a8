"""``cnnjob bench``: the table, the file, the ratios."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cnnjob.cli import app


def cnnjob(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_figures_agree_with_one_another(tmp_path: Path) -> None:
    found = cnnjob("bench", "mnist-baseline", "--rounds", "1", "--json", str(tmp_path / "b.json"))
    assert found.exit_code == 0, found.output
    engines = ["cnnjob numpy", "course float64", "floor: products", "floor: bytes"]
    for engine in engines:
        assert re.search(rf"^mnist-baseline +{engine} +[\d.]+ +", found.stdout, re.MULTILINE)
    rows = {row["engine"]: row for row in json.loads((tmp_path / "b.json").read_text())}
    assert {*engines} <= {*rows} <= {*engines, "torch NCHW", "torch NHWC"}
    ours, course = rows["cnnjob numpy"], rows["course float64"]
    assert ours["speed_against_course"] == pytest.approx(course["median_ms"] / ours["median_ms"])
    assert ours["epoch_seconds"] == pytest.approx(0.937 * ours["median_ms"])
    assert ours["images_per_second"] == pytest.approx(64_000 / ours["median_ms"])


def test_one_block_without_torch() -> None:
    alone = cnnjob("bench", "conv-64-128", "--rounds", "1", "--against", "none")
    assert alone.exit_code == 0, alone.output
    assert "torch NCHW" not in alone.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json", "gone/x.json"], "--json gone/x.json: no such folder gone"),
        (["nothing"], "nothing: no such workload; choose from mnist-baseline, "),
    ],
)
def test_mistakes_are_one_message(arguments: list[str], message: str) -> None:
    found = cnnjob("bench", *arguments)
    assert (found.exit_code, found.stdout) == (2, "")
    assert message in found.stderr
