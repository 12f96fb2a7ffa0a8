"""``submit --local``: runs trained on this machine, one after the other."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cnnjob.runs.checkpoints import newest_step
from cnnjob.runs.claims import claim
from cnnjob.runs.run import Run
from cnnjob.slurm.status import query_statuses
from cnnjob.slurm.submit import local
from tests.helpers.cli import cnnjob
from tests.helpers.run_folders import change_json


@pytest.mark.usefixtures("no_slurm")
def test_a_sweep_here_needs_no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "kept")
    options = ("submit", "toy.toml", "--local", "--seeds", "3", "--parallel", "2", "-c", "1")
    found = cnnjob(*options)
    assert found.exit_code == 0, found.output
    assert found.stdout.count("trained here") == 3
    assert found.stdout.count(": finished, test accuracy ") == 3
    assert {run.state() for run in Run.all(Path("runs"))} == {"finished"}
    assert os.environ["PYTHONPATH"] == "kept"
    again = cnnjob(*options)
    assert (again.exit_code, again.stdout.count(": finished, left alone\n")) == (0, 3)


@pytest.mark.usefixtures("no_slurm")
def test_a_run_that_is_trained_elsewhere_is_left_alone() -> None:
    cnnjob("train", "toy.toml")
    [run] = Run.all(Path("runs"))
    run.result_file.unlink()
    claim(run)
    found = cnnjob("submit", "toy.toml", "--local")
    assert (found.exit_code, found.stdout) == (5, f"{run.path}: running, left alone\n")


@pytest.mark.usefixtures("no_slurm")
def test_a_run_here_that_fails_is_exit_1() -> None:
    wrong = ("--set", "train.learning_rate=900.0", "--set", "model.blocks=[{dense=8,activation='none'}]")
    found = cnnjob("submit", "toy.toml", "--local", *wrong)
    assert found.exit_code == 1, found.output
    assert ": failed, the loss is " in found.stdout


@pytest.mark.usefixtures("no_slurm")
def test_a_time_limit_here_stops_in_time() -> None:
    found = cnnjob("submit", "toy.toml", "--local", "--time", "1m", "--set", "train.epochs=1")
    assert found.exit_code == 0, found.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("no_slurm")
def test_ctrl_c_stops_all_that_trains_here_with_its_work_saved(number: signal.Signals) -> None:
    """As a terminal does, to every process of the group; or as kill does, to one."""
    words = [sys.executable, "-m", "cnnjob", "submit", "toy.toml", "--local", "--seeds", "2", "--parallel", "2"]
    known = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/bin:/usr/bin"}
    more = ["--set", "train.epochs=100000", "--set", "train.checkpoint_seconds=0.1"]
    with subprocess.Popen([*words, *more], env=known, start_new_session=True, stderr=subprocess.PIPE) as child:
        until = time.monotonic() + 60
        while len(list(Path("runs").glob("*/history.jsonl"))) < 2:
            assert time.monotonic() < until
            time.sleep(0.05)
        os.killpg(child.pid, number) if number == signal.SIGINT else child.send_signal(number)
        assert child.communicate(timeout=60)[1].decode() == "cnnjob: interrupted\n"
    assert child.returncode == 130
    for run in Run.all(Path("runs")):
        assert run.attempts()[-1]["why"] in {"stopped: SIGINT", "stopped: SIGTERM"}


@pytest.mark.usefixtures("no_slurm")
def test_runs_that_wait_their_turn_here_can_be_cancelled() -> None:
    words = [sys.executable, "-m", "cnnjob", "submit", "toy.toml", "--local", "--seeds", "3"]
    known = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/bin:/usr/bin"}
    more = ["--set", "train.epochs=100000", "--set", "train.checkpoint_seconds=0.1"]
    with subprocess.Popen([*words, *more], env=known, stdout=subprocess.PIPE, text=True) as child:
        until = time.monotonic() + 60
        while not list(Path("runs").glob("*/history.jsonl")):
            assert time.monotonic() < until
            time.sleep(0.05)
        told = cnnjob("cancel", "runs")
        out, _ = child.communicate(timeout=60)
    assert told.exit_code == 0, told.output
    assert told.stdout.count(": asked process ") == 1
    assert told.stdout.count(f": cancelled: process {child.pid} on ") == 2
    assert (child.returncode, len(re.findall(r": cancelled, .*cnnjob cancel", out))) == (1, 3), out
    runs = Run.all(Path("runs"))
    assert sorted(len(run.attempt_files()) for run in runs) == [0, 0, 1]
    assert [one.state for one in query_statuses(runs).statuses] == ["cancelled"] * 3
    assert not list(Path("runs").glob("*/slurm/local.json"))
    assert set(re.findall("nothing to cancel: (.*)", cnnjob("cancel", "runs").stdout)) == {"cancelled"}


@pytest.mark.usefixtures("no_slurm")
def test_a_run_here_that_cannot_begin_is_exit_1_with_its_error() -> None:
    assert cnnjob("submit", "toy.toml", "--local", "--set", "train.epochs=1").exit_code == 0
    [first] = Run.all(Path("runs"))
    first.result_file.unlink()
    shutil.rmtree(first.checkpoints_folder)
    run = _stopped(first)
    for message in (
        "was started with 'numpy'",
        "CuPy cannot be",
    ):  # of a run that was stopped, and of one that never began
        found = cnnjob("submit", "toy.toml", "--local", "--set", "train.epochs=1", "--set", "resources.backend=cuda")
        assert found.exit_code == 1, found.output
        assert re.search(rf"{run.path}: failed, .*{message}", found.stdout), found.stdout
        shutil.rmtree(run.path)


def _stopped(run: Run) -> Run:
    [attempt] = run.attempt_files()
    change_json(attempt, why="stopped: SIGTERM")
    return run


KILLED = ("submit", "toy.toml", "--local", "--set", "train.epochs=100000", "--set", "train.checkpoint_seconds=0.1")


@pytest.mark.usefixtures("no_slurm")
def test_a_run_here_that_was_killed_resumes_until_it_makes_no_progress() -> None:
    known = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/bin:/usr/bin"}
    with subprocess.Popen([sys.executable, "-m", "cnnjob", *KILLED], env=known, stdout=subprocess.PIPE) as child:
        until = time.monotonic() + 60
        while not list(Path("runs").glob("*/checkpoints/step-*[1-9]*.npz")):
            assert time.monotonic() < until
            time.sleep(0.05)
        [run] = Run.all(Path("runs"))
        os.kill(run.attempts()[-1]["pid"], signal.SIGKILL)
        said = child.communicate(timeout=60)[0].decode()
    assert (child.returncode, "the process died without recording why" in said) == (75, True), said
    attempt, step = run.attempt_files()[0], newest_step(run.checkpoints_folder)
    for number in range(2, 6):
        shutil.copy(attempt, run.attempts_folder / f"000{number}.json")
    assert not local._is_crash_loop(run)
    for path in run.attempt_files():
        change_json(path, resumed_at_step=step)
    assert local._is_crash_loop(run)
