"""The same steps by torch, in both memory layouts."""

from collections.abc import Iterator
from typing import Any

from cnnjob import nn
from cnnjob.benchmarks.workloads import Run, Workload
from cnnjob.nn.blocks import Layer


def engines(work: Workload) -> dict[str, Run]:
    """A step in each memory layout by the name of its row; none where torch is not installed."""
    try:
        import torch  # noqa: PLC0415 - slow to load
    except ImportError:
        return {}
    layouts = {"torch NCHW": torch.contiguous_format, "torch NHWC": torch.channels_last}
    make = _training if work.steps else _block
    return {name: make(torch, work, layout) for name, layout in layouts.items()}


def _modules(torch: Any, layers: tuple[Layer, ...]) -> Iterator[Any]:
    """A network's parts, in order."""
    flat = False
    for layer in layers:
        block = layer.block
        if isinstance(block, nn.Dropout):
            yield torch.nn.Dropout(block.probability)
            continue
        if isinstance(block, nn.Conv):
            channels = layer.input_shape[-1], block.filters
            yield torch.nn.Conv2d(*channels, block.kernel, stride=block.stride, padding=block.pad)
        else:
            weights = block.parameters(layer.input_shape)["weights"].shape
            yield from () if flat else [torch.nn.Flatten()]
            yield torch.nn.Linear(*weights)
            flat = True
        yield from [torch.nn.ReLU()] if block.activation == "relu" else []
        yield from [torch.nn.MaxPool2d(block.pool)] if isinstance(block, nn.Conv) and block.pool > 1 else []


def _training(torch: Any, work: Workload, layout: Any) -> Run:
    """A training step, the batch being in memory as bytes."""
    network = torch.nn.Sequential(*_modules(torch, work.layers)).to(memory_format=layout)
    optimiser = torch.optim.SGD(
        network.parameters(),
        work.learning_rate,
        momentum=work.optimiser.momentum,
        weight_decay=work.optimiser.weight_decay,
    )
    raw = torch.from_numpy(work.images).permute(0, 3, 1, 2).contiguous(memory_format=layout)
    answers = torch.from_numpy(work.labels)

    def step() -> None:
        optimiser.zero_grad()
        outputs = network(raw.float() / 255)
        torch.nn.functional.cross_entropy(outputs, answers).backward()
        optimiser.step()

    return step


def _block(torch: Any, work: Workload, layout: Any) -> Run:
    """The only block, forward and backward, with the gradient of its input."""
    network = torch.nn.Sequential(*_modules(torch, work.layers)).to(memory_format=layout)
    H, W, C = work.image_shape
    x = torch.randn(work.batch_size, C, H, W).contiguous(memory_format=layout).requires_grad_()
    slope = torch.randn_like(network(x))

    def step() -> None:
        network.zero_grad()
        x.grad = None
        network(x).backward(slope)

    return step
