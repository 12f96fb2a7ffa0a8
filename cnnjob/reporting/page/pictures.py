"""Arrays as images embedded in the page: PNG ``data:`` URLs, with the same bytes for the same pixels."""

import base64
import io
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cnnjob.reporting import filter_grid

if TYPE_CHECKING:
    from PIL import Image as Images


MAPS_PER_ROW = 8
_MIN_MAP_SIDE = 24
"""Maximum side length to which small feature maps are enlarged, in pixels."""
_GREY_STEP = 17
"""Difference between adjacent grey levels of an indexed image, which has 16 levels."""
_GAP_INDEX = 16
"""Index of the colour between the tiles of an indexed image."""


class Sheet(NamedTuple):
    """An image that consists of small images."""

    url: str
    """``data:`` URL of the image."""
    width: int
    """Width of the image, in pixels."""
    height: int
    """Height of the image, in pixels."""


def data_url(pixels: np.ndarray) -> str:
    """Return an image as a ``data:`` URL.

    Args:
        pixels: uint8 (H, W, 1) or (H, W, 3).

    Returns:
        The ``data:`` URL of the PNG image.
    """
    from PIL import Image  # noqa: PLC0415 - only pages need Pillow

    return _png_data_url(Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels))


def _png_data_url(picture: "Images.Image") -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def thumbnail(image: np.ndarray, pixels: int, colours: int | None) -> str:
    """Return a test image as a small ``data:`` URL.

    Args:
        image: uint8 (H, W, C).
        pixels: maximum width and height; smaller images are not enlarged, since the browser does that.
        colours: maximum number of colours in an RGB image; None for no limit.

    Returns:
        The ``data:`` URL of the PNG image.
    """
    from PIL import Image  # noqa: PLC0415 - only pages need Pillow

    picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    picture.thumbnail((pixels, pixels))
    return _png_data_url(picture.quantize(colours) if colours and picture.mode == "RGB" else picture)


def filter_picture(weights: np.ndarray) -> Sheet:
    """Return filters (K, K, C, F) as one image, arranged by :func:`cnnjob.reporting.filter_grid.filter_tiles`."""
    sheet = (filter_grid.join_tiles(filter_grid.filter_tiles(weights)) * 255).round().astype(np.uint8)
    if weights.shape[2] == len("RGB"):
        return Sheet(data_url(sheet), sheet.shape[1], sheet.shape[0])
    is_gap = sheet[..., 0] != sheet[..., 2]
    return _indexed_sheet(np.where(is_gap, _GAP_INDEX, (sheet[..., 0] / _GREY_STEP).round()).astype(np.uint8))


def map_picture(maps: np.ndarray) -> Sheet:
    """Return the feature maps of one image, uint8 (M, H, W) in 0..15, as a sheet with up to 8 maps per row."""
    enlarged = max(
        1, _MIN_MAP_SIDE // max(maps.shape[1:])
    )  # else the gaps would be as wide as the pixels of small maps
    maps = maps.repeat(enlarged, axis=1).repeat(enlarged, axis=2)
    M, H, W = maps.shape
    n_columns = min(M, MAPS_PER_ROW)
    sheet = np.full((-(-M // n_columns) * (H + 1) + 1, n_columns * (W + 1) + 1), _GAP_INDEX, np.uint8)
    for at, values in enumerate(maps):
        top, left = at // n_columns * (H + 1) + 1, at % n_columns * (W + 1) + 1
        sheet[top : top + H, left : left + W] = values
    return _indexed_sheet(sheet)


def _indexed_sheet(indices: np.ndarray) -> Sheet:
    """Return colour indices (H, W) as an image: 16 grey levels, then the colour of the gaps."""
    from PIL import Image  # noqa: PLC0415 - only pages need Pillow

    picture = Image.fromarray(indices, "P")
    picture.putpalette([value for level in range(_GAP_INDEX) for value in [level * _GREY_STEP] * 3] + [178, 199, 224])
    return Sheet(_png_data_url(picture), indices.shape[1], indices.shape[0])


def saliency_picture(saliency: np.ndarray) -> str:
    """Return a saliency map, uint8 (H, W), as a ``data:`` URL: black, red, yellow and white for rising values."""
    from PIL import Image  # noqa: PLC0415 - only pages need Pillow

    picture = Image.fromarray(saliency // 4, "P")
    ramp = np.clip(np.arange(64)[:, None] * 12 - np.array([0, 255, 510]), 0, 255)  # (64, RGB)
    picture.putpalette(ramp.astype(np.uint8).tobytes())
    return _png_data_url(picture)


def confusion_picture(counts: np.ndarray) -> str:
    """Return a confusion matrix (K, K) as an image: one pixel per cell, darker for a larger share of its row."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    light, dark = np.array([255, 255, 255]), np.array([8, 48, 107])
    # The square root, as in plots.confusion_matrix, makes rare confusions visible.
    return data_url((light + np.sqrt(shares)[..., None] * (dark - light)).round().astype(np.uint8))
