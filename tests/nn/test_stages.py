"""GELU, pooling, shortcuts, smoothed labels and scaled outputs: formulas, gradients, ties, bits and memory."""

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from cnnjob import nn
from cnnjob.nn.arena import Arena, HostMemory
from cnnjob.nn.blocks import Activation, Block
from cnnjob.nn.cpu.activations import activate, normal_distribution
from cnnjob.nn.cpu.pooling import pool
from cnnjob.nn.operations import Activate, MaxPool
from cnnjob.nn.tensors import Tensor
from tests.nn import oracle
from tests.nn.bench import check_gradients, rig

NORM = nn.BatchNorm(eps=1e-2)
Array = np.ndarray[Any, Any]


def run_stage(plan: Any, block: Any, x: Array, dy: Array) -> tuple[Array, Array]:
    """Output and the input's gradient of an operation without parameters."""

    def build(arena: Arena) -> tuple[Any, ...]:
        into, out = Tensor.take(arena, x.shape, x.dtype, border=1), Tensor.take(arena, dy.shape, x.dtype)
        return into, out, plan(nn.Workers(1), arena, block, into, out)

    into, out, step = Arena.allocate(HostMemory(), build)
    into.value[...], out.gradient[...] = x, dy
    into.gradient[...] = 7  # of an earlier step
    step.forward()
    step.backward()
    return out.value.copy(), into.gradient.copy()


@pytest.mark.parametrize(("dtype", "error"), [(np.float32, 4e-7), (np.float64, 1e-15)])
def test_the_normal_distribution(dtype: Any, error: float) -> None:
    u = np.concatenate([np.linspace(-12, 12, 1001), [0.0, -0.0]]).astype(dtype)
    phi, density, work = (np.empty_like(u) for _ in range(3))
    normal_distribution(u, phi, density, work)
    np.testing.assert_allclose(phi, [oracle.gelu(v) / v if v else 0.5 for v in u.astype(float)], atol=error)
    np.testing.assert_allclose(density, np.exp(-(u.astype(float) ** 2) / 2) / np.sqrt(2 * np.pi), atol=error)


@pytest.mark.parametrize(("dtype", "error"), [(np.float32, 3e-7), (np.float64, 1e-15)])
def test_silu_is_its_formula_even_where_the_exponential_overflows(dtype: Any, error: float) -> None:
    u = (
        np.concatenate([np.linspace(-30, 30, 240), [0.0, -0.0, -1e4, -1e30, 1e4, 1e30]])
        .astype(dtype)
        .reshape(-1, 2, 3, 1)
    )
    y, dx = run_stage(activate, Activate("silu"), u, np.ones_like(u))
    inside = np.abs(u) < 100
    np.testing.assert_allclose(y[inside], oracle.ACTIVATIONS["silu"](u[inside]), rtol=error, atol=0)
    slopes = np.vectorize(oracle.silu_slope)(u[inside].astype(float))
    np.testing.assert_allclose(dx[inside], slopes, atol=3 * error)
    np.testing.assert_array_equal(y[~inside], np.maximum(u, 0)[~inside])
    np.testing.assert_array_equal(dx[~inside], (u > 0)[~inside])


@pytest.mark.parametrize("side", [2, 3])
def test_max_pooling_is_that_of_loops_and_ties_go_to_the_first(side: int) -> None:
    random = np.random.default_rng(0)
    x = random.integers(0, 3, (9, 7, 8, 2)).astype(float)  # most windows are tied
    y, first = oracle.max_pool(x, side)
    dy: Array = np.asarray(random.normal(size=y.shape))
    found, dx = run_stage(pool, MaxPool(side), x, dy)
    np.testing.assert_array_equal(found, y)
    np.testing.assert_array_equal(dx, oracle.max_pool_backward(x.shape, first, dy, side))


@pytest.mark.parametrize("how", ["mean", "max"])
def test_global_pooling_is_its_formula_and_ties_go_to_the_first(how: Any) -> None:
    random = np.random.default_rng(0)
    x, dy = random.integers(0, 4, (9, 3, 4, 5)).astype(float), random.normal(size=(9, 5))
    y, dx = run_stage(pool, nn.GlobalPool(how), x, dy)
    expected = np.zeros_like(x)
    for n, c in np.ndindex(dy.shape):
        pixels = x[n, :, :, c]
        assert y[n, c] == pytest.approx(pixels.mean() if how == "mean" else pixels.max(), rel=1e-14)
        if how == "mean":
            expected[n, :, :, c] = dy[n, c] / 12
        else:
            expected[(n, *np.unravel_index(pixels.argmax(), pixels.shape), c)] = dy[n, c]
    np.testing.assert_allclose(dx, expected, rtol=1e-14)


def residual(filters: int, stride: int, norm: nn.BatchNorm | None, activation: Activation) -> nn.Residual:
    first = nn.Conv(filters=filters, stride=stride, batch_norm=norm, bias=norm is None, activation="gelu")
    return nn.Residual((first, replace(first, stride=1, activation="none")), activation)


@settings(max_examples=18)
@given(
    st.sampled_from([(2, 1), (3, 1), (2, 2), (4, 2)]), st.sampled_from([None, NORM]),
    st.sampled_from(["relu", "gelu", "silu", "none"]), st.sampled_from(["mean", "max", None]), st.integers(0, 2**16),
)  # fmt: skip
def test_gradients_of_residual_networks(
    sizes: tuple[int, int], norm: nn.BatchNorm | None, activation: Activation, pool: Any, seed: int
) -> None:
    """With the identity and with a projection, one after the other; smoothed labels, scaled outputs."""
    blocks: list[Block] = [nn.Conv(filters=2, activation="gelu"), residual(*sizes, norm, activation)]
    blocks += [nn.GlobalPool(pool)] if pool else [residual(sizes[0], 1, None, "none")]
    bench = rig([*blocks, nn.Dense(units=4, activation="gelu")], (6, 5, 1), count=3, seed=seed,
                options=nn.TrainingOptions(label_smoothing=0.2), output_scale=0.3)  # fmt: skip
    check_gradients(bench, seed)


def test_a_residual_block_that_comes_first() -> None:
    """The images need no gradient."""
    for filters in (2, 3):
        check_gradients(rig([residual(filters, 1, NORM, "relu")], (6, 5, 2), count=3))


def test_a_residual_block_is_its_sum() -> None:
    bench = rig([residual(3, 2, None, "relu")], (5, 6, 2), count=2)
    w, x = bench.state.weights, bench.inputs.images / 255
    name = "residual1/{}/{}".format
    conv = {
        one: (w[name(one, "weights")], w.get(name(one, "bias"), np.zeros(3)))
        for one in ("conv1", "conv2", "projection")
    }
    body = oracle.conv(oracle.ACTIVATIONS["gelu"](oracle.conv(x, *conv["conv1"], 2, 1)), *conv["conv2"], 1, 1)
    y = np.maximum(body + oracle.conv(x, *conv["projection"], 2, 0), 0)
    logits = y.reshape(2, -1) @ w["classifier/weights"] + w["classifier/bias"]
    assert bench.step() == pytest.approx(oracle.softmax_cross_entropy(logits, bench.inputs.labels)[0], rel=1e-12)


WINDOWS = [
    ((6, 7), nn.Conv(filters=3, pool=2), (slice(0, 5), slice(0, 5)), 2),
    ((6, 6), nn.Conv(filters=3, pad=0), (slice(1, 5), slice(1, 5)), 1),
    ((9, 10), nn.Conv(filters=3, kernel=5, pad=0, stride=2), (slice(2, 7), slice(2, 7)), 2),
    ((7, 9), nn.Conv(filters=3, kernel=4, pad=2, pool=4), (slice(0, 5), slice(0, 5)), 4),
    ((7, 7), nn.Conv(filters=3, pool=2), (slice(0, 7), slice(0, 7)), 3),
]
"""Of an image: a body, what its shortcut reads, and the stride with which it does."""


@pytest.mark.parametrize(("sides", "body", "window", "stride"), WINDOWS)
def test_a_shortcut_reads_the_pixels_that_the_body_is_centred_on(
    sides: tuple[int, int], body: nn.Conv, window: tuple[slice, slice], stride: int
) -> None:
    block = nn.Residual((replace(body, activation="none"),), "none")
    assert block.window((*sides, 2)) == window
    bench = rig([nn.Conv(filters=2), block], (*sides, 2), count=2)
    check_gradients(bench)
    alone = rig([block], (*sides, 2), count=2)
    w, x = alone.state.weights, alone.inputs.images / 255
    conv = oracle.conv(x, w["residual1/conv1/weights"], w["residual1/conv1/bias"], body.stride, body.pad)
    weights, bias = w["residual1/projection/weights"], w["residual1/projection/bias"]
    y = oracle.max_pool(conv, body.pool)[0] + oracle.conv(x[:, *window], weights, bias, stride, 0)
    logits = y.reshape(2, -1) @ w["classifier/weights"] + w["classifier/bias"]
    assert alone.step() == pytest.approx(oracle.softmax_cross_entropy(logits, alone.inputs.labels)[0], rel=1e-12)


@given(
    st.tuples(st.integers(4, 40), st.integers(4, 40)),
    st.lists(st.tuples(st.sampled_from([1, 3, 5]), st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3),
)
def test_a_shortcut_fits_every_body_that_keeps_its_convolutions_centred(
    sides: tuple[int, int], body: list[tuple[int, int, int]]
) -> None:
    blocks = tuple(nn.Conv(filters=2, kernel=k, pad=k // 2, stride=s, pool=p) for k, s, p in body)
    try:
        nn.Network.build([*blocks, nn.Dense(units=1)], (*sides, 1))
    except ValueError:
        reject()  # the body itself leaves nothing
    assert nn.Residual(blocks).output_shape((*sides, 1))[2] == 2


def test_a_projection_is_normalised_as_the_body_is() -> None:
    names = set(rig([residual(4, 2, NORM, "relu")]).network.parameters)
    assert {f"residual1/projection/{name}" for name in ("weights", "scale", "shift", "mean", "variance")} <= names
    assert "residual1/projection/bias" not in names
    plain = rig([residual(4, 2, None, "relu")]).network.parameters
    assert {name for name in plain if "projection" in name} == {
        "residual1/projection/weights",
        "residual1/projection/bias",
    }
    assert not any("projection" in name for name in rig([residual(2, 1, NORM, "relu")]).network.parameters)


def test_dropout_in_a_body_has_an_address_of_its_own() -> None:
    """Two bodies and a block outside: no two masks are the same, and each comes again at its step."""
    one = nn.Conv(filters=2, kernel=1, pad=0, activation="none", bias=False, init="dirac")
    body = nn.Residual((nn.Dropout(0.5), one), "none")
    white = np.full((1, 8, 8, 2), 255, np.uint8)
    seen = []
    networks: list[list[Block]] = [[nn.Dropout(0.5)], [body], [one, body], [body, body]]
    for blocks in networks:
        bench = rig(blocks, (8, 8, 2), images=white)
        bench.step()
        first = bench.gradients["classifier/weights"].copy()
        bench.inputs.position[:] = 0
        bench.step()
        np.testing.assert_array_equal(bench.gradients["classifier/weights"], first)
        seen.append(np.sign(np.abs(first[:, 0]) - np.abs(first[:, 0]).mean()))
    assert all(np.mean(a == b) < 0.8 for i, a in enumerate(seen) for b in seen[:i])


def test_smoothed_labels_are_their_formula() -> None:
    bench = rig([], count=6, options=nn.TrainingOptions(label_smoothing=0.3), output_scale=0.5)
    loss, w = bench.step(), bench.state.weights
    x = bench.inputs.images.reshape(6, -1) / 255
    logits = 0.5 * (x @ w["classifier/weights"] + w["classifier/bias"])
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    targets = 0.7 * np.eye(3)[bench.inputs.labels] + 0.1
    assert loss == pytest.approx(-(targets * log_p).sum() / 6, rel=1e-12)
    slopes = 0.5 * (np.exp(log_p) - targets) / 6
    np.testing.assert_allclose(bench.gradients["classifier/weights"], x.T @ slopes, rtol=1e-10, atol=1e-14)
    torch_like = -log_p[np.arange(6), bench.inputs.labels].mean() * 0.7 - 0.3 * log_p.mean()
    assert loss == pytest.approx(torch_like, rel=1e-12)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_mixed_images_have_mixed_labels(share: float) -> None:
    """As with torchvision's MixUp and a cross entropy of soft labels."""
    options = nn.TrainingOptions(nn.Augmentation(mixup=1.0), label_smoothing=0.3)
    bench = rig([], count=6, options=options)
    bench.inputs.mixup[:] = share
    loss, w, labels = bench.step(), bench.state.weights, bench.inputs.labels
    x = bench.inputs.images.reshape(6, -1) / 255
    x = share * x + (1 - share) * np.roll(x, 1, axis=0)
    logits = x @ w["classifier/weights"] + w["classifier/bias"]
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    targets = share * np.eye(3)[labels] + (1 - share) * np.eye(3)[np.roll(labels, 1)]
    smoothed = 0.7 * targets + 0.1
    assert loss == pytest.approx(-(smoothed * log_p).sum() / 6, rel=1e-12)
    np.testing.assert_allclose(bench.gradients["classifier/weights"], x.T @ (np.exp(log_p) - smoothed) / 6, rtol=1e-9)
    larger = labels if share >= 0.5 else np.roll(labels, 1)
    assert bench.inputs.n_correct[0] == (logits.argmax(axis=1) == larger).sum()
    check_gradients(rig([nn.Conv(filters=2), nn.Dense(units=4)], count=5, options=options))


ALL_BLOCKS: list[Block] = [
    nn.Conv(filters=4, kernel=2, pad=0, init="whitening", frozen=True, activation="gelu"),
    nn.Conv(
        filters=5, pool=2, batch_norm=nn.BatchNorm(), bias=True, order=("pool", "norm", "activation"), activation="gelu"
    ),
    nn.Residual(
        (nn.Conv(filters=6, stride=2, batch_norm=nn.BatchNorm(), bias=True), nn.Dropout(0.2), nn.Conv(filters=6))
    ),
    nn.Conv(filters=6, batch_norm=nn.BatchNorm(), bias=True, order=("activation", "pool", "norm"), pool=2),
    nn.GlobalPool("max"),
    nn.Dense(units=7, activation="gelu"),
    nn.Dropout(0.3),
]
OPTIONS = nn.TrainingOptions(nn.Augmentation("alternating", 2, cutout=5, mixup=0.4), 0.2)
OPTIMISERS: list[nn.Optimiser] = [
    nn.Sgd(0.9, 1e-3, nn.Lookahead(every=2), nesterov=True, decoupled=True),
    nn.AdamW(0.9, 1e-2, nn.Lookahead(every=2)),
    nn.Adam(0.9, 1e-2, clip_norm=1e-3),
    nn.Muon(0.9, 1e-2, nn.Lookahead(every=2), first_layer=True, others=nn.Sgd(0.9, nesterov=True), ema=nn.Ema()),
]


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_the_bits_do_not_depend_on_the_number_of_workers(optimiser: nn.Optimiser) -> None:
    found = []
    for workers in (1, 2, 5):
        bench = rig(ALL_BLOCKS, (12, 13, 3), count=13, dtype=np.float32, workers=workers, learning_rate=0.1,
                    optimiser=optimiser, options=OPTIONS)  # fmt: skip
        for step in range(4):
            bench.inputs.lookahead[0] = 0.5 if step % 2 else -1
            bench.inputs.ema[0] = 0.3 * step
            bench.step()
        plan = nn.EvaluationPlan(bench.backend, bench.network, bench.state, bench.pixels, 5, "flip_translate")
        kept = {name: flat.tobytes() for name, flat in bench.state.saved_buffers.items()}
        found.append((kept, plan.probabilities(bench.inputs.images, np.arange(13)).tobytes()))
    assert found[0] == found[1] == found[2]


class Counting(nn.NumPyBackend):
    """Remembers what it gave."""

    given = 0

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        array = super().zeros(shape, dtype)
        self.given += array.nbytes
        return array


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_plans_count_exactly_what_they_take(optimiser: nn.Optimiser) -> None:
    bench = rig(ALL_BLOCKS, (12, 13, 3), count=9, optimiser=optimiser, options=OPTIONS)
    backend = Counting(nn.Workers(1))
    state = nn.State(bench.network, optimiser, backend)
    shape_only = nn.State(bench.network, optimiser, backend, shape_only=True)
    assert shape_only.size_bytes == backend.given
    backend.given = 0
    nn.TrainingPlan(backend, bench.network, state, optimiser, bench.inputs, bench.pixels, 9, OPTIONS)
    assert backend.given == nn.TrainingPlan.count_bytes(backend, bench.network, shape_only, optimiser, 9, OPTIONS)
    for views in ("none", "flip", "flip_translate"):
        backend.given = 0
        plan = nn.EvaluationPlan(backend, bench.network, state, bench.pixels, 5, views)
        of_inputs = plan._inputs.position.nbytes
        assert backend.given - of_inputs == nn.EvaluationPlan.count_bytes(backend, bench.network, shape_only, 5, views)


def test_a_step_allocates_nothing_but_a_few_numbers() -> None:
    bench = rig(ALL_BLOCKS, (24, 24, 3), count=64, dtype=np.float32, optimiser=OPTIMISERS[0], options=OPTIONS)
    taken = nn.TrainingPlan.count_bytes(bench.backend, bench.network, bench.state, OPTIMISERS[0], 64, OPTIONS)
    bench.step()
    tracemalloc.start()
    try:
        bench.step()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.01 * taken
