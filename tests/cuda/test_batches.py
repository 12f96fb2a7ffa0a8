"""The batch: the same bits as NumPy's, however the images are changed; on the CPU, not on a GPU."""

from typing import Any

import numpy as np
import pytest

from cnnjob import nn
from cnnjob.nn.cuda.backend import CudaBackend
from cnnjob.nn.memory import Arena
from cnnjob.nn.pixels import VIEWS, View
from cnnjob.nn.tensors import Tensor
from tests.cuda.emulation import ORDERS, EmulatedDevice, needs_compiler
from tests.nn.test_pixels import published_views

pytestmark = needs_compiler

Array = np.ndarray[Any, Any]
STEPS, COUNT = 3, 300
"""More images of a step than one block of threads draws for."""
CHANGES: list[nn.Augmentation | View | None] = [
    None,
    nn.Augmentation("random", 3),
    nn.Augmentation("alternating", 1),
    nn.Augmentation("alternating"),
    nn.Augmentation(translate=4),
    (1, -1, 2),
    *VIEWS["flip_translate"],
]


def batch(backend: nn.Backend, change: nn.Augmentation | View | None, epoch: int, seed: int = 5) -> Array:
    """The second batch of an epoch."""
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (STEPS * COUNT, 6, 5, 3), np.uint8), np.zeros(STEPS * COUNT, np.int64)
    feed = nn.training_feed(backend, images, labels, STEPS, COUNT, seed)
    backend.copy(random.permutation(STEPS * COUNT), feed.order)
    backend.copy(np.array([1, epoch * STEPS + 1]), feed.position)
    pixels = nn.PixelNormalisation.standardised((0.4, 0.5, 0.45), (0.25, 0.3, 0.2))

    def build(arena: Arena) -> tuple[Tensor, Any]:
        x = Tensor.take(arena, (COUNT, 6, 5, 3), backend.dtype, border=1, trainable=False)
        return x, backend.whole(arena, feed, [backend.gather(arena, feed, x, pixels, change)])

    x, gather = Arena.filled(backend, build)
    gather()
    return backend.host(x.padded).copy()


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
