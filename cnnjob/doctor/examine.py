"""Whether everything is as cnnjob needs it: this machine, the folder of the runs, the cluster.

Nothing is changed; what is tried is tried in a temporary folder.
"""

from collections.abc import Iterator
from pathlib import Path

from cnnjob.doctor import cluster, filesystem, machine
from cnnjob.doctor.findings import Finding
from cnnjob.doctor.profile import write

__all__ = ["Finding", "examine", "write_profile"]


def examine(runs: Path) -> Iterator[Finding]:
    """Look at everything.

    Args:
        runs: the folder of the runs.

    Yields:
        A finding each, as soon as it is known.
    """
    yield from machine.findings()
    there, why = cluster.reachable()
    yield from filesystem.findings(runs, on_cluster=there is not None)
    yield from cluster.findings(there) if there else [why] if why else []


def write_profile(name: str, partition: str | None = None) -> Path:
    """Write ``slurm/NAME.toml`` from what the cluster tells.

    Args:
        name: the profile's.
        partition: which of the cluster's; the one that suits a training best by default.

    Returns:
        The file.

    Raises:
        SchedulerError: SLURM is not there, or there is no such partition.
        JobError: there is such a profile already.
    """
    return write(name, cluster.query_cluster(), partition)
