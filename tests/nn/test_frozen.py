"""Fully frozen blocks: nothing in them changes, nothing unnecessary is computed, and the gradients of the rest hold."""

from typing import Any

import numpy as np
import pytest

from cnnjob import nn
from cnnjob.nn.blocks import Block
from tests.nn.bench import Rig, check_gradients, rig

FROZEN: dict[str, Any] = {"frozen": True, "fully_frozen": True}
NORM = nn.BatchNorm(eps=1e-2)
NETWORKS: dict[str, list[Block]] = {
    "first": [nn.Conv(filters=3, batch_norm=NORM, **FROZEN), nn.Conv(filters=4, pool=2)],
    "first, with a bias": [nn.Conv(filters=3, pool=2, **FROZEN), nn.Dense(units=5)],
    "middle": [nn.Conv(filters=2), nn.Conv(filters=3, batch_norm=NORM, activation="gelu", **FROZEN), nn.Dense(units=5)],
    "norm after activation": [
        nn.Conv(filters=2),
        nn.Conv(filters=3, batch_norm=NORM, order=("activation", "pool", "norm"), pool=2, **FROZEN),
    ],
    "dense": [nn.Dense(units=6, **FROZEN), nn.Dense(units=4), nn.Dense(units=5, activation="gelu", **FROZEN)],
    "then a trained norm": [
        nn.Conv(filters=2, **FROZEN),
        nn.Conv(filters=3, frozen=True, bias=False, batch_norm=NORM),
    ],
    "residual": [
        nn.Conv(filters=2, batch_norm=NORM, **FROZEN),
        nn.Residual((nn.Conv(filters=4, batch_norm=NORM, stride=2, **FROZEN),)),
        nn.Conv(filters=3),
    ],
    "residual in the middle": [
        nn.Conv(filters=2),
        nn.Residual((nn.Conv(filters=3, batch_norm=NORM, **FROZEN), nn.Conv(filters=4, activation="none", **FROZEN))),
        nn.Residual((nn.Conv(filters=4, **FROZEN),)),
    ],
    "residual, frozen in part": [
        nn.Conv(filters=2, **FROZEN),
        nn.Residual(
            (nn.Dropout(0.3), nn.Conv(filters=3, batch_norm=NORM, **FROZEN), nn.Conv(filters=4, activation="none")),
            activation="gelu",
        ),
    ],
    "residual on the images": [
        nn.Residual((nn.Conv(filters=2, activation="none", **FROZEN), nn.Dropout(0.2)), activation="gelu"),
        nn.GlobalPool("mean"),
    ],
    "pools between": [nn.Conv(filters=4, **FROZEN), nn.Dropout(0.4), nn.GlobalPool("max"), nn.Dense(4, "gelu")],
}


class Repeated(Rig):
    """A rig whose steps have the same position, and so the same dropout."""

    def step(self) -> float:
        self.inputs.position[1] = 0
        return super().step()


def with_statistics(bench: Rig) -> Rig:
    """Running statistics as after a training, unlike those of any batch here."""
    random = np.random.default_rng(3)
    for name, array in bench.state.weights.items():
        if name.endswith("/mean"):
            array[...] = random.normal(size=array.shape) / 4
        elif name.endswith("/variance"):
            array[...] = random.uniform(0.3, 2, array.shape)
    return bench


def kept(network: nn.Network) -> set[str]:
    """The parameters of the blocks that are fully frozen, with their statistics."""
    names = set()
    for layer in network.layers:
        inner = layer.block.layers(layer.input_shape) if isinstance(layer.block, nn.Residual) else [layer]
        prefix = f"{layer.name}/" if isinstance(layer.block, nn.Residual) else ""
        for one in inner:
            if getattr(one.block, "fully_frozen", False):
                names |= {prefix + name for name in one.parameters}
    return names


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_finite_differences(name: str) -> None:
    check_gradients(Repeated(**vars(with_statistics(rig(NETWORKS[name], (7, 8, 2), count=3)))))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("optimiser", [nn.Sgd(0.9, 0.1), nn.AdamW(weight_decay=0.1, lookahead=nn.Lookahead(2))])
def test_nothing_of_a_frozen_block_changes_and_all_else_does(name: str, optimiser: nn.Optimiser) -> None:
    bench = with_statistics(rig(NETWORKS[name], (7, 8, 2), optimiser=optimiser, learning_rate=0.1))
    names, before = kept(bench.network), {name: array.copy() for name, array in bench.state.weights.items()}
    assert names
    if "slow" in bench.state.slots:
        bench.state.slots["slow"][...] = bench.state.parameters
    for _ in range(3):
        bench.step()
    for parameter, array in bench.state.weights.items():
        if parameter in names:
            np.testing.assert_array_equal(array, before[parameter], parameter)
            assert not bench.gradients[parameter].any(), parameter
        elif parameter in {p for p, of in bench.network.parameters.items() if of.trainable}:
            assert (array != before[parameter]).any(), parameter


@pytest.mark.parametrize(
    "optimiser",
    [nn.Sgd(0.9, 0.1, nesterov=True), nn.Adam(weight_decay=0.1), nn.Muon(), nn.Muon(others=nn.AdamW())],
    ids=["sgd", "adam", "muon and sgd", "muon and adamw"],
)
def test_a_bias_of_two_epochs_changes_in_two_epochs_only(optimiser: nn.Optimiser) -> None:
    """An epoch has one step here; a convolution and a dense block, beside blocks whose biases change in each step."""
    blocks: list[Block] = [nn.Conv(3, bias_epochs=2), nn.Conv(3), nn.Dense(5, bias_epochs=2)]
    bench = rig(blocks, (7, 8, 2), optimiser=optimiser, learning_rate=0.01)
    for step in range(4):
        before = {name: array.copy() for name, array in bench.state.weights.items()}
        bench.step()
        changed = {name for name, array in bench.state.weights.items() if (array != before[name]).any()}
        kept = {"conv1/bias", "dense1/bias"} if step >= 2 else set()
        assert changed == set(before) - kept, step


def test_a_frozen_block_computes_in_training_what_it_computes_in_evaluation() -> None:
    """With everything frozen but the classifier, the loss of a step is that of the evaluation's probabilities."""
    blocks: list[Block] = [nn.Conv(filters=3, batch_norm=NORM, pool=2, **FROZEN), nn.Dense(units=5, **FROZEN)]
    bench = with_statistics(rig(blocks, (7, 8, 2)))
    loss = bench.step()
    plan = nn.EvaluationPlan(bench.backend, bench.network, bench.state, bench.pixels, 4)
    p = plan.probabilities(bench.inputs.images, np.arange(4))
    assert loss == pytest.approx(float(-np.log(p[np.arange(4), bench.inputs.labels]).mean()), rel=1e-12)


def test_leading_frozen_blocks_need_less_memory() -> None:
    """No gradients of their outputs, and nothing stored for a backward pass."""
    sizes = []
    for settings in (FROZEN, {}):
        blocks = [nn.Conv(filters=8, batch_norm=NORM, **settings), nn.Conv(filters=8, activation="gelu", **settings)]
        network = nn.Network.build([*blocks, nn.Dense(3, activation="none")], (16, 16, 3))
        backend, optimiser = nn.NumPyBackend(nn.Workers(1)), nn.Sgd()
        state = nn.State(network, optimiser, backend, shape_only=True)
        sizes.append(nn.TrainingPlan.count_bytes(backend, network, state, optimiser, 32))
    assert sizes[0] < 0.7 * sizes[1]


def test_one_value_per_channel_can_be_normalised_by_the_running_statistics() -> None:
    block = nn.Conv(filters=2, kernel=1, pad=0, batch_norm=nn.BatchNorm(), **FROZEN)
    assert np.isfinite(rig([block], (1, 1, 1), count=1).step())


def test_a_projection_is_frozen_with_its_whole_body() -> None:
    for frozen in (FROZEN, {}):
        block = nn.Residual((nn.Conv(filters=4, **FROZEN), nn.Conv(filters=4, **frozen)))
        projection = block.projection((6, 6, 2))
        assert projection
        assert all(p.trainable != bool(frozen) for p in projection.parameters.values())
