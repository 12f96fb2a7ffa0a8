"""From bytes to what the network sees: the pixels' scale, and how an image is turned into another of its kind."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from cnnjob.nn.memory import Array
from cnnjob.nn.random import Philox, Purpose

Flip = Literal["none", "random", "alternating"]


@dataclass(frozen=True)
class PixelNormalisation:
    """How a pixel 0 … 255 becomes a number: pixel·scale + shift, for each channel."""

    scale: Array
    shift: Array

    @classmethod
    def unit(cls, channels: int) -> "PixelNormalisation":
        """0 … 1."""
        return cls(np.full(channels, 1 / 255), np.zeros(channels))

    @classmethod
    def standardised(cls, mean: tuple[float, ...], std: tuple[float, ...]) -> "PixelNormalisation":
        """Mean 0 and standard deviation 1, given those of the 0 … 1 pixels; a constant channel stays 0."""
        deviation = np.array([value or 1.0 for value in std])
        return cls(1 / (255 * deviation), -np.asarray(mean) / deviation)


@dataclass(frozen=True)
class Augmentation:
    """How an image is changed anew in each epoch: by address (seed, epoch, image), so the same on every machine.

    The four words of the Philox block with counter (image, epoch, 0, 0) and key (seed, purpose) decide: the highest bit
    of word 0 whether to flip, (2k + 1)·word // 2³² − k of words 1 and 2 by how many pixels the image moves down and to
    the right. What comes in at an edge is mirrored at it, as in ``numpy.pad``'s ``reflect``.
    """

    flip: Flip = "none"
    """Left to right: by chance, or every other epoch, which of them by chance (Jordan 2024, §3.6)."""
    translate: int = 0
    """k, pixels at most."""

    def draw(self, words: Philox, images: Array, epoch: int, seed: int, views: Array) -> None:
        """Decide for some images.

        Args:
            words: memory for as many.
            images: int64 (n,), their numbers.
            epoch: from 0 on.
            seed: the job's.
            views: int64 (3, n): flipped (0 or 1), and pixels down and to the right; overwritten.
        """
        alternating = self.flip == "alternating"
        words.draw(seed, Purpose.AUGMENTATION, images, 0 if alternating else epoch)
        np.right_shift(words.words[0], np.uint64(31), out=views[0], casting="unsafe")
        if alternating:
            np.bitwise_xor(views[0], epoch & 1, out=views[0])
            words.draw(seed, Purpose.AUGMENTATION, images, epoch)
        for word, moved in zip(words.words[1:3], views[1:], strict=True):
            np.multiply(word, np.uint64(2 * self.translate + 1), out=word)
            np.right_shift(word, np.uint64(32), out=moved, casting="unsafe")
            np.subtract(moved, self.translate, out=moved)
        if self.flip == "none":
            views[0] = 0


View = tuple[int, int, int]
"""A change of all images alike: flipped (0 or 1), and then moved so many pixels down and to the right."""

VIEWS: dict[str, dict[View, float]] = {
    "none": {(0, 0, 0): 1.0},
    "flip": {(0, 0, 0): 0.5, (1, 0, 0): 0.5},
    "flip_translate": {
        (flipped, move, -move if flipped else move): share
        for move, share in ((0, 0.25), (1, 0.125), (-1, 0.125))
        for flipped in (0, 1)
    },
}
"""Of a test-time augmentation, each view's share in the mean of the outputs.

``flip_translate`` (Jordan 2024, §3.5) moves an image along a diagonal and then flips it. That is flipped first here, so
it moves the other way across.
"""


def mirrored(size: int, reach: int) -> Array:
    """Where a row of so many pixels, moved by −reach … reach, takes its pixels from; mirrored at the edges.

    Returns:
        int64 (2·reach + 1, size).
    """
    moved = np.arange(size) - np.arange(-reach, reach + 1)[:, None]
    inside = np.abs(moved)
    found: Array = np.where(inside >= size, 2 * (size - 1) - inside, inside)
    return found
