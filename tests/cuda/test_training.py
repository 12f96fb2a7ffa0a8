"""Whole trainings on the CUDA backend, with stand-ins for CuPy and cuBLAS; not on a GPU."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnnjob import nn
from cnnjob.checks.rehearsal import rehearse
from cnnjob.cli.data.show import memory_line
from cnnjob.errors import JobError, TrainingError
from cnnjob.nn.cuda.blas import WORKSPACE_BYTES
from cnnjob.nn.cuda.device_api import ShapeOnlyDevice
from cnnjob.runs import npz
from cnnjob.runs.initial import find_initial
from cnnjob.runs.run import Run
from cnnjob.training.memory import estimate_memory
from cnnjob.training.setup import TrainingSetup
from cnnjob.training.train import train
from tests.cuda.emulation import needs_compiler
from tests.cuda.stand_ins import ROOT, make_libraries, places
from tests.helpers.toy_jobs import WILD, dataset, job, outcome_of, run_of

NUMPY = {"resources": job().resources}
AVAILABLE = "from cnnjob.nn.cuda.availability import why_unavailable; print(why_unavailable())"
KERNEL_CACHE = (
    "from cnnjob.nn.cuda.availability import why_unavailable; print(why_unavailable(), __import__('cupy').KERNEL_CACHE)"
)
NORM = {"batch_norm": {"momentum": 0.4}}
FEW_STEPS = {"train__batch_size": 4, "data__validation_fraction": 0.9}
RESNET = FEW_STEPS | {
    "model__blocks": [
        {"conv": 4, "kernel": 2, "pad": 0, "init": "whitening", "frozen": True, "activation": "gelu"},
        {"residual": [{"conv": 3, "stride": 2} | NORM, {"conv": 3, "activation": "none"} | NORM]},
        {"global_pool": "max"},
    ],
    "data__augment": {"flip": "alternating", "translate": 2},
    "train__optimiser": {"sgd": {"nesterov": True, "decoupled_weight_decay": True}},
    "train__weight_decay": 0.01,
    "train__lookahead": {"every": 3},
    "train__label_smoothing": 0.1,
    "train__test_time_augmentation": "flip",
}
ADAMW = FEW_STEPS | {
    "model__blocks": [{"conv": 3, "activation": "gelu", "pool": 2} | NORM, {"dense": 6}],
    "data__augment": {"flip": "random", "crop": 1, "cutout": 2, "mixup": 0.3},
    "train__optimiser": "adamw",
    "train__learning_rate": 0.01,
    "train__weight_decay": 0.01,
    "train__lookahead": {"every": 7},
}
MUON = FEW_STEPS | {
    "model__blocks": [{"conv": 3} | NORM, {"conv": 4, "pool": 2} | NORM, {"dense": 6}],
    "train__optimiser": {"muon": {"others": {"sgd": {"learning_rate": 0.02, "weight_decay": 0.01}}}},
    "train__weight_decay": 0.01,
    "train__learning_rate": 0.01,
    "train__clip_norm": 1.0,
}
BLOCKS = [{"conv": 4, "pool": 2}, {"dropout": 0.2}, {"dense": 8}]

pytestmark = [needs_compiler, pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages in which CuPy is the stand-in."""
    return make_libraries(tmp_path_factory.mktemp("libraries"))


def trained(run: Run, libraries: Path, code: str = "", **environment: str) -> str:
    """Train a run in another process, where CuPy can be loaded; what it says."""
    script = f"""
from pathlib import Path
import sys
from cnnjob.errors import CnnjobError
from cnnjob.training.progress import NoProgress
from cnnjob.nn.cuda.blas import WORKSPACE_BYTES
from cnnjob.runs.run import Run
from cnnjob.training.train import train
class Said(NoProgress):
    def say(self, text): print(text)
    def step(self, epoch, step): {code or "pass"}
try:
    print(train(Run(Path({str(run.path)!r})), Said()).state)
except CnnjobError as error:
    print(type(error).__name__, error)
"""
    return said_by(script, {**places(libraries), **environment})


def said_by(script: str, environment: dict[str, str]) -> str:
    known = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    command = [sys.executable, "-c", script]
    said = subprocess.run(command, env={**known, **environment}, check=False, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    return said.stdout


def on_numpy(run: Run) -> TrainingSetup:
    """Return the setup of a run, to be computed with NumPy."""
    return TrainingSetup.of_run(run, run.job().model_copy(update=NUMPY))


def made(folder: Path, **changes: Any) -> Run:
    settings = {"resources__backend": "cuda", "model__blocks": BLOCKS, "train__epochs": 3}
    folder.mkdir(exist_ok=True)
    return run_of(job(**{**settings, "train__checkpoint_seconds": 0.0, **changes}), dataset(folder), folder / "runs")


@pytest.fixture(scope="module")
def unbroken(libraries: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = made(tmp_path_factory.mktemp("unbroken"))
    assert trained(run, libraries).endswith("finished\n")
    return run


def test_a_training_is_numpys_but_for_the_rounding(unbroken: Run, tmp_path: Path) -> None:
    run = made(tmp_path)
    train(run, setup=on_numpy(run))
    ours, numpys = (npz.read_arrays(found.weights_file) for found in (unbroken, run))
    for name, array in numpys.items():
        np.testing.assert_allclose(ours[name], array, atol=1e-4 * np.abs(array).max(), err_msg=name)
    for record, other in zip(unbroken.history(), run.history(), strict=True):
        assert record["train_accuracy"] == pytest.approx(other["train_accuracy"], abs=0.01)
        assert record["validation_loss"] == pytest.approx(other["validation_loss"], rel=1e-4)
    assert run.result()["gpu_hours"] == 0


def test_an_evaluation_is_numpys_but_for_the_rounding(unbroken: Run, libraries: Path, tmp_path: Path) -> None:
    script = f"""
import json
from pathlib import Path
from cnnjob.data.dataset import Dataset
from cnnjob.runs.run import Run
from cnnjob.training.inference.evaluation import evaluate
run, data = Run(Path({str(unbroken.path)!r})), Dataset.open(Path({str(dataset(tmp_path, images=600).path)!r}))
found = [evaluate(run, data, "train", backend=name) for name in ("auto", "numpy")]
print(json.dumps([(each.backend, each.counts.tolist(), each.overall) for each in found]))
"""
    (name, counts, overall), (reference, expected, numpys) = json.loads(said_by(script, places(libraries)))
    assert (name, reference) == ("cuda", "numpy")
    assert counts == expected
    assert overall == pytest.approx(numpys, rel=1e-4)


def test_what_it_ran_on_is_kept(unbroken: Run) -> None:
    environment, result = unbroken.environment(), unbroken.result()
    assert environment["device"] == result["device"] == "gpu: Stand-in GPU"
    assert environment["backend"] == result["backend"] == "cuda"
    assert environment["bits"].keys() >= {"gpu", "driver", "cupy", "cuda", "cublas", "nvrtc", "numpy"}
    assert environment["precision"] == result["precision"] == "float32"
    assert result["gpu_hours"] > 0


def test_kernels_are_compiled_before_the_clock_starts_and_steps_are_recorded_once(
    libraries: Path, tmp_path: Path
) -> None:
    run = made(tmp_path, train__select_on="test", train__epochs=4)
    script = f"""
import time
from pathlib import Path
from cnnjob.runs.run import Run
from cnnjob.training.progress import NoProgress
from cnnjob.training.train import train
class Clock(NoProgress):
    def start(self, job, steps): self.started = time.monotonic()
    def end_epoch(self, record): self.ended = time.monotonic()
clock = Clock()
train(Run(Path({str(run.path)!r})), clock)
from tests.cuda.standin_cupy import Recording
print(clock.ended - clock.started, Recording.count)
"""
    between, recorded = said_by(script, {**places(libraries), "STANDIN_COMPILE_SECONDS": "0.3"}).split()
    [attempt], history = run.attempts(), run.history()
    assert attempt["compile_seconds"] >= 0.3
    assert sum(record["seconds"] for record in history) <= float(between) + 0.001 * len(history)
    assert recorded == "3"  # the training step, and the evaluations of validation and test images
    [line] = re.findall(
        r"compiled the kernels in ([\d.]+) s, before the first epoch; they are stored in /", run.log_file.read_text()
    )
    assert float(line) == pytest.approx(attempt["compile_seconds"], abs=0.1)


def test_the_precision_is_the_jobs_on_a_gpu_and_float32_on_the_processor(libraries: Path, tmp_path: Path) -> None:
    run, other = (made(tmp_path / name, train__precision="tf32") for name in ("gpu", "cpu"))
    assert "train.precision" not in trained(run, libraries)
    assert run.environment()["precision"] == run.result()["precision"] == "tf32"
    older = made(tmp_path / "older", train__precision="tf32", train__epochs=1)
    needed = "train.precision: 'tf32' needs a GPU of compute capability 8.0 or newer; this one uses float32"
    assert needed in trained(older, libraries, STANDIN_CAPABILITIES="75")
    assert older.result()["precision"] == "float32"
    train(other, setup=on_numpy(other))
    assert other.result()["precision"] == "float32"
    assert "train.precision: 'tf32' needs a GPU; NumPy uses float32" in other.log_file.read_text()


def test_a_number_too_large_for_float16_is_said(libraries: Path, tmp_path: Path) -> None:
    blocks = [{"conv": 3, "init": 10.0}] * 5
    run, cpu = (made(tmp_path / name, train__precision="float16", model__blocks=blocks) for name in ("gpu", "cpu"))
    assert "the initial weights or train.precision: the largest float16 number is 65504" in trained(run, libraries)
    with pytest.raises(JobError, match=r"'float16' needs a GPU \(found resources.backend 'numpy'\)\. Change one"):
        train(cpu, setup=on_numpy(cpu))
    small = made(tmp_path / "small", train__precision="float16", model__blocks=BLOCKS, train__epochs=1)
    assert trained(small, libraries).endswith("finished\n")
    assert small.result()["precision"] == "float16"


@pytest.mark.parametrize(
    ("here", "folder"),
    [
        ({"CUPY_CACHE_DIR": "a"}, "a"),
        ({"CNNJOB_CACHE_DIR": "b"}, "b/kernels"),
        ({"XDG_CACHE_HOME": "c"}, "c/cnnjob/kernels"),
        ({"HOME": "d"}, "d/.cache/cnnjob/kernels"),
    ],
)
def test_compiled_kernels_are_kept_in_the_users_cache(
    libraries: Path, tmp_path: Path, here: dict[str, str], folder: str
) -> None:
    nowhere = dict.fromkeys(("CUPY_CACHE_DIR", "CNNJOB_CACHE_DIR", "XDG_CACHE_HOME"), "")
    there = {name: str(tmp_path / value) for name, value in here.items()}
    assert said_by(KERNEL_CACHE, {**places(libraries), **nowhere, **there}) == f"None {tmp_path / folder}\n"


def test_kernels_are_kept_elsewhere_where_there_is_no_home(libraries: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    nowhere = dict.fromkeys(("CUPY_CACHE_DIR", "CNNJOB_CACHE_DIR", "XDG_CACHE_HOME"), "")
    there = {"HOME": str(tmp_path / "file"), "TMPDIR": str(tmp_path)}
    first, second = (said_by(KERNEL_CACHE, {**places(libraries), **nowhere, **there}) for _ in range(2))
    ours = tmp_path / f"cnnjob-kernels-{os.getuid()}"
    assert first == second == f"None {ours}\n"
    assert ours.stat().st_mode & 0o777 == 0o700
    ours.chmod(0o777)  # another user could put kernels there
    unsafe = said_by(KERNEL_CACHE, {**places(libraries), **nowhere, **there})
    ours.rmdir()
    (tmp_path / "another").mkdir(mode=0o700)
    ours.symlink_to(tmp_path / "another")
    linked = said_by(KERNEL_CACHE, {**places(libraries), **nowhere, **there})
    for said in (unsafe, linked):
        assert said.startswith(f"None {tmp_path}/cnnjob-kernels-")
        assert said != first
    impossible = {**places(libraries), "CUPY_CACHE_DIR": "/dev/null/x"}
    said = said_by(AVAILABLE, impossible)
    assert "CuPy cannot store compiled kernels" in said
    assert "set CUPY_CACHE_DIR to a writable folder" in said


@pytest.mark.parametrize("step", [20, *(pytest.param(step, marks=pytest.mark.cuda_emulated) for step in (1, 39, 45))])
def test_a_training_that_is_stopped_goes_on_with_the_same_bits(
    unbroken: Run, libraries: Path, tmp_path: Path, step: int
) -> None:
    run = made(tmp_path)
    stop = f"self.n = getattr(self, 'n', 0) + 1; import os; self.n == {step} and os.kill(os.getpid(), 15)"
    assert trained(run, libraries, stop).endswith("stopped\n")
    assert f", step {step}\n" in (said := trained(run, libraries))
    assert "bits may differ" not in said
    assert outcome_of(run) == outcome_of(unbroken)


@pytest.mark.cuda_emulated
@pytest.mark.parametrize("changes", [RESNET, ADAMW, MUON], ids=["resnet", "adamw", "muon"])
def test_every_kind_of_network_is_numpys_and_goes_on_with_the_same_bits(
    libraries: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    run, stopped, numpys = (made(tmp_path / name, **changes) for name in ("run", "stopped", "numpys"))
    assert trained(run, libraries).endswith("finished\n")
    stop = "self.n = getattr(self, 'n', 0) + 1; import os; self.n == 7 and os.kill(os.getpid(), 15)"
    assert trained(stopped, libraries, stop).endswith("stopped\n")
    assert trained(stopped, libraries).endswith("finished\n")
    assert outcome_of(stopped) == outcome_of(run)
    train(numpys, setup=on_numpy(numpys))
    for record, other in zip(run.history(), numpys.history(), strict=True):
        for name in ("train_loss", "validation_loss"):
            assert record[name] == pytest.approx(other[name], rel=1e-3)


@pytest.mark.cuda_emulated
def test_a_fine_tuned_run_takes_the_same_weights_and_keeps_frozen_ones(libraries: Path, tmp_path: Path) -> None:
    body: list[dict[str, Any]] = [{"conv": 3, "stride": 2} | NORM, {"conv": 3, "activation": "none"} | NORM]
    blocks: list[dict[str, Any]] = [{"conv": 4, "pool": 2} | NORM, {"residual": body}, {"dense": 8}]
    frozen = [blocks[0] | {"frozen": True}, {"residual": [body[0], body[1] | {"frozen": True}]}, blocks[2]]
    parent = made(tmp_path / "parent", model__blocks=blocks)
    train(parent, setup=on_numpy(parent))
    changes = {"model__blocks": frozen, "model__init_from": str(parent.path), "train__checkpoint_seconds": 0.0}
    child = find_initial(job(resources__backend="cuda", **FEW_STEPS, **changes), tmp_path)
    gpu, stopped, cpu = (run_of(child, dataset(tmp_path), tmp_path / name) for name in ("gpu", "stopped", "cpu"))
    assert trained(gpu, libraries).endswith("finished\n")
    stop = "self.n = getattr(self, 'n', 0) + 1; import os; self.n == 7 and os.kill(os.getpid(), 15)"
    assert trained(stopped, libraries, stop).endswith("stopped\n")
    assert trained(stopped, libraries).endswith("finished\n")
    assert outcome_of(stopped) == outcome_of(gpu)
    train(cpu, setup=on_numpy(cpu))
    before, ours, numpys = parent.weights(), gpu.weights(), cpu.weights()
    for name, array in numpys.items():
        if name.startswith(("conv1/", "residual1/conv2/")):
            np.testing.assert_array_equal(ours[name], before[name], err_msg=name)
        np.testing.assert_allclose(ours[name], array, atol=1e-4 * np.abs(array).max(), err_msg=name)
    assert "taken: conv1 (frozen), residual1 (frozen in part), dense1, classifier" in gpu.log_file.read_text()


def test_a_loss_that_is_no_number_ends_it_before_anything_is_saved(libraries: Path, tmp_path: Path) -> None:
    linear = [{"dense": 8, "activation": "none"}]
    wild = {"model__blocks": linear, "train__learning_rate": 900.0, "train__optimiser": {"sgd": {"momentum": 0.99}}}
    run = made(tmp_path, train__checkpoint_seconds=60.0, **wild)
    said = trained(run, libraries).splitlines()[-1]
    cpu = made(tmp_path / "cpu", **wild)
    with pytest.raises(TrainingError) as by_numpy:
        train(cpu, setup=on_numpy(cpu))
    [step] = re.findall(r"the loss is \w+ at (step \d+ \(epoch 1, previous loss \S+), learning", said)
    assert step in str(by_numpy.value)
    assert [path.name for path in run.checkpoints_folder.glob("*.npz")] == ["step-000000000.npz"]
    assert "failed: " in run.attempts()[-1]["why"]


def test_a_last_update_after_which_the_outputs_overflow_fails_the_run(libraries: Path, tmp_path: Path) -> None:
    run = made(tmp_path, **WILD)
    assert "the test loss is nan with the weights of epoch 1. Lower" in trained(run, libraries)
    assert run.state() == "failed"
    assert not any(path.exists() for path in (run.result_file, run.weights_file, run.predictions_file))


@pytest.mark.cuda_emulated
def test_a_gpu_that_is_too_small_is_said_with_what_would_fit(libraries: Path, tmp_path: Path) -> None:
    run = made(tmp_path, train__batch_size=100)
    said = trained(run, libraries, STANDIN_FREE="450000")
    [(needed, largest)] = re.findall(
        r"JobError toy: needs ([\d,]+) bytes of GPU memory .found 450,000 free on Stand-in GPU.; the largest "
        r"train.batch_size that fits is (\d+). Lower train.batch_size or the block sizes, or use a GPU",
        said,
    )
    assert 1 < int(largest) < 100
    assert "not even a batch of one image fits" in trained(run, libraries, STANDIN_FREE="1000")
    smaller = made(tmp_path / "smaller", train__batch_size=int(largest))
    assert trained(smaller, libraries, STANDIN_FREE="450000").endswith("finished\n")
    exact = int(needed.replace(",", ""))
    assert f"{exact - 1:,} free" in trained(run, libraries, STANDIN_BYTES=str(exact - 1 + WORKSPACE_BYTES))
    assert trained(run, libraries, STANDIN_BYTES=str(exact + WORKSPACE_BYTES)).endswith("finished\n")


@pytest.mark.cuda_emulated
def test_images_that_do_not_fit_are_streamed(libraries: Path, tmp_path: Path) -> None:
    """Some stay on the GPU, others are streamed: the bits are those of a run with all of them on the GPU."""
    images, changes = 8000, {"train__batch_size": 100, "train__epochs": 1, "data__augment": {"flip": "random"}}
    changes |= {"data__validation_fraction": 0.01, "model__blocks": [{"dense": 4}]}
    dataset(tmp_path, images)
    whole, parted, stopped = (made(tmp_path, **changes, name=name) for name in ("whole", "parted", "stopped"))
    assert trained(whole, libraries).endswith("finished\n")
    setup, device = TrainingSetup.of_run(parted), nn.CudaBackend(ShapeOnlyDevice())
    free = str(estimate_memory(setup, device).on_device - 10_000)
    said = trained(parted, libraries, STANDIN_FREE=free)
    assert said.endswith("finished\n")
    [(resident, of)] = re.findall(r"images are read from .*toy\.h5 during training; ([\d,]+) of ([\d,]+) stay", said)
    assert 0 < int(resident.replace(",", "")) < images == int(of.replace(",", ""))
    assert outcome_of(parted) == outcome_of(whole)
    stop = "__import__('os').kill(__import__('os').getpid(), 15)"
    for _ in range(3):
        assert trained(stopped, libraries, stop, STANDIN_FREE=free).endswith("stopped\n")
    assert trained(stopped, libraries, STANDIN_FREE=free).endswith("finished\n")
    assert [attempt["resumed_at_step"] for attempt in stopped.attempts()] == [None, 1, 2, 3]
    assert outcome_of(stopped) == outcome_of(whole)


def test_memory_that_is_gone_when_it_is_taken_is_said(libraries: Path, tmp_path: Path) -> None:
    gone = {"STANDIN_BYTES": str(100_000 + WORKSPACE_BYTES), "STANDIN_FREE": "1000000000"}
    said = trained(made(tmp_path), libraries, **gone)
    assert "JobError toy: out of memory (MemoryError: Out of memory allocating" in said


@pytest.mark.parametrize(
    ("here", "lacking"),
    [
        ({"STANDIN_DRIVER": "0"}, "there is no NVIDIA driver; use a machine with an NVIDIA GPU"),
        ({"STANDIN_DRIVER": "12040"}, "the driver supports CUDA 12.4, but CuPy is built for CUDA 13.2; install a"),
        ({"STANDIN_GPUS": "0"}, "the driver reports no GPU (cudaErrorNoDevice: no CUDA-capable device is detected)"),
        (
            {"STANDIN_MISSING": "cublas"},
            """the CUDA library cublas cannot be loaded (Failure finding "libcublas.so": No""",
        ),
        ({"STANDIN_MISSING": "nvrtc cublas"}, "the CUDA library nvrtc cannot be loaded"),
        (
            {"STANDIN_CAPABILITIES": "70", "STANDIN_DRIVER": "13000"},
            "Stand-in GPU has compute capability 7.0, and CUDA 13.2 needs 7.5 or newer; pip uninstall cupy-cuda13x, "
            "then pip install 'cupy-cuda12x[ctk]', which also works with a CUDA 13 driver",
        ),
        (
            {"STANDIN_CAPABILITIES": "37"},
            "has compute capability 3.7, and CUDA 13.2 needs 7.5 or newer; use a newer GPU",
        ),
        (
            {"STANDIN_CAPABILITIES": "37", "STANDIN_RUNTIME": "12090"},
            "has compute capability 3.7, and CUDA 12.9 needs 5.0 or newer; use a newer GPU",
        ),
        (
            {"STANDIN_CAPABILITIES": "61 70 80"},
            "6.1, and CUDA 13.2 needs 7.5 or newer; to use Stand-in GPU 2 instead, set CUDA_VISIBLE_DEVICES=2",
        ),
        (
            {"STANDIN_CAPABILITIES": "61 120", "CUDA_VISIBLE_DEVICES": "5,GPU-3f"},
            "to use Stand-in GPU 1 instead, set CUDA_VISIBLE_DEVICES=GPU-3f",
        ),
        ({"STANDIN_CAPABILITIES": "70", "STANDIN_RUNTIME": "12090"}, "None"),
        ({"STANDIN_CAPABILITIES": "75 61"}, "None"),
        ({"STANDIN_CUPY": "13.6.0"}, "CuPy 13.6.0 is too old; pip install 'cupy-cuda12x[ctk]', or 'cupy-cuda13x"),
        ({"PYTHONPATH": str(ROOT)}, "CuPy cannot be loaded (No module named 'cupy'); pip install 'cupy-cuda12x[ctk]'"),
    ],
)
def test_what_a_gpu_lacks_is_said(libraries: Path, here: dict[str, str], lacking: str) -> None:
    assert lacking in said_by(AVAILABLE, {**places(libraries), **here})


def test_a_gpu_that_is_asked_for_and_lacking_is_a_mistake_of_the_job(libraries: Path, tmp_path: Path) -> None:
    run = made(tmp_path)
    said = trained(run, libraries, STANDIN_DRIVER="0")
    assert "JobError resources.backend: 'cuda', but there is no NVIDIA driver" in said
    assert "(check with nvidia-smi). To train without a GPU, submit the job with --gpus 0, or set resources" in said
    assert run.attempts() == []


def test_a_job_for_a_gpu_is_rehearsed_where_there_is_none(tmp_path: Path) -> None:
    run = made(tmp_path)
    assert next(rehearse(run.job(), dataset(tmp_path))).startswith("attempt 1: 2 steps, stopped by a signal")


def test_the_memory_on_a_gpu_is_said_where_none_is(tmp_path: Path) -> None:
    on_gpu, numpy = (TrainingSetup.build(one, dataset(tmp_path)) for one in (made(tmp_path).job(), job()))
    assert re.search(r"checkpoint [\d.]+ MB; on a GPU [\d.]+ MB$", memory_line(on_gpu))
    assert "GPU" not in memory_line(numpy)


@pytest.mark.cuda_emulated
def test_auto_takes_a_gpu_where_there_is_one_and_stays_with_it(libraries: Path, tmp_path: Path) -> None:
    run = made(tmp_path, resources__backend="auto")
    stop = "import os; os.kill(os.getpid(), 15)"
    assert "gpu: Stand-in GPU" in trained(run, libraries, stop)
    said = trained(run, libraries, STANDIN_DRIVER="0")
    assert f"'auto', and {run.path} was started on a GPU, but there is no NVIDIA driver" in said
    assert "Resume the run where a GPU is available; or, to start again without one, move the run folder" in said
    with pytest.raises(JobError, match=r"backend: 'numpy', but .* was started with 'cuda', and another backend"):
        train(run, setup=on_numpy(run))
    assert trained(run, libraries).endswith("finished\n")


def test_auto_without_a_gpu_takes_the_processor_and_stays_with_it(libraries: Path, tmp_path: Path) -> None:
    run = made(tmp_path, resources__backend="auto")
    stop = "import os; os.kill(os.getpid(), 15)"
    held = {"STANDIN_DRIVER": "0", "SLURM_JOB_GPUS": "2"}
    said = trained(run, libraries, **held)
    assert "'auto', and this SLURM job was allocated GPU 2, but there is no NVIDIA driver" in said
    assert "on the CPU" not in said
    assert "cpu: " in trained(run, libraries, stop, STANDIN_DRIVER="0")
    assert f"allocated GPU 2, but {run.path} was started on the CPU. To" in trained(run, libraries, SLURM_JOB_GPUS="2")
    assert trained(run, libraries).endswith("finished\n")
    assert run.result()["backend"] == "numpy"


@pytest.mark.cuda_emulated
def test_a_benchmark_of_a_gpu(libraries: Path) -> None:
    script = """
import json
from cnnjob.checks.benchmarks.bench import measure
print(json.dumps([row.as_json() for row in measure(["mnist-baseline"], 1, torch=False, on_gpu=True)]))
"""
    rows = {row["engine"]: row for row in json.loads(said_by(script, places(libraries)))}
    for precision in ("float32", "tf32", "float16"):
        ours = {f"cnnjob {how} {precision}" for how in ("part by part", "eager", "graph")}
        assert ours | {f"floor: {what} {precision}" for what in ("products", "bytes")} <= rows.keys()
    graph, products = rows["cnnjob graph tf32"], rows["floor: products tf32"]
    assert graph["share_of_products"] == pytest.approx(products["median_ms"] / graph["median_ms"])


def test_a_benchmark_of_a_gpu_that_is_not_there_is_a_mistake(libraries: Path) -> None:
    script = """
from cnnjob.cli.bench import bench
from cnnjob.errors import JobError
try:
    bench(["mnist-baseline"], device="gpu")
except JobError as error:
    print(error)
"""
    assert "--device gpu: there is no NVIDIA driver" in said_by(script, {**places(libraries), "STANDIN_DRIVER": "0"})


def test_two_devices_in_turn_keep_to_their_streams(libraries: Path) -> None:
    """As `bench --device gpu` has them: what the second one brings must not move the first one's work to its stream."""
    script = """
from cnnjob.nn.cuda.backend import CudaBackend
from cnnjob.nn.cuda.device import CudaDevice
from cnnjob.nn.cuda.availability import choose_kernel_cache
from tests.cuda.shop import WORKS
choose_kernel_cache()
devices = CudaDevice(), CudaDevice("tf32"), CudaDevice()
results = [WORKS["two convolutions"].result(CudaBackend(device, 20_000), steps=4) for device in (*devices, devices[0])]
print(all((results[0][key] == other[key]).all() for other in results for key in other))
"""
    assert said_by(script, places(libraries)) == "True\n"
