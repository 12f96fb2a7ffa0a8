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
    "fastest step",
    "× course",
    "products",
)

DATA = "data"
"""Argument with which the command measures dataset reading instead of workloads."""


def bench(
    workloads: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="WORKLOAD",
            autocompletion=completion.workloads,
            help="Workloads to measure; all of them by default.",
        ),
    ] = None,
    against: Annotated[
        Literal["torch", "none"], typer.Option(help="Framework to compare with, if it is installed.")
    ] = "torch",
    rounds: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Number of rounds per engine; a round usually has at least five steps."),
    ] = 20,
    device: Annotated[Literal["cpu", "gpu"], typer.Option(help="Device to measure.")] = "cpu",
    gigabytes: Annotated[
        float, typer.Option(metavar="GB", min=0.001, help="Size of each file that 'data' writes and reads.")
    ] = 1,
    as_json: Annotated[bool, opt.json_option("Print the times of each engine as JSON.")] = False,
) -> None:
    """Measure training steps on this machine.

    The workloads are mnist-baseline, cifar10-baseline, cifar10, cifar10-small, cifar10-fast, cifar10-resnet (the last
    two with batches of 64 on a CPU) and conv-64-128. All engines take turns in one process. The column "× torch" is
    torch's time, in its faster memory layout, divided by the engine's time (median over the turns); "fastest step" is
    the same ratio for the fastest steps. "× course" is the time of a simple implementation, as taught in a course, in
    float64, divided by the engine's time. "products" is the time of the matrix products of direct convolutions alone
    divided by the engine's time. With --device gpu, cnnjob and torch run the steps eagerly and as a CUDA graph, in
    float32, tf32 and float16 (torch with autocast), and are compared in equal precision; "part by part" is cnnjob
    without fused kernels.

    With "data" instead of workloads, the command measures how fast datasets are read: random batches of 128 images, and
    the whole file in order, from the page cache and from disk. Two files are written to the current folder and removed
    afterwards.

    Example: cnnjob bench mnist-baseline --rounds 50
    """
    from cnnjob.checks.benchmarks.bench import NAMES, measure
    from cnnjob.checks.benchmarks.engines import MIN_TURN_SECONDS

    if workloads == [DATA]:
        # Each reading is measured for as long as all turns of one engine take.
        _bench_reading(gigabytes, rounds * MIN_TURN_SECONDS, as_json=as_json)
        return
    for name in workloads or ():
        if name not in NAMES:
            raise JobError(f"{name}: unknown workload. Choose from {', '.join(NAMES)}, or specify only {DATA}")
    rows = list(measure(workloads or NAMES, rounds, torch=against == "torch", on_gpu=device == "gpu"))
    if as_json:
        print_json([row.as_json() for row in rows])
    else:
        print_table(HEADER, [_measurement_cells(row) for row in rows], spare=())


def _bench_reading(gigabytes: float, seconds: float, *, as_json: bool) -> None:
    from pathlib import Path

    from cnnjob.checks.benchmarks.data_reading import measure_reading

    rows = list(measure_reading(Path(), int(gigabytes * 1e9), seconds))
    if as_json:
        print_json([row.as_json() for row in rows])
        return
    cells = [
        [
            "×".join(map(str, row.image_shape)),
            row.reading,
            f"{row.images_per_second:,.0f}",
            f"{row.megabytes_per_second:,.0f}",
        ]
        for row in rows
    ]
    print_table(["images", "reading", "images/s", "MB/s"], cells)


def _measurement_cells(row: "Row") -> list[str]:
    times = (f"{value:.2f}" for value in (row.median_ms, row.min_ms, row.max_ms))
    ratios = (row.speed_against_torch, row.speed_against_torch_at_best, row.speed_against_course, row.share_of_products)
    # None where there is nothing to measure: torch is not installed, or the workload is a single block without epochs.
    rest = ("" if value is None else f"{value:.2f}" for value in (row.epoch_seconds, *ratios))
    return [row.workload, row.engine, *times, f"{row.images_per_second:.0f}", *rest]
