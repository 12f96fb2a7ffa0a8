"""Dense, dropout, the batch, the loss, the update, and whole small networks."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnjob import nn
from cnnjob.nn.arena import Arena, BufferLayout, HostMemory
from cnnjob.nn.blocks import Block
from cnnjob.nn.random import Purpose
from tests.nn import oracle
from tests.nn.bench import distance, rig


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 7), st.integers(1, 9), st.integers(0, 999))
def test_a_dense_network_is_matrix_products(count: int, units: int, side: int, seed: int) -> None:
    bench = rig([nn.Dense(units=units)], (side, 1, 2), count=count, seed=seed)
    loss = bench.step()
    w = bench.state.weights
    x = bench.inputs.images.reshape(count, -1) / 255
    hidden = np.maximum(x @ w["dense1/weights"] + w["dense1/bias"], 0)
    logits = hidden @ w["classifier/weights"] + w["classifier/bias"]
    expected, d_logits = oracle.softmax_cross_entropy(logits, bench.inputs.labels)
    d_hidden = d_logits @ w["classifier/weights"].T * (hidden > 0)
    assert loss == pytest.approx(expected, rel=1e-12)
    assert bench.inputs.n_correct[0] == (logits.argmax(axis=1) == bench.inputs.labels).sum()
    for name, wanted in {
        "classifier/weights": hidden.T @ d_logits,
        "classifier/bias": d_logits.sum(axis=0),
        "dense1/weights": x.T @ d_hidden,
        "dense1/bias": d_hidden.sum(axis=0),
    }.items():
        np.testing.assert_allclose(bench.gradients[name], wanted, rtol=1e-10, atol=1e-13)


def test_the_batch_takes_the_images_that_the_order_names_and_normalises_them() -> None:
    images = np.arange(3 * 2 * 2 * 2, dtype=np.uint8).reshape(3, 2, 2, 2) * 9
    pixels = nn.PixelNormalisation.standardised((0.25, 0.5), (0.5, 0.0))  # a channel of one value is only centred
    network = nn.Network.build([nn.Dense(activation="none", units=2)], (2, 2, 2))
    backend = nn.NumPyBackend(nn.Workers(1), np.float64)
    state = nn.State(network, nn.Sgd(), backend)
    chosen = state.weights["classifier/weights"]
    chosen[0, 0], chosen[1, 1] = 1, 1  # the outputs are the first pixel's two channels
    plan = nn.EvaluationPlan(backend, network, state, pixels, 2)
    x = (images[[2, 0], 0, 0] / 255 - [0.25, 0.5]) / [0.5, 1.0]
    np.testing.assert_allclose(
        plan.probabilities(images, np.array([2, 0])), np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    )


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 20])
def test_evaluation_does_not_depend_on_the_batch(batch_size: int) -> None:
    bench = rig([nn.Conv(filters=3, pool=2), nn.Dropout(0.9), nn.Dense(units=4)], count=7)
    images, order = bench.inputs.images, np.array([3, 1, 6, 0, 2, 5, 4])
    plans = [nn.EvaluationPlan(bench.backend, bench.network, bench.state, bench.pixels, n) for n in (batch_size, 7)]
    found, whole = (plan.probabilities(images, order) for plan in plans)
    np.testing.assert_allclose(found, whole, rtol=1e-12)
    assert found.shape == (7, 3)
    np.testing.assert_array_equal(found, plans[0].probabilities(images, order))
    np.testing.assert_allclose(plans[0].probabilities(images[3:4], np.array([0])), whole[:1], rtol=1e-12)


def test_large_logits_do_not_overflow() -> None:
    bench = rig([], count=3)
    bench.state.weights["classifier/bias"][...] = [1e5, -1e5, 0]
    bench.inputs.labels[...] = 1
    assert bench.step() == pytest.approx(2e5, rel=1e-4)


def test_dropout_is_by_address_and_its_gradient_uses_the_same_mask() -> None:
    bench = rig([nn.Conv(filters=4), nn.Dropout(0.4), nn.Dense(units=3)], count=3)
    losses = [bench.step(), bench.step()]
    assert losses[0] != losses[1]  # another step, another mask
    bias = bench.state.weights["conv1/bias"]
    bench.inputs.position[:] = 0
    assert bench.step() == losses[0]  # not by what was drawn before
    gradient, h, slopes = bench.gradients["conv1/bias"].copy(), 1e-6, np.zeros(4)
    for place in range(4):
        for sign in (1, -1):
            bench.inputs.position[:] = 0
            bias[place] += sign * h
            slopes[place] += sign * bench.step() / (2 * h)
            bias[place] -= sign * h
    assert distance(slopes, gradient) < 1e-6


def test_dropout_drops_its_share_and_its_mask_does_not_depend_on_workers() -> None:
    white = np.full((9, 30, 30, 3), 255, np.uint8)
    gradients = []
    for workers in (1, 3):
        bench = rig([nn.Dropout(0.3)], (30, 30, 3), workers=workers, images=white[:1])
        bench.step()
        gradients.append(bench.gradients["classifier/weights"].copy())
    np.testing.assert_array_equal(gradients[0], gradients[1])
    kept = gradients[0] != 0  # one white image: the gradient is the mask, scaled
    assert kept.mean() == pytest.approx(0.7, abs=0.03)


def test_sgd_is_its_formula() -> None:
    optimiser = nn.Sgd(momentum=0.9, weight_decay=0.01)
    blocks = [nn.Conv(filters=2, learning_rate_factor=3.0)]
    bench = rig(blocks, optimiser=optimiser, learning_rate=0.1)
    expected = {name: (view.copy(), np.zeros_like(view)) for name, view in bench.state.weights.items()}
    for _ in range(3):
        bench.step()
        for name, (w, v) in expected.items():
            penalty = 0.01 * w if name.endswith("weights") else 0
            np.copyto(v, 0.9 * v + bench.gradients[name] + penalty)
            np.copyto(w, w - 0.1 * (3.0 if name.startswith("conv1") else 1.0) * v)
    velocity = bench.state.layout.views(bench.state.slots["velocity"])
    for name, (w, v) in expected.items():
        np.testing.assert_allclose(bench.state.weights[name], w, rtol=1e-12)
        np.testing.assert_allclose(velocity[name], v, rtol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_weight_decay_spares_the_biases_and_the_gradients(momentum: float) -> None:
    plain = rig([nn.Conv(filters=2)], optimiser=nn.Sgd(momentum), learning_rate=0.1)
    decayed = rig([nn.Conv(filters=2)], optimiser=nn.Sgd(momentum, weight_decay=0.5), learning_rate=0.1)
    before = {name: view.copy() for name, view in plain.state.weights.items()}
    for bench in (plain, decayed):
        bench.step()
    for name, gradient in plain.gradients.items():
        penalty = 0.5 * before[name] if name.endswith("weights") else 0
        np.testing.assert_array_equal(decayed.gradients[name], gradient)
        np.testing.assert_allclose(plain.state.weights[name] - decayed.state.weights[name], 0.1 * penalty, atol=1e-14)


@pytest.mark.parametrize("workers", [2, 3, 5])
def test_the_bits_do_not_depend_on_the_number_of_workers(workers: int) -> None:
    blocks: list[Block] = [nn.Conv(filters=5, pool=2), nn.Conv(filters=4), nn.Dropout(0.3), nn.Dense(units=9)]
    found = []
    for count in (1, workers):
        bench = rig(blocks, (9, 8, 3), count=13, dtype=np.float32, workers=count, learning_rate=0.1)
        for _ in range(3):
            bench.step()
        found.append(bench.state.parameters.tobytes())
    assert found[0] == found[1]


def test_ten_golden_steps() -> None:
    """The losses of a seeded training, so that a change of any part is seen."""
    blocks: list[Block] = [
        nn.Conv(filters=4, pool=2),
        nn.Conv(filters=6, kernel=5, pad=2, pool=2),
        nn.Dropout(0.2),
        nn.Dense(units=8),
    ]
    bench = rig(blocks, (12, 12, 3), count=16, optimiser=nn.Sgd(0.9, 1e-3), learning_rate=0.05)
    losses = [bench.step() for _ in range(10)]
    np.testing.assert_allclose(losses, GOLDEN, rtol=1e-9)


GOLDEN = [
    1.079649520425712,
    1.066497511618612,
    1.0366543735615272,
    0.9789783253609392,
    1.016482437420069,
    1.0222575424912506,
    1.0112310443456913,
    0.9544612302332438,
    0.9210693986310641,
    1.024213854510459,
]


def test_a_plan_counts_exactly_what_it_takes_and_allocates_nothing_for_it() -> None:
    bench = rig([nn.Conv(filters=5, pool=2), nn.Dropout(0.3), nn.Dense(units=9)])
    taken = []

    def build(arena: Arena) -> None:
        arena.take((5, 3), np.float32)
        arena.scratch(0, ((100,), np.float64), ((3,), np.uint8))
        arena.scratch(1, ((2, 2), np.float32))
        arena.scratch(0, ((7,), np.float64))
        taken.append(arena.size_bytes)

    Arena.allocate(HostMemory(), build)
    assert taken == [64 + 2 * (832 + 64)] * 2  # whole cache lines; every shard's scratch is as large as the largest
    counted = [nn.TrainingPlan.count_bytes(bench.backend, bench.network, bench.state, nn.Sgd(), n) for n in (8, 10**9)]
    assert counted[1] > 10**8 * counted[0] / 8


def test_shards_that_never_run_at_once_share_scratch() -> None:
    def build(arena: Arena) -> list[np.ndarray[Any, Any]]:
        return [arena.scratch(shard, ((5 + shard,), np.float32))[0] for shard in range(4)]

    a, b, c, d = Arena.allocate(HostMemory(lanes=2), build)
    assert [np.shares_memory(a, other) for other in (b, c, d)] == [False, True, False]
    assert np.shares_memory(b, d)


def test_layouts_are_aligned_and_named() -> None:
    layout = BufferLayout.of({"a": (3, 2), "b": (17,), "c": ()}, 4)
    flat = np.arange(layout.size, dtype=np.float32)
    views = layout.views(flat)
    assert layout.offsets == {"a": 0, "b": 16, "c": 48}
    assert views["a"].shape == (3, 2)
    assert views["b"][0] == 16
    assert all(np.shares_memory(view, flat) for view in views.values())


def test_initial_weights_are_of_the_asked_spread_and_of_their_place_only() -> None:
    wide = rig([nn.Dense(units=400, init=0.01, bias_init=0.5), nn.Dense(units=300)], (20, 20, 1))
    network, state = wide.network, wide.state
    state.initialise(network, 7)
    assert state.weights["dense1/weights"].std() == pytest.approx(0.01, rel=0.02)
    assert state.weights["dense2/weights"].std() == pytest.approx((2 / 400) ** 0.5, rel=0.02)
    assert np.all(state.weights["dense1/bias"] == 0.5)
    other = rig([nn.Dense(units=400, init=0.01)], (20, 20, 1))
    other.state.initialise(other.network, 7)
    np.testing.assert_array_equal(other.state.weights["dense1/weights"], state.weights["dense1/weights"])


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([nn.Dense(units=3), nn.Conv(filters=1)], r"conv1: a conv block needs an image .found a vector"),
        (
            [nn.Conv(filters=1, pad=0, kernel=9)],
            r"conv1: an input of 6×5 pixels is too small for kernel 9, stride 1, pad 0 and pool 1",
        ),
        ([nn.Conv(filters=1, pool=3), nn.Conv(filters=1, pool=3)], r"conv2: an input of 2×1 pixels is too small for"),
    ],
)
def test_a_block_that_does_not_fit_is_named(blocks: list[nn.Conv | nn.Dense], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rig(blocks)


def test_purposes_differ() -> None:
    assert len(set(Purpose)) == len(Purpose)
