"""The pictures of a run's network: filters and feature maps of each convolution, and saliency maps of test images."""

import sys
from dataclasses import dataclass, field
from typing import NamedTuple

from cnnjob.errors import plural
from cnnjob.reporting.examples import ClassifiedImage, Convolution
from cnnjob.reporting.filter_grid import PICTURE_CHANNELS
from cnnjob.reporting.page import pictures
from cnnjob.reporting.record import Record

MAX_RUNS_WITH_LAYERS = 20
"""With more runs than this on the page, only the filters of the first convolution of each run are shown."""
MAX_LAYERS = 64
"""Maximum number of convolutions of a run that are shown."""
_WHOLE_FILTERS = 64
"""Maximum number of filters per layer, if each filter is shown as one image."""
_IMAGE_PIXELS = 64
"""Maximum width and height of a test image."""


class _Limits(NamedTuple):
    """Limits on the pictures of each run."""

    runs: int
    """Maximum number of runs on the page for which these limits apply."""
    filters: int
    """Maximum number of filters per layer, if the filters are shown channel by channel."""
    channels: int
    """Maximum number of channels per filter, if the filters are shown channel by channel."""
    images: int
    """Maximum number of test images whose feature maps are shown."""


_LIMITS = (_Limits(5, 32, 16, 4), _Limits(MAX_RUNS_WITH_LAYERS, 16, 8, 2), _Limits(sys.maxsize, 16, 8, 0))


@dataclass(frozen=True)
class ExamplePicture:
    """A test image with its saliency map."""

    example: ClassifiedImage
    url: str
    saliency_url: str


@dataclass(frozen=True)
class LayerPictures:
    """The pictures of one convolution."""

    name: str
    filters: pictures.Sheet
    filters_caption: str
    maps: list[pictures.Sheet]
    """The feature maps of the first examples, one sheet per example."""
    maps_caption: str
    map_filters: str
    """Numbers of the filters to which the feature maps belong, counted from 1."""


@dataclass(frozen=True)
class NetworkPictures:
    """The pictures of a run's network."""

    layers: list[LayerPictures] = field(default_factory=list)
    examples: list[ExamplePicture] = field(default_factory=list)
    n_convolutions: int = 0
    """Number of convolutions in the network; ``layers`` contains fewer if there are many runs or many convolutions."""
    lacks_examples: bool = False
    """True if the run is finished and has no ``examples.npz``."""


def build_network_pictures(record: Record, n_runs: int) -> NetworkPictures:
    """Build the pictures of a run's network.

    Args:
        record: the run's record.
        n_runs: number of runs on the page; with many runs, the pictures of each run are fewer and smaller.

    Returns:
        The pictures. ``layers`` is empty if the network has no convolutions or if the record does not contain them.
    """
    limits = next(limits for limits in _LIMITS if n_runs <= limits.runs)
    has_all = n_runs <= MAX_RUNS_WITH_LAYERS
    return NetworkPictures(
        [_layer_pictures(layer, limits) for layer in record.convolutions[: MAX_LAYERS if has_all else 1]],
        [
            ExamplePicture(
                each,
                pictures.thumbnail(each.image, _IMAGE_PIXELS, None),
                "" if each.saliency is None else pictures.saliency_picture(each.saliency),
            )
            for each in (record.examples if has_all else [])
        ],
        len(record.convolutions),
        has_all and bool(record.convolutions) and not record.example_arrays,
    )


def _layer_pictures(layer: Convolution, limits: _Limits) -> LayerPictures:
    K, _, C, F = layer.shape
    of_pixels = f"of {K}×{K} pixels"
    if C in PICTURE_CHANNELS:
        weights = layer.weights[..., :_WHOLE_FILTERS]
        caption = f"{_limited(weights.shape[3], F, 'filter')} {of_pixels} and {plural(C, 'channel')}"
    else:
        weights = layer.weights[:, :, : limits.channels, : limits.filters]
        axes = ("columns", "rows") if weights.shape[3] >= weights.shape[2] else ("rows", "columns")
        filters, channels = (
            _limited(n, total, name)
            for n, total, name in zip(weights.shape[:1:-1], (F, C), ("filter", "input channel"), strict=True)
        )
        caption = f"{filters} {of_pixels} ({axes[0]}) and {channels} ({axes[1]})"
    return LayerPictures(
        layer.name,
        pictures.filter_picture(weights),
        f"{caption[0].upper()}{caption[1:]}; each filter on its own scale.",
        [pictures.map_picture(each) for each in layer.maps[: limits.images]],
        _describe_maps(layer),
        ", ".join(str(index + 1) for index in layer.map_filters),
    )


def _describe_maps(layer: Convolution) -> str:
    """Return a description of the feature maps that are shown."""
    M, F = len(layer.map_filters), layer.shape[3]
    shown = plural(F, "feature map") if M == F else f"the {M} of {plural(F, 'feature map')} that vary most"
    if not layer.n_constant:
        return shown
    return f"{shown} ({layer.n_constant} {'is' if layer.n_constant == 1 else 'are'} constant for each of these images)"


def _limited(shown: int, total: int, noun: str) -> str:
    return plural(total, noun) if shown >= total else f"the first {shown} of {plural(total, noun)}"
