"""The arrays of ``predictions.npz`` and ``examples.npz``, from which a report shows test images."""

from typing import Any

import numpy as np

from cnnjob import nn
from cnnjob.data.stored import RowReader
from cnnjob.nn.random import Purpose, generator
from cnnjob.runs import metrics
from cnnjob.training.inference.classifier import Classifier

MAX_EXAMPLES = 6
"""Maximum number of images in ``examples.npz``."""
NOISY_COPIES = 8
"""Number of noisy copies of an image from which its saliency is computed."""
NOISE = 0.2 * 255
"""Standard deviation of the noise, in pixel values."""
_PICTURE_SIDE = 48
"""Maximum height and width of an image or saliency map in ``examples.npz``; larger ones are averaged over blocks."""
_PICTURE_BYTES = 32_000
"""Approximate maximum total size of the images and saliency maps in ``examples.npz``."""
_MAP_CHOICES = ((4, 16, 32), (4, 8, 32), (3, 8, 16), (2, 8, 16), (2, 4, 16), (2, 4, 8))
"""Numbers of images, of maps per layer and image, and of pixels per side; the first choice that fits is used."""
_MAPS_BYTES = 32_000
"""Maximum total size of the feature maps in ``examples.npz``, in bytes; only the last of the choices may exceed it."""
_LEVELS = 16
"""Number of grey levels of a feature map, so that two pixels fit into a byte."""


def prediction_arrays(
    probabilities: np.ndarray[Any, Any],
    images: np.ndarray[Any, Any] | RowReader,
    labels: np.ndarray[Any, Any],
    class_names: tuple[str, ...],
) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of ``predictions.npz``.

    Args:
        probabilities: (N, K).
        images: uint8 (N, H, W, C), in memory or streamed; only a few of them are read.
        labels: int64 (N,).
        class_names: one name per class.

    Returns:
        ``probabilities``, ``labels`` and ``class_names``; and ``wrong_images`` and ``wrong_indices``, which contain up
        to 24 misclassified images and their indices, starting with the most confident error.
    """
    worst = metrics.most_confident_errors(probabilities, labels)
    return {
        "probabilities": probabilities,
        "labels": labels,
        "class_names": np.array(class_names),
        "wrong_images": images[worst],
        "wrong_indices": worst,
    }


def example_arrays(
    classifier: Classifier,
    probabilities: np.ndarray[Any, Any],
    images: np.ndarray[Any, Any] | RowReader,
    labels: np.ndarray[Any, Any],
) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of ``examples.npz``: a few test images, their saliency and the feature maps of convolutions.

    The saliency of a pixel is the largest absolute derivative, over its channels, of the predicted class's logit
    (Simonyan et al. 2013, §3.1). The derivative is averaged over copies of the image with Gaussian noise, and
    saliencies above an image's 99th percentile are reduced to it (SmoothGrad: Smilkov et al. 2017, §3). A feature map
    is one channel of the output of a whole conv block, scaled so that its minimum is 0 and its maximum is 15.
    Everything is computed by NumPy, one image at a time, so that it takes little memory.

    Args:
        classifier: the network with its chosen weights, on any backend.
        probabilities: (N, K), computed by the classifier.
        images: uint8 (N, H, W, C), in memory or streamed; only a few of them are read.
        labels: int64 (N,).

    Returns:
        For E ≤ ``MAX_EXAMPLES`` images, chosen by :func:`cnnjob.runs.metrics.example_images`: ``indices``, int64 (E,);
        ``images``, uint8 (E, h, w, C); and ``saliency``, uint8 (E, h, w). For each conv layer of F filters,
        ``maps/LAYER``, uint8 (n, ⌈M / 2⌉, h', w'): feature maps of the first n ≤ E images and of the M ≤ F filters
        whose maps vary most, in the order of the filters. Each byte contains one pixel of two feature maps, with the
        first map in the four high bits. For the L layers in this order, ``filters``, int64 (L, m), has the indices of
        these filters, followed by -1 if M < m; and ``constant``, int64 (L,), the number of filters whose maps are
        constant for all n images.
    """
    network, state = classifier.network, classifier.state
    H, W, C = network.image_shape
    side = -(-max(H, W) // _PICTURE_SIDE)
    limit = _PICTURE_BYTES // (-(-H // side) * -(-W // side) * (C + 1))
    indices = metrics.example_images(probabilities, labels, min(max(limit, 2), MAX_EXAMPLES))
    chosen, plan = images[indices], nn.InspectionPlan(network, state.read(state.evaluated), classifier.pixels, 1)
    classes = metrics.predicted(probabilities[indices])
    inspected = [_inspect(plan, chosen[at : at + 1], classes[at : at + 1]) for at in range(len(indices))]
    saliency = _reduce(np.concatenate([steepest for _, steepest in inspected]), _PICTURE_SIDE)[..., 0]  # (E, h, w)
    white = np.percentile(saliency, 99, axis=(1, 2), keepdims=True)
    white = np.where(white > 0, white, saliency.max(axis=(1, 2), keepdims=True))
    shown = np.divide(saliency, white, out=np.zeros_like(saliency), where=white > 0)
    return {
        "indices": indices,
        "images": _reduce(chosen, _PICTURE_SIDE).round().astype(np.uint8),
        "saliency": (255 * np.minimum(shown, 1)).round().astype(np.uint8),
        **_packed_maps([maps for maps, _ in inspected]),
    }


def _inspect(
    plan: nn.InspectionPlan, image: np.ndarray[Any, Any], label: np.ndarray[Any, Any]
) -> tuple[dict[str, np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """Return the feature maps by layer, (1, H', W', F), and the saliency of an image, (1, H, W, 1)."""
    maps, _ = plan.run(image, label)
    noise = generator(0, Purpose.SALIENCY).normal(0, NOISE, (NOISY_COPIES, *image.shape))
    copies = np.clip(image + noise, 0, 255).round().astype(np.uint8)
    gradients = [np.nan_to_num(plan.run(each, label)[1]) for each in copies]
    return maps, np.abs(np.mean(gradients, axis=0, dtype=np.float64)).max(axis=-1, keepdims=True)


def _packed_maps(inspected: list[dict[str, np.ndarray[Any, Any]]]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the feature maps for ``examples.npz``, given the maps of each image by layer, each (1, H, W, F)."""
    for n, limit, side in _MAP_CHOICES:
        filters, constant, packed = [], [], {}
        for layer in inspected[0]:
            maps = np.nan_to_num(np.concatenate([maps[layer] for maps in inspected[:n]])).astype(np.float64)
            variation = np.ptp(maps, axis=(1, 2)).max(axis=0)  # (F,)
            chosen = np.sort(np.argsort(-variation, kind="stable")[:limit])
            filters.append(np.pad(chosen, (0, limit - len(chosen)), constant_values=-1))
            constant.append(np.count_nonzero(variation == 0))
            maps = _reduce(maps[..., chosen], side).transpose(0, 3, 1, 2)  # (n, M, h, w)
            low, high = (bound(axis=(2, 3), keepdims=True) for bound in (maps.min, maps.max))
            levels = np.divide(maps - low, high - low, out=np.zeros_like(maps), where=high > low) * (_LEVELS - 1)
            levels = np.pad(levels.round().astype(np.uint8), ((0, 0), (0, maps.shape[1] % 2), (0, 0), (0, 0)))
            packed[f"maps/{layer}"] = levels[:, ::2] * _LEVELS + levels[:, 1::2]
        if sum(array.nbytes for array in packed.values()) <= _MAPS_BYTES:
            break
    rows = np.array(filters, np.int64).reshape(len(filters), limit)
    return {"filters": rows, "constant": np.array(constant, np.int64), **packed}


def _reduce(images: np.ndarray[Any, Any], side: int) -> np.ndarray[Any, Any]:
    """Return images (N, H, W, C) of at most ``side`` × ``side`` pixels, each the mean of a block of pixels, float64."""
    N, H, W, C = images.shape
    factor = -(-max(H, W) // side)
    padded = np.pad(images.astype(np.float64), ((0, 0), (0, -H % factor), (0, -W % factor), (0, 0)), "edge")
    blocks = padded.reshape(N, padded.shape[1] // factor, factor, padded.shape[2] // factor, factor, C)
    reduced: np.ndarray[Any, Any] = blocks.mean(axis=(2, 4))
    return reduced
