"""First weights: filters that whiten, filters that hand channels through, and the spread of the others."""

import tracemalloc
from typing import Any

import numpy as np
import pytest

from cnnjob import nn
from cnnjob.nn.blocks import Parameter
from cnnjob.nn.initialisers import WHITENING_EPS, draw_initial_values, whitening_filters
from tests.nn import oracle

Array = np.ndarray[Any, Any]


def textured(count: int = 60, side: int = 9) -> Array:
    """Images whose neighbours and channels are alike, as those of the world are, but for some noise."""
    random = np.random.default_rng(0)
    rough = random.normal(size=(count, side + 2, side + 2, 3)) + 2 * random.normal(size=(count, side + 2, side + 2, 1))
    smooth = np.sum([rough[:, i : side + i, j : side + j] for i in range(3) for j in range(3)], axis=0)
    found: Array = np.clip(128 + 12 * smooth + random.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
    return found


@pytest.mark.parametrize("filters", [24, 10])
def test_whitened_patches_are_uncorrelated_and_of_variance_one(filters: int) -> None:
    """Var = λ/(λ + eps), 1 for all that is more than noise; the second half are the negatives."""
    images = textured()
    pixels = nn.PixelNormalisation.standardised((0.5,) * 3, (0.2,) * 3)
    block = nn.Conv(filters=filters, kernel=2, pad=0, init="whitening", frozen=True, activation="none")
    network = nn.Network.build([block, nn.Dense(units=2, activation="none")], images.shape[1:])
    state = nn.State(network, nn.Sgd(), nn.NumPyBackend(nn.Workers(1), np.float64))
    state.initialise(network, 0, images, pixels)
    weights, half = state.weights["conv1/weights"], filters // 2
    np.testing.assert_array_equal(weights[..., half:], -weights[..., :half])
    seen = np.lib.stride_tricks.sliding_window_view(images * pixels.scale + pixels.shift, (2, 2), axis=(1, 2))
    outputs = np.einsum("nijckm,kmcf->nijf", seen, weights[..., :half])
    covariance = np.cov(outputs.reshape(-1, half).T)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 1e-9
    assert np.all((np.diag(covariance) > 0.9) & (np.diag(covariance) <= 1 + 1e-9))


def test_the_largest_variance_comes_first_and_constant_patches_do_not_blow_up() -> None:
    pixels = nn.PixelNormalisation.standardised((0.5,) * 3, (0.2,) * 3)
    filters = whitening_filters(textured(), (2, 2, 3, 24), pixels).reshape(12, 24)[:, :12]
    lengths = np.linalg.norm(filters, axis=0)
    assert np.all(np.diff(lengths) >= -1e-9)  # 1/√λ grows
    pixels = nn.PixelNormalisation.standardised((0.0,), (1.0,))
    dark = whitening_filters(np.zeros((3, 5, 5, 1), np.uint8), (2, 2, 1, 8), pixels)
    assert np.isfinite(dark).all()
    assert np.abs(dark).max() <= WHITENING_EPS**-0.5 + 1e-9


def test_whitening_takes_little_memory_and_gives_the_covariance_of_numpy() -> None:
    """All patches of these images at once have 370 MB, and numpy.cov copies them."""
    images = np.random.default_rng(0).integers(0, 256, (500, 64, 64, 3), np.uint8)
    images[..., 1] = images[..., 0] // 2
    pixels = nn.PixelNormalisation.standardised((0.5,) * 3, (0.2,) * 3)
    tracemalloc.start()
    filters = whitening_filters(images, (3, 3, 3, 54), pixels).reshape(27, 54)[:, :27]
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 150 << 20
    seen = np.lib.stride_tricks.sliding_window_view(images * pixels.scale + pixels.shift, (3, 3), axis=(1, 2))
    covariance = np.cov(np.moveaxis(seen, 3, -1).reshape(-1, 27).T.astype(np.float64))
    np.testing.assert_allclose(filters.T @ (covariance + WHITENING_EPS * np.eye(27)) @ filters, np.eye(27), atol=1e-9)


@pytest.mark.parametrize(("C", "F", "kernel"), [(3, 5, 3), (4, 2, 3), (3, 3, 1), (2, 4, 5)])
def test_dirac_hands_the_first_channels_through(C: int, F: int, kernel: int) -> None:
    weights = draw_initial_values(Parameter((kernel, kernel, C, F), "dirac", kernel**2 * C), 0, 1, np.zeros(0))
    x = np.random.default_rng(0).normal(size=(2, 5, 6, C))
    y, handed = oracle.conv(x, weights, np.zeros(F), 1, kernel // 2), min(C, F)
    np.testing.assert_array_equal(y[..., :handed], x[..., :handed])
    others = weights[..., handed:]
    assert others.size == 0 or 0 < np.abs(others).max() <= 5 * (1 / (3 * kernel**2 * C)) ** 0.5


def test_the_spread_of_each_initialiser() -> None:
    shape, fan_in = (3, 3, 64, 256), 576
    for init, deviation in (("he", (2 / fan_in) ** 0.5), (0.02, 0.02)):
        drawn = draw_initial_values(Parameter(shape, init, fan_in), 3, 5, np.zeros(0))  # type: ignore[arg-type]
        assert drawn.std() == pytest.approx(deviation, rel=0.01)
        assert abs(drawn.mean()) < 4 * deviation / drawn.size**0.5
    rest = draw_initial_values(Parameter(shape, "dirac", fan_in), 3, 5, np.zeros(0))[..., 64:]
    assert rest.std() == pytest.approx((1 / (3 * fan_in)) ** 0.5, rel=0.01)
    constant = draw_initial_values(Parameter((4,), "he", 3, constant=0.25), 3, 5, np.zeros(0))
    np.testing.assert_array_equal(constant, [0.25] * 4)


def test_numbers_are_of_the_seed_and_the_place() -> None:
    parameter = Parameter((5, 7), "he", 5)
    one = draw_initial_values(parameter, 3, 5, np.zeros(0))
    np.testing.assert_array_equal(one, draw_initial_values(parameter, 3, 5, np.zeros(0)))
    for seed, place in ((4, 5), (3, 6)):
        assert not np.any(one == draw_initial_values(parameter, seed, place, np.zeros(0)))


@pytest.mark.parametrize(("filters", "found"), [(7, "even number of filters up to 24 .found 7"), (26, "found 26")])
def test_whitening_wants_pairs_of_filters(filters: int, found: str) -> None:
    block = nn.Conv(filters=filters, kernel=2, init="whitening")
    with pytest.raises(ValueError, match=f"conv1: whitening needs an .*{found}"):
        nn.Network.build([block, nn.Dense(units=2)], (6, 6, 3))
