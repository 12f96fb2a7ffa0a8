"""Check everything that cnnjob needs: this machine, the folder of runs, the cluster.

Nothing is changed; file operations are tried in a temporary folder.
"""

from collections.abc import Iterator
from pathlib import Path

from cnnjob.doctor import cluster, filesystem, machine
from cnnjob.doctor.findings import Finding
from cnnjob.doctor.profile import write

__all__ = ["Finding", "examine", "write_profile"]


def examine(runs: Path) -> Iterator[Finding]:
    """Run all checks.

    Args:
        runs: the folder of runs.

    Yields:
        One finding per check, as soon as it is known.
    """
    yield from machine.findings()
    there, why = cluster.reachable()
    yield from filesystem.findings(runs, on_cluster=there is not None)
    yield from cluster.findings(there) if there else [why] if why else []


def write_profile(name: str, partition: str | None = None) -> Path:
    """Write ``slurm/NAME.toml`` from what SLURM says about the cluster.

    Args:
        name: the profile's name.
        partition: a partition of the cluster; by default the one that suits a training best.

    Returns:
        The path of the file.

    Raises:
        SchedulerError: SLURM is not available, or there is no such partition.
        JobError: the profile exists already, or the name is not valid.
    """
    return write(name, cluster.query_cluster(), partition)
