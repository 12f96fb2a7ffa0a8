"""Batch normalisation: its formula, its gradients with every activation in every order, its running statistics."""

from itertools import permutations
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnjob import nn
from cnnjob.nn.arena import Arena, HostMemory
from cnnjob.nn.blocks import Activation, Part
from cnnjob.nn.cpu.activations import CACHE_BLOCK_ELEMENTS
from cnnjob.nn.cpu.norm import norm
from cnnjob.nn.operations import Norm
from cnnjob.nn.tensors import Tensor
from tests.nn import oracle
from tests.nn.bench import Rig, check_gradients, distance, rig

Array = np.ndarray[Any, Any]
ORDERS: list[tuple[Part, Part, Part]] = list(permutations(("norm", "activation", "pool")))  # type: ignore[arg-type]
ACTIVATIONS = get_args(Activation)


def run_norm(block: Norm, x: Array, w: dict[str, Array], dy: Array, workers: int = 1) -> tuple[Array, ...]:
    """Output, and the gradients of x, scale and shift."""

    def build(arena: Arena) -> tuple[Any, ...]:
        into, out = (Tensor.take(arena, x.shape, x.dtype) for _ in range(2))
        dw: dict[str, Array] = {name: np.zeros_like(w[name]) for name in ("scale", "shift") if name in w}
        return into, out, dw, norm(nn.Workers(workers), arena, block, into, out, w, dw)

    into, out, dw, step = Arena.allocate(HostMemory(workers), build)
    into.value[...], out.gradient[...] = x, dy
    step.forward()
    step.backward()
    return out.value.copy(), into.gradient.copy(), dw["scale"], dw["shift"]


def channels(C: int, random: np.random.Generator, dtype: Any = np.float64) -> dict[str, Array]:
    """Scale, shift and running statistics, as they start."""
    drawn = {"scale": random.uniform(0.5, 2, C), "shift": random.normal(size=C)}
    return {name: a.astype(dtype) for name, a in {**drawn, "mean": np.zeros(C), "variance": np.ones(C)}.items()}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(9, 3, 4, 5), (2, 1, 1, 3), (17, 1, 2, 1)])
def test_it_is_its_formula(shape: tuple[int, ...], activation: Activation) -> None:
    random = np.random.default_rng(0)
    x, dy, w = random.normal(3, 2, shape), random.normal(size=shape), channels(shape[-1], random)
    mean, variance = oracle.moments(x)
    y, _, _, d_shift = run_norm(Norm(nn.BatchNorm(eps=0.1), activation), x, w, dy)
    u = oracle.batch_norm(x, mean, variance, w["scale"], w["shift"], 0.1)
    np.testing.assert_allclose(y, oracle.ACTIVATIONS[activation](u), rtol=1e-10, atol=1e-12)
    slopes = {"relu": u > 0, "gelu": np.vectorize(oracle.gelu_slope)(u), "none": 1,
              "silu": np.vectorize(oracle.silu_slope)(u)}  # fmt: skip
    np.testing.assert_allclose(d_shift, (dy * slopes[activation]).sum(axis=(0, 1, 2)), rtol=1e-10, atol=1e-12)


def test_a_batch_in_pieces_is_the_same_sum() -> None:
    """Images beyond what a core's cache holds: the passes go piece by piece."""
    random, shape = np.random.default_rng(0), (24, 48, 48, 16)
    assert CACHE_BLOCK_ELEMENTS < 48 * 48 * 16 * 3  # the three images of a shard
    x, dy, w = random.normal(3, 2, shape), random.normal(size=shape), channels(16, random)
    scale, shift, eps = w["scale"].copy(), w["shift"].copy(), 1e-5
    y, dx, d_scale, d_shift = run_norm(Norm(nn.BatchNorm()), x, w, dy, workers=2)
    mean, variance = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    hat = (x - mean) / np.sqrt(variance + eps)
    np.testing.assert_allclose(y, hat * scale + shift, rtol=1e-10, atol=1e-10)
    pull = dy - dy.mean(axis=(0, 1, 2)) - hat * (dy * hat).mean(axis=(0, 1, 2))
    assert distance(dx, pull * scale / np.sqrt(variance + eps)) < 1e-12
    assert distance(d_scale, (dy * hat).sum(axis=(0, 1, 2))) < 1e-12
    assert distance(d_shift, dy.sum(axis=(0, 1, 2))) < 1e-12


def test_a_channel_far_from_zero_keeps_its_digits() -> None:
    """In float32 the variance of 1000 ± 0.1 is that of the deviations, not a difference of squares."""
    random = np.random.default_rng(0)
    x = random.normal(1000, 0.1, (64, 4, 4, 2)).astype(np.float32)
    exact = oracle.moments(x.astype(np.float64))[1]
    w = channels(2, random, np.float32)
    run_norm(Norm(nn.BatchNorm(momentum=1.0, eps=0.0)), x, w, np.zeros_like(x))
    np.testing.assert_allclose(w["variance"], exact * 1024 / 1023, rtol=1e-3)


@settings(max_examples=25)
@given(
    st.sampled_from(ORDERS), st.sampled_from(ACTIVATIONS), st.booleans(), st.integers(1, 3), st.integers(1, 2),
    st.integers(0, 2**16),
)  # fmt: skip
def test_gradients_are_finite_differences(
    order: Any, activation: Activation, scale: Any, pool: int, stride: int, seed: int
) -> None:
    """Also of the convolution before it, which gets its input's gradient."""
    norm = nn.BatchNorm(eps=1e-2, scale=scale)
    block = nn.Conv(
        filters=3, kernel=2, stride=stride, pool=pool, batch_norm=norm, order=order, activation=activation, bias=False
    )
    bench = rig([nn.Conv(filters=2, activation="none"), block, nn.Dense(units=4)], (7, 8, 2), count=3, seed=seed)
    check_gradients(bench, seed)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("order", ORDERS)
def test_parts_follow_in_their_order(order: tuple[Part, Part, Part], activation: Activation) -> None:
    block = nn.Conv(filters=3, pool=2, batch_norm=nn.BatchNorm(eps=1e-3), bias=True, order=order, activation=activation)
    bench = rig([block], (5, 6, 2), count=3)
    w = bench.state.weights
    w["conv1/scale"][0] = -1  # it turns the order of values round
    y = convolved(bench)
    for part in order:
        if part == "norm":
            y = oracle.batch_norm(y, *oracle.moments(y), w["conv1/scale"], w["conv1/shift"], 1e-3)
        else:
            y = oracle.max_pool(y, 2)[0] if part == "pool" else oracle.ACTIVATIONS[activation](y)
    logits = y.reshape(3, -1) @ w["classifier/weights"] + w["classifier/bias"]
    assert bench.step() == pytest.approx(oracle.softmax_cross_entropy(logits, bench.inputs.labels)[0], rel=1e-9)


def convolved(bench: Rig) -> Array:
    """The first convolution of a rig's images, without what follows it."""
    w, block = bench.state.weights, bench.network.layers[0].block
    assert isinstance(block, nn.Conv)
    bias = w.get("conv1/bias", np.zeros(block.filters))
    return oracle.conv(bench.inputs.images / 255, w["conv1/weights"], bias, block.stride, block.pad)


def test_running_statistics_follow_the_batches_and_an_evaluation_takes_them() -> None:
    settings = nn.BatchNorm(momentum=0.3, eps=1e-3)
    block = nn.Conv(filters=2, batch_norm=settings, bias=False, activation="none")
    bench = rig([block], (3, 4, 2), count=5)
    mean, variance, random = np.zeros(2), np.ones(2), np.random.default_rng(1)
    for _ in range(3):
        bench.inputs.images[...] = random.integers(0, 256, bench.inputs.images.shape)
        own_mean, own_variance = oracle.moments(convolved(bench))
        mean = 0.7 * mean + 0.3 * own_mean
        variance = 0.7 * variance + 0.3 * own_variance * 60 / 59  # the unbiased one of 5 × 3 × 4 values
        bench.step()
    w = bench.state.weights
    np.testing.assert_allclose(w["conv1/mean"], mean, rtol=1e-12)
    np.testing.assert_allclose(w["conv1/variance"], variance, rtol=1e-12)
    y = oracle.batch_norm(convolved(bench), mean, variance, w["conv1/scale"], w["conv1/shift"], 1e-3)
    logits = y.reshape(5, -1) @ w["classifier/weights"] + w["classifier/bias"]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    before = bench.state.parameters.copy()
    for batch in (5, 2):  # an image's outputs do not depend on its neighbours
        plan = nn.EvaluationPlan(bench.backend, bench.network, bench.state, bench.pixels, batch)
        np.testing.assert_allclose(plan.probabilities(bench.inputs.images, np.arange(5)), p, rtol=1e-10)
    np.testing.assert_array_equal(bench.state.parameters, before)


def test_one_value_per_channel_is_refused_for_training_alone() -> None:
    one = [nn.Conv(filters=2, kernel=1, pad=0, batch_norm=nn.BatchNorm(), bias=True)]
    with pytest.raises(
        ValueError, match=r"conv1: batch normalisation needs more than one value per channel .found one 1×1×2 image"
    ):
        rig(one, (1, 1, 1), count=1)
    bench = rig(one, (1, 1, 1), count=2)
    assert np.isfinite(bench.step())
    plan = nn.EvaluationPlan(bench.backend, bench.network, bench.state, bench.pixels, 1)
    assert np.isfinite(plan.probabilities(bench.inputs.images, np.arange(2))).all()


def test_statistics_are_no_parameters_and_nothing_decays_them() -> None:
    parameters = nn.BatchNorm(learning_rate_factor=4.0).parameters(3, factor=2.0, trainable=True)
    assert {name: (p.trainable, p.counts, p.decays) for name, p in parameters.items()} == {
        "scale": (True, True, False),
        "shift": (True, True, False),
        "mean": (False, False, False),
        "variance": (False, False, False),
    }
    assert parameters["scale"].learning_rate_factor == parameters["shift"].learning_rate_factor == 8.0
    assert "scale" not in nn.BatchNorm(scale=False).parameters(3, factor=1.0, trainable=True)
    counted = [
        rig([nn.Conv(filters=3, batch_norm=norm, bias=True)]).network.parameter_count for norm in (None, nn.BatchNorm())
    ]
    assert counted[1] - counted[0] == 6
