"""The CUDA backend on a GPU: `pytest -m gpu`."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnnjob import nn
from cnnjob.bindings import run_of
from cnnjob.listeners import Silent
from cnnjob.nn.cuda import CudaBackend
from cnnjob.nn.cuda.device import CudaDevice
from cnnjob.nn.cuda.finding import lack
from cnnjob.runs import Run
from cnnjob.training import train
from tests.cuda.shop import WORKS, Array, Work, reference, require_close
from tests.toys import dataset, job, outcome_of

ROOT = Path(__file__).parent.parent.parent

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(lacking := lack()), reason=f"no GPU can be used: {lacking}")]

MNIST = Work(
    [nn.Conv(filters=32, kernel=5, pad=2, pool=2), nn.Conv(filters=64, pool=2), nn.Dense(units=128), nn.Dropout(0.4)],
    (28, 28, 1),
    count=128,
    classes=10,
    learning_rate=0.03,
)


@pytest.fixture(scope="module")
def backend() -> CudaBackend:
    return CudaBackend(CudaDevice(), 20_000)


@pytest.mark.parametrize("name", WORKS)
def test_steps_are_numpys_in_float64_and_the_same_each_time(backend: CudaBackend, name: str) -> None:
    found, again = (WORKS[name].result(backend) for _ in range(2))
    require_close(found, reference(name))
    for key, array in found.items():
        np.testing.assert_array_equal(array, again[key], key)


def test_fifty_steps_stay_as_near_to_float64_as_numpys_in_float32() -> None:
    exact, numpys, ours = (
        MNIST.result(backend, steps=50)
        for backend in (
            nn.NumPyBackend(nn.Workers(1), np.float64),
            nn.NumPyBackend(nn.Workers(1)),
            CudaBackend(CudaDevice()),
        )
    )

    def distance(found: dict[str, Array]) -> float:
        squares = (((found[key] - exact[key]) ** 2).sum() for key in exact if key.startswith("weights/"))
        return float(np.sqrt(sum(squares)))

    assert distance(ours) <= 10 * distance(numpys)


class StopsAt(Silent):
    def __init__(self, step: int) -> None:
        self.left = step

    def step(self, epoch: int, step: int) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGUSR1)


def made(folder: Path) -> Run:
    folder.mkdir()
    blocks = [{"conv": 4, "pool": 2}, {"dropout": 0.2}, {"dense": 8}]
    changes: dict[str, Any] = {"resources__backend": "cuda", "model__blocks": blocks, "train__momentum": 0.9}
    return run_of(job(**changes), dataset(folder), folder / "runs")


@pytest.mark.parametrize("step", [1, 20, 27])
def test_a_training_that_is_stopped_goes_on_with_the_same_bits(tmp_path: Path, step: int) -> None:
    unbroken, stopped = made(tmp_path / "unbroken"), made(tmp_path / "stopped")
    assert train(unbroken).state == "finished"
    assert train(stopped, StopsAt(step)).state == "stopped"
    assert train(stopped).state == "finished"
    assert outcome_of(stopped) == outcome_of(unbroken)


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="compute-sanitizer is not installed")
def test_the_sanitizer_finds_nothing(tool: str) -> None:
    script = """
from cnnjob.nn.cuda import CudaBackend
from cnnjob.nn.cuda.device import CudaDevice
from tests.cuda.shop import WORKS
for name in ("two convolutions", "dropout everywhere", "pool 17", "many classes"):
    WORKS[name].result(CudaBackend(CudaDevice(), 20_000))
"""
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
