"""The command ``cnnjob bench``."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cnnjob.cli import completion
from cnnjob.cli import options as opt
from cnnjob.cli.screen import print_json, print_table
from cnnjob.errors import JobError

if TYPE_CHECKING:
    from cnnjob.checks.benchmarks.bench import Row

HEADER = (
    "workload",
    "engine",
    "ms/step",
    "min",
    "max",
    "images/s",
    "s/epoch",
    "× torch",
    "at best",
    "× course",
    "of products",
)


def bench(
    workloads: Annotated[
        list[str] | None,
        typer.Argument(metavar="WORKLOAD", autocompletion=completion.workloads, help="Workloads; all by default."),
    ] = None,
    against: Annotated[Literal["torch", "none"], typer.Option(help="Measure torch too, if it is installed.")] = "torch",
    rounds: Annotated[int, typer.Option(min=1, help="Turns per engine, of five steps or 0.2 s.")] = 20,
    device: Annotated[Literal["cpu", "gpu"], typer.Option(help="Where to compute.")] = "cpu",
    as_json: opt.JSON = False,
) -> None:
    """Measure training steps on this machine.

    The workloads are mnist-baseline, cifar10-baseline, cifar10, cifar10-small and conv-64-128. All engines take
    turns in one process. "× torch" is the time of torch in its better memory layout divided by the engine's: the median
    over the turns; "at best" is the same for the fastest steps. "× course" compares with the algorithm as a course
    teaches it, in float64. "of products" is the time of the matrix products alone divided by the engine's. --device
    gpu measures steps part by part, fused and as a CUDA graph, in float32 and tf32, next to torch likewise.

    Example: cnnjob bench mnist-baseline --rounds 50
    """
    from cnnjob.checks.benchmarks.bench import NAMES, measure

    for name in workloads or ():
        if name not in NAMES:
            raise JobError(f"{name}: unknown workload. Choose from {', '.join(NAMES)}")
    rows = list(measure(workloads or NAMES, rounds, torch=against == "torch", on_gpu=device == "gpu"))
    if as_json:
        print_json([row.as_json() for row in rows])
    else:
        print_table(HEADER, [_cells(row) for row in rows], spare=())


def _cells(row: "Row") -> list[str]:
    times = (f"{value:.2f}" for value in (row.median_ms, row.min_ms, row.max_ms))
    ratios = (row.speed_against_torch, row.speed_against_torch_at_best, row.speed_against_course, row.share_of_products)
    rest = ("" if value is None else f"{value:.2f}" for value in (row.epoch_seconds, *ratios))
    return [row.workload, row.engine, *times, f"{row.images_per_second:.0f}", *rest]
