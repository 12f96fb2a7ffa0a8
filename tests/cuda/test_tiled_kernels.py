"""Single kernels of tiles, emulated on the CPU, on integers: their sums are exact, and so is every comparison."""

from typing import Any

import numpy as np
import pytest

from cnnjob.nn.cuda.activations import ACTIVATIONS
from cnnjob.nn.cuda.device_api import LANES, WARP, scalars
from cnnjob.nn.cuda.tiled.launches import DEPTH, NULL, ROWS, Finish, convolve, source_table, stage_bytes
from cnnjob.nn.cuda.tiled.plan import GRADIENT_BLOCK, TABLE_BYTES, WEIGHT_ROWS
from tests.cuda.emulation import ORDERS, EmulatedDevice, needs_compiler
from tests.cuda.shop import GUARD, Array, guarded

pytestmark = needs_compiler

N, H, W = 5, 9, 7
"""More pixels than a tile has rows, and not a multiple of them."""
CONVOLUTIONS = [(8, 40, 3), (24, 136, 3), (128, 16, 2), (3, 72, 2)]
"""Channels, filters and taps per side: for both widths of tiles, and depths that are multiples of 64 or not."""
KIND = ACTIVATIONS["relu"]


@pytest.fixture(params=ORDERS)
def device(request: pytest.FixtureRequest) -> EmulatedDevice:
    return EmulatedDevice(order=request.param)


def integers(shape: tuple[int, ...], largest: int, seed: int, dtype: Any = np.float16) -> Array:
    return np.random.default_rng(seed).integers(-largest, largest + 1, shape).astype(dtype)


def packed(device: EmulatedDevice, weights: Array, D: int) -> tuple[Array, Any]:
    """Weights of D channels for the convolution, and for the gradient of its input."""
    K, _, C, F = weights.shape
    ahead = np.zeros((-(-K * K * D // DEPTH) * DEPTH, F), np.float16)
    back = np.zeros((-(-K * K * F // DEPTH) * DEPTH, C), np.float16) if C == D else NULL
    device.launch("pack_weights", (2, 1), (256, 1), scalars([weights, ahead, back, K * K, C, D, F]))
    return ahead, back


def patches(x: Array, K: int) -> Array:
    """What the taps of each output see, (N, height, width, C, K, K), with a border of K // 2."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (K // 2, K // 2), (K // 2, K // 2), (0, 0)))
    return np.lib.stride_tricks.sliding_window_view(padded, (K, K), (1, 2))


@pytest.mark.parametrize("P", [1, 2], ids=["convolved", "pooled"])
@pytest.mark.parametrize(("C", "F", "K"), CONVOLUTIONS)
def test_convolutions(device: EmulatedDevice, C: int, F: int, K: int, P: int) -> None:
    D, images, largest = -(-C // 8) * 8, N + P, 16 // P**3  # small ones have windows with equal values
    x, weights = integers((images, H, W, D), largest, 1), integers((K, K, C, F), largest, 2, np.float32)
    x[..., C:] = 0
    x[0, 4, 3, 0] = np.nan
    z = np.einsum("nijckl,klcf->nijf", patches(x[..., :C], K), weights, optimize=True)
    height, width = z.shape[1] // P, z.shape[2] // P
    (y, behind), (winners, behind_winners) = (
        guarded((images, height, width, F), kind) for kind in (np.float16, np.int8)
    )
    i, j, a, b = np.ix_(range(height), range(width), range(P), range(P))
    table = source_table((H, W, D), K, i * P + a - K // 2, j * P + b - K // 2)
    rows, outputs = ROWS // P**2, images * height * width
    (first, behind_first), (second, behind_second) = (guarded((-(-outputs // rows), F), np.float32) for _ in range(2))
    arrays = x, packed(device, weights, D)[0], table, y, winners if P > 1 else NULL
    convolve(device, f"conv_{P}", rows, K, arrays, Finish(first, second))()
    windows = z[:, : height * P, : width * P].reshape(images, height, P, width, P, F)
    windows = windows.transpose(0, 1, 3, 5, 2, 4).reshape(*y.shape, P * P)
    np.testing.assert_array_equal(y, windows.max(-1).astype(np.float16))
    if P > 1:
        clean = np.isfinite(windows).all(-1)
        np.testing.assert_array_equal(winners[clean], windows.argmax(-1)[clean])
    for part, mean, squares in zip(range(0, outputs, rows), first, second, strict=True):
        values = y.reshape(-1, F)[part : part + rows].astype(np.float64)
        np.testing.assert_allclose(mean, values.mean(0), 1e-5, 1e-5 * largest)
        np.testing.assert_allclose(squares, ((values - values.mean(0)) ** 2).sum(0), 1e-5)
    assert all((rest == GUARD).all() for rest in (behind, behind_winners, behind_first, behind_second))


def channels(F: int) -> tuple[Array, ...]:
    """Mean, 1/deviation, scale and shift of each channel."""
    random = np.random.default_rng(F)
    choices = (-2, 0, 1), (0.5, 1, 2), (-1, 1, 2), (-3, 0, 1)
    return tuple(random.choice(values, F).astype(np.float32) for values in choices)


@pytest.mark.parametrize("is_joined", [False, True])
@pytest.mark.parametrize("kernel", ["conv_1 40", "conv_1 136", "normalise_halves 40", "normalise_halves 40 alone"])
def test_what_follows_a_convolution(device: EmulatedDevice, kernel: str, is_joined: bool) -> None:  # noqa: FBT001
    name, F = kernel.split(maxsplit=1)[0], int(kernel.split()[1])
    x, weights = integers((N, H, W, 8), 3, 3), np.eye(8, F, dtype=np.float32).reshape(1, 1, 8, F)
    z = x.astype(np.float32) @ weights[0, 0]
    mean, inverse, scale, shift = channels(F)
    addend = NULL if kernel.endswith("alone") else integers(z.shape, 4, 4)
    y, behind = guarded(z.shape, np.float16)
    if name == "conv_1":
        table = source_table((H, W, 8), 1, np.arange(H)[:, None], np.arange(W)[None])
        finish = Finish(NULL, NULL, addend, NULL, NULL, mean, inverse, scale, shift, KIND, is_joined)
        convolve(device, name, ROWS, 1, (x, packed(device, weights, 8)[0], table, y, NULL), finish)()
    else:
        arguments = z.astype(np.float16), mean, inverse, scale, shift, addend, y, KIND, is_joined, F, y.size // 8
        device.launch(name, (2, 1), (256, 1), scalars(arguments))
    expected = np.maximum((z - mean) * inverse * scale + shift, 0)
    expected += 0 if addend is NULL else addend
    np.testing.assert_array_equal(y, np.maximum(expected, 0) if is_joined else expected)
    assert (behind == GUARD).all()


FINISHES = [
    *(("conv_back 40", finish) for finish in ("none", "addend")),
    *((kernel, finish) for kernel in ("conv_back 40", "from floats 72") for finish in ("sums", "bias and ReLU")),
    *((kernel, "slope") for kernel in ("conv_back 40", "conv_back 136", "from floats 72", "from halves 72")),
    *((kernel, "joined") for kernel in ("conv_back 40", "conv_back 136", "from floats 72", "from halves 72")),
]


@pytest.mark.parametrize(("kernel", "finish"), FINISHES)
def test_the_gradient_of_an_input(device: EmulatedDevice, kernel: str, finish: str) -> None:
    C, F = int(kernel.rsplit(maxsplit=1)[-1]), 24
    dz, weights = integers((N, H, W, F), 12, 5), integers((3, 3, C, F), 12, 6, np.float32)
    gradient = np.einsum("nijfkl,klcf->nijc", patches(dz, 3), weights[::-1, ::-1], optimize=True)
    has_sums, has_slope = finish not in {"none", "addend"}, finish in {"slope", "joined"}
    addend, joined, before = (integers(gradient.shape, 4, seed) for seed in (7, 8, 9))
    (mean, inverse, scale, shift), is_joined = channels(C), finish == "joined"
    v = np.zeros_like(gradient) if kernel.startswith("from halves") else gradient
    v = v.astype(np.float16).astype(np.float64) if kernel.startswith("conv") else v  # a tile is stored in halves
    v = v + addend if finish in {"addend", "slope", "joined"} else v
    v = np.where(joined > 0, v, 0) if finish in {"bias and ReLU", "slope", "joined"} else v
    normal = (before.astype(np.float64) - mean) * inverse if has_slope else np.zeros_like(v)
    v = v.astype(np.float16) if is_joined else v
    slope = np.where(normal * scale + shift > 0, v, 0) if has_slope else v
    slope = slope.astype(np.float16)
    rows = ROWS if kernel.startswith("conv") else 100
    (y, behind), (first, behind_first), (second, behind_second) = (
        guarded(gradient.shape, np.float16),
        *(guarded((-(-N * H * W // rows), C), np.float32) for _ in range(2)),
    )
    has_addend, has_joined = finish in {"addend", "slope", "joined"}, finish in {"bias and ReLU", "slope", "joined"}
    settings = Finish(
        first if has_sums else NULL,
        second if has_sums else NULL,
        addend if has_addend else NULL,
        joined if has_joined else NULL,
    )
    if has_slope:
        settings = Finish(*settings[:4], before, mean, inverse, scale, shift, KIND, is_joined)
    if kernel.startswith("conv"):
        table = source_table((H, W, F), 3, np.arange(H)[:, None] - 1, np.arange(W)[None] - 1)
        convolve(device, "conv_back", ROWS, 3, (dz, packed(device, weights, C)[1], table, y, NULL), settings)()
    else:
        bordered = np.full((N, H + 2, W + 2, C), np.nan, np.float32)
        bordered[:, 1:-1, 1:-1] = gradient / 4
        floats = bordered[:, 1:, 1:], np.int64(bordered[0].size), bordered[0, 0].size
        floats = (NULL, np.int64(0), 0) if kernel.startswith("from halves") else floats
        arguments = [*floats, 4.0, y, *settings, H * W, W, C, N * H * W, rows]
        device.launch("finish_gradient", (-(-C // 64), len(first)), GRADIENT_BLOCK, scalars(arguments))
    np.testing.assert_array_equal(y, v.astype(np.float16) if is_joined or not has_sums else slope)
    for sums, terms in ((first, slope), (second, slope * normal)):
        parts = np.add.reduceat(terms.reshape(-1, C).astype(np.float64), range(0, N * H * W, rows), axis=0)
        np.testing.assert_array_equal(sums, parts if has_sums else GUARD)
    assert all((rest == GUARD).all() for rest in (behind, behind_first, behind_second))


@pytest.mark.parametrize("shape", [(9, 9), (5, 3)], ids=["larger", "smaller"])
@pytest.mark.parametrize(("C", "F"), [(8, 40), (24, 136), (24, 8)])
def test_the_gradient_of_weights(device: EmulatedDevice, C: int, F: int, shape: tuple[int, int]) -> None:
    """Of images that are larger and smaller than a step's 64 outputs."""
    images, share = 330 // (shape[0] * shape[1]), 256
    x, dz = (integers((images, *shape, size), 9, size) for size in (C, F))
    table = source_table((*shape, C), 3, np.arange(shape[0])[:, None] - 1, np.arange(shape[1])[None] - 1)
    outputs, tile = images * shape[0] * shape[1], 128 if F >= 128 else 64
    sums, behind = guarded((-(-outputs // share), 9 * C, F), np.float32)
    grid = (-(-9 * C // WEIGHT_ROWS[tile]) * -(-F // tile), len(sums))
    sizes = shape[0] * shape[1] * C, shape[1], C, 3, shape[0] * shape[1], F, images, share
    threads, shared_bytes = tile**2 // 64, stage_bytes(device, WEIGHT_ROWS[tile], tile) + TABLE_BYTES
    arguments = scalars([x, dz, table, sums, *sizes])
    device.launch(f"weight_sums_{tile}", grid, (threads, 1), arguments, shared_bytes)
    seen, slopes = patches(x, 3).transpose(0, 1, 2, 4, 5, 3).reshape(-1, 9 * C), dz.reshape(-1, F).astype(np.float64)
    for part, found in enumerate(sums):
        own = slice(part * share, (part + 1) * share)
        np.testing.assert_array_equal(found, seen[own].T @ slopes[own])
    assert (behind == GUARD).all()


@pytest.mark.parametrize("large", [0, np.inf, -np.inf, np.nan])
@pytest.mark.parametrize(("parts", "C", "D"), [(19, 3, 8), (8, 16, 16), (1, 2, 8)])
def test_sums_of_shares(device: EmulatedDevice, parts: int, C: int, D: int, large: float) -> None:
    taps, F = 4, 24
    sums = integers((parts, taps, D, F), 90, parts, np.float32)
    sums[parts - 1, 2, 1, 5] = large
    gradient, behind = guarded((taps, C, F), np.float32)
    losses, position = np.zeros(3), np.array([1, 7])
    arguments = [sums, gradient, 0.5, parts, taps, C, D, F // 4, losses, position]
    device.launch("add_weight_sums", (-(-gradient.size // (4 * WARP)), 1), (WARP, LANES), scalars(arguments))
    np.testing.assert_array_equal(gradient, 0.5 * sums[:, :, :C].sum(0))
    np.testing.assert_array_equal(losses, [0, 0 if large == 0 else np.nan, 0])
    assert (behind == GUARD).all()


@pytest.mark.parametrize(("C", "D"), [(3, 8), (24, 24), (12, 16)])
def test_halves_of_an_image_with_a_border(device: EmulatedDevice, C: int, D: int) -> None:
    x = integers((N, H + 2, W + 2, C), 4000, C, np.float32)
    given = x[:, 1:, 1:], np.int64(x[0].size), x[0, 0].size
    halves, behind = guarded((N, H, W, D), np.float16)
    sizes = W, C, D, N, H * W * D // 8
    device.launch("to_halves", (1, 2), (256, 1), scalars([*given, halves, *sizes]))
    inside = x[:, 1:-1, 1:-1].astype(np.float16)
    np.testing.assert_array_equal(halves, np.pad(inside, ((0, 0), (0, 0), (0, 0), (0, D - C))))
    x = x.copy()
    found = x.copy()
    given = found[:, 1:, 1:], *given[1:]
    halves[..., C:] = 7
    device.launch("to_floats", (1, 2), (256, 1), scalars([halves, 0.5, *given, *sizes]))
    x[:, 1:-1, 1:-1] = 0.5 * inside.astype(np.float32)
    np.testing.assert_array_equal(found, x)
    assert (behind == GUARD).all()


@pytest.mark.parametrize("kind", ["none", "relu"])
@pytest.mark.parametrize("P", [1, 2])
def test_the_gradient_before_normalisation_and_pooling(device: EmulatedDevice, P: int, kind: str) -> None:
    images, height, width, C, loss_scale = 2, 4, 8, 24, 16.0
    shape = images, height, width, C
    x, dy, winners = integers(shape, 4, 1), integers(shape, 90, 2), integers(shape, 3, 3, np.int8) & 3
    mean, inverse, scale, shift = own = channels(C)
    dshift, dscale = (integers((C,), 9, seed, np.float32) for seed in (4, 5))
    dz, behind = guarded((images, height * P, width * P, C), np.float16)
    sums = dshift, dscale, loss_scale
    arguments = x, dy, winners, *own, ACTIVATIONS[kind], *sums, dz, images * height * width, width, C, x.size // 8
    device.launch(f"norm_pool_back_{P}", (1, 1), (128, 1), scalars(arguments))
    normal = (x.astype(np.float64) - mean) * inverse
    g = np.where((normal * scale + shift > 0) | (kind == "none"), dy, 0)
    expected = scale * inverse * (g - loss_scale * (dshift + normal * dscale) / (images * height * width))
    windows = dz.reshape(images, height, P, width, P, C).transpose(0, 1, 3, 5, 2, 4).reshape(*shape, P * P)
    chosen = winners[..., None] == np.arange(P * P) if P > 1 else True
    np.testing.assert_array_equal(windows, np.where(chosen, expected[..., None], 0).astype(np.float16))
    assert (behind == GUARD).all()
