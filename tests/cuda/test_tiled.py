"""Convolutions in halves on tensor cores, emulated on the CPU; not on a GPU."""

from collections.abc import Sequence
from math import erf
from typing import Any

import numpy as np
import pytest

from cnnjob import nn
from cnnjob.nn.cuda.backend import CudaBackend
from cnnjob.nn.cuda.tiled.launches import source_table
from tests.cuda.emulation import ORDERS, EmulatedDevice, kernels, needs_compiler
from tests.cuda.shop import ORDER, TILED, Array, Work, smooth

pytestmark = needs_compiler

TOLERANCE = 3e-3
"""Of a tensor's norm: halves have 11 bits, and a gradient has passed several roundings."""
SMOOTH = [name for name, work in TILED.items() if work.is_smooth]


def half(**settings: Any) -> CudaBackend:
    return CudaBackend(EmulatedDevice(precision="float16"), **settings)


def distance(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected)) / max(float(np.linalg.norm(expected)), 1e-30)


@pytest.mark.parametrize("name", TILED)
def test_steps_are_near_float64_and_the_same_in_every_order_of_threads(name: str) -> None:
    work, devices = TILED[name].work, [EmulatedDevice(order=order, precision="float16") for order in ORDERS]
    found = [work.result(CudaBackend(device), 1) for device in devices]
    assert ("im2col_half" in devices[0].launched) == TILED[name].has_others
    assert any(launched.startswith("conv_") for launched in devices[0].launched)
    for key, array in work.result(nn.NumPyBackend(nn.Workers(1), np.float64), 1).items():
        # Where rounding decides which pixel of a window is the largest, or on which side of a kink a value is, a
        # gradient takes another way.
        assert distance(found[0][key], array) < (TOLERANCE if name in SMOOTH else 0.1), key
        for other in found[1:]:
            np.testing.assert_array_equal(found[0][key], other[key], key)


@pytest.mark.parametrize("name", ["normalised", "residual"])
def test_a_second_step_follows_from_the_first(name: str) -> None:
    found, exact = (
        TILED[name].work.result(backend) for backend in (half(), nn.NumPyBackend(nn.Workers(1), np.float64))
    )
    assert all(distance(found[key], array) < 2 * TOLERANCE for key, array in exact.items())


@pytest.mark.parametrize("name", ["pooled", "residual", "projection, strided"])
def test_a_graph_gives_the_bits_of_its_launches(name: str) -> None:
    eager, graph = (TILED[name].work.result(half(captures=captures), steps=3) for captures in (False, True))
    for key, array in eager.items():
        np.testing.assert_array_equal(array, graph[key], key)


def test_a_gpu_without_the_instructions_multiplies_patches() -> None:
    device = EmulatedDevice(precision="float16")
    device.wide_stages = 0
    exact = TILED["normalised"].work.result(nn.NumPyBackend(nn.Workers(1), np.float64))
    found = TILED["normalised"].work.result(CudaBackend(device))
    assert "im2col_half" in device.launched
    assert not any(launched.startswith("conv_") for launched in device.launched)
    assert all(distance(found[key], array) < TOLERANCE for key, array in exact.items())


@pytest.mark.cuda_emulated
def test_two_stages_of_a_wide_tile_give_the_bits_of_three() -> None:
    """On a GPU with less shared memory."""
    work, found = Work([smooth(136), smooth(128)], (4, 5, 1)), []
    for stages in (2, 3):
        device = EmulatedDevice(f"#define WIDE_STAGES {stages}\n{kernels()}", precision="float16")
        device.wide_stages = stages
        found.append(work.result(CudaBackend(device), 1))
    for key, array in found[0].items():
        np.testing.assert_array_equal(array, found[1][key], key)


class WinnersDevice(EmulatedDevice):
    """A device that keeps the winners of each pooling."""

    def __init__(self) -> None:
        super().__init__(precision="float16")
        self.winners: list[Array] = []

    def launch(
        self, name: str, grid: tuple[int, int], block: tuple[int, int], arguments: Sequence[Any], shared_bytes: int = 0
    ) -> None:
        super().launch(name, grid, block, arguments, shared_bytes)
        if name.startswith("conv_2"):
            self.winners.append(arguments[4].copy())


def test_gradients_are_those_of_float64_with_the_same_winners() -> None:
    """Pooled convolutions, whose gradients depend on which value of each window is the largest."""
    blocks = [smooth(8, pool=2, order=ORDER), smooth(24, pool=2, order=ORDER), smooth(72, pool=2, order=ORDER)]
    device, work = WinnersDevice(), Work(blocks, (18, 19, 3), count=6, optimiser=nn.Sgd())
    found = work.result(CudaBackend(device, captures=False), 1)
    exact = work.result(nn.NumPyBackend(nn.Workers(1), np.float64), 1)
    names = [f"conv{number}/weights" for number in (1, 2, 3)]
    # With a momentum of 0 and one step, the weights before it follow from those after it.
    weights = [exact[f"weights/{name}"] + 0.1 * exact[f"gradients/{name}"] for name in names]
    head = exact["weights/classifier/weights"] + 0.1 * exact["gradients/classifier/weights"]
    gradients = gradients_with(device.winners[:3], weights, head, *batch_of(work))
    for name, gradient in zip(names, gradients, strict=True):
        # Maxima have a large mean, whose rounding the normalisation makes larger.
        assert distance(found[f"gradients/{name}"], gradient) < TOLERANCE, name


def batch_of(work: Work) -> tuple[Array, Array]:
    """The first batch that a work draws: normalised images, and labels."""
    random = np.random.default_rng(1)
    total = 2 * work.count
    images = random.integers(0, 256, (total, *work.shape), np.uint8)
    labels, order = random.integers(0, work.classes, total), random.permutation(total)[: work.count]
    means, deviations = (np.linspace(low, 0.6, work.shape[2]) for low in (0.3, 0.4))
    return (images[order] / 255 - means) / deviations, labels[order]


def gradients_with(
    winners: Sequence[Array], weights: Sequence[Array], head: Array, x: Array, labels: Array
) -> list[Array]:
    """The gradients of convolutions with pooling by given winners, normalisation and GELU."""
    cdf = np.vectorize(lambda u: 0.5 + 0.5 * erf(u / np.sqrt(2)))
    kept = []
    for w, winner in zip(weights, winners, strict=True):
        N, height, width, F = winner.shape
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))[:, : 2 * height, : 2 * width]
        z = np.einsum("nijckl,klcf->nijf", patches, w, optimize=True)
        windows = z.reshape(N, height, 2, width, 2, F).transpose(0, 1, 3, 5, 2, 4).reshape(N, height, width, F, 4)
        pooled = np.take_along_axis(windows, winner[..., None].astype(int), -1)[..., 0]
        inverse = 1 / np.sqrt(pooled.var((0, 1, 2)) + 1e-3)
        normal = (pooled - pooled.mean((0, 1, 2))) * inverse
        kept.append((patches, w, winner, normal, inverse, x.shape))
        x = normal * cdf(normal)
    logits = x.reshape(len(x), -1) @ head
    share = np.exp(logits - logits.max(1, keepdims=True))
    slope = share / share.sum(1, keepdims=True)
    slope[np.arange(len(x)), labels] -= 1
    dx = (slope / len(x) @ head.T).reshape(x.shape)
    gradients = []
    for patches, w, winner, normal, inverse, shape in reversed(kept):
        g = dx * (cdf(normal) + normal * np.exp(-normal * normal / 2) / np.sqrt(2 * np.pi))
        g = inverse * (g - g.mean((0, 1, 2)) - normal * (g * normal).mean((0, 1, 2)))
        N, height, width, F = g.shape
        windows = np.zeros((*g.shape, 4))
        np.put_along_axis(windows, winner[..., None].astype(int), g[..., None], -1)
        dz = windows.reshape(N, height, width, F, 2, 2).transpose(0, 1, 4, 2, 5, 3).reshape(N, 2 * height, 2 * width, F)
        gradients.append(np.einsum("nijckl,nijf->klcf", patches, dz, optimize=True))
        padded = np.zeros((shape[0], shape[1] + 2, shape[2] + 2, shape[3]))
        for k in range(3):
            for m in range(3):
                padded[:, k : k + 2 * height, m : m + 2 * width] += dz @ w[k, m].T
        dx = padded[:, 1:-1, 1:-1]
    return gradients[::-1]


def test_the_gradient_of_the_weights_is_that_of_the_halves() -> None:
    """What is summed in float32: products of halves, to a millionth."""
    random = np.random.default_rng(3)
    N, H, W, C, F = 3, 9, 7, 24, 40
    x, dz = (random.standard_normal((N, H, W, channels)).astype(np.float16) for channels in (C, F))
    table = source_table((H, W, C), 3, np.arange(H)[:, None] - 1, np.arange(W)[None] - 1)
    share = 64
    sums = np.full((-(-N * H * W // share), 9 * C, F), np.nan, np.float32)
    grid = (-(-9 * C // 128), len(sums))
    arguments = [x, dz, table, sums, *map(np.int32, (H * W * C, W, C, 3, H * W, F, N, share))]
    EmulatedDevice().launch("weight_sums_64", grid, (64, 1), arguments, 50176)
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    exact = np.einsum("nijckl,nijf->klcf", patches, dz.astype(np.float64), optimize=True)
    assert distance(sums.sum(0, dtype=np.float64).reshape(3, 3, C, F), exact) < 1e-6


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_what_is_too_large_reaches_the_loss_of_its_step(where: str) -> None:
    large = nn.Conv(filters=8, bias_init=1e6, activation="none") if where == "forward" else nn.Conv(filters=8)
    work = Work([large, nn.Conv(filters=8)], (6, 5, 3), classes=4)
    if where == "backward":
        # The classifier's weights are so large that the gradient does not fit into halves.
        work = Work([nn.Conv(filters=8), nn.Conv(filters=8), nn.Dense(units=4, activation="none", init=3e4)], (6, 5, 3))
    losses = work.result(half(), 1)["losses"]
    assert np.isnan(losses).all()
    assert np.isfinite(work.result(CudaBackend(EmulatedDevice()), 1)["losses"]).all()
