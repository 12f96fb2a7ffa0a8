"""Single kernels, run on the CPU, where whole steps would not show what is wrong."""

import numpy as np
import pytest

from cnnjob.nn.cuda.backend import CudaBackend
from cnnjob.nn.cuda.device_api import column_sums, rows_per_sum, scalars
from cnnjob.nn.cuda.fused import FIRST_BLOCKS
from tests.cuda.emulation import ORDERS, EmulatedDevice, FewBlocks, kernels, needs_compiler
from tests.cuda.shop import GUARD, WORKS, Array, guarded, reference, require_close
from tests.nn import oracle

pytestmark = needs_compiler


@pytest.fixture(params=ORDERS)
def device(request: pytest.FixtureRequest) -> EmulatedDevice:
    return EmulatedDevice(order=request.param)


FEW = ("residual", "augmented", "tied maxima", "adamw, lookahead", "adam, clipped", "muon")
FIRSTS = [f"first block {kernel}, {pool}, {channels}" for kernel, pool, channels in FIRST_BLOCKS]


@pytest.mark.parametrize("fuses", [False, True], ids=["part by part", "fused"])
def test_no_grid_has_to_cover_all_values(*, fuses: bool) -> None:
    for name in ("two convolutions", *FIRSTS, *FEW):
        for order in ORDERS:
            require_close(WORKS[name].result(CudaBackend(FewBlocks(order=order), fuses=fuses)), reference(name))


@pytest.mark.parametrize("P", [2, 3])
def test_pooling_takes_the_first_of_equals_and_keeps_what_is_no_number(device: EmulatedDevice, P: int) -> None:
    random = np.random.default_rng(0)
    z = random.integers(0, 3, (2, 3 * P, 2 * P, 5)).astype(np.float32)
    z[0, P : 2 * P, P : 2 * P, 4] = np.nan, *[1] * (P - 1)  # whole rows of one window
    z[0, 0, 1, 3] = np.nan
    y, winner = np.zeros((2, 3, 2, 5), np.float32), np.zeros((2, 3, 2, 5), np.uint8)
    sizes = [np.int64(30), 10, winner, P, 2, 5, 0, 2, 30]
    device.launch("pool_byte", (1, 2), (256, 1), scalars([z, np.zeros(5, np.float32), y, *sizes]))
    largest, first = oracle.max_pool(z.astype(np.float64), P)
    np.testing.assert_array_equal(y, largest)
    clean = ~np.isnan(largest)
    np.testing.assert_array_equal(winner[clean], first[clean])


@pytest.mark.parametrize("classes", [3, 32, 50, 100])
def test_the_loss_of_single_images(device: EmulatedDevice, classes: int) -> None:
    random = np.random.default_rng(classes)
    logits = random.integers(-3, 4, (7, classes)).astype(np.float32)  # with equal largest ones
    logits[1, -1] = 9
    labels = np.where(np.arange(7) % 2, logits.argmax(axis=1), random.integers(0, classes, 7))
    labels[6] = classes - 1 - logits[6, ::-1].argmax()  # the last of the largest
    losses, behind_losses = guarded((7,), np.float32)
    hits, behind_hits = guarded((7,), np.int32)
    gradient, behind = guarded((7, classes), np.float32)
    truth = labels[::-1].copy(), np.arange(7)[::-1].copy(), np.zeros(2, np.int64)
    written = gradient, losses, hits
    arguments = scalars([logits, *truth, np.zeros(1), *written, 0.0, False, 7, classes])
    device.launch("cross_entropy", (2, 1), (32, 4), arguments)
    loss, slopes = oracle.softmax_cross_entropy(logits.astype(np.float64), labels)
    np.testing.assert_array_equal(hits, logits.argmax(axis=1) == labels)
    np.testing.assert_allclose(gradient, slopes, atol=1e-7)
    assert losses.mean() == pytest.approx(loss, rel=1e-6)
    assert all((rest == GUARD).all() for rest in (behind_losses, behind_hits, behind))
    p, behind = guarded((7, classes), np.float32)
    position, ticket = np.zeros(2, np.int64), np.zeros(1, np.uint32)
    device.launch("softmax", (2, 1), (32, 4), scalars([logits, p, position, ticket, 7, classes]))
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-6)
    assert (behind == GUARD).all()
    assert (*position, *ticket) == (1, 1, 0)


def head_arguments(logits: Array, labels: Array, *, hidden: bool) -> dict[str, Array]:
    """Inputs whose products with the weights are these logits, and what is to be filled."""
    (N, classes), values = logits.shape, logits.shape[1] + 1
    x = np.concatenate([logits, np.full((N, 1), -1)], axis=1).astype(np.float32)
    return {
        "x": x - 2 * hidden,
        "x_bias": np.full(values, 2, np.float32),
        "weights": np.eye(values, classes, dtype=np.float32),
        "bias": np.linspace(0, 1, classes, dtype=np.float32),
        "labels": labels[::-1].copy(),
        "order": np.arange(N)[::-1].copy(),
        "position": np.zeros(2, np.int64),
    }


@pytest.mark.parametrize("classes", [1, 3, 10, 32])
@pytest.mark.parametrize(("hidden", "relu"), [(False, False), (True, False), (True, True)])
def test_the_head(device: EmulatedDevice, classes: int, hidden: bool, relu: bool) -> None:  # noqa: FBT001
    random = np.random.default_rng(classes)
    logits = random.integers(-3, 4, (150, classes)).astype(np.float32)  # with equal largest ones
    labels = random.integers(0, classes, 150)
    given = head_arguments(logits, labels, hidden=hidden)
    seen = np.maximum(given["x"] + 2, 0) if relu else given["x"] + 2 * hidden
    z = (seen @ given["weights"] + given["bias"]).astype(np.float64)
    loss, slopes = oracle.softmax_cross_entropy(z, labels)
    found = {name: guarded((150, size), np.float32) for name, size in (("dz", classes), ("dx", classes + 1))}
    each, all_losses, all_hits = np.zeros(150, np.float32), np.zeros(2), np.zeros(2, np.int64)
    ticket = np.zeros(1, np.uint32)
    outputs = found["dz"][0], found["dx"][0], each, np.zeros(150, np.int32), all_losses, all_hits, ticket
    arguments = scalars([*given.values(), *outputs, 0.0, hidden, relu, True, classes + 1, classes, 150])
    device.launch("head", (150, 1), (128, 1), arguments)
    np.testing.assert_allclose(found["dz"][0], slopes, atol=1e-7)
    np.testing.assert_allclose(found["dx"][0], (slopes @ given["weights"].T) * (not relu or seen > 0), atol=1e-7)
    np.testing.assert_allclose(all_losses, [loss, 0], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(all_hits, [(z.argmax(axis=1) == labels).sum(), 0])
    np.testing.assert_array_equal(given["x"], seen)
    assert all((behind == GUARD).all() for _, behind in found.values())
    assert ticket[0] == 0


@pytest.mark.parametrize("images", [1, 200, 256, 1000])
def test_losses_and_hits_of_large_batches(device: EmulatedDevice, images: int) -> None:
    random = np.random.default_rng(images)
    losses, hits = random.random(images, np.float32), random.integers(0, 2, images, np.int32)
    all_losses, all_hits = np.zeros(3), np.zeros(3, np.int64)
    arguments = scalars([losses, hits, np.array([1, 9]), all_losses, all_hits, images])
    device.launch("tally", (1, 1), (256, 1), arguments)
    np.testing.assert_allclose(all_losses, [0, losses.mean(dtype=np.float64), 0], rtol=1e-12)
    np.testing.assert_array_equal(all_hits, [0, hits.sum(), 0])


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (9, 33), (300, 3), (5000, 2), (70_000, 1)])
def test_sums_of_columns(device: EmulatedDevice, rows: int, columns: int) -> None:
    values = np.random.default_rng(rows).integers(-9, 9, (rows, columns)).astype(np.float32)
    sums, behind = guarded((columns,), np.float32)
    partial, behind_partial = guarded((-(-rows // rows_per_sum(rows)), columns), np.float32)
    column_sums(device, values, partial, sums)()
    np.testing.assert_array_equal(sums, values.sum(axis=0))
    assert (behind == GUARD).all()
    assert (behind_partial == GUARD).all()


@pytest.mark.parametrize(("kernel", "pool", "channels"), FIRST_BLOCKS)
def test_the_first_block_keeps_what_is_no_number(device: EmulatedDevice, kernel: int, pool: int, channels: int) -> None:
    image = np.ones((1, 4, 4, channels), np.uint8)
    image[0, 0, 1, -1], image[0, 2, 2, -1], image[0, 3, 0, -1] = 0, 0, 0
    middle, pad, side = np.zeros((kernel, kernel, channels, 1), np.float32), kernel // 2, 4 // pool
    middle[pad, pad, -1] = np.inf  # times 0 it is no number
    last, scale, shift = (
        image[..., -1:].astype(np.float32),
        np.ones(channels, np.float32),
        np.zeros(channels, np.float32),
    )
    position, order, bias = np.zeros(2, np.int64), np.zeros(1, np.int64), np.zeros(1, np.float32)
    (y, behind), (winner, behind_winner) = (guarded((1, side, side, 1), dtype) for dtype in (np.float32, np.int8))
    sizes = [np.int64(side**2), side, winner, 4, 4, pad, 4 + kernel - 1, side, side, 1, False, True, 1]
    arguments = scalars([image, order, position, scale, shift, middle, bias, y, *sizes])
    device.launch(f"first_forward_{kernel}_{pool}_{channels}", (1, 1), (32, 8), arguments)
    windows = last.reshape(side, pool, side, pool).transpose(0, 2, 1, 3).reshape(-1, pool**2)
    lost = windows.min(axis=1).reshape(y.shape) == 0
    np.testing.assert_array_equal(np.isnan(y), lost)
    assert np.isposinf(y[~lost]).all()
    assert (winner.ravel() == ([1, 0, 2, 0] if pool > 1 else 0)).all()
    assert all((rest == GUARD).all() for rest in (behind, behind_winner))


@pytest.mark.parametrize(("kernel", "pool", "channels"), FIRST_BLOCKS)
def test_sums_of_the_first_block_over_several_bands_and_groups(
    device: EmulatedDevice, kernel: int, pool: int, channels: int
) -> None:
    """More filters than lanes, a band that is not full, and two groups that share six bands."""
    random = np.random.default_rng(kernel)
    N, height, width, F, pad, taps = 3, 11, 5, 35, kernel - 2, kernel**2 * channels
    H, W = (side * pool + kernel - 1 - 2 * pad for side in (height, width))
    images = random.integers(0, 9, (N, H, W, channels)).astype(np.uint8)
    codes = random.integers(0, pool**2 + 1, (N, height, width, F)).astype(np.uint8)
    dy = random.integers(-3, 4, codes.shape).astype(np.float32)
    sums, behind = guarded((2, (taps + 1) * F), np.float32)
    order, position = np.array([2, 0, 1]), np.zeros(2, np.int64)
    scale, shift = np.full(channels, 2, np.float32), np.ones(channels, np.float32)
    row = width * pool + kernel - 1
    sizes = [np.int64(dy[0].size), width * F, codes, sums, H, W, pad, row + row % 2, height, width, F, N]
    arguments = scalars([images, order, position, scale, shift, dy, *sizes])
    device.launch(f"first_backward_{kernel}_{pool}_{channels}", (2, 2), (32, 8), arguments)
    padded = np.pad(2.0 * images[order] + 1, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    expected = np.zeros((taps + 1, F))
    for n, i, j, f in np.argwhere(codes < pool**2):
        y, x = i * pool + codes[n, i, j, f] // pool, j * pool + codes[n, i, j, f] % pool
        patch = padded[n, y : y + kernel, x : x + kernel].ravel()
        expected[:, f] += dy[n, i, j, f] * np.append(patch, 1)
    np.testing.assert_array_equal(sums.sum(axis=0).reshape(-1, F), expected)
    assert (behind == GUARD).all()


@pytest.mark.parametrize("size", [(1 << 30) + 100, (1 << 31) - 1])
def test_beyond_a_billion_values_each_is_taken_once(size: int) -> None:
    """Only the first and the last block of the grid are run, as if the others ran beside them."""
    probe = """
KERNEL probe(int *first, int *times, unsigned blocks, int images, int size) {
  if (blockIdx.x) blockIdx.x = blocks - 1;
  gridDim.x = blocks;
  int place = (blockIdx.x ? blockDim.x : 0) + threadIdx.x;
  EACH(n, images, i, size) {
    if (++times[place] > 3) break;
    if (times[place] == 1) first[place] = i;
  }
}
"""
    blocks = -(-size // 256)
    first, times = np.full(512, -1, np.int32), np.zeros(512, np.int32)
    arguments = [first, times, np.uint32(blocks), np.int32(1), np.int32(size)]
    EmulatedDevice(f"{kernels()}\n{probe}").launch("probe", (2, 1), (256, 1), arguments)
    values = np.concatenate([np.arange(256), np.arange(256 * (blocks - 1), 256 * blocks)])
    np.testing.assert_array_equal(first, np.where(values < size, values, -1))
    np.testing.assert_array_equal(times, values < size)


def test_rows_of_patches_have_gaps_that_stay_as_they_are(device: EmulatedDevice) -> None:
    N, H, W, C, K, pitch = 2, 4, 5, 3, 2, 16
    height, width, taps = H - K + 1, W - K + 1, K * K * C
    x = np.random.default_rng(0).integers(-9, 9, (N, H, W, C)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(x, (K, K), (1, 2)).transpose(0, 1, 2, 4, 5, 3)
    patches = windows.reshape(-1, taps)
    lying, size = (np.int64(x[0].size), W * C), height * width * pitch
    for name, dtype in (("", np.float32), ("_half", np.float16)):
        columns, behind = guarded((N * height * width, pitch), dtype)
        device.launch(f"im2col{name}", (1, N), (256, 1), scalars([x, *lying, columns, K, 1, C, width, pitch, N, size]))
        np.testing.assert_array_equal(columns[:, :taps], patches)
        assert (columns[:, taps:] == GUARD).all()
        dx, behind_dx = guarded(x.shape, np.float32)
        sizes = [K, 1, 0, C, W, height, width, pitch, N, H * W * C]
        device.launch(f"col2im{name}", (1, N), (256, 1), scalars([columns, 0.5, dx, *lying, *sizes]))
        expected = np.zeros(x.shape)
        for k, m in np.ndindex(K, K):
            expected[:, k : k + height, m : m + width] += 0.5 * windows[:, :, :, k, m]
        np.testing.assert_array_equal(dx, expected)
        assert all((rest == GUARD).all() for rest in (behind, behind_dx))


def test_rows_of_halves_have_gaps_that_stay_as_they_are(device: EmulatedDevice) -> None:
    x, (y, behind) = np.arange(15, dtype=np.float32).reshape(3, 5), guarded((3, 8), np.float16)
    device.launch("halve", (1, 2), (256, 1), scalars([x, y, 8, 2.0, 3, 5]))
    np.testing.assert_array_equal(y[:, :5], 2 * x)
    assert (y[:, 5:] == GUARD).all()
    assert (behind == GUARD).all()
