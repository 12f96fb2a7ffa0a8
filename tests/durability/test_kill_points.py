"""Killed, or hindered by the disk, at every file operation of a run's life and of a packing."""

import errno
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.durability import commands
from tests.durability.conftest import Say
from tests.durability.faults import Mode, finish_script, start_script
from tests.durability.scenarios import wrong_end
from tests.durability.toys import fingerprint, temporary_files, toy_job, toy_run

pytestmark = pytest.mark.durability

PARTS = 2
KILL_POINTS = 400
FAILURES = 800
LAST_CLI_POINT = 96

Points = list[dict[str, Any]]


def spoilt(folder: Path, shim: Path, ways: str) -> Points:
    """Every point of every scenario, computed by as many processes as there usually are cores."""
    places = [folder / str(part) for part in range(PARTS)]
    for place in places:
        place.mkdir()
    scripts = [start_script("kill_points", place, ways, part, PARTS, shim=shim) for part, place in enumerate(places)]
    return [point for script in scripts for point in finish_script(script)]


def require_right(points: Points) -> None:
    wrong = [point for point in points if point["wrong"] or not point["expected"]]
    assert not wrong, f"{len(wrong)} of {len(points)} points, the first: {wrong[0]}"


def test_killed_at_every_file_operation(folder: Path, shim: Path, say: Say) -> None:
    points = spoilt(folder, shim, "kill")
    say(f"{len(points)} kill points: {dict(Counter(point['scenario'] for point in points))}")
    assert all(point["signal"] == 9 for point in points)
    require_right(points)
    assert len(points) >= KILL_POINTS
    require_all_kinds(points)


def require_all_kinds(points: Points) -> None:
    """Nothing was overlooked: each kind of operation was seen on each file that needs it."""
    seen = {(point["scenario"], point["operation"], kind_of(point["file"])) for point in points}
    life = {(operation, kind) for scenario, operation, kind in seen if scenario == "first life"}
    written = {"job.json", "0001.json", "environment.json", "step", "history.jsonl", "weights.npz", "predictions.npz"}
    for kind in (*written, "result.json"):
        assert {("open", kind), ("write", kind), ("fsync", kind)} <= life, kind
    assert {("link", "job.json"), ("link", "0001.json"), ("unlink", "step"), ("rename", "step")} <= life
    assert {("rename", kind) for kind in ("history.jsonl", "weights.npz", "predictions.npz", "result.json")} <= life
    packing = Counter(point["operation"] for point in points if point["scenario"] == "first packing")
    assert packing["write"] >= 15  # HDF5's own, of superblock, headers, chunks and attributes
    assert packing["rename"] == 2


def kind_of(name: str) -> str:
    """A file's name without what differs: temporary or not, and the step."""
    final = ".".join(name.removeprefix(".").split(".")[:2]) if name.endswith(".tmp") else name
    return "step" if final.startswith("step-") else final


def test_hindered_at_every_file_operation(folder: Path, shim: Path, say: Say) -> None:
    points = spoilt(folder, shim, "fail")
    ends = Counter(point["value"] if point["value"] is not None else point["error"] for point in points)
    say(f"{len(points)} failures of the disk: {dict(ends)}")
    require_right(points)
    assert len(points) >= FAILURES
    assert ends["finished"]  # a checkpoint in between that fails does not end the training
    assert all(str(Mode[point["mode"]].name) != "WRITE_SHORT" or not point["error"] for point in points)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("at", range(1, LAST_CLI_POINT, 12))
def test_the_command_says_a_full_disk_in_one_message(folder: Path, shim: Path, at: int, error: int) -> None:
    job = toy_job(folder)
    spoil = {"FAULTS_FOLDER": folder / "runs", "FAULTS_AT": at, "FAULTS_MODE": int(Mode.FAIL_ON), "FAULTS_ERRNO": error}
    done = commands.run_train(job, LD_PRELOAD=str(shim), **{key: str(value) for key, value in spoil.items()})
    assert "Traceback" not in done.stderr
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("cnnjob: ")
    assert commands.run_train(job).returncode == 0
    assert commands.run_train(job, "unbroken").returncode == 0
    assert not list(wrong_end(toy_run(folder), fingerprint(toy_run(folder, runs="unbroken"))))
    assert not temporary_files(toy_run(folder).path)
