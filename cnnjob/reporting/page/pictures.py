"""Arrays as images embedded in the page: PNG ``data:`` URLs, with the same bytes for the same pixels."""

import base64
import io
from typing import TYPE_CHECKING

import numpy as np

from cnnjob.reporting import filter_grid

if TYPE_CHECKING:
    from PIL import Image as Images


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


def filter_picture(weights: np.ndarray) -> tuple[str, int, int]:
    """Return first-layer filters (K, K, C, F) as one image: ``data:`` URL, width and height in pixels."""
    sheet = (filter_grid.join_tiles(filter_grid.filter_tiles(weights)) * 255).round().astype(np.uint8)
    return data_url(sheet), sheet.shape[1], sheet.shape[0]


def confusion_picture(counts: np.ndarray) -> str:
    """Return a confusion matrix (K, K) as an image: one pixel per cell, darker for a larger share of its row."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    light, dark = np.array([255, 255, 255]), np.array([8, 48, 107])
    # The square root, as in plots.confusion_matrix, makes rare confusions visible.
    return data_url((light + np.sqrt(shares)[..., None] * (dark - light)).round().astype(np.uint8))
