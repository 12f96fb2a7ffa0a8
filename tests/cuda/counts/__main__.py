"""Counts of what a GPU has to do in a step of a job, taken from the plans of the CUDA engine; no GPU is needed.

    python -m tests.cuda.counts [JOB ...] [--set KEY=VALUE ...] [--sm-75] [--machine-code] [--banks]

Without a job: the totals of all jobs that cnnjob comes with. With jobs: every kernel's. Times are modelled for an H200
(h200.py), also with all constants at their likely best and worst; they are not measured. With --machine-code:
registers, spills and instructions of every kernel. With --banks: how often lanes wait for each other in shared memory,
by the addresses in the kernels' PTX, run on the CPU.
"""

# ruff: noqa: T201 - it is a command

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence

from cnnjob.errors import CnnjobError
from tests.cuda import nvrtc
from tests.cuda.counts.banks import BankDevice, run_kernels
from tests.cuda.counts.h200 import FAST, H200, SLOW, Gpu
from tests.cuda.counts.instructions import LISTING, PATH, TENSOR, WORK, instructions_per_unit
from tests.cuda.counts.machine_code import machine_codes, missing_tools
from tests.cuda.counts.recording import Launch, parameters, record, shipped_jobs
from tests.cuda.counts.traffic import Counts

ARCHITECTURES = "sm_80", "sm_90"
UNITS = {PATH: "thread", TENSOR: "product of a warp", "FFMA": "multiply-add", "LDG": "load"}


def main() -> None:
    """Print what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.cuda.counts", description="Counts from plans, without a GPU."
    )
    parser.add_argument("jobs", nargs="*", metavar="JOB", help="print every kernel of these jobs")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="change settings of the jobs")
    parser.add_argument("--sm-75", action="store_true", help="plan as for a GPU without the instructions of sm_80")
    parser.add_argument("--machine-code", action="store_true", help="compile the kernels and print what they need")
    parser.add_argument("--banks", action="store_true", help="print the conflicts of shared-memory banks")
    arguments = parser.parse_args()
    if arguments.machine_code:
        print_machine_code()
    if arguments.banks:
        print_banks()
    if not arguments.machine_code and not arguments.banks:
        try:
            print_counts(arguments.jobs, arguments.set, 0 if arguments.sm_75 else 3)
        except CnnjobError as error:
            raise SystemExit(f"error: {error}") from None


def print_counts(jobs: Sequence[str], settings: Sequence[str], wide_stages: int) -> None:
    """Print the counts of the named jobs by kernel, or the totals of all shipped jobs."""
    columns = f"{'launches':>8} {'GFLOP':>8} {'MB read':>8} {'MB written':>10} {'modelled ms':>11}"
    print(f"{'job':16} {'precision':9} {'batch':>5} {'step':10} {columns} {'from':>7} {'to':>7}  epoch, training")
    for name in jobs or shipped_jobs():
        job = record(name, *settings, wide_stages=wide_stages)

        def seconds(launches: Sequence[Launch], gpu: Gpu = H200, precision: str = job.precision) -> float:
            return gpu.step_seconds(launches, precision)

        for kind, launches in (("training", job.training), ("evaluation", job.evaluation)):
            limits = " ".join(f"{1e3 * seconds(launches, gpu):7.3f}" for gpu in (FAST, SLOW))
            times = [f"{gpu.training_seconds(job):,.2f}" for gpu in (H200, FAST, SLOW)]
            whole = f"  {1e3 * H200.epoch_seconds(job):,.1f} ms, {times[0]} s ({times[1]} to {times[2]})"
            row = f"{name:16} {job.precision:9} {job.batch_size:5} {kind:10} {_columns(launches, seconds)} {limits}"
            print(row + whole * (kind == "training"))
            if jobs:
                _print_kernels(launches, seconds)


def _print_kernels(launches: Sequence[Launch], seconds: Callable[[Sequence[Launch]], float]) -> None:
    """Print the counts of each kernel, those that take most time first."""
    by_name = defaultdict(list)
    for launch in launches:
        by_name[launch.name].append(launch)
    for name, same in sorted(by_name.items(), key=lambda item: -seconds(item[1])):
        print(f"{'':16} {name:26} {_columns(same, seconds)}")


def _columns(launches: Sequence[Launch], seconds: Callable[[Sequence[Launch]], float]) -> str:
    counts = Counts.of(launches)
    megabytes = f"{counts.read / 1e6:8,.1f} {counts.written / 1e6:10,.1f}"
    return f"{counts.launches:8,} {counts.flops / 1e9:8,.2f} {megabytes} {1e3 * seconds(launches):11,.3f}"


def print_machine_code() -> None:
    """Print what each compiled kernel needs, or why it cannot be known here."""
    if reason := missing_tools():
        raise SystemExit(f"machine code: {reason}")
    titles = (
        "registers",
        "spills",
        "shared bytes",
        "instructions",
        "main loop",
        "tensor cores",
        "multiply-adds",
        "memory",
    )
    print(f"{'kernel':24} {'for':5} ", *(f"{title:>13}" for title in titles), "  instructions per")
    for name in machine_codes(ARCHITECTURES[0]):
        for architecture in ARCHITECTURES:
            code, work = machine_codes(architecture)[name], WORK[name]
            loop = code.main_loop
            numbers = code.registers, code.spills, code.shared_bytes, len(code.texts), loop.total()
            parts = loop["HMMA"], loop["FFMA"], loop["LDG"] + loop["STG"]
            per = "" if work.per == LISTING else f"{instructions_per_unit(code, work):7.1f} {UNITS[work.per]}"
            print(f"{name:24} {architecture:5} ", *(f"{number:13,}" for number in (*numbers, *parts)), f" {per}")


def print_banks() -> None:
    """Print every instruction that accesses shared memory, with its conflicts."""
    if nvrtc.library() is None:
        raise SystemExit("banks: NVRTC is not installed; pip install nvidia-cuda-nvrtc")
    device = run_kernels(BankDevice())
    print(f"{'kernel':24} {'accesses':>9} {'ways':>5} {'mean':>5}  instruction")
    for name in parameters():
        for instruction, accesses, ways, mean in device.conflicts(name):
            print(f"{name:24} {accesses:9,} {ways:5} {mean:5.2f}  {instruction}")


main()
