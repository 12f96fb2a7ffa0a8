"""A run's network as a table: one row per layer, with its settings, output shape and number of parameters."""

from collections.abc import Iterator
from dataclasses import fields
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

from cnnjob.jobs.model import Model
from cnnjob.training.build import build_network

_ALWAYS_SHOWN = ("kernel", "activation")
"""Settings of a block that are shown even if they have their default values."""


class LayerRow(NamedTuple):
    """One layer of a network, or one layer inside a residual block."""

    name: str
    """The layer's name, such as ``conv1``, or ``residual1/conv1`` inside a residual block."""
    settings: str
    """The number of outputs and the settings that differ from their defaults, such as ``32, kernel 3, pool 2``."""
    output_shape: str
    """Shape of the layer's output, such as ``14×14×32``."""
    n_parameters: int
    """Number of parameters, including frozen ones but not running statistics."""
    is_inner: bool
    """True for a layer inside a residual block, whose parameters are included in those of the block."""


@lru_cache(maxsize=256)
def layer_rows(model: Model, image_shape: tuple[int, int, int], classes: int) -> tuple[LayerRow, ...]:
    """Return one row per layer of a network; results are cached, since runs of a sweep often have the same network.

    Args:
        model: the settings of the network.
        image_shape: (H, W, C).
        classes: number of classes.

    Returns:
        The rows in order; the layers of a residual block follow the row of the block.

    Raises:
        JobError: a block does not match the output of the preceding block.
    """
    return tuple(_iterate_rows(build_network(model, image_shape, classes).layers, ""))


def _iterate_rows(layers: Any, above: str) -> Iterator[LayerRow]:
    for layer in layers:
        block, name = layer.block, f"{above}{layer.name}"
        inner = block.layers(layer.input_shape) if block.kind == "residual" else ()
        counted = sum(prod(parameter.shape) for parameter in layer.parameters.values() if parameter.counts)
        shape = "×".join(map(str, layer.output_shape))
        yield LayerRow(name, _block_settings(block), shape, counted, bool(above))
        yield from _iterate_rows(inner, f"{name}/")


def _block_settings(block: Any) -> str:
    first, *others = fields(block)
    value = getattr(block, first.name)
    default = type(block)(value)
    usual = {field.name: getattr(default, field.name) for field in others} | {
        # These defaults depend on other settings.
        "pad": getattr(block, "kernel", 0) // 2,
        "bias": not getattr(block, "batch_norm", None),
    }
    is_count = first.name in {"filters", "units"}
    texts = [] if block.kind == "residual" else [f"{value} {first.name}" if is_count else str(value)]
    for field in others:
        if field.name == "fully_frozen":
            continue  # shown as "frozen", unlike "frozen weights"
        value = getattr(block, field.name)
        if field.name in _ALWAYS_SHOWN or value != usual[field.name]:
            is_part = field.name == "frozen" and not block.fully_frozen
            texts.append(_setting_words("frozen weights" if is_part else field.name.replace("_", " "), value))
    return ", ".join(texts)


def _setting_words(name: str, value: Any) -> str:
    """Return a block's setting in words, such as ``kernel 3``, ``no bias`` or ``batch norm``."""
    if value is True or hasattr(value, "eps"):
        return name
    if value is False or (name == "activation" and value == "none"):
        return f"no {name}"
    if name == "activation":
        return str(value)
    if isinstance(value, tuple):
        return f"{name} {' → '.join(map(str, value))}"
    return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
