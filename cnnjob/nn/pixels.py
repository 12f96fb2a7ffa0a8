"""Preparation of images for the network: pixel normalisation, augmentation, and test-time views."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from cnnjob.nn.arena import Array
from cnnjob.nn.random import Philox, Purpose, generator

Flip = Literal["none", "random", "alternating"]


@dataclass(frozen=True)
class PixelNormalisation:
    """The map from pixel values 0 … 255 to network inputs: pixel·scale + shift, per channel."""

    scale: Array
    """Factor per channel, float64 (C,)."""
    shift: Array
    """Offset per channel, float64 (C,)."""

    @classmethod
    def unit(cls, channels: int) -> "PixelNormalisation":
        """Return the map from pixel values to the range from 0 to 1."""
        return cls(np.full(channels, 1 / 255), np.zeros(channels))

    @classmethod
    def standardised(cls, mean: tuple[float, ...], std: tuple[float, ...]) -> "PixelNormalisation":
        """Return the map that gives each channel mean 0 and standard deviation 1.

        The arguments are the statistics of the pixels scaled to 0 … 1. A constant channel, whose standard deviation
        is 0, is mapped to 0.
        """
        deviation = np.array([value or 1.0 for value in std])
        return cls(1 / (255 * deviation), -np.asarray(mean) / deviation)


@dataclass(frozen=True)
class Augmentation:
    """Random changes to images, drawn for each image in each epoch at the address (seed, epoch, image).

    An image is therefore augmented identically on every machine. The Philox block of an image has the counter (image,
    epoch, 0, 0) and the key (seed, purpose): the highest bit of word 0 is the flip, and (2k + 1)·word // 2³² − k for
    words 1 and 2 is the number of pixels by which the image moves down and to the right. Gaps at the edges are filled
    by reflection, as with ``numpy.pad`` in ``reflect`` mode, or with zeros. With the counter (image, epoch, 1, 0),
    height·word 0 // 2³² and width·word 1 // 2³² are the row and column of the centre of the square that is cut out.

    Images are flipped, then moved, then normalised; then the square is cut out; last, images are mixed in pairs.
    """

    flip: Flip = "none"
    """Horizontal flip: at random, or in every other epoch with a random start for each image (Jordan 2024, §3.6)."""
    translate: int = 0
    """k: maximum translation in each direction, in pixels, with gaps filled by reflection."""
    crop: int = 0
    """k: maximum translation in each direction, in pixels, with gaps filled with zeros; not together with
    ``translate``."""
    cutout: int = 0
    """Side length in pixels of a square whose network inputs are set to 0; the part of it that lies outside the image
    has no effect (DeVries & Taylor 2017, §3.2)."""
    mixup: float = 0.0
    """α of mixup: each image becomes share·image + (1 − share)·(previous image of the batch), and its label likewise;
    the share of a step is drawn from Beta(α, α) (Zhang et al. 2018, eq. 2)."""

    @property
    def reach(self) -> int:
        """Return the maximum translation in each direction, in pixels."""
        return self.translate or self.crop

    def shares(self, seed: int, epoch: int, steps: int) -> Array:
        """Return the share of mixup for each step of an epoch, float64 (steps,), drawn at the address (seed, epoch)."""
        return generator(seed, Purpose.MIXUP, epoch).beta(self.mixup, self.mixup, steps)

    def draw(self, words: Philox, images: Array, epoch: int, seed: int, views: Array) -> None:
        """Draw the changes to be applied to the given images.

        Args:
            words: random number generator with memory for one block of random words per image.
            images: indices of the images, int64 (n,).
            epoch: the epoch, counted from 0.
            seed: the job's seed.
            views: int64 (3, n), receives the flip (0 or 1) and the shifts down and to the right in pixels.
        """
        alternating = self.flip == "alternating"
        # An alternating flip needs a word that is the same in all epochs: that of epoch 0, xored with the parity below.
        words.draw(seed, Purpose.AUGMENTATION, images, 0 if alternating else epoch)
        np.right_shift(words.words[0], np.uint64(31), out=views[0], casting="unsafe")
        if alternating:
            np.bitwise_xor(views[0], epoch & 1, out=views[0])
            words.draw(seed, Purpose.AUGMENTATION, images, epoch)
        for word, moved in zip(words.words[1:3], views[1:], strict=True):
            # No overflow: each 32-bit word is stored in 64 bits, and the factor is small.
            np.multiply(word, np.uint64(2 * self.reach + 1), out=word)
            np.right_shift(word, np.uint64(32), out=moved, casting="unsafe")
            np.subtract(moved, self.reach, out=moved)
        if self.flip == "none":
            views[0] = 0

    def draw_squares(
        self, words: Philox, images: Array, epoch: int, seed: int, sides: tuple[int, int], corners: Array
    ) -> None:
        """Draw the squares to be cut out of the given images.

        Args:
            words: as in :meth:`draw`.
            images: indices of the images, int64 (n,).
            epoch: the epoch, counted from 0.
            seed: the job's seed.
            sides: height and width of an image in pixels.
            corners: int64 (2, n), receives the row and column of each square's first pixel; they may be negative.
        """
        words.draw(seed, Purpose.AUGMENTATION, images, epoch, 1)
        for word, side, corner in zip(words.words, sides, corners, strict=False):
            np.multiply(word, np.uint64(side), out=word)
            np.right_shift(word, np.uint64(32), out=corner, casting="unsafe")
            np.subtract(corner, self.cutout // 2, out=corner)


View = tuple[int, int, int]
"""Change applied to all images: the flip (0 or 1), then the shifts down and to the right in pixels."""

VIEWS: dict[str, dict[View, float]] = {
    "none": {(0, 0, 0): 1.0},
    "flip": {(0, 0, 0): 0.5, (1, 0, 0): 0.5},
    "flip_translate": {
        (flip, shift, -shift if flip else shift): weight
        for shift, weight in ((0, 0.25), (1, 0.125), (-1, 0.125))
        for flip in (0, 1)
    },
}
"""Views for each kind of test-time augmentation, with their weights in the mean of the logits.

``flip_translate`` (Jordan 2024, §3.5) moves an image along a diagonal and then flips it. A :data:`View` flips first, so
flipped images move in the opposite horizontal direction.
"""


def mirrored_sources(size: int, reach: int) -> Array:
    """Return the source of each pixel when a row of an image is shifted by −reach … reach and mirrored at its edges.

    Args:
        size: number of pixels in the image row.
        reach: maximum shift, in pixels; less than ``size``.

    Returns:
        Indices of the source pixels, int64 (2·reach + 1, size); the first axis is the shift, in ascending order.
    """
    unmirrored = np.arange(size) - np.arange(-reach, reach + 1)[:, None]
    from_start = np.abs(unmirrored)  # mirrored at pixel 0
    sources: Array = np.where(from_start >= size, 2 * (size - 1) - from_start, from_start)
    return sources
