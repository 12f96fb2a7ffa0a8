"""Arrays to pictures inside the page: PNG as ``data:`` addresses, the same bytes for the same pixels."""

import base64
import io
from typing import TYPE_CHECKING

import numpy as np

from cnnjob.reporting import filter_grid

if TYPE_CHECKING:
    from PIL import Image as Images


def address(pixels: np.ndarray) -> str:
    """A picture as a ``data:`` address.

    Args:
        pixels: uint8 (H, W, 1) or (H, W, 3).

    Returns:
        Its PNG in base 64.
    """
    from PIL import Image  # noqa: PLC0415 - only pages need it

    return _address(Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels))


def _address(picture: "Images.Image") -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def thumbnail(image: np.ndarray, pixels: int, colours: int | None) -> str:
    """A test image that can stand in a row with others.

    Args:
        image: uint8 (H, W, C).
        pixels: it is shrunk to this many each way, and never enlarged: the browser does that, in whole pixels.
        colours: how many it keeps of red, green and blue; None for all.

    Returns:
        Its address.
    """
    from PIL import Image  # noqa: PLC0415 - likewise

    picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    picture.thumbnail((pixels, pixels))
    return _address(picture.quantize(colours) if colours and picture.mode == "RGB" else picture)


def filters(weights: np.ndarray) -> tuple[str, int, int]:
    """The filters of a first layer (K, K, C, F) as one picture: its address, width and height in pixels."""
    sheet = (filter_grid.sheet_of(filter_grid.filter_grids(weights)) * 255).round().astype(np.uint8)
    return address(sheet), sheet.shape[1], sheet.shape[0]


def confusion(counts: np.ndarray) -> str:
    """A confusion matrix (K, K) of many classes: a pixel a cell, dark for a large share of its true class."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    light, dark = np.array([255, 255, 255]), np.array([8, 48, 107])
    return address((light + np.sqrt(shares)[..., None] * (dark - light)).round().astype(np.uint8))
