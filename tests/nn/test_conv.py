"""The conv and dense blocks against nested loops, finite differences, and tied windows."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnjob import nn
from cnnjob.nn.arena import Arena, HostMemory
from cnnjob.nn.cpu.conv import CACHE_BLOCK_BYTES, FEW_CHANNELS, conv
from cnnjob.nn.tensors import Tensor
from tests.nn import oracle
from tests.nn.bench import check_gradients, distance, rig

Array = np.ndarray[Any, Any]


@st.composite
def conv_cases(draw: st.DrawFn) -> tuple[nn.Conv, tuple[int, int, int, int]]:
    """A conv block and an input (N, H, W, C) that it fits on."""
    kernel = draw(st.integers(1, 4))
    block = nn.Conv(
        filters=draw(st.integers(1, 3)),
        kernel=kernel,
        stride=draw(st.integers(1, 3)),
        pad=draw(st.integers(0, min(2, kernel - 1))),
        pool=draw(st.integers(1, 3)),
        activation=draw(st.sampled_from(["relu", "none"])),
    )
    needed = (block.pool - 1) * block.stride + block.kernel - 2 * block.pad
    sides = st.integers(max(needed, 1), max(needed, 1) + 4)
    channels = draw(st.sampled_from([1, 2, FEW_CHANNELS - 1, FEW_CHANNELS]))  # patches lie in one of two ways
    return block, (draw(st.integers(1, 3)), draw(sides), draw(sides), channels)


def run_conv(block: nn.Conv, x: Array, w: Array, b: Array, dy: Array | None = None) -> tuple[Array, ...]:
    """The block's output, and the gradients where dy is given."""
    shape = block.output_shape(x.shape[1:])

    def build(arena: Arena) -> tuple[Any, ...]:
        into = Tensor.take(arena, x.shape, x.dtype, border=block.pad)
        out = Tensor.take(arena, (len(x), *shape), x.dtype)
        dw = {"weights": np.zeros_like(w), "bias": np.zeros_like(b)}
        return into, out, dw, conv(nn.Workers(1), arena, block, into, out, {"weights": w, "bias": b}, dw)

    into, out, dw, step = Arena.allocate(HostMemory(), build)
    into.value[...] = x
    step.forward()
    if dy is None:
        return (out.value.copy(),)
    out.gradient[...] = dy
    step.backward()
    return out.value.copy(), into.gradient.copy(), dw["weights"], dw["bias"]


@settings(max_examples=150, deadline=None)
@given(conv_cases(), st.integers(0, 2**16))
def test_forward_and_backward_are_those_of_nested_loops(
    case: tuple[nn.Conv, tuple[int, int, int, int]], seed: int
) -> None:
    block, shape = case
    random = np.random.default_rng(seed)
    x, b = random.normal(size=shape), random.normal(size=block.filters)
    w = random.normal(size=(block.kernel, block.kernel, shape[3], block.filters))
    kept = x.copy(), w.copy(), b.copy()

    z = oracle.conv(x, w, b, block.stride, block.pad)
    active = np.maximum(z, 0) if block.activation == "relu" else z
    y, first = oracle.max_pool(active, block.pool)
    dy: Array = np.asarray(random.normal(size=y.shape))
    dz = oracle.max_pool_backward(z.shape, first, dy, block.pool)
    dz = dz * (z > 0) if block.activation == "relu" else dz
    expected = (y, *oracle.conv_backward(x, w, dz, block.stride, block.pad))

    for found, wanted in zip(run_conv(block, x, w, b, dy), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-10)
    for array, before in zip((x, w, b), kept, strict=True):
        np.testing.assert_array_equal(array, before)


@settings(max_examples=60, deadline=None)
@given(conv_cases(), st.integers(0, 2**16))
def test_gradients_are_finite_differences(case: tuple[nn.Conv, tuple[int, int, int, int]], seed: int) -> None:
    block, (count, *shape) = case
    H, W, C = shape
    check_gradients(rig([block, nn.Dense(units=4)], (H, W, C), count=count, seed=seed), seed)


@pytest.mark.parametrize("pool", [2, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tied_maxima_go_to_the_first_in_row_major_order(pool: int, dtype: Any) -> None:
    """A constant image ties every window; the gradient of each tap tells which position took it."""
    block = nn.Conv(filters=2, kernel=1, pad=0, pool=pool, activation="none")
    x = np.full((2, 2 * pool, 2 * pool, 1), 0.5, dtype)
    w, b = np.ones((1, 1, 1, 2), dtype), np.zeros(2, dtype)
    dy = np.ones((2, 2, 2, 2), dtype)
    _, dx, _, _ = run_conv(block, x, w, b, dy)
    expected = np.zeros_like(x)
    expected[:, ::pool, ::pool] = 2
    np.testing.assert_array_equal(dx, expected)


def test_partly_tied_windows_take_the_first_of_the_largest() -> None:
    x = np.array([[0.0, 1.0], [1.0, 1.0]]).reshape(1, 2, 2, 1)
    block = nn.Conv(filters=1, kernel=1, pad=0, pool=2)
    _, dx, _, _ = run_conv(block, x, np.ones((1, 1, 1, 1)), np.zeros(1), np.ones((1, 1, 1, 1)))
    np.testing.assert_array_equal(dx.ravel(), [0, 1, 0, 0])


def test_rows_that_fill_no_window_are_left_out() -> None:
    block = nn.Conv(filters=1, kernel=1, pad=0, pool=2)
    x = np.arange(25.0).reshape(1, 5, 5, 1)
    y, dx, *_ = run_conv(block, x, np.ones((1, 1, 1, 1)), np.zeros(1), np.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(y.ravel(), [6, 8, 16, 18])
    assert dx[0, 4].sum() == dx[0, :, 4].sum() == 0


def test_a_shard_in_pieces_is_the_same_sum() -> None:
    """Images that do not fit the caches together: the gradients are those of one image after the other, added."""
    block, random = nn.Conv(filters=16, pool=2), np.random.default_rng(0)
    x, w, b = random.normal(size=(17, 64, 64, 9)), random.normal(size=(3, 3, 9, 16)), random.normal(size=16)
    assert 64 * 64 * (9 * 9 + 16) * x.itemsize * 3 > CACHE_BLOCK_BYTES  # the three images of a shard
    dy = random.normal(size=(17, 32, 32, 16))
    y, dx, dw, db = run_conv(block, x, w, b, dy)
    single = [run_conv(block, x[n : n + 1], w, b, dy[n : n + 1]) for n in range(17)]
    np.testing.assert_allclose(y, np.concatenate([one[0] for one in single]), rtol=1e-12)
    np.testing.assert_allclose(dx, np.concatenate([one[1] for one in single]), rtol=1e-10, atol=1e-12)
    assert distance(dw, np.sum([one[2] for one in single], axis=0)) < 1e-12
    assert distance(db, np.sum([one[3] for one in single], axis=0)) < 1e-12


def test_float32_stays_float32() -> None:
    bench = rig([nn.Conv(filters=2, pool=2), nn.Dense(units=3), nn.Dropout(0.5)], dtype=np.float32)
    bench.step()
    assert bench.state.parameters.dtype == bench.gradients["conv1/weights"].dtype == np.float32
    assert distance(bench.gradients["conv1/weights"], bench.gradients["conv1/weights"].astype(np.float64)) == 0
