"""The pictures of a run's network: filters and feature maps of each convolution, and saliency maps of test images."""

from dataclasses import dataclass, field

from cnnjob.errors import plural
from cnnjob.reporting.examples import ClassifiedImage, Convolution
from cnnjob.reporting.filter_grid import PICTURE_CHANNELS
from cnnjob.reporting.page import pictures
from cnnjob.reporting.record import Record

MAX_RUNS_WITH_LAYERS = 20
"""With more runs on the page, only the filters of the first convolution are shown."""
_DETAILS = ((5, 64, 32, 16, 4), (MAX_RUNS_WITH_LAYERS, 64, 16, 8, 2), (10**9, 64, 0, 0, 0))
"""Limits on the pictures of a run. Each row applies up to a number of runs on the page.

A row contains this number of runs, the number of filters that are shown as one image each, the numbers of filters and
of channels of a layer whose filters are shown channel by channel, and the number of images with feature maps.
"""
_IMAGE_PIXELS = 64


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
    """The feature maps of each of the first examples."""
    maps_caption: str
    map_filters: str
    """Numbers of the filters of the feature maps, from 1."""


@dataclass(frozen=True)
class NetworkPictures:
    """The pictures of a run's network."""

    layers: list[LayerPictures] = field(default_factory=list)
    examples: list[ExamplePicture] = field(default_factory=list)
    n_convolutions: int = 0
    """Number of convolutions; larger than the number of layers if there are many runs."""
    lacks_examples: bool = False
    """True if the run is finished and has no ``examples.npz``."""


def build_network_pictures(record: Record, n_runs: int) -> NetworkPictures:
    """Build the pictures of a run's network.

    Args:
        record: the run's record.
        n_runs: number of runs on the page; if there are many, there are fewer and smaller pictures.

    Returns:
        The pictures; without layers if the network has no convolutions or if they are not in the record.
    """
    details = next(row[1:] for row in _DETAILS if n_runs <= row[0])
    shown = record.convolutions if n_runs <= MAX_RUNS_WITH_LAYERS else record.convolutions[:1]
    examples = record.examples if n_runs <= MAX_RUNS_WITH_LAYERS else []
    return NetworkPictures(
        [_layer_pictures(layer, details) for layer in shown],
        [
            ExamplePicture(
                each,
                pictures.thumbnail(each.image, _IMAGE_PIXELS, None),
                "" if each.saliency is None else pictures.saliency_picture(each.saliency),
            )
            for each in examples
        ],
        len(record.convolutions),
        n_runs <= MAX_RUNS_WITH_LAYERS and bool(record.convolutions) and not record.example_arrays,
    )


def _layer_pictures(layer: Convolution, details: tuple[int, int, int, int]) -> LayerPictures:
    max_whole, max_filters, max_channels, max_images = details
    K, _, C, F = layer.shape
    of_pixels = f"of {K}×{K} pixels"
    if C in PICTURE_CHANNELS:
        weights = layer.weights[..., :max_whole]
        caption = f"{_limited(weights.shape[3], F, 'filter')} {of_pixels} and {plural(C, 'channel')}"
    else:
        # With many runs on the page, only the first convolution is shown, whatever its channels.
        weights = layer.weights[:, :, : max_channels or 8, : max_filters or 16]
        axes = ("columns", "rows") if weights.shape[3] >= weights.shape[2] else ("rows", "columns")
        filters, channels = (
            _limited(n, total, name)
            for n, total, name in zip(weights.shape[:1:-1], (F, C), ("filter", "input channel"), strict=True)
        )
        caption = f"{filters} {of_pixels} ({axes[0]}) and {channels} ({axes[1]})"
    maps = layer.maps[:max_images]
    return LayerPictures(
        layer.name,
        pictures.filter_picture(weights),
        f"{caption[0].upper()}{caption[1:]}; each filter on its own scale.",
        [pictures.map_picture(each) for each in maps],
        _describe_maps(layer),
        ", ".join(str(index + 1) for index in layer.map_filters),
    )


def _describe_maps(layer: Convolution) -> str:
    """Return which feature maps are shown."""
    M, F = len(layer.map_filters), layer.shape[3]
    shown = plural(F, "feature map") if M == F else f"the {M} of {plural(F, 'feature map')} that vary most"
    if not layer.n_constant:
        return shown
    return f"{shown} ({layer.n_constant} {'is' if layer.n_constant == 1 else 'are'} constant for each of these images)"


def _limited(shown: int, total: int, noun: str) -> str:
    return plural(total, noun) if shown >= total else f"the first {shown} of {plural(total, noun)}"
