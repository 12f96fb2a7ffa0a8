"""Whole training steps of the CUDA backend, its kernels run on the CPU, against NumPy in float64; not on a GPU."""

import weakref
from typing import Any

import numpy as np
import pytest

from cnnjob import nn
from cnnjob.nn.arena import Arena
from cnnjob.nn.blocks import Block
from cnnjob.nn.cuda.backend import CudaBackend
from cnnjob.nn.cuda.device_api import ShapeOnlyDevice
from cnnjob.nn.cuda.graphs import EAGER_RUNS, MAX_QUEUED_STEPS, MAX_RECORDINGS, Captured
from cnnjob.nn.plan import empty_step_inputs
from cnnjob.nn.tensors import Tensor
from tests.cuda.emulation import KERNEL, ORDERS, EmulatedDevice, kernels, needs_compiler
from tests.cuda.shop import TILED, WORKS, Array, Work, reference, require_close

pytestmark = needs_compiler

FEW_COLUMN_BYTES = 20_000
"""So that a batch's patches are made in several pieces."""


@pytest.mark.parametrize("fuses", [False, True], ids=["part by part", "fused"])
@pytest.mark.parametrize("name", WORKS)
def test_steps_are_numpys_in_float64_and_the_same_in_every_order_of_threads(name: str, *, fuses: bool) -> None:
    found = [
        WORKS[name].result(CudaBackend(EmulatedDevice(order=order), FEW_COLUMN_BYTES, fuses=fuses)) for order in ORDERS
    ]
    require_close(found[0], reference(name))
    for other in found[1:]:
        require_same(found[0], other)


def require_same(found: dict[str, Array], other: dict[str, Array]) -> None:
    for key, array in found.items():
        np.testing.assert_array_equal(array, other[key], key)


def test_every_kernel_is_run() -> None:
    device = EmulatedDevice()
    for name in WORKS:
        for fuses in (False, True):
            WORKS[name].result(CudaBackend(device, FEW_COLUMN_BYTES, fuses=fuses))
    halves = EmulatedDevice(precision="float16")
    WORKS["two convolutions"].result(CudaBackend(halves))
    for name in ("pooled", "wide", "wide, pooled"):
        TILED[name].work.result(CudaBackend(halves))
    assert device.launched | halves.launched == set(KERNEL.findall(kernels()))


@pytest.mark.parametrize(
    ("name", "first", "head"),
    [
        ("baseline", "3_2_1", True),
        ("two convolutions", None, True),
        ("first block 5, 2, 1", "5_2_1", True),
        ("bright", "3_2_1", True),
        ("stride, pool 3", None, True),
        ("many classes", None, False),
        ("no head", None, False),
        ("pool 17", None, True),
    ],
)
def test_what_is_computed_at_once(name: str, first: str | None, *, head: bool) -> None:
    device = EmulatedDevice()
    WORKS[name].result(CudaBackend(device))
    assert ("head" in device.launched) == head == ("cross_entropy" not in device.launched)
    firsts = {launched for launched in device.launched if launched.startswith("first_")}
    assert firsts == ({f"first_forward_{first}", f"first_backward_{first}"} if first else set())
    assert ("gather" in device.launched) == (not first)


def test_an_image_too_wide_for_shared_memory_is_computed_part_by_part() -> None:
    device = EmulatedDevice()
    Work([nn.Conv(filters=1, pool=2)], (4, 120, 3), count=1).result(CudaBackend(device))
    assert "gather" in device.launched


@pytest.mark.parametrize("name", ["baseline", "two convolutions", "dropout everywhere", "decay", "many classes"])
@pytest.mark.parametrize("fuses", [False, True], ids=["part by part", "fused"])
def test_a_graph_gives_the_bits_of_its_launches(name: str, *, fuses: bool) -> None:
    devices = EmulatedDevice(), EmulatedDevice()
    eager, graph = (
        WORKS[name].result(CudaBackend(device, FEW_COLUMN_BYTES, fuses=fuses, captures=captures), steps=5)
        for device, captures in zip(devices, (False, True), strict=True)
    )
    require_same(eager, graph)
    evaluated = -(-(2 * WORKS[name].count - 1) // 4)
    assert (devices[0].replays, devices[1].replays) == (0, 3 + max(0, evaluated - 2))


def test_an_evaluation_of_other_images_is_recorded_anew() -> None:
    device = EmulatedDevice()
    backends = nn.NumPyBackend(nn.Workers(1)), CudaBackend(device)
    random = np.random.default_rng(0)
    network = nn.Network.build([nn.Conv(filters=3, pool=2), nn.Dense(activation="none", units=3)], (8, 8, 1))
    images = [random.integers(0, 256, (count, 8, 8, 1), np.uint8) for count in (9, 40, 9)]
    found: list[Array] = []
    for backend in backends:
        state = nn.State(network, nn.Sgd(), backend)
        state.initialise(network, 0)
        plan = nn.EvaluationPlan(backend, network, state, nn.PixelNormalisation.unit(1), 2)
        orders = [np.arange(len(array))[::-1].copy() for array in images]
        found += [plan.probabilities(images[number], orders[number]) for number in (0, 1, 0, 2)]
    for numpys, ours in zip(found[:4], found[4:], strict=True):
        np.testing.assert_allclose(ours, numpys, atol=1e-6)
    np.testing.assert_array_equal(found[4], found[6])
    assert device.replays == 3 + 18 + 3 + 3


def test_few_recordings_are_kept_and_none_of_arrays_that_are_gone() -> None:
    device, arrays = EmulatedDevice(), [np.zeros(1) for _ in range(MAX_RECORDINGS + 1)]
    read: list[Array] = []
    captured = Captured(device, lambda: None, lambda: tuple(read))

    def recorded_for(array: Array) -> int:
        before = device.captures
        read[:] = [array]
        for _ in range(EAGER_RUNS + 1):
            captured()
        return device.captures - before

    *first, last = arrays
    assert [recorded_for(array) for array in first] == [1] * MAX_RECORDINGS
    assert [recorded_for(array) for array in first] == [0] * MAX_RECORDINGS
    assert recorded_for(last) == 1  # in place of the oldest
    assert [recorded_for(array) for array in (*first[1:], last, first[0])] == [0] * MAX_RECORDINGS + [1]
    watched = [weakref.ref(array) for array in arrays]
    for name in (arrays, first, read):
        name.clear()
    del last
    assert [array() for array in watched] == [None] * len(watched)
    assert recorded_for(np.zeros(1)) == 1


def test_no_more_than_so_many_steps_are_asked_for_ahead() -> None:
    device = EmulatedDevice()
    runs: list[int] = []
    captured = Captured(device, lambda: runs.append(1), tuple)
    for _ in range(3 * MAX_QUEUED_STEPS):
        captured()
    assert (len(runs), device.waits) == (3, 3)


def test_what_cannot_be_recorded_is_said() -> None:
    device = EmulatedDevice()
    captured = Captured(device, lambda: device.copy(np.zeros(1), np.zeros(1)), tuple)
    captured()
    captured()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="not while a graph is recorded"):
            captured()
    device.copy(np.zeros(1), np.zeros(1))


def test_a_block_that_was_not_planned_cannot_be_run() -> None:
    signal = Tensor.take(Arena(), (1, 2), np.float32)
    inputs = empty_step_inputs((2, 2, 1))
    with pytest.raises(RuntimeError, match="DeferredLoss: its task was called before it was planned"):
        CudaBackend(EmulatedDevice()).loss(Arena(), inputs, signal, 0.0)()


@pytest.mark.parametrize("column_bytes", [1, 5_000, 1 << 24])
def test_the_pieces_of_a_batch_change_nothing_but_the_rounding(column_bytes: int) -> None:
    backend = CudaBackend(EmulatedDevice(), column_bytes)
    require_close(WORKS["two convolutions"].result(backend), reference("two convolutions"))


def test_dropout_draws_the_same_bits_as_numpy() -> None:
    white = np.full((3, 9, 9, 3), 255, np.uint8)
    work = Work([nn.Dropout(0.3)], (9, 9, 3), count=1, images=white, optimiser=nn.Sgd())
    masks = [
        work.result(backend)["gradients/classifier/weights"] != 0
        for backend in (nn.NumPyBackend(nn.Workers(1)), CudaBackend(EmulatedDevice()))
    ]
    np.testing.assert_array_equal(*masks)
    assert 0.5 < masks[0].mean() < 0.9


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_reaches_the_loss(bad: float) -> None:
    work = Work([nn.Conv(filters=3, pool=2), nn.Dense(units=4)], learning_rate=bad)
    assert np.isfinite(reference("plain")["losses"]).all()
    for backend in (nn.NumPyBackend(nn.Workers(1)), CudaBackend(EmulatedDevice())):
        losses = work.result(backend)["losses"]
        assert np.isfinite(losses[0])
        assert not np.isfinite(losses[1])


def test_a_plan_is_counted_exactly_without_a_device() -> None:
    blocks: list[Block] = [nn.Conv(filters=4, pool=2), nn.Dropout(0.2), nn.Dense(units=5)]
    network = nn.Network.build([*blocks, nn.Dense(activation="none", units=3)], (8, 8, 1))
    taken: list[tuple[int, ...]] = []

    class Counting(EmulatedDevice):
        def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
            taken.append(shape)
            return super().zeros(shape, dtype)

    backend, shape_only = CudaBackend(Counting()), CudaBackend()
    state = nn.State(network, nn.Sgd(), backend)
    inputs = nn.build_step_inputs(backend, np.zeros((6, 8, 8, 1), np.uint8), np.zeros(6, np.int64), 1, 6, 0)
    taken.clear()
    nn.TrainingPlan(backend, network, state, nn.Sgd(), inputs, nn.PixelNormalisation.unit(1), 6)
    without = nn.State(network, nn.Sgd(), shape_only, shape_only=True)
    assert taken == [(nn.TrainingPlan.count_bytes(shape_only, network, without, nn.Sgd(), 6),)]
    with pytest.raises(RuntimeError, match="zeros: called on a device without memory"):
        ShapeOnlyDevice().zeros((1,), np.uint8)


def test_arrays_of_other_sizes_are_not_copied() -> None:
    backend = CudaBackend(EmulatedDevice())
    with pytest.raises(ValueError, match=r"float64 \(3,\) into float32 \(3,\)"):
        backend.copy(np.zeros(3), np.zeros(3, np.float32))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("if (threadIdx.x < 5) __syncthreads();", "some threads missed a barrier"),
        ("if (threadIdx.x < 5) __syncthreads(); else\n__syncthreads();", "threads at different barriers"),
        ("if (threadIdx.x) x[0] = __shfl_xor_sync(1, 1.0f, 1);", "some threads missed a barrier"),
        ("if (threadIdx.x < 5) __syncthreads(); else x[0] = __shfl_xor_sync(1, 1.0f, 1);", "at different barriers"),
    ],
)
def test_the_emulator_finds_divergent_barriers(body: str, message: str) -> None:
    device = EmulatedDevice(f'#define KERNEL extern "C" __global__ void\nKERNEL broken(float *x) {{ {body} }}')
    with pytest.raises(RuntimeError, match=message):
        device.launch("broken", (1, 1), (32, 2), [np.zeros(1, np.float32)])


def test_the_emulator_refuses_other_arguments() -> None:
    device = EmulatedDevice()
    with pytest.raises(TypeError, match="tally: other arguments"):
        device.launch("tally", (1, 1), (2, 1), [np.zeros(2, np.int64), np.int32(1)])
    with pytest.raises(TypeError, match="3: neither an array nor a NumPy scalar"):
        device.launch("tally", (1, 1), (2, 1), [3])
