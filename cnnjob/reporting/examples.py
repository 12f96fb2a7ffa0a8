"""Test images with predictions, and convolutions with their filters and feature maps, read from a run's arrays."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from cnnjob.errors import DataError
from cnnjob.reporting.filter_grid import PICTURE_CHANNELS
from cnnjob.runs import metrics

MAX_FILTERS, MAX_CHANNELS = 32, 16
"""Maximum numbers of filters and of channels per filter that are kept, unless each filter is shown as one image."""
LEVELS = 16
"""Number of grey levels of a feature map."""
_MAPS = "maps/"
_LARGEST = np.finfo(np.float32).max
"""Maximum plausible magnitude of a weight."""


@dataclass(frozen=True)
class ClassifiedImage:
    """A test image and its prediction."""

    image: np.ndarray
    """Pixels, uint8 (H, W, C)."""
    index: int
    """The image's position among the test images, from 0."""
    true_class: str
    predicted_class: str
    probability: float
    """Probability of the predicted class, in 0..1."""
    true_probability: float
    """Probability of the true class, in 0..1."""
    saliency: np.ndarray | None = None
    """Influence of each pixel on the predicted class, uint8 (H, W), as in ``examples.npz``."""


@dataclass(frozen=True)
class Convolution:
    """A convolution of the network."""

    name: str
    """The layer's name, such as ``conv1`` or ``residual1/conv2``."""
    shape: tuple[int, ...]
    """Shape of the weights, (K, K, C, F): C channels, and F filters of K×K pixels."""
    weights: np.ndarray
    """The weights, floating point: all of them if the filters are shown as grey or colour images, and otherwise only
    the first ``MAX_CHANNELS`` channels of the first ``MAX_FILTERS`` filters."""
    maps: np.ndarray
    """Feature maps of the first n examples, uint8 (n, M, H, W) in 0..15; n is 0 if there are no feature maps."""
    map_filters: tuple[int, ...] = ()
    """Indices of the M filters to which the feature maps belong; these are the filters whose maps vary most."""
    n_constant: int = 0
    """Number of filters whose feature map has the same value at all pixels, for each of the n examples."""


def classified_images(
    images: np.ndarray, indices: np.ndarray, predictions: Mapping[str, np.ndarray], class_names: tuple[str, ...]
) -> list[ClassifiedImage]:
    """Return test images with their predictions, or an empty list if the images do not match the predictions.

    Args:
        images: pixels, (n, H, W, C).
        indices: positions among the test images, (n,).
        predictions: the valid content of ``predictions.npz``.
        class_names: K names.

    Returns:
        n images.
    """
    probabilities, labels = predictions["probabilities"], predictions["labels"]
    fits = images.ndim == len("NHWC") and images.shape[-1] in {1, 3} and indices.shape == images.shape[:1]
    numbers = images.dtype == np.uint8 and indices.dtype.kind in "iu"
    if not (fits and numbers and images.size and indices.min() >= 0 and indices.max() < len(labels)):
        return []
    rows = probabilities[indices]
    guesses, actual = metrics.predicted(rows), labels[indices]
    return [
        ClassifiedImage(image, int(at), class_names[label], class_names[guess], float(row[guess]), float(row[label]))
        for image, at, row, label, guess in zip(images, indices, rows, actual, guesses, strict=True)
    ]


def examples_of(
    arrays: Mapping[str, np.ndarray], predictions: Mapping[str, np.ndarray], class_names: tuple[str, ...], where: str
) -> list[ClassifiedImage]:
    """Return the images in ``examples.npz``, with their predictions and saliency maps.

    Args:
        arrays: the content of the file.
        predictions: the valid content of ``predictions.npz``.
        class_names: K names.
        where: the name of the examples file, for the error message.

    Raises:
        DataError: the arrays are inconsistent with each other or with the predictions.
    """
    images, indices, saliency = (arrays.get(name, np.zeros(0)) for name in ("images", "indices", "saliency"))
    found = classified_images(images, indices, predictions, class_names)
    fits = saliency.dtype == np.uint8 and saliency.shape == images.shape[:3] and _have_feature_maps(arrays, len(found))
    if not found or not fits:
        raise DataError(f"{where}: not a valid examples file (its arrays do not match each other)")
    return [replace(example, saliency=values) for example, values in zip(found, saliency, strict=True)]


def _feature_maps(arrays: Mapping[str, np.ndarray], layer: str) -> tuple[np.ndarray, tuple[int, ...], int]:
    """Return a layer's feature maps in ``examples.npz``, unpacked, with their filters and the number of constant ones.

    Args:
        arrays: the valid content of the file; empty if there is none.
        layer: the layer's name.

    Returns:
        The feature maps of n images, uint8 (n, M, H, W) in 0..15; n is 0 if the file has none of this layer. Then the
        indices of the M filters, and the number of filters whose feature map has the same value at all pixels, for each
        of the images.
    """
    names = [name for name in arrays if name.startswith(_MAPS)]
    if _MAPS + layer not in names:
        return np.zeros((0, 0, 1, 1), np.uint8), (), 0
    row, packed = names.index(_MAPS + layer), arrays[_MAPS + layer]
    filters = tuple(int(index) for index in arrays["filters"][row] if index >= 0)
    n, _, H, W = packed.shape
    unpacked = np.stack([packed // LEVELS, packed % LEVELS], axis=2).reshape(n, -1, H, W)
    return unpacked[:, : len(filters)], filters, int(arrays["constant"][row])


def _have_feature_maps(arrays: Mapping[str, np.ndarray], n_images: int) -> bool:
    """Return whether the arrays for feature maps in ``examples.npz`` are consistent with each other."""
    packed = [array for name, array in arrays.items() if name.startswith(_MAPS)]
    filters, constant = (arrays.get(name, np.zeros(0)) for name in ("filters", "constant"))
    return (
        all(array.dtype == np.uint8 and array.ndim == len("NMHW") and array.size > 0 for array in packed)
        and all(len(array) <= n_images for array in packed)
        and filters.dtype.kind == constant.dtype.kind == "i"
        and filters.ndim == len("LM")
        and constant.shape == (len(packed),) == filters.shape[:1]
        and all(
            0 < np.count_nonzero(row >= 0) <= 2 * array.shape[1] for row, array in zip(filters, packed, strict=True)
        )
    )


def convolutions_of(
    weights: Mapping[str, np.ndarray], examples: Mapping[str, np.ndarray], where: str
) -> list[Convolution]:
    """Return the convolutions of a network, in the order of its layers.

    Args:
        weights: all weights by name.
        examples: the valid content of ``examples.npz``; empty if there is none.
        where: the name of the weights file, for the error message.

    Raises:
        DataError: the filters of a convolution are not square, or their weights are not finite.
    """
    found = []
    for key, array in weights.items():
        name = key.removesuffix("/weights")
        if name == key or array.ndim != len("KKCF"):
            continue
        # A copy, so that the rest of a large array is not kept in memory.
        is_whole = array.shape[2] in PICTURE_CHANNELS
        shown = array if is_whole else array[:, :, :MAX_CHANNELS, :MAX_FILTERS].copy()
        is_square = array.size > 0 and array.shape[0] == array.shape[1] and array.dtype.kind == "f"
        if not (is_square and (np.abs(shown) <= _LARGEST).all()):  # the comparison is also false for NaN
            raise DataError(f"{where}: damaged (the filters of layer {name} are not square or not finite)")
        found.append(Convolution(name, array.shape, shown, *_feature_maps(examples, name)))
    return found
