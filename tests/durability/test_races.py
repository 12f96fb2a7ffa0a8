"""One run, many processes: one writes, the others change nothing, and the next goes on at once."""

import os
from collections import Counter
from pathlib import Path

import pytest

from cnnjob.errors import BusyError
from cnnjob.runs import claims
from tests.durability import commands
from tests.durability.conftest import Say
from tests.durability.faults import run_script
from tests.durability.toys import snapshot, toy_job, toy_run

pytestmark = pytest.mark.durability

RACES = 1000
SEED = 5
FENCED = {
    "while its successor trains",
    "when its successor has finished",
    "checkpoint",
    "note",
    "end",
    "history",
    "weights",
    "result",
}


def test_exactly_one_process_wins(folder: Path, say: Say) -> None:
    races = run_script("races", folder, RACES, SEED)
    say(f"{len(races)} races of {dict(sorted(Counter(race['racers'] for race in races).items()))} processes")
    assert len(races) == RACES
    for race in races:
        right = {"winners": 1, "holder_won": True, "losing_codes": [BusyError.exit_code], "crashes": []}
        right |= {"new_attempts": 1, "late_codes": [BusyError.exit_code] * 2, "changed": False, "left_behind": []}
        assert race == {"racers": race["racers"], **right}


def test_a_superseded_process_changes_nothing(folder: Path) -> None:
    reports = run_script("fenced", folder)
    assert {report["what"] for report in reports} == FENCED
    assert [report for report in reports if report["error"] != "BusyError" or report["changed"]] == []


def test_a_process_that_stalls_right_before_a_rename_changes_only_the_log(folder: Path, shim: Path) -> None:
    reports = run_script("stalled", folder, shim=shim)
    assert {"history.jsonl", "weights.npz", "predictions.npz", "result.json"} <= {report["file"] for report in reports}
    for report in reports:
        assert set(report["changed"]) <= {"log.txt"}, report
        assert report == report | {"successor": "finished", "error": "BusyError", "wrong": []}


def test_the_command_leaves_a_held_run_alone(folder: Path) -> None:
    job, run = toy_job(folder), toy_run(folder)
    claims.claim(run)
    before = snapshot(run.path)
    done = commands.run_train(job)
    assert done.returncode == BusyError.exit_code
    assert f"process {os.getpid()} on" in done.stderr
    assert "Traceback" not in done.stderr
    assert snapshot(run.path) == before
