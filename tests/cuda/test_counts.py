"""What a step asks of a GPU, counted from the plans, and that what is counted is what the kernels do."""

import runpy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from cnnjob.nn.arena import shape_only_array
from cnnjob.nn.cuda.backend import CudaBackend
from tests.cuda.counts.h200 import FAST, H200, SLOW, SMS, SUBCORES
from tests.cuda.counts.instructions import WORK, Instructions
from tests.cuda.counts.recording import GEMM, Launch, parameters, record, shipped_jobs
from tests.cuda.counts.traffic import TRAFFIC, Counts, count_values, declared_arrays
from tests.cuda.emulation import EmulatedDevice, needs_compiler
from tests.cuda.shop import OF_ONE_PIXEL, TILED, WORKS, Array

LIMITS = {
    "cifar10": (80, 45, 0.74),
    "cifar10-95": (3096, 1909, 62.7),
    "cifar10-baseline": (8, 6, 0.051),
    "cifar10-course": (17, 6, 0.21),
    "cifar10-fast": (74, 98, 2.96),
    "cifar10-muon": (88, 98, 5.5),
    "cifar10-resnet": (86, 47, 3.6),
    "cifar10-small": (304, 223, 4.3),
    "cifar100-resnet": (86, 47, 4.0),
    "digits": (23, 9, 0.012),
    "fashion-mnist": (31, 18, 0.26),
    "mnist": (31, 18, 0.26),
    "mnist-baseline": (8, 6, 0.029),
    "mnist-cnn": (64, 34, 0.48),
    "mnist-course": (17, 6, 0.13),
    "mnist-deep": (105, 62, 0.98),
}
"""At most so many launches in a training and in an evaluation step, and GB that a training step moves."""


@pytest.mark.parametrize("name", shipped_jobs())
def test_a_step_needs_few_kernels_and_moves_little(name: str) -> None:
    job = record(name)
    training, evaluation = Counts.of(job.training), Counts.of(job.evaluation)
    found = training.launches, evaluation.launches, (training.read + training.written) / 1e9
    assert all(count <= most for count, most in zip(found, LIMITS[name], strict=True)), found


@pytest.mark.parametrize(
    ("name", "settings", "step", "epoch"),
    [
        ("cifar10-fast", (), 2.95e-3, 0.142),
        ("mnist-baseline", (), 44e-6, 42.5e-3),
        ("cifar10-baseline", ("train.precision=tf32",), 51e-6, 21.5e-3),
    ],
)
def test_a_step_and_an_epoch_are_short_in_the_model(
    name: str, settings: tuple[str, ...], step: float, epoch: float
) -> None:
    """Seconds, modelled for an H200; not measured on one."""
    job = record(name, *settings)
    assert H200.step_seconds(job.training, job.precision) <= step
    assert H200.epoch_seconds(job) <= epoch
    assert H200.training_seconds(job) > job.epochs * H200.epoch_seconds(job)


def test_without_the_instructions_of_sm_80_a_step_is_that_of_matrices_of_patches() -> None:
    job = record("cifar10-fast", wide_stages=0)
    assert len(job.training) == 815
    assert 16e-3 < H200.step_seconds(job.training, job.precision) < 24e-3
    fast, slow = (gpu.step_seconds(job.training, job.precision) for gpu in (FAST, SLOW))
    assert fast < H200.step_seconds(job.training, job.precision) < slow


def test_the_model_has_the_bounds_of_its_constants() -> None:
    values, halves = (shape_only_array((1 << 28,), dtype) for dtype in (np.float32, np.float16))
    sums = shape_only_array((128,), np.float64)
    squares = dict(zip(parameters()["add_squares"], (values, sums, np.int64(values.size)), strict=True))
    seconds = H200.kernel_seconds(Launch("add_squares", (1 << 20, 1), (256, 1), squares), "float32")
    assert seconds == pytest.approx(H200.ramp / H200.clock + (values.nbytes + sums.nbytes) / H200.hbm)
    conversion = dict(
        zip(parameters()["halve"], (values, halves, *map(np.int32, (1 << 28, 1, 1, 1 << 28))), strict=True)
    )
    seconds = H200.kernel_seconds(Launch("halve", (1 << 20, 1), (256, 1), conversion), "float32")
    issued = WORK["halve"].each * (1 << 28) / 32
    assert seconds == pytest.approx(H200.ramp / H200.clock + issued / (SMS * SUBCORES * H200.clock * H200.issue))
    factors = [shape_only_array((8192, 8192), np.float16) for _ in range(3)]
    product = Launch(GEMM, (1, 1), (1, 1), dict(zip(("a", "b", "out"), factors, strict=True)) | {"beta": 0})
    peak = 4096 * SMS * H200.clock
    assert 0.5 < 2 * 8192**3 / H200.kernel_seconds(product, "float16") / peak < H200.gemm_share


def test_every_kernel_has_its_instructions() -> None:
    assert WORK.keys() == parameters().keys()
    for name in shipped_jobs():
        job = record(name)
        assert all(Instructions.of(launch).all > 0 for launch in job.training if launch.name != GEMM)


def test_the_command_prints_the_counts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["cifar10-fast", "--sm-75"], ["mnist-baseline", "--set", "train.batch_size=64"]):
        monkeypatch.setattr("sys.argv", ["", *arguments])
        runpy.run_module("tests.cuda.counts", run_name="__main__")
    printed = capsys.readouterr().out
    assert "im2col_half" in printed
    assert "first_forward_3_2_1" in printed
    assert f"{Counts.of(record('mnist-baseline').training).flops / 1e9:.2f}" in printed


def test_the_products_of_a_step_are_those_of_its_network() -> None:
    """mnist-baseline: 32 filters of 3 x 3 on 28 x 28 pixels, pooled to 14 x 14; 128 units; 10 classes."""
    images, filters, hidden, head = 64, 28 * 28 * 32 * 9, 14 * 14 * 32 * 128, 128 * 10
    # The gradient of the filters needs one pixel of each window, and the images need none.
    products = images * (filters + filters // 4 + 3 * hidden + 3 * head)
    counts = Counts.of(record("mnist-baseline").training)
    assert counts.flops == 2 * products
    weights = 9 * 32 + 32 + 14 * 14 * 32 * 128 + 128 + 128 * 10 + 10
    assert counts.written > 4 * 2 * weights  # the gradients and the updated weights


def test_every_kernel_says_what_it_reads_and_writes() -> None:
    assert TRAFFIC.keys() == {*parameters(), GEMM}
    for name, types in parameters().items():
        arrays = {parameter: type_ for parameter, type_ in types.items() if type_.endswith("*")}
        reads, writes = (declared_arrays(declared).keys() for declared in TRAFFIC[name][:2])
        assert reads | writes == arrays.keys(), name
        assert writes == {parameter for parameter, type_ in arrays.items() if not type_.startswith("const")}, name


FILLS = 0x55, 0xAA
"""Bytes of arrays that a kernel does not read; it runs once with each."""


class CheckingDevice(EmulatedDevice):
    """A device that runs each kernel twice, and compares what it did with what is declared."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.checked: set[str] = set()

    def launch(
        self,
        name: str,
        grid: tuple[int, int],
        block: tuple[int, int],
        arguments: Sequence[Any],
        shared_bytes: int = 0,
    ) -> None:
        launch = Launch(name, grid, block, dict(zip(parameters()[name], arguments, strict=True)))
        arrays = {key: value for key, value in launch.arguments.items() if isinstance(value, np.ndarray)}
        read, written = (count_values(launch, declared) for declared in TRAFFIC[name][:2])
        before = {key: array.copy() for key, array in arrays.items()}
        unread = [key for key in arrays if not read.get(key) and stands_alone(key, arrays)]
        after = []
        for fill in FILLS:
            for key, array in arrays.items():
                array[...] = before[key]
                if key in unread:
                    array[...] = np.full(array.nbytes, fill, np.uint8).view(array.dtype).reshape(array.shape)
            super().launch(name, grid, block, arguments, shared_bytes)
            after.append({key: array.copy() for key, array in arrays.items()})
        for key, array in arrays.items():
            filled = [np.full(array.nbytes, fill, np.uint8).view(array.dtype).reshape(array.shape) for fill in FILLS]
            starts = filled if key in unread else [before[key]] * 2
            # A value that is written may be that of one of the fills, but not of both.
            changed = (bits(after[0][key]) != bits(starts[0])) | (bits(after[1][key]) != bits(starts[1]))
            assert (bits(after[0][key]) == bits(after[1][key]))[changed].all(), f"{name}: depends on what {key} was"
            count = written.get(key, 0)
            if key in unread:
                assert changed.sum() == count, f"{name}: writes {changed.sum()} of {key}, declared {count}"
            elif stands_alone(key, arrays):
                assert changed.sum() <= count, f"{name}: writes {changed.sum()} of {key}, declared {count}"
            if key in unread:
                array[...] = np.where(changed, after[1][key], before[key])
        self.checked.add(name)


def stands_alone(key: str, arrays: dict[str, Array]) -> bool:
    """No other argument lies in the same memory."""
    return not any(np.may_share_memory(arrays[key], other) for name, other in arrays.items() if name != key)


def bits(array: Array) -> Array:
    return array.view(f"u{array.itemsize}")


CHECKED = {
    "silu": False,
    "maxima": True,
    "muon, all": True,
    "bright": True,
    "augmented in every way": True,
    "pool 17": False,
    "first bias of no epoch": True,
    "decay, cycled adam": False,
    "flipped by turns": False,
    "no activation, no pooling": True,
    "first block 3, 2, 3": True,
    "first block 5, 2, 1": True,
    "first block 5, 1, 1": True,
    "residual of a window": False,
    "clipped": True,
    "averaged, lookahead": True,
    "decay alone": True,
    "fully frozen": True,
}
"""Works whose steps have every kernel, and whether they are fused."""


@needs_compiler
def test_the_kernels_read_and_write_what_is_declared() -> None:
    devices = [CheckingDevice(), CheckingDevice(precision="float16")]
    for name, fuses in CHECKED.items():
        WORKS[name].result(CudaBackend(devices[0], fuses=fuses, captures=False))
    WORKS["residual"].result(CudaBackend(devices[1], fuses=False, captures=False))
    for work in (TILED["residual"].work, *OF_ONE_PIXEL.values()):
        work.result(CudaBackend(devices[1], captures=False), 1)
    assert devices[0].checked | devices[1].checked == parameters().keys()
