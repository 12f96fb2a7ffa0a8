"""Conversion of cnnjob's networks to torch modules, for benchmarks and as a reference in tests."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from cnnjob import nn
from cnnjob.nn.arena import Array
from cnnjob.nn.blocks import Activation, Layer


def module_of(torch: Any, layers: Iterable[Layer]) -> Any:
    """Return a torch module that is equivalent to a sequence of layers.

    Args:
        torch: the ``torch`` module.
        layers: a network's layers.

    Returns:
        A ``torch.nn.Sequential`` with one module per layer, named after the layer. The input is (N, C, H, W). The
        parameters have torch's default initial values; use :func:`fill` to set them.
    """
    return torch.nn.Sequential(OrderedDict((layer.name, _module(torch, layer)) for layer in layers))


def _module(torch: Any, layer: Layer) -> Any:
    match block := layer.block:
        case nn.Conv():
            return torch.nn.Sequential(OrderedDict(_conv(torch, block, layer.input_shape[-1])))
        case nn.Dense():
            return torch.nn.Sequential(OrderedDict(_dense(torch, block, layer)))
        case nn.Dropout():
            return torch.nn.Dropout(block.probability)
        case nn.GlobalPool():
            pool = torch.nn.AdaptiveAvgPool2d if block.how == "mean" else torch.nn.AdaptiveMaxPool2d
            return torch.nn.Sequential(pool(1), torch.nn.Flatten())
        case nn.Residual():
            return _residual(torch, block, layer)


def _conv(torch: Any, block: nn.Conv, channels: int) -> Iterator[tuple[str, Any]]:
    size = channels, block.filters, block.kernel
    affine = torch.nn.Conv2d(*size, stride=block.stride, padding=block.pad, bias=block.bias)
    affine.weight.requires_grad_(not block.frozen)
    yield "affine", affine
    for part in block.order:
        if part == "norm" and block.batch_norm:
            norm = torch.nn.BatchNorm2d(block.filters, block.batch_norm.eps, block.batch_norm.momentum)
            norm.weight.requires_grad_(block.batch_norm.scale)
            yield "norm", norm
        elif part == "activation":
            yield from _activation(torch, block.activation)
        elif part == "pool" and block.pool > 1:
            yield "pool", torch.nn.MaxPool2d(block.pool)


def _dense(torch: Any, block: nn.Dense, layer: Layer) -> Iterator[tuple[str, Any]]:
    inputs, units = block.parameters(layer.input_shape)["weights"].shape
    yield "flat", torch.nn.Flatten()
    affine = torch.nn.Linear(inputs, units, bias=block.bias)
    affine.weight.requires_grad_(not block.frozen)
    yield "affine", affine
    if block.output_scale != 1:
        yield "scale", _scaled(torch, block.output_scale)
    yield from _activation(torch, block.activation)


def _scaled(torch: Any, factor: float) -> Any:
    class Scaled(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return x * factor

    return Scaled()


def _activation(torch: Any, kind: Activation) -> Iterator[tuple[str, Any]]:
    if kind != "none":
        kinds = {"relu": torch.nn.ReLU, "gelu": torch.nn.GELU, "silu": torch.nn.SiLU}
        yield "activation", kinds[kind]()


def _residual(torch: Any, block: nn.Residual, layer: Layer) -> Any:
    # The class is defined here because its base class is not available until torch has been imported.
    class Residual(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.body = module_of(torch, block.body(layer.input_shape))
            projection = block.projection(layer.input_shape)
            self.projection = module_of(torch, [projection]) if projection else torch.nn.Identity()
            self.after = torch.nn.Sequential(OrderedDict(_activation(torch, block.activation)))

        def forward(self, x: Any) -> Any:
            rows, columns = block.window(layer.input_shape)
            return self.after(self.body(x) + self.projection(x[:, :, rows, columns]))

    return Residual()


def tensors(module: Any, layers: Iterable[Layer]) -> Iterator[tuple[str, Any, str]]:
    """Yield, for each tensor in a module, its name in cnnjob, the tensor itself, and a name for the order of its axes.

    ``conv`` and ``dense`` are orders that :func:`_to_torch_order` and :func:`from_torch_order` convert; ``same`` means
    that cnnjob and torch have the same order.
    """
    for layer in layers:
        own, block = getattr(module, layer.name), layer.block
        if isinstance(block, nn.Residual):
            projection = block.projection(layer.input_shape)
            for name, tensor, axes in tensors(own.body, block.body(layer.input_shape)):
                yield f"{layer.name}/{name}", tensor, axes
            for name, tensor, axes in tensors(own.projection, [projection] if projection else []):
                yield f"{layer.name}/{name}", tensor, axes
        elif isinstance(block, nn.Conv | nn.Dense):
            for name, tensor, axes in _tensors(own, block):
                yield f"{layer.name}/{name}", tensor, axes


def _tensors(module: Any, block: nn.Conv | nn.Dense) -> Iterator[tuple[str, Any, str]]:
    yield "weights", module.affine.weight, block.kind
    if block.bias:
        yield "bias", module.affine.bias, "same"
    if isinstance(block, nn.Conv) and block.batch_norm:
        norm = module.norm
        if block.batch_norm.scale:
            yield "scale", norm.weight, "same"
        yield from [("shift", norm.bias, "same"), ("mean", norm.running_mean, "same")]
        yield "variance", norm.running_var, "same"


def optimiser_like(
    torch: Any, optimiser: nn.Optimiser, module: Any, layers: Sequence[Layer], learning_rate: float
) -> Any:
    """Return a torch optimiser with the settings of a cnnjob optimiser and one parameter group per parameter.

    torch's SGD does not support decoupled weight decay: the weight decay is always added to the gradient.

    Raises:
        NotImplementedError: the optimiser is Muon, which torch has for dense layers only.
    """
    if isinstance(optimiser, nn.Muon):
        raise NotImplementedError
    parameters = nn.Network(tuple(layers)).parameters
    groups = [
        {
            "params": [tensor],
            "lr": learning_rate * parameters[name].learning_rate_factor,
            "weight_decay": optimiser.weight_decay * parameters[name].decays,
        }
        for name, tensor, _ in tensors(module, layers)
        if parameters[name].trainable
    ]
    if isinstance(optimiser, nn.Adam):
        kind = torch.optim.AdamW if optimiser.decoupled else torch.optim.Adam
        return kind(groups, betas=(optimiser.momentum, optimiser.beta2), eps=optimiser.eps)
    return torch.optim.SGD(groups, momentum=optimiser.momentum, nesterov=optimiser.nesterov)


def fill(torch: Any, module: Any, network: nn.Network, weights: Mapping[str, Array]) -> None:
    """Copy a network's weights into the equivalent torch module."""
    shapes = {layer.name: layer.input_shape for layer in network.layers}
    with torch.no_grad():
        for name, tensor, axes in tensors(module, network.layers):
            values = torch.from_numpy(weights[name].copy())
            tensor.copy_(_to_torch_order(values, axes, shapes.get(name.split("/")[0], ())))


def _to_torch_order(values: Any, axes: str, shape: tuple[int, ...]) -> Any:
    """Reorder axes from cnnjob's order to torch's: (K, K, C, F) → (F, C, K, K); (H·W·C, U) → (U, C·H·W)."""
    if axes == "conv":
        return values.permute(3, 2, 0, 1)
    if axes == "dense":
        flat = values.reshape(*shape, values.shape[1])  # (H, W, C, U), or (V, U) after another dense block
        return (flat.permute(3, 2, 0, 1) if len(shape) == 3 else flat.T).reshape(values.shape[1], -1)  # noqa: PLR2004
    return values


def from_torch_order(tensor: Any, axes: str, shape: tuple[int, ...]) -> Array:
    """Convert a module's tensor, or that tensor's gradient, to an array with cnnjob's order of axes.

    Args:
        tensor: a torch tensor.
        axes: the order of its axes, from :func:`tensors`.
        shape: the layer's input shape for one image.

    Returns:
        The array.
    """
    values = tensor.detach()
    if axes == "conv":
        values = values.permute(2, 3, 1, 0)
    elif axes == "dense":
        units = len(values)  # (U, C·H·W) here, (H·W·C, U) below
        rows = values.reshape(units, shape[2], *shape[:2]).permute(2, 3, 1, 0) if len(shape) == 3 else values.T  # noqa: PLR2004
        values = rows.reshape(-1, units)
    array: Array = values.contiguous().numpy()
    return array
