"""Randomness by address: published test vectors, uniformity, independence of address and order."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from cnnjob import nn
from cnnjob.nn import Schedule
from cnnjob.nn.blocks import Block
from cnnjob.nn.random import Philox, Uniform, generator, permutation
from cnnjob.nn.schedules import Anneal
from tests.nn.bench import rig

Array = np.ndarray[Any, Any]
WORDS = [  # Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, result
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def uniform(blocks: int, first: int = 0) -> Uniform:
    return Uniform(np.zeros((6, blocks), np.uint64), np.zeros((blocks, 4), np.float32), first)


@pytest.mark.parametrize(("counter", "key", "result"), WORDS)
def test_rounds_are_philox4x32(counter: tuple[int, ...], key: tuple[int, int], result: tuple[int, ...]) -> None:
    one = Philox(np.zeros((6, 1), np.uint64))
    one.draw(*key, *counter)
    assert tuple(int(word) for word in one.words[:, 0]) == result


def test_numbers_are_uniform_and_below_one() -> None:
    one = uniform(25_000)
    one.draw(seed=3, purpose=5, step=7)
    assert stats.kstest(one.values.ravel(), "uniform").pvalue > 1e-3
    assert one.values.min() >= 0
    assert one.values.max() < 1


def test_numbers_belong_to_their_address() -> None:
    whole, part = uniform(10), uniform(4, first=6)
    whole.draw(1, 2, 3)
    part.draw(1, 2, 3)
    np.testing.assert_array_equal(whole.values[6:], part.values)
    drawn = whole.values.copy()
    for address in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (1, 2, 3 + 2**32)):
        whole.draw(*address)
        assert not np.any(whole.values == drawn)


def test_permutations_belong_to_their_address() -> None:
    one = permutation(50, 1, 2, 3)
    np.testing.assert_array_equal(np.sort(one), np.arange(50))
    np.testing.assert_array_equal(one, permutation(50, 1, 2, 3))
    for address in ((1, 2, 4), (1, 3, 3), (2, 2, 3), (1, 2)):
        assert not np.array_equal(one, permutation(50, *address))
    assert generator(0, 1, 2, 3).random() != generator(0, 1, 3, 2).random()


def test_schedules() -> None:
    np.testing.assert_array_equal(Schedule(0.1).rates(range(5, 8), 10), [0.1] * 3)
    cosine = Schedule(0.2, "cosine")
    np.testing.assert_allclose(cosine.rates(range(0, 11, 5), 10), [0.2, 0.1, 0.0], atol=1e-17)
    parts = [cosine.rates(range(start, start + 5), 10) for start in (0, 5)]
    np.testing.assert_array_equal(np.concatenate(parts), cosine.rates(range(10), 10))
    triangle = Schedule(2.0, "triangular", warmup=0.25, start_factor=0.2, end_factor=0.1)
    np.testing.assert_allclose(triangle.rates(range(9), 8), np.interp(range(9), [0, 2, 8], [0.4, 2.0, 0.2]))
    np.testing.assert_allclose(Schedule(1.0, warmup=0.5).rates(range(5), 8), [0, 0.25, 0.5, 0.75, 1])


def test_a_step_falls_at_the_first_step_after_each_milestone() -> None:
    schedule = Schedule(1.0, "step", warmup=0.2, start_factor=0.5, milestones=(0.5, 0.71), gamma=0.5)
    np.testing.assert_array_equal(schedule.rates(range(10), 10), [0.5, 0.75, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25])
    assert Schedule(1.0, "step", milestones=(0.07, 0.29, 0.57)).milestone_steps(100).tolist() == [7, 29, 57]
    for epochs in (7, 30, 49, 350):  # so many epochs of any number of steps: a milestone is between two epochs
        at_epochs = Schedule(1.0, "step", milestones=tuple(epoch / epochs for epoch in range(1, epochs)))
        for steps in (1, 9, 390, 5004):
            np.testing.assert_array_equal(at_epochs.milestone_steps(steps * epochs), np.arange(1, epochs) * steps)


def torch_rates(make: Any, steps: int) -> Array:
    """The rate and the momentum that a scheduler of torch sets for each step; it is made for a rate of 0.3."""
    torch = pytest.importorskip("torch", reason="needs torch: pip install -e '.[judge]'")
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3, momentum=0.9)
    scheduler, rates = make(torch.optim.lr_scheduler, optimiser), []
    for step in range(steps):
        rates.append([optimiser.param_groups[0][key] for key in ("lr", "momentum")])
        optimiser.step()
        if step < steps - 1:
            scheduler.step()
    return np.array(rates).T


@pytest.mark.parametrize("steps", [1, 2, 7, 40, 333])
@pytest.mark.parametrize("warmup", [0.3, 0.05, 0.9])
@pytest.mark.parametrize("anneal", ["cosine", "linear"])
def test_one_cycle_is_that_of_torch(steps: int, warmup: float, anneal: Anneal) -> None:
    expected = torch_rates(
        lambda schedulers, optimiser: schedulers.OneCycleLR(
            optimiser, 0.3, steps, pct_start=warmup, anneal_strategy={"cosine": "cos"}.get(anneal, anneal),
            div_factor=20, final_div_factor=100, base_momentum=0.8, max_momentum=0.9,
        ),
        steps,
    )  # fmt: skip
    schedule = Schedule(0.3, "one_cycle", warmup, 1 / 20, 1 / 2000, anneal=anneal, base_momentum=0.8)
    np.testing.assert_allclose(schedule.rates(range(steps), steps), expected[0], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(0.9 - schedule.momentum_drops(range(steps), steps, 0.9), expected[1], rtol=1e-12)
    part = range(steps // 2, steps)
    drops = schedule.momentum_drops(range(steps), steps, 0.9)
    np.testing.assert_array_equal(schedule.momentum_drops(part, steps, 0.9), drops[part.start :])


def test_steps_are_those_of_torch() -> None:
    expected = torch_rates(lambda schedulers, optimiser: schedulers.MultiStepLR(optimiser, [3, 8, 9], 0.2), 12)[0]
    schedule = Schedule(0.3, "step", milestones=(3 / 12, 8 / 12, 9 / 12), gamma=0.2)
    np.testing.assert_allclose(schedule.rates(range(12), 12), expected, rtol=1e-12)
    by_epoch = schedule.rates(range(0, 12 * 5, 5), 12 * 5)
    np.testing.assert_allclose(by_epoch, expected, rtol=1e-12)
    np.testing.assert_array_equal(np.repeat(by_epoch, 5), schedule.rates(range(12 * 5), 12 * 5))


CONV = nn.Conv(filters=1)


def dropouts(count: int) -> tuple[nn.Dropout, ...]:
    return (nn.Dropout(0.5),) * count


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (
            [nn.Residual((*dropouts(256), CONV, nn.Dropout(0.5))), nn.Residual((CONV, *dropouts(1)))],
            r"residual2\.dropout1: would draw the same random numbers as residual1\.dropout257 .* 256 blocks",
        ),
        (
            [nn.Residual((*dropouts(1), CONV)), *dropouts(256)],
            r"dropout256: would draw the same random numbers as residual1\.dropout1 .* 256 blocks",
        ),
    ],
)
def test_dropouts_that_would_draw_the_same_numbers_are_refused(blocks: list[Block], message: str) -> None:
    """Layers within residual block i have the indices from 256·(i + 1) on."""
    with pytest.raises(ValueError, match=message):
        rig(blocks)


ALLOWED: list[list[Block]] = [
    [nn.Residual((CONV, *dropouts(255))), nn.Residual((*dropouts(1), CONV))],
    [nn.Residual((*dropouts(1), CONV)), *dropouts(255)],
    [*dropouts(300)],
]


@pytest.mark.parametrize("blocks", ALLOWED)
def test_dropouts_of_as_many_layers_as_allowed_differ(blocks: list[Block]) -> None:
    network = nn.Network.build([*blocks, nn.Dense(activation="none", units=2)], (2, 2, 1))
    nn.require_trainable(network, 2)


def test_the_layers_of_a_residual_block_have_the_indices_that_are_checked() -> None:
    """Each dropout of a plan has the index by which require_trainable knows it."""
    planned = []

    class Recording(nn.NumPyBackend):
        def plan_operation(self, *arguments: Any, **named: Any) -> Any:
            planned.append((arguments[1], arguments[-1]))
            return super().plan_operation(*arguments, **named)

    blocks: list[Block] = [nn.Dropout(0.1), nn.Residual((nn.Conv(filters=3), nn.Dropout(0.2))), nn.Dropout(0.3)]
    network = nn.Network.build([*blocks, nn.Dense(activation="none", units=2)], (4, 4, 1))
    backend, optimiser = Recording(nn.Workers(1)), nn.Sgd()
    state = nn.State(network, optimiser, backend)
    nn.TrainingPlan.count_bytes(backend, network, state, optimiser, 2)
    found = {operation.probability: index for operation, index in planned if isinstance(operation, nn.Dropout)}
    assert found == {0.1: 0, 0.2: 256 * 2 + 1, 0.3: 2}
