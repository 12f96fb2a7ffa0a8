"""Optimisers against their formulas, step by step: decay, momentum, moments, slow weights, factors, what is frozen."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from cnnjob import nn
from cnnjob.nn.blocks import Block
from cnnjob.nn.cpu import updates
from cnnjob.nn.optimisers import trainable_segments
from tests.nn.bench import Rig, rig

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
BLOCKS: list[Block] = [
    nn.Conv(filters=3, frozen=True),
    nn.Conv(filters=2, batch_norm=nn.BatchNorm(learning_rate_factor=5.0), learning_rate_factor=3.0, bias=False),
    nn.Dense(units=4, learning_rate_factor=0.5),
]
FACTORS = {"conv1": 1.0, "conv2": 3.0, "dense1": 0.5, "classifier": 1.0}
RATES = (0.1, 0.05, 0.2, 0.1)


def sgd(w: Array, g: Array, slots: Arrays, rate: float, decay: float, momentum: float = 0.9) -> Array:
    """g ← g + λw, v ← μv + g, w − ηv."""
    slots["velocity"] = momentum * slots.get("velocity", 0) + g + decay * w
    return w - rate * slots["velocity"]


def nesterov(w: Array, g: Array, slots: Arrays, rate: float, decay: float) -> Array:
    """w − η(g + μv)."""
    slots["velocity"] = 0.9 * slots.get("velocity", 0) + g + decay * w
    return w - rate * (g + decay * w + 0.9 * slots["velocity"])


def decoupled(w: Array, g: Array, slots: Arrays, rate: float, decay: float) -> Array:
    """w ← w − ηλw first, and g without decay, in Nesterov's form."""
    slots["velocity"] = 0.9 * slots.get("velocity", 0) + g
    return w - rate * decay * w - rate * (g + 0.9 * slots["velocity"])


def adamw(w: Array, g: Array, slots: Arrays, rate: float, decay: float) -> Array:
    """Loshchilov & Hutter 2019, alg. 2, with the schedule in the rate."""
    t = slots["t"] = slots.get("t", np.zeros(())) + 1
    slots["first_moment"] = 0.8 * slots.get("first_moment", 0) + 0.2 * g
    slots["second_moment"] = 0.95 * slots.get("second_moment", 0) + 0.05 * g**2
    m, v = slots["first_moment"] / (1 - 0.8**t), slots["second_moment"] / (1 - 0.95**t)
    return w - rate * decay * w - rate * m / (np.sqrt(v) + 1e-3)


def adam(w: Array, g: Array, slots: Arrays, rate: float, decay: float) -> Array:
    """Kingma & Ba 2015, alg. 1, of the loss with ½λw²."""
    return adamw(w, g + decay * w, slots, rate, 0.0)


CASES: list[tuple[nn.Optimiser, Callable[..., Array]]] = [
    (nn.Sgd(0.9, 0.01), sgd),
    (nn.Sgd(0.0, 0.01), partial(sgd, momentum=0.0)),
    (nn.Sgd(0.9, 0.01, nesterov=True), nesterov),
    (nn.Sgd(0.9, 0.01, nesterov=True, decoupled=True), decoupled),
    (nn.Adam(0.8, 0.01, beta2=0.95, eps=1e-3), adam),
    (nn.AdamW(0.8, 0.01, beta2=0.95, eps=1e-3), adamw),
]


def is_decayed(name: str) -> bool:
    return name.endswith("/weights")


@pytest.mark.parametrize(("optimiser", "formula"), CASES)
def test_each_is_its_formula(optimiser: nn.Optimiser, formula: Callable[..., Array]) -> None:
    bench = rig(BLOCKS, optimiser=optimiser)
    factors = {
        name: FACTORS[name.partition("/")[0]] * (5.0 if name.endswith(("scale", "shift")) else 1.0)
        for name in bench.state.weights
    }
    slots: dict[str, Arrays] = {name: {} for name in factors}
    for rate in RATES:
        before = {name: view.copy() for name, view in bench.state.weights.items()}
        gradients = gradients_at(bench)
        bench.inputs.learning_rates[:] = rate
        bench.step()
        for name, parameter in bench.network.parameters.items():
            if parameter.trainable:
                decay = 0.01 if is_decayed(name) else 0.0
                wanted = formula(before[name], gradients[name], slots[name], rate * factors[name], decay)
                np.testing.assert_allclose(bench.state.weights[name], wanted, rtol=1e-10, atol=1e-14, err_msg=name)
    for slot, flat in bench.state.slots.items():
        for name, view in bench.state.layout.views(flat).items():
            if name in slots and bench.network.parameters[name].trainable:
                np.testing.assert_allclose(view, slots[name][slot], rtol=1e-10, atol=1e-14, err_msg=name)


def gradients_at(bench: Rig) -> Arrays:
    """Of the loss alone: those of another rig with the same weights and no decay."""
    other = rig([layer.block for layer in bench.network.layers[:-1]])
    other.state.parameters[...] = bench.state.parameters
    other.step()
    return other.gradients


@pytest.mark.parametrize("optimiser", [*(case[0] for case in CASES), nn.Muon(first_layer=True)])
def test_frozen_weights_stay_and_what_is_around_them_learns(optimiser: nn.Optimiser) -> None:
    bench = rig(BLOCKS, optimiser=optimiser, learning_rate=0.1)
    before = {name: view.copy() for name, view in bench.state.weights.items()}
    for _ in range(3):
        bench.step()
    same = {name for name, view in bench.state.weights.items() if np.array_equal(view, before[name])}
    assert same == {"conv1/weights"}
    assert not any(view.any() for name, view in bench.gradients.items() if name == "conv1/weights")
    for flat in bench.state.slots.values():
        assert not bench.state.layout.views(flat)["conv1/weights"].any()
    learning = {name for name, parameter in bench.network.parameters.items() if parameter.trainable}
    assert len(trainable_segments(bench.network, bench.state.layout)) == len(learning)
    assert not learning & {"conv1/weights", "conv2/mean", "conv2/variance"}


def test_a_factor_of_zero_stops_a_block() -> None:
    bench = rig([nn.Dense(units=4, learning_rate_factor=0.0)], optimiser=nn.Sgd(0.9, 0.1), learning_rate=0.1)
    before = {name: view.copy() for name, view in bench.state.weights.items()}
    bench.step()
    for name, view in bench.state.weights.items():
        assert np.array_equal(view, before[name]) == name.startswith("dense1"), name


@pytest.mark.parametrize(
    ("optimiser", "formula"),
    [(nn.Sgd(0.9, 0.01, clip_norm=0.5), sgd), (nn.Adam(0.8, 0.01, beta2=0.95, eps=1e-3, clip_norm=0.5), adam)],
)
def test_gradients_are_clipped_by_the_norm_of_all_of_them_before_anything_else(
    optimiser: nn.Optimiser, formula: Callable[..., Array]
) -> None:
    bench = rig([nn.Conv(filters=3, frozen=True), nn.Dense(units=4)], optimiser=optimiser, learning_rate=0.1)
    before = {name: view.copy() for name, view in bench.state.weights.items()}
    gradients = gradients_at(bench)
    norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
    assert norm > 0.5
    bench.step()
    for name, parameter in bench.network.parameters.items():
        if parameter.trainable:
            clipped = gradients[name] * 0.5 / (norm + 1e-6)
            wanted = formula(before[name], clipped, {}, 0.1, 0.01 if is_decayed(name) else 0.0)
            np.testing.assert_allclose(bench.state.weights[name], wanted, rtol=1e-10, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("bound", [0.999, 1.001])
def test_gradients_of_a_smaller_norm_stay_as_they_are(bound: float) -> None:
    blocks: list[Block] = [nn.Conv(filters=3), nn.Dense(units=1100)]
    free = rig(blocks, (9, 9, 1), dtype=np.float32)
    free.step()
    norm = float(np.linalg.norm(free.state.gradients.astype(np.float64)))
    clipped = rig(blocks, (9, 9, 1), dtype=np.float32, optimiser=nn.Sgd(clip_norm=bound * norm), workers=3)
    clipped.step()
    assert np.array_equal(clipped.state.gradients, free.state.gradients) == (bound > 1)
    assert np.linalg.norm(clipped.state.gradients.astype(np.float64)) == pytest.approx(min(1, bound) * norm, rel=1e-6)


@pytest.mark.parametrize("total", [6, 7])
def test_lookahead_is_its_formula_and_the_last_steps_count(total: int) -> None:
    """Running statistics and frozen weights go with the others, as in a copy of the whole network."""
    look = nn.Lookahead(every=3, decay=0.9, power=2.0)
    with_it, without = (
        rig(BLOCKS, optimiser=nn.Sgd(0.9, 0.01, lookahead), learning_rate=0.1) for lookahead in (look, None)
    )
    slow = with_it.state.parameters.copy()
    with_it.state.slots["slow"][...] = slow
    shares = look.alphas(range(total), total)
    for done in range(1, total + 1):
        with_it.inputs.lookahead[0] = shares[done - 1]
        with_it.step()
        without.step()
        fast = without.state.parameters
        if done in {3, 6, total}:
            alpha = 0.9 ** (3 if done % 3 == 0 else 1) * (done / total) ** 2
            slow = alpha * slow + (1 - alpha) * fast
            fast[...] = slow
        np.testing.assert_allclose(with_it.state.parameters, fast, rtol=1e-12, atol=1e-15, err_msg=str(done))
        np.testing.assert_allclose(with_it.state.slots["slow"], slow, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(with_it.state.parameters, with_it.state.slots["slow"])


def test_the_slow_weights_start_as_the_fast_ones() -> None:
    network = nn.Network.build([*BLOCKS, nn.Dense(units=3, activation="none")], (6, 5, 2))
    state = nn.State(network, nn.AdamW(lookahead=nn.Lookahead()), nn.NumPyBackend(nn.Workers(1)))
    state.initialise(network, 3)
    np.testing.assert_array_equal(state.slots["slow"], state.parameters)
    assert set(state.saved_buffers) == {"weights", "first_moment", "second_moment", "slow"}
    assert not state.slots["first_moment"].any()


def test_shares_are_by_address() -> None:
    look = nn.Lookahead(every=4)
    whole = look.alphas(range(22), 22)
    np.testing.assert_array_equal(np.concatenate([look.alphas(range(9), 22), look.alphas(range(9, 22), 22)]), whole)
    np.testing.assert_array_equal(np.flatnonzero(whole >= 0), [3, 7, 11, 15, 19, 21])
    assert whole[-1] == pytest.approx(0.95**2)
    assert whole[19] == pytest.approx(0.95**4 * (20 / 22) ** 3)


def test_a_large_parameter_is_updated_in_pieces() -> None:
    bench = rig([nn.Dense(units=1100)], (8, 8, 1), optimiser=nn.Sgd(0.0, 0.01), workers=2, learning_rate=0.1)
    assert bench.state.weights["dense1/weights"].size > updates.CACHE_BLOCK_ELEMENTS
    before = bench.state.weights["dense1/weights"].copy()
    bench.step()
    expected = before - 0.1 * (bench.gradients["dense1/weights"] + 0.01 * before)
    np.testing.assert_allclose(bench.state.weights["dense1/weights"], expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("lookahead", [None, nn.Lookahead(every=2)])
def test_the_average_is_its_formula_and_that_of_torch(lookahead: nn.Lookahead | None) -> None:
    """Running statistics are averaged too, and frozen weights stay as they are to the last bit."""
    torch = pytest.importorskip("torch", reason="needs torch: pip install -e '.[judge]'")
    ema = nn.Ema(0.7, warmup=False)
    bench = rig(BLOCKS, optimiser=nn.Sgd(0.9, 0.01, lookahead, ema=ema), learning_rate=0.1)
    module = torch.nn.Linear(1, bench.state.parameters.size).double()
    copies = torch.optim.swa_utils.AveragedModel(
        module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.7), use_buffers=True
    )
    mean = np.zeros(bench.state.parameters.size)
    for step, decay in enumerate(ema.decays(range(5))):
        bench.inputs.ema[0], bench.inputs.lookahead[0] = decay, 0.5 if step % 2 else -1
        bench.step()
        mean = decay * mean + (1 - decay) * bench.state.parameters
        module.bias.data[...] = torch.from_numpy(bench.state.parameters)
        copies.update_parameters(module)
        np.testing.assert_allclose(bench.state.slots["ema"], mean, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(bench.state.evaluated, copies.module.bias.detach(), rtol=1e-12, atol=1e-15)
    frozen = bench.state.layout.slice_of("conv1/weights")
    np.testing.assert_array_equal(bench.state.evaluated[frozen], bench.state.parameters[frozen])


def test_the_decays_of_an_average_are_by_address_and_begin_with_a_copy() -> None:
    warm, constant = nn.Ema(0.9), nn.Ema(0.9, warmup=False)
    whole = warm.decays(range(50))
    np.testing.assert_array_equal(np.concatenate([warm.decays(range(9)), warm.decays(range(9, 50))]), whole)
    np.testing.assert_allclose(whole[:4], [0, 1 - 2 ** (-2 / 3), 1 - 3 ** (-2 / 3), 1 - 4 ** (-2 / 3)])
    assert whole.max() == 0.9
    np.testing.assert_array_equal(constant.decays(range(3)), [0, 0.9, 0.9])


def test_an_evaluation_uses_the_average() -> None:
    averaged, plain = (rig(BLOCKS, optimiser=nn.Sgd(0.9, ema=ema), learning_rate=0.1) for ema in (nn.Ema(), None))
    for decay in (0.0, 0.5, 0.5):
        averaged.inputs.ema[0] = decay
        averaged.step()
    plain.state.parameters[...] = averaged.state.slots["ema"]
    found, expected, other = (
        nn.EvaluationPlan(bench.backend, bench.network, bench.state, bench.pixels, 4).probabilities(
            bench.inputs.images, np.arange(4)
        )
        for bench in (averaged, plain, rig(BLOCKS))
    )
    np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(found, other)
