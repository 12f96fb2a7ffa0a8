"""The batch: the same bits as NumPy's, however the images are changed; on the CPU, not on a GPU."""

from typing import Any

import numpy as np
import pytest

from cnnjob import nn
from cnnjob.nn.cuda.backend import CudaBackend
from cnnjob.nn.pixels import View
from tests.cuda.emulation import ORDERS, EmulatedDevice, needs_compiler
from tests.cuda.shop import CHANGES, batch
from tests.nn.oracle import published_views

pytestmark = needs_compiler

Array = np.ndarray[Any, Any]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_the_same_bits_as_numpys(change: nn.Augmentation | View | None) -> None:
    for epoch in (0, 1, 6):
        expected = batch(nn.NumPyBackend(nn.Workers(1)), change, epoch)
        for order in ORDERS:
            found = batch(CudaBackend(EmulatedDevice(order=order)), change, epoch)
            np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_another_seed_or_epoch_gives_other_bits() -> None:
    backend, change = CudaBackend(EmulatedDevice()), nn.Augmentation("random", 2)
    found = [batch(backend, change, *place) for place in ((0, 5), (1, 5), (0, 6))]
    assert not np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_the_views_of_flip_translate_are_those_of_airbench() -> None:
    random, backend = np.random.default_rng(3), CudaBackend(EmulatedDevice())
    images, order = random.integers(0, 256, (5, 7, 6, 2), np.uint8), np.arange(5)
    network = nn.Network.build([nn.Conv(filters=3, pool=2), nn.Dense(units=3, activation="none")], (7, 6, 2))
    state = nn.State(network, nn.Sgd(), backend)
    state.initialise(network, 4)
    plain, views = (
        nn.EvaluationPlan(backend, network, state, nn.PixelNormalisation.unit(2), 5, name)
        for name in ("none", "flip_translate")
    )
    outputs = [share * np.log(plain.probabilities(one.copy(), order)) for share, one in published_views(images)]
    mean = np.exp(np.sum(outputs, axis=0))
    expected = mean / mean.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(views.probabilities(images, order), expected, rtol=1e-5)
