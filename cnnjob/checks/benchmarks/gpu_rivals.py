"""Training steps in torch on a GPU, eagerly and as a CUDA graph, in two layouts and three precisions."""

from functools import partial
from typing import Any

from cnnjob.checks.benchmarks.engines import Action, Engine
from cnnjob.checks.benchmarks.rivals import build_torch_training_step
from cnnjob.checks.benchmarks.workloads import Workload

PRECISIONS = ("float32", "tf32", "float16")
WARM_UPS = 3
"""Number of steps before a graph is recorded, as in torch's documentation of CUDA graphs."""


def torch_gpu_engines(work: Workload) -> dict[str, Engine]:
    """Return the torch engines for a workload, keyed by the names of their rows in the output.

    The dict is empty if torch is missing or finds no GPU, or if the workload consists of a single block.
    """
    try:
        import torch  # noqa: PLC0415 - slow to load
    except ImportError:
        return {}
    if not torch.cuda.is_available() or not work.steps:
        return {}
    torch.backends.cudnn.benchmark = True
    by_row = {}
    for precision in PRECISIONS:
        choose = partial(_set_precision, torch, precision)
        for name, layout in {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}.items():
            choose()  # before the steps are built, since a recorded graph keeps its precision
            arranged = partial(_with_fewest_groups, torch)
            # The two steps need separate tensors, since a recorded graph always writes to its own.
            float16 = precision == "float16"
            eager, captured = (
                build_torch_training_step(torch, work, layout, "cuda", arranged, float16=float16) for _ in range(2)
            )
            for mode, step in {"eager": eager, "graph": _record_graph(torch, captured)}.items():
                label = f"torch {mode} {name} {precision}"
                by_row[label] = Engine(step, "torch", f"gpu {precision}", choose, torch.cuda.synchronize)
    return by_row


def _set_precision(torch: Any, precision: str) -> None:
    """Set the precision of torch's float32 matrix products and convolutions for the whole process.

    As in cnnjob, ``float16`` uses tf32 for what is not computed in float16.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "float32"


def _with_fewest_groups(torch: Any, optimiser: Any) -> Any:
    """Return torch's fastest form of SGD; other optimisers are returned unchanged.

    The fastest form is fused and has one parameter group for each pair of learning rate and weight decay.
    """
    if not isinstance(optimiser, torch.optim.SGD):
        return optimiser
    by_rate_and_decay: dict[tuple[float, float], list[Any]] = {}
    for group in optimiser.param_groups:
        by_rate_and_decay.setdefault((group["lr"], group["weight_decay"]), []).extend(group["params"])
    groups = [
        {"params": tensors, "lr": rate, "weight_decay": decay} for (rate, decay), tensors in by_rate_and_decay.items()
    ]
    settings = {name: optimiser.param_groups[0][name] for name in ("momentum", "nesterov")}
    return torch.optim.SGD(groups, fused=True, **settings)


def _record_graph(torch: Any, step: Action) -> Action:
    """Record a step as a CUDA graph, and return a function that replays the graph."""
    aside = (
        torch.cuda.Stream()
    )  # torch's documentation requires warm-up steps on a side stream before a graph is captured
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UPS):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    replay: Action = graph.replay
    return replay
