"""A little of each durability test, for every run of the tests; the whole: ``pytest -m durability``."""

from pathlib import Path

from cnnjob.errors import BusyError
from tests.durability.damage import both, flipped, require_older, stopped_run
from tests.durability.faults import run_script


def test_some_kill_points(folder: Path, shim: Path) -> None:
    points = run_script("kill_points", folder, "kill", 3, 25, shim=shim)
    assert len(points) >= 15
    assert {point["signal"] for point in points} == {9}
    assert [point for point in points if point["wrong"]] == []


def test_some_failures_of_the_disk(folder: Path, shim: Path) -> None:
    points = run_script("kill_points", folder, "fail", 3, 80, shim=shim)
    assert len(points) >= 10
    assert [point for point in points if point["wrong"] or not point["expected"]] == []


def test_some_random_kills(folder: Path) -> None:
    runs = run_script("random_kills", folder, 6, 1)
    assert sum(run["kills"] for run in runs) >= 6
    assert [run for run in runs if run["wrong"]] == []


def test_some_damage(folder: Path) -> None:
    run = stopped_run(folder)
    content = both(run)[-1].read_bytes()
    for bit in range(0, 8 * len(content), 8 * len(content) // 20):
        require_older(run, flipped(content, bit), f"bit {bit}")
    require_older(run, content[:-1], "one byte less")


def test_some_races(folder: Path) -> None:
    races = run_script("races", folder, 12, 1)
    assert {race["winners"] for race in races} == {1}
    assert {code for race in races for code in (*race["losing_codes"], *race["late_codes"])} == {BusyError.exit_code}
    assert not any(race["changed"] for race in races)
