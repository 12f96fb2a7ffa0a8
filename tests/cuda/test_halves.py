"""float16 factors of convolutions, on the CPU; not on a GPU."""

from typing import Any

import numpy as np
import pytest

from cnnjob import nn
from cnnjob.nn.cuda.backend import CudaBackend
from cnnjob.nn.cuda.device_api import ShapeOnlyDevice, scalars
from tests.cuda.emulation import ORDERS, EmulatedDevice, needs_compiler
from tests.cuda.shop import GUARD, WORKS, Array, Work, guarded, reference, smooth

pytestmark = needs_compiler

CONVOLUTIONS = [
    "two convolutions",
    "stride over the kernel",
    "no bias",
    "frozen",
    "kernel 1",
    "residual",
    "silu",
    "pool 17",
    "even kernel, rows left out",
    "first block 3, 2, 3",
]
FEW_COLUMN_BYTES = 20_000


def half(order: str = "forward") -> CudaBackend:
    return CudaBackend(EmulatedDevice(order=order, precision="float16"), FEW_COLUMN_BYTES)


@pytest.mark.parametrize("order", ORDERS)
def test_numbers_are_rounded_as_numpy_does_and_too_large_ones_are_none(order: str) -> None:
    every = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)  # finite, from 0 on
    between = (every[:-1] + every[1:]) / 2
    near = np.nextafter(between, np.float32(0)), np.nextafter(between, np.float32(1e9))
    x = np.concatenate([every, between, *near, -every, -between])
    y, behind = guarded(x.shape, np.int16)
    device = EmulatedDevice(order=order)
    device.launch("halve", (7, 1), (256, 1), scalars([x, y, x.size, 1.0, 1, x.size]))
    np.testing.assert_array_equal(y, x.astype(np.float16).view(np.int16))
    assert (behind == GUARD).all()
    large = np.array([65520, -65520, np.inf, np.nan, 40000], np.float32)
    y = np.zeros(5, np.float16)
    device.launch("halve", (1, 1), (256, 1), scalars([large, y, 5, 0.5, 1, 5]))
    assert np.isnan(y).tolist() == [False, False, True, True, False]
    device.launch("halve", (1, 1), (256, 1), scalars([large, y, 5, 1.0, 1, 5]))
    assert np.isnan(y).tolist() == [True, True, True, True, False]


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_steps_are_near_float64_and_the_same_in_every_order_of_threads(name: str) -> None:
    found = [WORKS[name].result(half(order)) for order in ORDERS]
    for key, array in reference(name).items():
        assert np.linalg.norm(found[0][key] - array) <= 0.03 * np.linalg.norm(array), key
        for other in found[1:]:
            np.testing.assert_array_equal(found[0][key], other[key], key)


class AlignedRows(EmulatedDevice):
    """A device that requires what cuBLAS's fastest kernels require: rows of float16 at multiples of 16 bytes."""

    factors = 0

    def gemm(self, a: Array, b: Array, out: Array, **settings: Any) -> None:
        for array in (a, b, out):
            if array.dtype == np.float16:
                self.factors += 1
                assert array.ctypes.data % 16 == 0
                assert array.strides[0] % 16 == 0, array.shape
                assert array.strides[1] == 2
        super().gemm(a, b, out, **settings)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_rows_of_factors_are_aligned(name: str) -> None:
    device = AlignedRows(precision="float16")
    WORKS[name].result(CudaBackend(device, FEW_COLUMN_BYTES), 1)
    assert device.factors


def test_slopes_that_are_too_small_for_float16_are_scaled() -> None:
    """A batch's mean makes slopes that float16 would round to nothing."""
    work = Work([nn.Conv(filters=4), nn.Conv(filters=4)], (6, 6, 1), count=500, optimiser=nn.Sgd())
    exact, found = (work.result(backend, 1) for backend in (nn.NumPyBackend(nn.Workers(1), np.float64), half()))
    assert np.abs(exact["gradients/conv1/weights"]).max() / (500 * 36) < np.finfo(np.float16).smallest_normal
    for key in ("gradients/conv1/weights", "gradients/conv2/weights"):
        assert np.abs(found[key] - exact[key]).max() < 5e-3 * np.abs(exact[key]).max()


def test_an_activation_that_is_too_large_reaches_the_loss() -> None:
    work = Work([nn.Conv(filters=3, bias_init=1e5), nn.Conv(filters=3, activation="relu")], learning_rate=1e-9)
    assert np.isnan(work.result(half(), 1)["losses"]).all()
    assert np.isfinite(work.result(CudaBackend(EmulatedDevice()), 1)["losses"]).all()


@pytest.mark.parametrize("block", [nn.Conv(filters=4, pool=2), smooth(8, pool=2)], ids=["patches", "tiles"])
def test_a_plan_is_counted_exactly(block: nn.Conv) -> None:
    network = nn.Network.build([block, nn.Dense(activation="none", units=3)], (8, 8, 2))
    taken: list[tuple[int, ...]] = []

    class Counting(EmulatedDevice):
        def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
            taken.append(shape)
            return super().zeros(shape, dtype)

    backend, shape_only = CudaBackend(Counting(precision="float16")), CudaBackend(ShapeOnlyDevice("float16"))
    state = nn.State(network, nn.Sgd(), backend)
    inputs = nn.build_step_inputs(backend, np.zeros((6, 8, 8, 2), np.uint8), np.zeros(6, np.int64), 1, 6, 0)
    taken.clear()
    nn.TrainingPlan(backend, network, state, nn.Sgd(), inputs, nn.PixelNormalisation.unit(2), 6)
    without = nn.State(network, nn.Sgd(), shape_only, shape_only=True)
    assert taken == [(nn.TrainingPlan.count_bytes(shape_only, network, without, nn.Sgd(), 6),)]
