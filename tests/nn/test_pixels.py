"""Images changed by address: flips and moves as numpy.pad makes them, how often, and views at test time."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from cnnjob import nn
from cnnjob.nn.arena import Arena
from cnnjob.nn.pixels import VIEWS, Flip, View, mirrored_sources
from cnnjob.nn.random import Philox, Purpose
from cnnjob.nn.tensors import Tensor
from tests.nn.bench import rig
from tests.nn.oracle import published_views

Array = np.ndarray[Any, Any]
BYTES = nn.PixelNormalisation(np.ones(3), np.zeros(3))
EVERYTHING = nn.Augmentation("random", 3)
COUNT = 24


def pictures(count: int = COUNT, height: int = 6, width: int = 7) -> Array:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)


def seen(
    images: Array,
    change: nn.Augmentation | View | None,
    order: list[int] | None = None,
    *,
    epoch: int = 0,
    step: int = 0,
    size: int | None = None,
    workers: int = 1,
    seed: int = 5,
) -> Array:
    """What a step of so many images sees, as float64 bytes."""
    backend = nn.NumPyBackend(nn.Workers(workers), np.float64)
    named = np.arange(len(images)) if order is None else np.array(order)
    size = size or len(named)
    steps = len(named) // size
    inputs = nn.build_step_inputs(backend, images, np.zeros(len(images), np.int64), steps, size, seed)
    inputs.order[:] = named
    inputs.position[:] = step, epoch * steps + step
    inputs.mixup[:] = 0.375

    def build(arena: Arena) -> Array:
        x = Tensor.take(arena, (size, *images.shape[1:]), np.float64, border=1)
        task = backend.gather(arena, inputs, x, BYTES, change)
        if arena._memory is not None:
            task()
        return x.value

    return Arena.allocate(backend, build)


def decided(change: nn.Augmentation, count: int, epoch: int = 0, seed: int = 5) -> Array:
    views = np.zeros((3, count), np.int64)
    change.draw(Philox(np.zeros((6, count), np.uint64)), np.arange(count), epoch, seed, views)
    return views


def moved(image: Array, view: Array) -> Array:
    """Flipped, then moved down and to the right, mirrored at the edges."""
    flipped, down, right = (int(number) for number in view)
    reach = max(abs(down), abs(right), 1)
    image = image[:, ::-1] if flipped else image
    wide = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), "reflect")
    return wide[reach - down :, reach - right :][: image.shape[0], : image.shape[1]]


@pytest.mark.parametrize("flip", ["none", "random", "alternating"])
@pytest.mark.parametrize("reach", [0, 1, 5])
def test_a_changed_image_is_a_crop_of_a_mirrored_one(flip: Flip, reach: int) -> None:
    """Up to one pixel less than the image has."""
    images, change = pictures(), nn.Augmentation(flip, reach)
    found = seen(images, change, epoch=3)
    views = decided(change, COUNT, epoch=3)
    assert np.abs(views[1:]).max() == reach
    for number in range(COUNT):
        np.testing.assert_array_equal(found[number], moved(images[number], views[:, number]))


def test_decisions_are_those_of_the_documented_words() -> None:
    """Philox of counter (image, epoch, 0, 0) and key (seed, purpose): bit 31 of word 0, (2k + 1)·word // 2³² − k."""
    views = decided(EVERYTHING, 50, epoch=9, seed=77)
    for image in range(50):
        one = Philox(np.zeros((6, 1), np.uint64))
        one.draw(77, Purpose.AUGMENTATION, image, 9)
        words = [int(word) for word in one.words[:, 0]]
        expected = [words[0] >> 31, (7 * words[1] >> 32) - 3, (7 * words[2] >> 32) - 3]
        assert views[:, image].tolist() == expected


def test_a_crop_is_a_translation_that_leaves_zeros() -> None:
    """As torchvision's RandomCrop(padding=k): zeros are padded, and a window of the image's size is taken."""
    images, crop = pictures() | 1, nn.Augmentation("random", crop=4)
    found, views = seen(images, crop, epoch=3), decided(crop, COUNT, epoch=3)
    np.testing.assert_array_equal(views, decided(nn.Augmentation("random", 4), COUNT, epoch=3))
    for number, (flipped, down, right) in enumerate(views.T):
        wide = np.pad(images[number, :, ::-1] if flipped else images[number], ((4, 4), (4, 4), (0, 0)))
        np.testing.assert_array_equal(found[number], wide[4 - down :, 4 - right :][:6, :7])


@pytest.mark.parametrize("side", [1, 4, 5, 7])
def test_a_square_is_cut_out_around_a_pixel_of_the_changed_image(side: int) -> None:
    """With an even side it is that of the authors' code: from centre − side/2 to centre + side/2."""
    images, plain = pictures() | 1, nn.Augmentation("random", crop=1)
    found = seen(images, nn.Augmentation("random", crop=1, cutout=side), epoch=2)
    expected = seen(images, plain, epoch=2)
    for image in range(COUNT):
        one = Philox(np.zeros((6, 1), np.uint64))
        one.draw(5, Purpose.AUGMENTATION, image, 2, 1)
        row, column = (
            (size * int(word) >> 32) - side // 2 for size, word in zip((6, 7), one.words[:2, 0], strict=True)
        )
        for i, j in np.ndindex(6, 7):
            if 0 <= i - row < side and 0 <= j - column < side:
                expected[image, i, j] = 0
    np.testing.assert_array_equal(found, expected)
    assert not np.signbit(found).any()


def test_squares_are_uniform_and_know_nothing_of_moves() -> None:
    count, change = 20_000, nn.Augmentation(translate=2, cutout=1)
    corners = np.zeros((2, count), np.int64)
    change.draw_squares(Philox(np.zeros((6, count), np.uint64)), np.arange(count), 1, 5, (6, 7), corners)
    assert stats.chisquare(np.bincount(corners[0] * 7 + corners[1], minlength=42)).pvalue > 1e-3
    for moved_by in decided(change, count, epoch=1)[1:]:
        for corner in corners:
            assert abs(np.corrcoef(moved_by, corner)[0, 1]) < 4 / np.sqrt(count)


def test_the_shares_of_a_mixture_are_beta_distributed_and_belong_to_seed_and_epoch() -> None:
    change = nn.Augmentation(mixup=0.4)
    shares = change.shares(3, 2, 2000)
    assert stats.kstest(shares, stats.beta(0.4, 0.4).cdf).pvalue > 1e-3
    np.testing.assert_array_equal(shares, change.shares(3, 2, 2000))
    for other in (change.shares(4, 2, 2000), change.shares(3, 1, 2000)):
        assert abs(np.corrcoef(shares, other)[0, 1]) < 0.1


@pytest.mark.parametrize("workers", [1, 3])
def test_an_image_is_mixed_with_the_one_before_it(workers: int) -> None:
    """As torchvision's MixUp: roll(1, 0) of the batch, each image with the change that it has alone."""
    images, order = pictures(48, 40, 40), np.random.default_rng(1).permutation(48).tolist()
    plain, mixed = nn.Augmentation("random", crop=2, cutout=5), nn.Augmentation("random", crop=2, cutout=5, mixup=1.0)
    alone = seen(images, plain, order, epoch=1, step=1, size=24)
    share = 0.375
    expected = share * alone + (1 - share) * np.roll(alone, 1, axis=0)
    np.testing.assert_array_equal(seen(images, mixed, order, epoch=1, step=1, size=24, workers=workers), expected)


@pytest.mark.parametrize("flip", ["random", "alternating"])
def test_a_change_is_of_seed_epoch_and_image_alone(flip: Flip) -> None:
    """Whatever the batch, its order, its place in the epoch, and the cores."""
    images, change = pictures(), nn.Augmentation(flip, 3, cutout=3)
    whole = seen(images, change, epoch=2)
    order = np.random.default_rng(1).permutation(COUNT).tolist()
    np.testing.assert_array_equal(seen(images, change, order, epoch=2, workers=3), whole[order])
    for step in (0, 1, 3):
        part = seen(images, change, order, epoch=2, step=step, size=6)
        np.testing.assert_array_equal(part, whole[order[6 * step : 6 * step + 6]])
    np.testing.assert_array_equal(seen(images, change, [4, 4, 9], epoch=2), whole[[4, 4, 9]])
    for other in (seen(images, change, epoch=4), seen(images, change, epoch=2, seed=6)):
        assert not np.array_equal(other, whole)


def test_alternating_flips_alternate() -> None:
    """The first time by chance, then every other epoch; moves are drawn anew."""
    epochs = [decided(nn.Augmentation("alternating", 3), 5000, epoch) for epoch in range(4)]
    first = epochs[0][0]
    assert stats.binomtest(int(first.sum()), 5000).pvalue > 1e-3
    for epoch, views in enumerate(epochs):
        np.testing.assert_array_equal(views[0], first ^ (epoch % 2))
        assert np.mean(views[1:] == epochs[epoch - 1][1:]) < 0.2


@pytest.mark.parametrize("reach", [1, 2, 4])
def test_flips_and_moves_are_uniform_and_know_nothing_of_each_other(reach: int) -> None:
    count = 20_000
    views = decided(nn.Augmentation("random", reach), count, epoch=1)
    ways = 2 * reach + 1
    combined = (views[0] * ways + views[1] + reach) * ways + views[2] + reach
    assert stats.chisquare(np.bincount(combined, minlength=2 * ways**2)).pvalue > 1e-3
    later = decided(nn.Augmentation("random", reach), count, epoch=2)
    for now, then in zip(views, later, strict=True):  # nor does an epoch of the one before
        assert abs(np.corrcoef(now, then)[0, 1]) < 4 / np.sqrt(count)
        assert abs(np.corrcoef(now[:-1], now[1:])[0, 1]) < 4 / np.sqrt(count)


def test_rows_are_mirrored_as_numpy_pads() -> None:
    for size, reach in ((5, 4), (6, 2), (1, 0)):
        padded = np.pad(np.arange(size), reach, "reflect")
        expected = [padded[reach - move : reach - move + size] for move in range(-reach, reach + 1)]
        np.testing.assert_array_equal(mirrored_sources(size, reach), expected)


def test_a_training_sees_changed_images_and_an_evaluation_does_not() -> None:
    options = nn.TrainingOptions(nn.Augmentation("alternating", 1))
    plain, changed = rig([nn.Dense(units=4)]), rig([nn.Dense(units=4)], options=options)
    losses = []
    for bench in (plain, changed):
        bench.inputs.position[:] = 0
        losses.append([bench.step(), bench.step()])
    assert losses[0][0] == losses[0][1]
    assert len({*losses[0], *losses[1]}) == 3
    plan = nn.EvaluationPlan(changed.backend, changed.network, changed.state, changed.pixels, 4)
    found = plan.probabilities(changed.inputs.images, np.arange(4))
    np.testing.assert_array_equal(found, plan.probabilities(changed.inputs.images, np.arange(4)))


@pytest.mark.parametrize("views", sorted(VIEWS))
def test_views_are_a_weighted_mean_of_the_outputs_of_changed_images(views: str) -> None:
    blocks = [nn.Conv(filters=3, batch_norm=nn.BatchNorm(), bias=True), nn.Conv(filters=4, pool=2, activation="gelu")]
    bench = rig(blocks, (6, 7, 3), count=9, learning_rate=0.1)
    bench.step()
    plans = {
        name: nn.EvaluationPlan(bench.backend, bench.network, bench.state, bench.pixels, 4, name)
        for name in ("none", views)
    }
    order = np.array([8, 0, 3, 4, 4, 2])
    images, mean = bench.inputs.images, np.zeros((6, 3))
    assert sum(VIEWS[views].values()) == 1
    for view, share in VIEWS[views].items():
        turned = np.stack([moved(image, np.array(view)) for image in images])
        mean += share * np.log(plans["none"].probabilities(turned, order))  # outputs but for a constant an image
    expected = np.exp(mean) / np.exp(mean).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(plans[views].probabilities(images, order), expected, rtol=1e-10)


def test_the_views_of_flip_translate_are_those_of_airbench() -> None:
    images = pictures()
    ours = sorted((share, seen(images, view).tobytes()) for view, share in VIEWS["flip_translate"].items())
    assert ours == sorted((share, one.astype(np.float64).tobytes()) for share, one in published_views(images))
