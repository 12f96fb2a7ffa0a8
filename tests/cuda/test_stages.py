"""Kernels between and after convolutions, run on the CPU, where whole steps would not show what is wrong."""

import numpy as np
import pytest

from cnnjob.nn.cuda.device_api import scalars
from tests.cuda.emulation import ORDERS, EmulatedDevice, needs_compiler
from tests.cuda.shop import GUARD, Array, guarded

pytestmark = needs_compiler


@pytest.fixture(params=ORDERS)
def device(request: pytest.FixtureRequest) -> EmulatedDevice:
    return EmulatedDevice(order=request.param)


def lying(array: Array) -> tuple[Array, np.int64, int]:
    """An array without a border, as kernels are told."""
    return array, np.int64(array[0].size), array.shape[2] * array.shape[3]


@pytest.mark.parametrize("shape", [(2, 5, 7, 3), (1, 1, 3, 40), (3, 2, 4, 1)])
def test_the_first_of_equal_maxima_counts(device: EmulatedDevice, shape: tuple[int, ...]) -> None:
    N, H, W, C = shape
    x = np.random.default_rng(C).integers(0, 3, shape).astype(np.float32)
    (y, behind), (first, behind_first) = guarded((N, C), np.float32), guarded((N, C), np.int32)
    device.launch("global_max", (N, -(-C // 32)), (32, 8), scalars([*lying(x), y, first, W, C, H * W]))
    np.testing.assert_array_equal(y, x.max(axis=(1, 2)))
    np.testing.assert_array_equal(first, x.reshape(N, H * W, C).argmax(axis=1))
    assert all((rest == GUARD).all() for rest in (behind, behind_first))


def test_the_first_of_equal_maxima_of_a_window_counts(device: EmulatedDevice) -> None:
    N, P, H, C = 3, 3, 2, 5
    x = np.random.default_rng(0).integers(0, 3, (N, H * P, H * P, C)).astype(np.float32)
    (y, behind), (winners, behind_winners) = guarded((N, H, H, C), np.float32), guarded((N, H, H, C), np.int16)
    first = winners.view(np.uint16)
    arguments = scalars([*lying(x), *lying(y), first, P, H, C, N, H * H * C])
    device.launch("max_pool", (1, 2), (256, 1), arguments)
    windows = x.reshape(N, H, P, H, P, C).transpose(0, 1, 3, 5, 2, 4).reshape(N, H, H, C, P * P)
    np.testing.assert_array_equal(y, windows.max(axis=-1))
    np.testing.assert_array_equal(first, windows.argmax(axis=-1))
    assert all((rest == GUARD).all() for rest in (behind, behind_winners))


@pytest.mark.parametrize("kernel", ["max_pool", "global_max"])
def test_what_is_no_number_is_the_maximum(device: EmulatedDevice, kernel: str) -> None:
    for place in range(16):
        x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
        x.reshape(-1)[place] = np.nan
        y, place_of = np.zeros((1, 1, 1, 1), np.float32), np.zeros(1, np.uint16 if kernel == "max_pool" else np.int32)
        if kernel == "max_pool":
            device.launch(kernel, (1, 1), (256, 1), scalars([*lying(x), *lying(y), place_of, 4, 1, 1, 1, 1]))
        else:
            device.launch(kernel, (1, 1), (32, 8), scalars([*lying(x), y, place_of, 4, 1, 16]))
        assert np.isnan(y).all()


@pytest.mark.parametrize("rows", [1, 5, 300, 1000])
def test_statistics_of_values_far_from_zero(device: EmulatedDevice, rows: int) -> None:
    C, part = 35, 128
    parts = -(-rows // part)
    x = (np.random.default_rng(rows).standard_normal((rows, C)) + 10 * np.arange(C)).astype(np.float32)
    (means, after), (squares, behind) = (guarded((parts, C), np.float32) for _ in range(2))
    device.launch("moments", (2, parts), (32, 8), scalars([x, means, squares, np.int64(rows), C, np.int64(part)]))
    arrays = [guarded((C,), np.float32) for _ in range(4)]
    mean, inverse, running_mean, running_variance = (array for array, _ in arrays)
    running_mean[...], running_variance[...] = 4, 3
    sizes = np.int64(rows), np.int64(part), parts, C
    moved = scalars([means, squares, *sizes, running_mean, running_variance, 0.25, 1e-2, mean, inverse])
    device.launch("batch_statistics", (2, 1), (32, 8), moved)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(axis=0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(inverse, (exact.var(axis=0) + 1e-2) ** -0.5, rtol=1e-4)
    np.testing.assert_allclose(running_mean, 3 + 0.25 * exact.mean(axis=0), rtol=1e-6)
    unbiased = exact.var(axis=0) * rows / max(1, rows - 1)
    np.testing.assert_allclose(running_variance, 2.25 + 0.25 * unbiased, rtol=1e-5)
    fixed = scalars([running_mean, running_variance, 1e-2, mean, inverse, C])
    device.launch("running_statistics", (1, 1), (256, 1), fixed)
    np.testing.assert_array_equal(mean, running_mean)
    np.testing.assert_allclose(inverse, (running_variance + 1e-2) ** -0.5, rtol=1e-6)
    assert all((rest == GUARD).all() for rest in (after, behind, *(rest for _, rest in arrays)))


def test_statistics_of_equal_values_however_large(device: EmulatedDevice) -> None:
    x, (means, squares) = np.full((3, 2), 1e20, np.float32), np.ones((2, 1, 2), np.float32)
    device.launch("moments", (1, 1), (32, 8), scalars([x, means, squares, np.int64(3), 2, np.int64(8)]))
    np.testing.assert_array_equal(means, x[:1])
    np.testing.assert_array_equal(squares, 0)


def test_views_are_drawn_for_the_batch_alone(device: EmulatedDevice) -> None:
    views, behind = guarded((300, 5), np.int32)
    address, numbers = (np.int64(3), np.uint32(1), np.uint32(5)), (1, 2, 5, 8, 4, 300)
    device.launch(
        "draw_views",
        (2, 1),
        (256, 1),
        scalars([np.arange(300), np.zeros(2, np.int64), views, *address, *numbers]),
    )
    assert set(views[:, 0]) == {0, 1}
    assert set(views[:, 1]) == set(views[:, 2]) == {-2, -1, 0, 1, 2}
    assert set(views[:, 3]) == set(range(-2, 6))
    assert set(views[:, 4]) == set(range(-2, 2))
    assert (behind == GUARD).all()
