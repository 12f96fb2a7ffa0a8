"""A run killed at random moments has the bits of an uninterrupted one; the first difference of two runs is found."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from cnnjob.checks.comparison import compare, compare_runs
from cnnjob.checks.resume import shorten_job
from cnnjob.cli.main import app
from cnnjob.errors import DataError
from cnnjob.runs import npz
from cnnjob.runs.run import Run
from tests.helpers.cli import JOB
from tests.helpers.fake_slurm import ANSWERS, FakeSlurm
from tests.helpers.run_folders import change_json
from tests.helpers.toy_jobs import dataset, job, trained

EPOCHS = 30
VERIFY = ("verify-resume", "toy.toml", "--set", f"train.epochs={EPOCHS}", "--kills", "1")


def cnnjob(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the toy dataset and job, and where temporary folders go."""
    place = tmp_path / "here and there"
    (place / "data").mkdir(parents=True)
    (tmp_path / "tmp").mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    dataset(place / "data")
    (place / "toy.toml").write_text(JOB)
    return place


def kept_run(folder: Path) -> Run:
    [path] = [path for path in folder.iterdir() if path.is_dir()]
    return Run(path)


# --- two runs


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Run, Run]:
    """Two runs of the toy, alike but for the clock."""
    return trained(tmp_path / "one").run, trained(tmp_path / "other").run


def test_two_runs_of_a_job_are_the_same(pair: tuple[Run, Run]) -> None:
    assert compare(*pair) == []
    assert compare_runs(*pair, kills=[], wanted=0, seed=1).remarks == []


def change_array(path: Path, name: str, change: Any) -> None:
    arrays = npz.read_arrays(path)
    arrays[name] = change(arrays[name])
    npz.write_arrays(path, arrays)


def one_bit(array: np.ndarray) -> np.ndarray:
    """Another value in the last place of the last element."""
    changed = array.copy()
    changed.flat[-1] = np.nextafter(changed.flat[-1], np.float32(1))
    return changed


def test_one_bit_of_the_weights_is_found(pair: tuple[Run, Run]) -> None:
    name, array = next(iter(pair[0].weights().items()))
    change_array(pair[1].weights_file, name, one_bit)
    [found] = compare(*pair)
    last = ", ".join(str(side - 1) for side in array.shape)
    assert (found.part, found.where) == ("weights", f"{name}[{last}]")
    assert found.uninterrupted == str(array.flat[-1]) != found.killed


def test_a_zero_of_the_other_sign_is_found(pair: tuple[Run, Run]) -> None:
    for run, zero in zip(pair, (0.0, -0.0), strict=True):
        change_array(run.predictions_file, "probabilities", lambda array, zero=zero: array * np.float32(zero))
    assert [(found.where, found.uninterrupted, found.killed) for found in compare(*pair)] == [
        ("probabilities[0, 0]", "0.0", "-0.0")
    ]


def test_another_shape_and_another_order_are_found(pair: tuple[Run, Run]) -> None:
    change_array(pair[1].predictions_file, "labels", lambda labels: labels[1:])
    weights = pair[1].weights()
    npz.write_arrays(pair[1].weights_file, dict(reversed(weights.items())))
    in_weights, in_predictions = compare(*pair)
    assert in_weights.where == "the file"
    assert (in_predictions.uninterrupted, in_predictions.killed) == ("int64 (40,)", "int64 (39,)")


def test_a_record_and_a_result_are_found_and_the_clock_is_not(pair: tuple[Run, Run]) -> None:
    clock = {"seconds": 9.0, "images_per_second": 1.0, "ended": "2026-01-01T00:00:00+00:00"}
    records = [{**record, **clock} for record in pair[1].history()]
    pair[1].history_file.write_text("".join(json.dumps(record) + "\n" for record in records))
    change_json(pair[1].result_file, train_seconds=9.0, cpu_hours=9.0, attempts=9, device="another")
    assert compare(*pair) == []
    pair[1].history_file.write_text("".join(json.dumps({**record, "train_loss": 0.5}) + "\n" for record in records))
    change_json(pair[1].result_file, test_loss=None)
    history, result = compare(*pair)
    assert (history.part, history.where, history.killed) == ("history", "epoch 1, train_loss", "0.5")
    assert (result.where, result.killed) == ("test_loss", "missing")


def test_other_environments_are_said(pair: tuple[Run, Run]) -> None:
    change_json(pair[0].environment_file, bits={**pair[0].environment()["bits"], "numpy": "1.0"})
    change_json(pair[1].result_file, bits_may_differ_from_step=7)
    first, second = compare_runs(*pair, kills=[], wanted=0, seed=1).remarks
    assert re.fullmatch(r"bits may differ: the killed run has numpy \S+ instead of 1\.0", first)
    assert second.startswith("bits of the killed run may differ from step 7 onwards: see ")


def test_a_damaged_run_is_said(pair: tuple[Run, Run]) -> None:
    pair[1].weights_file.write_bytes(pair[1].weights_file.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"damaged \(its checksum"):
        compare(*pair)


@pytest.mark.parametrize(("steps", "epochs"), [(1, 1), (20, 1), (21, 2), (59, 3), (10**6, 50)])
def test_a_job_is_shortened_to_whole_epochs(tmp_path: Path, steps: int, epochs: int) -> None:
    assert shorten_job(job(train__epochs=50), dataset(tmp_path), steps).train.epochs == epochs  # of 20 steps


# --- the command


def test_the_bits_are_the_same(here: Path, tmp_path: Path) -> None:
    found = cnnjob(*VERIFY, "--kills", "3", "--seed", "4", "--keep", "both runs")
    assert found.exit_code == 0, found.output
    assert f"toy: all {EPOCHS} epochs of 20 steps; once uninterrupted, once killed 3 times; seed 4\n" in found.stderr
    assert re.search(r"\ntoy-\w{8}: the bits are the same\n$", found.stdout)
    assert (
        len(re.findall(r"^(?:weights|predictions|history|result) +(\w{12}) +\1 +equal$", found.stdout, re.MULTILINE))
        == 4
    )
    uninterrupted, killed = (kept_run(here / "both runs" / name) for name in ("uninterrupted", "killed"))
    attempts = killed.attempts()
    assert [attempt["why"] for attempt in attempts] == [*[None] * (len(attempts) - 1), "finished"]
    assert len(attempts) > 1
    assert len(re.findall(r"^ +\d+ +\d\.\d\d s ", found.stdout, re.MULTILINE)) == len(attempts) - 1
    assert len(uninterrupted.attempts()) == 1
    assert not list((tmp_path / "tmp").iterdir())
    again = cnnjob(*VERIFY, "--keep", "both runs")
    assert (again.exit_code, "--keep both runs: already exists" in again.stderr) == (2, True)


def test_json_of_a_shortened_job(here: Path, tmp_path: Path) -> None:
    found = cnnjob(*VERIFY, "--steps", "500", "--json")
    assert found.exit_code == 0, found.output
    assert "toy: 25 of 30 epochs of 20 steps; " in found.stderr
    comparison = json.loads(found.stdout)
    assert (comparison["same"], comparison["steps"], comparison["differences"], comparison["folder"]) == (
        True,
        500,
        [],
        None,
    )
    assert comparison["attempts"] == len(comparison["kills"]) + 1
    assert all(kill["resumed_at_step"] >= kill["saved_step"] for kill in comparison["kills"])
    assert not list((tmp_path / "tmp").iterdir())
    assert sorted(path.name for path in here.iterdir()) == ["data", "toy.toml"]


@pytest.mark.usefixtures("here")
def test_a_difference_is_exit_1_and_keeps_both_runs(tmp_path: Path) -> None:
    """The weights of the uninterrupted run are changed while the other runs."""

    def change() -> None:
        while not (done := list((tmp_path / "tmp").glob("*/uninterrupted/*/result.json"))):
            time.sleep(0.01)
        weights = Run(done[0].parent).weights_file
        change_array(weights, next(iter(npz.read_arrays(weights))), one_bit)

    thread = Thread(target=change)
    thread.start()
    found = cnnjob(*VERIFY)
    thread.join()
    assert found.exit_code == 1, found.output
    [folder] = (tmp_path / "tmp").iterdir()
    values = r"\S+ in the uninterrupted run, \S+ in the killed run"
    assert re.search(rf"^weights: \S+\[.+\] is {values}$", found.stdout, re.MULTILINE)
    assert f"both runs are kept in {folder}\n" in found.stdout
    assert re.search(r": the bits differ in weights\n$", found.stdout)


@pytest.mark.usefixtures("here")
def test_what_ends_an_attempt_is_reported(tmp_path: Path) -> None:
    found = cnnjob(*VERIFY, "--set", "train.learning_rate=900.0", "--set", "model.blocks=[{dense=8,activation='none'}]")
    assert found.exit_code == 1
    assert re.fullmatch(
        r"cnnjob: .*: an attempt failed \(exit code 1\): .*the loss is nan at step .*", found.stderr.splitlines()[-1]
    )
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.usefixtures("here")
def test_a_dataset_must_be_prepared(tmp_path: Path) -> None:
    found = cnnjob("verify-resume", "digits")
    assert (found.exit_code, "data/digits.h5: no such dataset" in found.stderr) == (3, True)
    assert not list((tmp_path / "tmp").iterdir())


def lives_below(folder: Path) -> list[str]:
    """The command lines of processes that name a folder."""
    lines = (path.read_bytes() for path in living())
    return [line.decode() for line in lines if str(folder).encode() in line]


def living() -> Iterator[Path]:
    yield from (path for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "cnnjob", *VERIFY, "--set", "train.epochs=100000", "--steps", "1000000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    while not list((tmp_path / "tmp").glob("*/uninterrupted/*/history.jsonl")):
        assert process.poll() is None
        time.sleep(0.02)
    assert lives_below(tmp_path / "tmp")
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said.splitlines()[-1]) == (130, "cnnjob: interrupted")
    assert not lives_below(tmp_path / "tmp")
    assert not list((tmp_path / "tmp").iterdir())


# --- the cluster's part, with commands of SLURM that take every job and run none


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), r"cnnjob: .*: not finished \(its job ended without recording why\). See .*"),
        (("--wait-minutes", "0"), r"cnnjob: verify-resume: not finished in time, so the jobs are cancelled. .*"),
    ],
)
def test_a_cluster_that_does_not_run_it(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], said: str
) -> None:
    FakeSlurm(tmp_path / "commands").install(**ANSWERS)
    monkeypatch.setenv("PATH", str(tmp_path / "commands"))
    monkeypatch.setattr("cnnjob.checks.resume_slurm.FIRST_QUERY_SECONDS", 0.1)
    found = cnnjob(*VERIFY, "--profile", "lab", *options)
    assert (found.exit_code, found.stdout) == (1, "")
    assert re.fullmatch(said, found.stderr.splitlines()[-1])
    assert sorted(path.name for path in here.iterdir()) == ["data", "environment", "toy.toml"]


@pytest.mark.usefixtures("here")
def test_without_a_slurm_it_is_exit_4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = cnnjob(*VERIFY, "--partition", "gpu")
    assert (found.exit_code, "not found; this machine has no SLURM" in found.stderr) == (4, True)
