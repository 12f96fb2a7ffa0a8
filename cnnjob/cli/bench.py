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
        typer.Argument(
            metavar="WORKLOAD", autocompletion=completion.workloads, help="Of them only; the default is all."
        ),
    ] = None,
    against: Annotated[Literal["torch", "none"], typer.Option(help="Measure torch beside it, if installed.")] = "torch",
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each engine, of five steps or 0.2 s.")] = 20,
    device: Annotated[Literal["cpu", "gpu"], typer.Option(help="Where to compute.")] = "cpu",
    as_json: opt.JSON = False,
) -> None:
    """Measure training steps on this machine.

    Of mnist-baseline, cifar10-baseline, cifar10, cifar10-small and conv-64-128. The engines take turns in one
    process. "× torch" is torch's time in its better memory layout over the engine's, turn by turn, the median; "at
    best" the same of the fastest steps. "× course" is against the algorithm as a course teaches it, in float64; "of
    products" the time of the matrix products alone over the engine's. With --device gpu: part by part, fused, and
    as a CUDA graph, each in float32 and tf32 and against torch in the same precision, its graphs included.

    Example: cnnjob bench mnist-baseline --rounds 50
    """
    from cnnjob.checks.benchmarks.bench import NAMES, measure

    for name in workloads or ():
        if name not in NAMES:
            raise JobError(f"{name}: no such workload; choose from {', '.join(NAMES)}")
    rows = list(measure(workloads or NAMES, rounds, torch=against == "torch", on_gpu=device == "gpu"))
    if as_json:
        print_json([row.as_json() for row in rows])
    else:
        print_table(HEADER, [_shown(row) for row in rows], spare=())


def _shown(row: "Row") -> list[str]:
    times = (f"{value:.2f}" for value in (row.median_ms, row.min_ms, row.max_ms))
    ratios = (row.speed_against_torch, row.speed_against_torch_at_best, row.speed_against_course, row.share_of_products)
    rest = ("" if value is None else f"{value:.2f}" for value in (row.epoch_seconds, *ratios))
    return [row.workload, row.engine, *times, f"{row.images_per_second:.0f}", *rest]
