"""The CUDA backend on a GPU: `pytest -m gpu`."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnnjob import nn
from cnnjob.checks.benchmarks.bench import measure
from cnnjob.data.dataset import Dataset
from cnnjob.jobs.job import Job
from cnnjob.nn.cuda.availability import why_unavailable
from cnnjob.nn.cuda.backend import CudaBackend
from cnnjob.nn.cuda.device import CudaDevice
from cnnjob.nn.pixels import View
from cnnjob.runs.run import Run
from cnnjob.training.progress import NoProgress
from cnnjob.training.train import train
from tests.cuda.sanitizer import SANITIZER_ERROR, sanitizer_options
from tests.cuda.shop import CHANGES, WORKS, Array, Work, batch, reference, require_close
from tests.helpers.toy_jobs import dataset, job, outcome_of, run_of

ROOT = Path(__file__).parent.parent.parent

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(lacking := why_unavailable()), reason=f"no GPU can be used: {lacking}"),
]

MNIST = Work(
    [nn.Conv(filters=32, kernel=5, pad=2, pool=2), nn.Conv(filters=64, pool=2), nn.Dense(units=128), nn.Dropout(0.4)],
    (28, 28, 1),
    count=128,
    classes=10,
    learning_rate=0.03,
)


SANITIZED = [
    *("residual", "residual of a window", "maxima", "augmented", "bright", "pool 17", "adamw, lookahead"),
    *("adam, clipped", "muon, all"),
    *("norm, activation and pool in every order", "first block 3, 2, 3", "first block 5, 1, 1", "first block 5, 2, 1"),
    "no activation, no pooling",
]
"""Of the works; they run every kernel that all of them run."""


@pytest.fixture(scope="module")
def device() -> CudaDevice:
    return CudaDevice()


@pytest.mark.parametrize("fuses", [False, True], ids=["part by part", "fused"])
@pytest.mark.parametrize("name", WORKS)
def test_steps_are_numpys_in_float64_and_the_same_each_time(device: CudaDevice, name: str, *, fuses: bool) -> None:
    backend = CudaBackend(device, 20_000, fuses=fuses)
    found, again = (WORKS[name].result(backend) for _ in range(2))
    require_close(found, reference(name))
    require_same(found, again)


def require_same(found: dict[str, Array], other: dict[str, Array]) -> None:
    for key, array in found.items():
        np.testing.assert_array_equal(array, other[key], key)


@pytest.mark.parametrize("precision", ["float32", "tf32"])
@pytest.mark.parametrize("name", WORKS)
def test_a_graph_gives_the_bits_of_its_launches(name: str, precision: str) -> None:
    device = CudaDevice(precision)
    eager, graph = (
        WORKS[name].result(CudaBackend(device, 20_000, captures=captures), steps=5) for captures in (False, True)
    )
    require_same(eager, graph)


@pytest.mark.parametrize("name", ["two convolutions", "residual", "frozen"])
def test_float16_is_near_float64_and_the_same_each_time(name: str) -> None:
    found, again = (WORKS[name].result(CudaBackend(CudaDevice("float16"), 20_000)) for _ in range(2))
    for key, array in reference(name).items():
        assert np.linalg.norm(found[key] - array) <= 0.03 * np.linalg.norm(array), key
        np.testing.assert_array_equal(found[key], again[key], key)


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_batch_has_numpys_bits(device: CudaDevice, change: nn.Augmentation | View | None) -> None:
    found, expected = (batch(backend, change, 3) for backend in (CudaBackend(device), nn.NumPyBackend(nn.Workers(1))))
    np.testing.assert_array_equal(found, expected)


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


class StopsAt(NoProgress):
    def __init__(self, step: int) -> None:
        self.left = step

    def step(self, epoch: int, step: int) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGUSR1)


def made(folder: Path) -> Run:
    folder.mkdir()
    blocks = [{"conv": 4, "pool": 2}, {"dropout": 0.2}, {"dense": 8}]
    changes: dict[str, Any] = {"resources__backend": "cuda", "model__blocks": blocks}
    return run_of(job(**changes), dataset(folder), folder / "runs")


@pytest.mark.parametrize("step", [1, 20, 27])
def test_a_training_that_is_stopped_goes_on_with_the_same_bits(tmp_path: Path, step: int) -> None:
    unbroken, stopped = made(tmp_path / "unbroken"), made(tmp_path / "stopped")
    assert train(unbroken).state == "finished"
    assert train(stopped, StopsAt(step)).state == "stopped"
    assert train(stopped).state == "finished"
    assert outcome_of(stopped) == outcome_of(unbroken)


def sanitized(tool: str, script: str) -> subprocess.CompletedProcess[str]:
    command = ["compute-sanitizer", *sanitizer_options(tool), sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if "Device not supported" in done.stdout:
        pytest.skip("compute-sanitizer says that it does not support this device; see to its driver and container")
    return done


needs_sanitizer = pytest.mark.skipif(
    shutil.which("compute-sanitizer") is None,
    reason="compute-sanitizer is not on the PATH; it comes with CUDA's toolkit, package cuda-sanitizer-api",
)


@needs_sanitizer
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_sanitizer_finds_nothing(tool: str, precision: str) -> None:
    done = sanitized(
        tool,
        f"""
from cnnjob.nn.cuda.availability import choose_kernel_cache
from cnnjob.nn.cuda.backend import CudaBackend
choose_kernel_cache()
from cnnjob.nn.cuda.device import CudaDevice
from tests.cuda.shop import WORKS
device = CudaDevice({precision!r})
for name in {SANITIZED if precision == "float32" else ["two convolutions", "residual"]}:
    for fuses in (False, True):
        WORKS[name].result(CudaBackend(device, 20_000, fuses=fuses, captures=False))
""",
    )
    assert done.returncode == 0, done.stdout


# Beyond the 512 bytes that CuPy allocates, and in the same page: without the sanitizer, nothing happens.
FAULTY = """
import cupy
source = 'extern "C" __global__ void NAME(float *x) { x[200] = 1; }'
cupy.RawModule(code=source).get_function("NAME")((1,), (1,), (cupy.zeros(1, cupy.float32),))
cupy.cuda.get_current_stream().synchronize()
"""


@needs_sanitizer
def test_the_sanitizer_finds_a_fault_in_every_kernel_but_those_of_cublas() -> None:
    for name in ("im2col", "batch_sums"):
        done = sanitized("memcheck", FAULTY.replace("NAME", name))
        assert done.returncode == SANITIZER_ERROR, done.stdout
        assert f"at {name}" in done.stdout
    done = sanitized("memcheck", FAULTY.replace("NAME", "ampere_sgemm_128x64_nn"))
    assert done.returncode == 0, done.stdout


DATA = Path(os.environ.get("CNNJOB_DATA") or "data")
ACCURACIES = {"mnist-baseline": 0.9860, "cifar10-course": 0.61}
"""Test accuracy at least."""
EPOCHS = 30
"""Of which the time is taken."""


def baseline(name: str) -> tuple[Job, Dataset]:
    job = Job.load(name, ["resources.backend=cuda"])
    path = DATA / f"{job.dataset}.h5"
    if not path.exists():
        pytest.skip(f"{path} is missing; cnnjob prepare {job.dataset}, or say in CNNJOB_DATA where it is")
    return job, Dataset.open(path)


@pytest.mark.parametrize("name", ACCURACIES)
def test_a_course_network_is_as_accurate_as_it_was(name: str, tmp_path: Path) -> None:
    run = run_of(*baseline(name), tmp_path)
    assert train(run).state == "finished"
    assert run.result()["test_accuracy"] >= ACCURACIES[name]


@pytest.mark.parametrize("name", ["mnist-baseline", "cifar10-baseline"])
def test_a_whole_training_takes_no_more_than_twice_its_steps(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job, data = baseline(name)
    run = run_of(job.model_copy(update={"train": job.train.model_copy(update={"epochs": EPOCHS})}), data, tmp_path)
    started = time.monotonic()
    train(run)
    whole, trained = time.monotonic() - started, run.result()["train_seconds"]
    [row] = [row for row in measure([name], 5, torch=False, on_gpu=True) if row.engine == "cnnjob graph float32"]
    steps = run.result()["steps"] * row.median_ms / 1000
    with capsys.disabled():
        sys.stdout.write(f"\n{name}: {trained:.2f} s, steps {steps:.2f} s; the rest {whole - trained:.2f} s\n")
    assert trained <= 2 * steps
