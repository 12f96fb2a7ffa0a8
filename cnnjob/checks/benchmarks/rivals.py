"""The workloads' training steps in torch on the CPU, in both memory layouts."""

from collections.abc import Callable
from typing import Any

from cnnjob.checks.benchmarks.engines import Action, Engine
from cnnjob.checks.benchmarks.torch_networks import module_of, optimiser_like
from cnnjob.checks.benchmarks.workloads import Workload


def torch_engines(work: Workload) -> dict[str, Engine]:
    """Return one torch engine per memory layout, keyed by the names of their rows in the output.

    The dict is empty if torch is not installed.
    """
    try:
        import torch  # noqa: PLC0415 - slow to load
    except ImportError:
        return {}
    layouts = {"torch NCHW": torch.contiguous_format, "torch NHWC": torch.channels_last}
    make = build_torch_training_step if work.steps else _build_torch_block_step
    return {name: Engine(make(torch, work, layout), "torch") for name, layout in layouts.items()}


def build_torch_training_step(
    torch: Any,
    work: Workload,
    layout: Any,
    device: str = "cpu",
    arranged: Callable[[Any], Any] = lambda it: it,
    *,
    float16: bool = False,
) -> Action:
    """Return a training step in torch.

    The batch is already on the device as uint8, so the step does not include gathering images. With ``float16``,
    torch's autocast selects the operations that are computed in float16; parameters are float32. The gradients are not
    scaled, which would take more time.
    """
    network = module_of(torch, work.layers).to(device, memory_format=layout)
    optimiser = arranged(optimiser_like(torch, work.optimiser, network, work.layers, work.learning_rate))
    raw = torch.from_numpy(work.images).permute(0, 3, 1, 2).to(device).contiguous(memory_format=layout)
    labels = torch.from_numpy(work.labels).to(device)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        # Without the cache of converted weights, as torch's documentation requires for CUDA graphs; here, every weight
        # is used only once per step.
        with torch.autocast(raw.device.type, torch.float16, enabled=float16, cache_enabled=False):
            loss = torch.nn.functional.cross_entropy(network(raw.float() / 255), labels)
        loss.backward()
        optimiser.step()

    return step


def _build_torch_block_step(torch: Any, work: Workload, layout: Any) -> Action:
    """Return the forward and backward pass of a single-block workload in torch, including the input gradient."""
    network = module_of(torch, work.layers).to(memory_format=layout)
    H, W, C = work.image_shape
    x = torch.randn(work.batch_size, C, H, W).contiguous(memory_format=layout).requires_grad_()
    dy = torch.randn_like(network(x))

    def step() -> None:
        network.zero_grad()
        x.grad = None
        network(x).backward(dy)

    return step
