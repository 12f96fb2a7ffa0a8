"""Winograd's method against patches in float64, its rounding errors in float32, and where it is used."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnjob import nn
from cnnjob.nn.arena import Arena, HostMemory
from cnnjob.nn.cpu.conv import conv
from cnnjob.nn.cpu.winograd import MIN_CHANNELS, POINTS, tile_side, winograd
from cnnjob.nn.tensors import ForwardBackward, Task, Tensor
from tests.nn.bench import distance

Array = np.ndarray[Any, Any]


@dataclass
class Planned:
    """A conv block with its tensors and parameters."""

    x: Tensor
    y: Tensor
    w: dict[str, Array]
    dw: dict[str, Array]
    tasks: ForwardBackward

    def run(self, x: Array, dy: Array | None) -> list[Array]:
        """Return the output and, if dy is given, the gradients."""
        self.x.value[...] = x
        self.tasks.forward()
        if dy is None:
            return [self.y.value.copy()]
        self.y.gradient[...] = dy
        self.tasks.backward()
        dx = [self.x.gradient.copy()] if self.x.trainable else []
        return [self.y.value.copy(), *dx, *(gradient.copy() for gradient in self.dw.values())]


def plan(
    block: nn.Conv,
    shape: tuple[int, ...],
    m: int | None,
    dtype: Any = np.float64,
    *,
    trains: str = "weights bias x y",
    workers: nn.Workers | None = None,
    seed: int = 0,
) -> Planned:
    """Plan a block for images (N, H, W, C), with tiles of side m or, without m, as the backend does."""
    random = np.random.default_rng(seed)
    C, F = shape[-1], block.filters
    weights = np.asarray(random.normal(size=(3, 3, C, F))) / np.sqrt(9 * C)
    values = {"weights": weights} | ({"bias": np.asarray(random.normal(size=F))} if block.bias else {})
    workers = workers or nn.Workers(1)

    def build(arena: Arena) -> Planned:
        x = Tensor.take(arena, shape, dtype, border=block.pad, trainable="x" in trains)
        size = (shape[0], *block.output_shape(shape[1:]))
        y = Tensor.take(arena, size, dtype, border=1, trainable="y" in trains)
        w = {name: arena.take(array.shape, dtype) for name, array in values.items()}
        dw = {name: arena.take(array.shape, dtype) for name, array in values.items() if name in trains}
        tasks = winograd(workers, arena, block, x, y, w, dw, m) if m else conv(workers, arena, block, x, y, w, dw)
        return Planned(x, y, w, dw, tasks)

    planned = Arena.allocate(HostMemory(workers.count), build)
    for name, array in values.items():
        planned.w[name][...] = array
    return planned


class InterruptedWorkers(nn.Workers):
    """Workers that can be interrupted in the middle of any list of tasks."""

    fails = False

    def distribute(self, tasks: Sequence[Task], work: int) -> Task:
        def run() -> None:
            for number, task in enumerate(tasks):
                if self.fails and number == len(tasks) // 2:
                    raise KeyboardInterrupt
                task()

        return run


@st.composite
def cases(draw: st.DrawFn) -> tuple[nn.Conv, tuple[int, int, int, int], int, str]:
    """A block, the images (N, H, W, C), the side of a tile, and what is trained."""
    m = draw(st.sampled_from(sorted(POINTS)))
    pool = draw(st.sampled_from([side for side in (1, 2, 3, 4, 6) if m % side == 0]))
    block = nn.Conv(
        filters=draw(st.integers(1, 20)),
        pad=draw(st.integers(0, 2)),
        pool=pool,
        activation=draw(st.sampled_from(["relu", "none"])),
        bias=draw(st.booleans()),
    )
    least = pool + 2 - 2 * block.pad
    sides = st.integers(max(1, least), max(1, least) + 14)
    trains = draw(st.sampled_from(["weights bias x y", "weights bias y", "bias x y", "weights x y", ""]))
    return block, (draw(st.integers(1, 40)), draw(sides), draw(sides), draw(st.integers(1, 20))), m, trains


@settings(max_examples=100, deadline=None)
@given(cases(), st.integers(0, 2**16))
def test_outputs_and_gradients_are_those_of_patches(
    case: tuple[nn.Conv, tuple[int, int, int, int], int, str], seed: int
) -> None:
    block, shape, m, trains = case
    random = np.random.default_rng(seed)
    x = np.asarray(random.normal(size=shape))
    dy = np.asarray(random.normal(size=(shape[0], *block.output_shape(shape[1:])))) if "y" in trains else None
    tiled, patches = (plan(block, shape, side, trains=trains, seed=seed) for side in (m, None))
    for _ in range(2):  # nothing of a step stays for the next one
        for found, wanted in zip(tiled.run(x, dy), patches.run(x, dy), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-11, atol=1e-11)


def test_cache_blocks_of_unequal_size_add_up() -> None:
    """Each shard has two cache blocks, of 24 and 25 images."""
    block, shape = nn.Conv(12, bias=True), (8 * 49, 16, 16, 12)
    random = np.random.default_rng(1)
    x = np.asarray(random.normal(size=shape))
    dy = np.asarray(random.normal(size=shape))
    for found, wanted in zip(plan(block, shape, 4).run(x, dy), plan(block, shape, None).run(x, dy), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize(("m", "pool", "value"), [(2, 2, 1.0), (4, 2, 0.0), (4, 4, 0.0), (6, 3, 0.0)])
@pytest.mark.parametrize("activation", ["relu", "none"])
def test_tied_maxima_go_to_the_first_in_row_major_order(m: int, pool: int, value: float, activation: Any) -> None:
    """Images of one colour, for which no transform rounds: all outputs are equal."""
    block, shape = nn.Conv(12, pad=0, pool=pool, activation=activation, bias=True), (2, 14, 14, 12)
    x, dy = np.full(shape, value), np.ones((2, *block.output_shape(shape[1:])))
    results = []
    for side in (m, None):
        planned = plan(block, shape, side)
        planned.w["weights"][...], planned.w["bias"][...] = 1 / 4, 1 / 2
        results.append(planned.run(x, dy))
    for found, wanted in zip(*results, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)


ERRORS = [
    # (N, side, C, F, pool), the tiles' side: the convolutions of the included jobs, ...
    *(((16, 16, 64, 128, 1), 4), ((16, 31, 24, 32, 2), 6), ((64, 15, 32, 64, 1), 4), ((16, 15, 64, 96, 2), 4)),
    *(((32, 7, 96, 96, 1), 4), ((32, 7, 96, 128, 2), 2), ((64, 3, 128, 128, 1), 3), ((8, 32, 16, 16, 1), 4)),
    # ... many channels, many filters, and the most that large tiles may have.
    *(((32, 8, 256, 64, 1), 4), ((32, 8, 64, 256, 1), 4), ((8, 16, 512, 12, 1), 4), ((8, 16, 12, 512, 1), 4)),
    *(((32, 6, 256, 64, 1), 3), ((8, 30, 32, 32, 1), 6), ((8, 30, 12, 32, 1), 6), ((8, 30, 32, 12, 1), 6)),
]


@pytest.mark.parametrize(("case", "m"), ERRORS, ids=str)
def test_rounding_errors_in_float32(case: tuple[int, int, int, int, int], m: int) -> None:
    """Errors of outputs and gradients, compared with patches in float64, are small relative to the largest value."""
    N, side, C, F, pool = case
    block = nn.Conv(F, pool=pool, activation="none", bias=False)
    planned, exact = plan(block, (N, side, side, C), None, np.float32), plan(block, (N, side, side, C), None)
    assert tile_side(block, C, planned.y.value.shape, np.float32) == m
    random = np.random.default_rng(2)
    x = random.normal(size=(N, side, side, C)).astype(np.float32)
    dy = np.asarray(random.normal(size=planned.y.value.shape)).astype(np.float32)
    planned.w["weights"][...] = exact.w["weights"]
    exact.w["weights"][...] = planned.w["weights"]
    found, wanted = planned.run(x, dy), exact.run(x, dy)
    limit = 1.2e-5 if m > 4 else 5e-6
    assert distance(found[0], wanted[0]) <= limit
    if pool == 1:  # with pooling another pixel may be the largest
        assert max(distance(a, b) for a, b in zip(found[1:], wanted[1:], strict=True)) <= limit


SIDES = [
    # (N, side, C, F, pool): 256 images of cifar10-small, ...
    ((256, 31, 24, 32, 2), 6),
    ((256, 15, 32, 64, 1), 4),
    ((256, 15, 64, 96, 2), 4),
    ((256, 7, 96, 96, 1), 4),
    ((256, 7, 96, 128, 2), 2),
    ((256, 3, 128, 128, 1), 3),
    # ... windows that no tile can be divided into, ...
    ((256, 31, 24, 32, 5), None),
    ((256, 31, 24, 32, 3), 6),
    # ... few channels or filters, ...
    ((256, 32, 3, 32, 1), None),
    ((256, 32, 32, 10, 1), None),
    # ... and few images, for which the transformed kernel is too large.
    ((8, 8, 256, 256, 1), 2),
    ((8, 4, 256, 256, 1), None),
    ((1, 32, 64, 64, 1), 4),
]


@pytest.mark.parametrize(("case", "expected"), SIDES)
def test_tiles_are_chosen_by_shapes(case: tuple[int, int, int, int, int], expected: int | None) -> None:
    N, side, C, F, pool = case
    for dtype, wanted in ((np.float32, expected), (np.float64, None)):
        block = nn.Conv(F, pool=pool)
        assert tile_side(block, C, (N, *block.output_shape((side, side, C))), dtype) == wanted
    for other in (nn.Conv(F, stride=2), nn.Conv(F, kernel=5), nn.Conv(F, kernel=1)):
        assert tile_side(other, C, (N, *other.output_shape((side, side, C))), np.float32) is None


@pytest.mark.parametrize("trains", ["", "bias x y"])
def test_weights_that_are_not_trained_may_change(trains: str) -> None:
    """Their transform is kept only as long as they are the same."""
    block, shape = nn.Conv(MIN_CHANNELS), (8, 16, 16, MIN_CHANNELS)
    x = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    dy = np.ones(shape, np.float32) if trains else None
    planned = plan(block, shape, 4, np.float32, trains=trains)
    first = planned.run(x, dy)
    again = planned.run(x, dy)
    planned.w["weights"] *= 2
    planned.w["weights"][1, 1] += 1
    other = plan(block, shape, 4, np.float32, trains=trains)
    other.w["weights"][...] = planned.w["weights"]
    for a, b, c, d in zip(first, again, planned.run(x, dy), other.run(x, dy), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(c, d)
    assert not np.array_equal(first[0], planned.y.value)


def test_rounding_errors_if_all_values_are_positive() -> None:
    """The sums of the gradients at the points are largest then."""
    block, shape = nn.Conv(32, activation="none", bias=False), (8, 30, 30, 32)
    planned, exact = plan(block, shape, 6, np.float32), plan(block, shape, None)
    x, dy = (np.abs(np.random.default_rng(seed).normal(size=shape)).astype(np.float32) for seed in (0, 1))
    exact.w["weights"][...] = np.abs(exact.w["weights"]).astype(np.float32)
    planned.w["weights"][...] = exact.w["weights"]
    for tiled, expected in zip(planned.run(x, dy), exact.run(x, dy), strict=True):
        assert distance(tiled, expected) <= 2.5e-5


def test_an_interrupted_transform_is_repeated() -> None:
    """A failure between the old weights' transform and the new one's must not leave the old one in use."""
    block, shape = nn.Conv(MIN_CHANNELS, activation="none", bias=False), (8, 16, 16, MIN_CHANNELS)
    x = np.random.default_rng(5).normal(size=shape).astype(np.float32)
    workers = InterruptedWorkers(1)
    planned, other = (plan(block, shape, 4, np.float32, trains="", workers=w) for w in (workers, nn.Workers(1)))
    planned.run(x, None)
    for factor in (3, 1 / 3):
        for each in (planned, other):
            each.w["weights"] *= factor
        workers.fails = True
        with pytest.raises(KeyboardInterrupt):
            planned.run(x, None)
        workers.fails = False
        np.testing.assert_array_equal(planned.run(x, None)[0], other.run(x, None)[0])


@pytest.mark.parametrize("count", [2, 3])
def test_bits_do_not_depend_on_the_number_of_processes(count: int) -> None:
    block, shape = nn.Conv(32, pool=2), (40, 31, 31, 24)
    random = np.random.default_rng(4)
    x = random.normal(size=shape).astype(np.float32)
    dy = random.normal(size=(40, 15, 15, 32)).astype(np.float32)
    alone = plan(block, shape, 6, np.float32).run(x, dy)
    with nn.Workers(count) as workers:
        together = plan(block, shape, 6, np.float32, workers=workers).run(x, dy)
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)
