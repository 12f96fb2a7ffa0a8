"""All checks of ``cnnjob doctor``: this machine, the runs folder and the cluster.

The checks change nothing; file operations are tested in a temporary folder.
"""

from collections.abc import Iterator
from pathlib import Path

from cnnjob.doctor import cluster, filesystem, machine
from cnnjob.doctor.findings import Finding


def examine(runs: Path) -> Iterator[Finding]:
    """Run all checks.

    Args:
        runs: the runs folder.

    Yields:
        One finding per check, as soon as it is available.
    """
    yield from machine.check_machine()
    described, unreachable = cluster.query_if_reachable()
    yield from filesystem.check_filesystem(runs, on_cluster=described is not None)
    if described:
        yield from cluster.check_cluster(described)
    if unreachable:
        yield unreachable
