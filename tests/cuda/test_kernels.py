"""Single kernels, run on the CPU, where whole steps would not show what is wrong."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from cnnjob.nn.cuda.backend import CudaBackend
from cnnjob.nn.cuda.device_api import column_sums, rows_per_sum, scalars
from tests.cuda.emulation import ORDERS, EmulatedDevice, needs_compiler
from tests.cuda.shop import GUARD, WORKS, Array, guarded, reference, require_close
from tests.nn import oracle

pytestmark = needs_compiler


@pytest.fixture(params=ORDERS)
def device(request: pytest.FixtureRequest) -> EmulatedDevice:
    return EmulatedDevice(order=request.param)


FEW = ("residual", "augmented", "tied maxima", "adamw, lookahead", "adam, clipped", "muon")
MUON = {f"muon_{name}" for name in ("momentum", "normalise", "squares", "step")}
"""Kernels whose grid has a block for each piece, as have the updates'."""


class FewBlocks(EmulatedDevice):
    """A device whose grids are small, so that a thread has several values to see to, and a block several images."""

    def launch(self, name: str, grid: tuple[int, int], block: tuple[int, int], arguments: Sequence[Any]) -> None:
        if name.startswith("first_backward"):
            grid = min(2, grid[0]), grid[1]
        elif block == (256, 1) and name not in {"tally", "sgd", "adam", *MUON}:
            grid = 1, min(2, grid[1])
        super().launch(name, grid, block, arguments)


@pytest.mark.parametrize("fuses", [False, True], ids=["part by part", "fused"])
def test_no_grid_has_to_cover_all_values(*, fuses: bool) -> None:
    for name in ("two convolutions", "first block 3, 2, 3", "first block 3, 1, 1", *FEW):
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


def test_the_first_block_keeps_what_is_no_number(device: EmulatedDevice) -> None:
    image = np.ones((1, 4, 4, 1), np.uint8)
    image[0, 0, 1], image[0, 2, 2], image[0, 3, 0] = 0, 0, 0
    middle = np.zeros((3, 3, 1, 1), np.float32)
    middle[1, 1] = np.inf  # times 0 it is no number
    x, one = image.astype(np.float32), np.ones(1, np.float32)
    position, order, zero = np.zeros(2, np.int64), np.zeros(1, np.int64), np.zeros(1, np.float32)
    y, winner = np.zeros((1, 2, 2, 1), np.float32), np.zeros((1, 2, 2, 1), np.uint8)
    sizes = [np.int64(4), 2, winner, 4, 4, 1, 6, 2, 2, 1, False, True, 1]
    arguments = scalars([image, order, position, one, zero, middle, zero, y, *sizes])
    device.launch("first_forward_3_2_1", (1, 1), (32, 8), arguments)
    lost = x.reshape(2, 2, 2, 2).min(axis=(1, 3)).reshape(y.shape) == 0
    np.testing.assert_array_equal(np.isnan(y), lost)
    assert np.isposinf(y[~lost]).all()
    assert (winner.ravel() == [1, 0, 2, 0]).all()
