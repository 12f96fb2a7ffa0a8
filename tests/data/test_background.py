"""Images that are unlike the training images: what is found, and how seldom it is found wrongly."""

import numpy as np
import pytest

from cnnjob.data.background import SAMPLED, UsualBackground


def digits() -> np.ndarray:
    """All 1,797 digits of scikit-learn: light on black, uint8 (N, 8, 8, 1)."""
    from sklearn.datasets import load_digits

    images: np.ndarray = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
    return images[..., None]


def squares(darkest: int, lightest: int) -> np.ndarray:
    """Coloured squares on a noisy background of any colour between the two levels, uint8 (N, 16, 16, 3)."""
    random = np.random.default_rng(3)
    background = random.integers(darkest, lightest + 1, (3000, 1, 1, 3))
    images = background + random.normal(0, 20, (3000, 16, 16, 3))
    images[:, 4:12, 4:12] = random.integers(0, 256, (3000, 1, 1, 3))
    return images.clip(0, 255).astype(np.uint8)


def patches() -> np.ndarray:
    """Patches of the two photographs of scikit-learn, uint8 (N, 32, 32, 3)."""
    from sklearn.datasets import load_sample_images

    random = np.random.default_rng(3)
    return np.stack([
        photo[y : y + 32, x : x + 32]
        for photo in load_sample_images().images
        for y, x in random.integers(0, 390, (1500, 2))
    ])  # fmt: skip


KINDS = {
    "digits, light on dark": digits,
    "digits, dark on light": lambda: 255 - digits(),
    "squares on any colour": lambda: squares(0, 255),
    "squares on dark colours": lambda: squares(0, 40),
    "photographs": patches,
}


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_the_same_kind_are_usual(kind: str) -> None:
    mixed = np.random.default_rng(0).permutation(KINDS[kind]())
    found = UsualBackground.of(mixed[:SAMPLED]).compare(mixed[SAMPLED:])
    assert sum(difference is not None for difference in found) <= 0.003 * len(found)


@pytest.mark.parametrize(
    ("kind", "end"),
    [("digits, light on dark", "lighter"), ("digits, dark on light", "darker"), ("squares on dark colours", "lighter")],
)
def test_inverted_images_are_recognised(kind: str, end: str) -> None:
    mixed = np.random.default_rng(0).permutation(KINDS[kind]())
    found = UsualBackground.of(mixed[:SAMPLED]).compare(255 - mixed[SAMPLED:])
    described = [difference and difference.description for difference in found]
    assert described.count(f"the background is much {end}") >= 0.99 * len(found)
    assert all(difference is None or difference.is_inverted for difference in found)


def test_photographs_may_be_inverted_without_a_warning() -> None:
    found = UsualBackground.of(patches()[::10]).compare(255 - patches())
    assert not any(difference and difference.is_inverted for difference in found)


def test_a_photograph_of_dark_ink_on_paper_and_unscaled_pixels_are_recognised() -> None:
    usual = UsualBackground.of(digits()[:SAMPLED])
    paper = np.interp(digits(), [0, 255], [180, 40]).astype(np.uint8)
    assert all(difference and difference.is_inverted for difference in usual.compare(paper))
    unscaled = digits() // 16
    assert {difference and difference.description for difference in usual.compare(unscaled)} == {
        "the contrast is much lower"
    }


def test_one_unusual_image_in_the_sample_changes_nothing() -> None:
    sample = digits()[:SAMPLED]
    sample[7] = 255
    assert UsualBackground.of(sample).compare(255 - digits()[:1])[0] is not None
