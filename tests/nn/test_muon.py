"""Muon: one update of drawn matrices against its formula in float64, torch's Muon, and what is updated by it."""

from typing import Any, get_args

import numpy as np
import pytest

from cnnjob import nn
from cnnjob.nn.arena import BufferLayout
from cnnjob.nn.blocks import Block
from cnnjob.nn.optimisers import SegmentKind, split_segments, trainable_segments
from tests.nn.muon import KINDS, RATE, Matrices, drawn, require_no_division_by_zero


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 2e-5), (np.float64, 1e-12)])
@pytest.mark.parametrize("optimiser", KINDS)
def test_an_update_of_fifty_drawn_shapes_is_its_formula(optimiser: nn.Muon, dtype: Any, tolerance: float) -> None:
    for of_the_update in (True, False):
        if optimiser.normalise_weights and of_the_update:
            continue  # weights of 0 have no norm
        matrices = Matrices(drawn(50, 120), optimiser, nn.NumPyBackend(nn.Workers(1), dtype))
        matrices.require(optimiser, tolerance, of_the_update=of_the_update)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_matrices_of_equal_shape_are_updated_together_with_the_bits_of_each_alone(workers: int) -> None:
    shapes = [(30, 20)] * 11 + [(20, 30)] * 2 + [(300, 200)] * 3
    together = Matrices(shapes, nn.Muon(), nn.NumPyBackend(nn.Workers(workers)))
    alone = [Matrices([shape], nn.Muon(), nn.NumPyBackend(nn.Workers(1))) for shape in shapes]
    for number, one in enumerate(alone):
        for source, target in zip((together.w, together.g, together.v), (one.w, one.g, one.v), strict=True):
            target["0"][...] = source[str(number)]
        one.update()
    together.update()
    for number, one in enumerate(alone):
        np.testing.assert_array_equal(together.w[str(number)], one.w["0"])


def test_without_a_gradient_and_without_weights_nothing_is_divided_by_zero() -> None:
    require_no_division_by_zero(nn.NumPyBackend(nn.Workers(1)))


def test_torchs_muon_agrees_within_its_bfloat16() -> None:
    torch = pytest.importorskip("torch", reason="needs torch: pip install -e '.[judge]'")
    for optimiser in (nn.Muon(0.95, 0.1), nn.Muon(0.8, 0.0, nesterov=False, adjust_learning_rate="match_rms_adamw")):
        for shape in ((30, 70), (70, 30), (25, 25)):
            matrices = Matrices([shape], optimiser, nn.NumPyBackend(nn.Workers(1)))
            matrices.v["0"][...] = 0
            weight = torch.nn.Parameter(torch.from_numpy(matrices.w["0"].T.copy()))
            judge = torch.optim.Muon(
                [weight],
                lr=RATE,
                weight_decay=optimiser.weight_decay,
                momentum=optimiser.momentum,
                nesterov=optimiser.nesterov,
                adjust_lr_fn=optimiser.adjust_learning_rate,
            )
            before, random = matrices.w["0"].copy(), np.random.default_rng(0)
            for _ in range(4):
                matrices.g["0"][...] = random.normal(size=shape)
                weight.grad = torch.from_numpy(matrices.g["0"].T.copy())
                judge.step()
                matrices.update()
            moved = np.abs(matrices.w["0"] - before).max()
            assert np.abs(matrices.w["0"] - weight.detach().numpy().T).max() < 0.03 * moved, shape


BLOCKS: list[Block] = [
    nn.Conv(filters=4, batch_norm=nn.BatchNorm()),
    nn.Residual((nn.Conv(filters=6, stride=2), nn.Conv(filters=6, activation="none"))),
    nn.Conv(filters=5, kernel=2, frozen=True),
    nn.Dense(units=7, learning_rate_factor=0.5),
    nn.Dense(units=3, activation="none"),
]


@pytest.mark.parametrize(("first", "last"), [(False, False), (True, False), (False, True), (True, True)])
def test_weights_of_layers_are_matrices_but_for_the_first_and_the_last(*, first: bool, last: bool) -> None:
    network = nn.Network.build(BLOCKS, (8, 8, 2))
    layout = BufferLayout.of({name: parameter.shape for name, parameter in network.parameters.items()}, 4)
    optimiser = nn.Muon(first_layer=first, classifier=last, others_factor=4.0)
    segments = trainable_segments(network, layout)
    matrices, others = split_segments(optimiser, segments)
    names = {layout.slice_of(name).start: name for name in network.parameters}
    found = {names[segment.elements.start]: segment for segment in (*matrices, *others)}
    hidden = {"residual1/conv1/weights", "residual1/conv2/weights", "residual1/projection/weights", "dense1/weights"}
    expected = hidden | ({"conv1/weights"} if first else set()) | ({"classifier/weights"} if last else set())
    assert {names[segment.elements.start] for segment in matrices} == expected
    assert found.keys() == {name for name, parameter in network.parameters.items() if parameter.trainable}
    assert found["residual1/conv2/weights"].shape == (54, 6)
    assert found["dense1/weights"].learning_rate_factor == 0.5
    assert found["dense1/bias"].learning_rate_factor == 2.0
    assert {segment.kind for segment in segments} == set(get_args(SegmentKind))
    assert split_segments(nn.Sgd(), segments) == ([], segments)


def test_a_network_of_a_classifier_alone_has_no_first_layer() -> None:
    network = nn.Network.build(BLOCKS[-1:], (2, 2, 1))
    layout = BufferLayout.of({name: parameter.shape for name, parameter in network.parameters.items()}, 4)
    assert [segment.kind for segment in trainable_segments(network, layout)] == ["classifier", "vector"]
