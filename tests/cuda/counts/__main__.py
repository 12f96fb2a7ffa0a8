"""Counts of what a GPU has to do in a step of a job, taken from the plans of the CUDA engine; no GPU is needed.

    python -m tests.cuda.counts [JOB ...]

Without a job: the totals of all jobs that cnnjob comes with. With jobs: the counts of every kernel.
"""

# ruff: noqa: T201 - it is a command

import sys
from collections import defaultdict
from collections.abc import Sequence

from tests.cuda.counts.recording import Launch, record, shipped_jobs
from tests.cuda.counts.traffic import Counts

COLUMNS = f"{'launches':>8} {'GFLOP':>9} {'MB read':>9} {'MB written':>10}"


def main(jobs: Sequence[str]) -> None:
    """Print the counts of the named jobs by kernel, or the totals of all shipped jobs."""
    print(f"{'job':16} {'precision':9} {'batch':>5} {'step':10} {COLUMNS}")
    for name in jobs or shipped_jobs():
        job = record(name)
        for kind, launches in (("training", job.training), ("evaluation", job.evaluation)):
            print(f"{name:16} {job.precision:9} {job.batch_size:5} {kind:10} {_columns(Counts.of(launches))}")
            if jobs:
                _print_kernels(launches)


def _print_kernels(launches: Sequence[Launch]) -> None:
    """Print the counts of each kernel, those that move most first."""
    by_name = defaultdict(list)
    for launch in launches:
        by_name[launch.name].append(launch)
    counts = {name: Counts.of(same) for name, same in by_name.items()}
    for name in sorted(counts, key=lambda name: -counts[name].read - counts[name].written):
        print(f"{'':16} {name:26} {_columns(counts[name])}")


def _columns(counts: Counts) -> str:
    return f"{counts.launches:8,} {counts.flops / 1e9:9,.2f} {counts.read / 1e6:9,.1f} {counts.written / 1e6:10,.1f}"


main(sys.argv[1:])
