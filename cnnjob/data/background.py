"""Detection of images whose background or contrast is unlike that of the training images."""

from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

SAMPLED = 300
"""Number of training images that suffice as a sample."""
_TAIL = 0.5
"""Percentage of the sample that may lie beyond each end of the usual range."""
_TOLERANCE = 64
"""Distance from the usual range beyond which a background is unusual, in grey levels: a quarter of the whole range."""
_LEAST_CONTRAST = 0.5
"""Fraction of the lowest usual contrast below which a contrast is unusual."""


class Difference(NamedTuple):
    """A difference in background or contrast between an image and the training images."""

    description: str
    """A clause such as ``the background is much lighter``; the caller adds what the image is compared with."""
    is_inverted: bool
    """True if the inverted image (255 − x) would differ much less."""


@dataclass(frozen=True)
class UsualBackground:
    """The range of backgrounds and contrasts in a sample of images, with which other images can be compared.

    The background of an image is the median of its outermost pixels, and its contrast is the difference between its
    lightest and darkest pixels. Both are grey levels, 0..255, of the mean over the channels. The backgrounds of
    photographs vary so much that, compared with a sample of photographs, nearly every image has a usual background.
    """

    darkest: float
    lightest: float
    least_contrast: float

    @classmethod
    def of(cls, images: np.ndarray) -> Self:
        """Measure the backgrounds and contrasts of a sample of images, uint8 (N, H, W, C)."""
        background, contrast = _background_and_contrast(images)
        # Without the ends, since a single unusual image in the sample would make everything usual.
        darkest, lightest = np.percentile(background, [_TAIL, 100 - _TAIL])
        return cls(float(darkest), float(lightest), float(np.percentile(contrast, _TAIL)))

    def compare(self, images: np.ndarray) -> list[Difference | None]:
        """Compare the background and contrast of each image with those of the sample.

        Args:
            images: uint8 (N, H, W, C).

        Returns:
            One item per image: how the image differs from the sample, or None if it does not differ much.
        """
        return [
            self._compare(float(background), float(contrast))
            for background, contrast in zip(*_background_and_contrast(images), strict=True)
        ]

    def _compare(self, background: float, contrast: float) -> Difference | None:
        if (distance := self._distance(background)) > _TOLERANCE:
            end = "lighter" if background > self.lightest else "darker"
            return Difference(f"the background is much {end}", self._distance(255 - background) < distance / 2)
        if contrast < _LEAST_CONTRAST * self.least_contrast:
            return Difference("the contrast is much lower", is_inverted=False)
        return None

    def _distance(self, background: float) -> float:
        return max(self.darkest - background, background - self.lightest, 0.0)


def _background_and_contrast(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the background and the contrast of each image, float32 (N,)."""
    grey = images.mean(axis=3, dtype=np.float32)  # (N, H, W)
    border = np.concatenate([grey[:, 0], grey[:, -1], grey[:, 1:-1, 0], grey[:, 1:-1, -1]], axis=1)
    return np.median(border, axis=1), np.ptp(grey, axis=(1, 2))
