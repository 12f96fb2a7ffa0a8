"""Single kernels, run on the CPU, where whole steps would not show what is wrong."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from cnnjob.nn.cuda import CudaBackend
from cnnjob.nn.cuda.launches import column_sums, scalars, sum_parts
from tests.cuda.emulation import ORDERS, EmulatedDevice, needs_compiler
from tests.cuda.shop import WORKS, Array, reference, require_close
from tests.nn import oracle

pytestmark = needs_compiler

GUARD = -77


def guarded(shape: tuple[int, ...], dtype: Any) -> tuple[Array, Array]:
    """An array to be filled, and what stands behind it, which must stay as it is."""
    size = int(np.prod(shape))
    memory = np.full(size + 64, GUARD, dtype)
    return memory[:size].reshape(shape), memory[size:]


@pytest.fixture(params=ORDERS)
def device(request: pytest.FixtureRequest) -> EmulatedDevice:
    return EmulatedDevice(order=request.param)


class FewBlocks(EmulatedDevice):
    """A device whose grids are small, so that a thread has several values to see to."""

    def launch(self, name: str, grid: tuple[int, int], block: tuple[int, int], arguments: Sequence[Any]) -> None:
        if block == (256, 1) and name not in ("tally", "sgd", "adamw"):
            grid = 1, min(2, grid[1])
        super().launch(name, grid, block, arguments)


def test_no_grid_has_to_cover_all_values() -> None:
    require_close(WORKS["two convolutions"].result(CudaBackend(FewBlocks())), reference("two convolutions"))


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
    arguments = scalars([logits, *truth, gradient, losses, hits, 0.0, 7, classes])
    device.launch("cross_entropy", (2, 1), (32, 4), arguments)
    loss, slopes = oracle.softmax_cross_entropy(logits.astype(np.float64), labels)
    np.testing.assert_array_equal(hits, logits.argmax(axis=1) == labels)
    np.testing.assert_allclose(gradient, slopes, atol=1e-7)
    assert losses.mean() == pytest.approx(loss, rel=1e-6)
    assert all((rest == GUARD).all() for rest in (behind_losses, behind_hits, behind))
    p, behind = guarded((7, classes), np.float32)
    device.launch("softmax", (2, 1), (32, 4), scalars([logits, p, 7, classes]))
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-6)
    assert (behind == GUARD).all()


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
    partial, behind_partial = guarded((sum_parts(rows), columns), np.float32)
    column_sums(device, values, partial, sums)()
    np.testing.assert_array_equal(sums, values.sum(axis=0))
    assert (behind == GUARD).all()
    assert (behind_partial == GUARD).all()
