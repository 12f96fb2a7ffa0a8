"""Checks of the cluster through SLURM: partitions, GPUs, limits, accounts, requeueing and stopping of jobs."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cnnjob.doctor.findings import Finding
from cnnjob.errors import SchedulerError, format_seconds
from cnnjob.slurm.scheduler import client, site
from cnnjob.slurm.scheduler.site import Partition, Site

MEGABYTES = 1000
MANY_PARTITIONS = 8
# sinfo appends + to a number where the nodes of a line differ: it is the smallest of them then. The digits are limited,
# as int() refuses a text of thousands of them.
_NODES = re.compile(r"([^|]+)\|([0-9]{1,9})\|([0-9]{1,9})\+?\|([0-9]{1,18})\+?\|(.*)")
# Matches each GPU type of a GRES column, such as gpu:a100:4(S:0-1),gpu:2.
_GPUS = re.compile(r"\bgpu(?::(?P<type>[A-Za-z][\w.-]*))?:(?P<count>[0-9]{1,9})(?![0-9])")


@dataclass(frozen=True)
class Nodes:
    """Nodes of a partition that have equal hardware."""

    partition: str
    count: int
    cores: int
    megabytes: int
    gpus: tuple[tuple[str, int], ...]
    """GPU type (``""`` if untyped) and number, per node."""

    @classmethod
    def of(cls, line: str) -> "Nodes | None":
        """Parse a line of ``sinfo``; return None if it has another form."""
        if not (found := _NODES.fullmatch(line.strip())):
            return None
        gpus = tuple((gpu["type"] or "", int(gpu["count"])) for gpu in _GPUS.finditer(found[5]))
        return cls(found[1], int(found[2]), int(found[3]), int(found[4]), gpus)

    @property
    def gpu_count(self) -> int:
        """Number of GPUs of one node."""
        return sum(count for _, count in self.gpus)

    def sentence(self) -> str:
        """Describe the nodes: ``2 nodes of 4 cores, 8 GB and 2 a100``."""
        gpus = [f"{count} {kind or 'GPU' + 's' * (count > 1)}" for kind, count in self.gpus]
        memory = [f"{self.megabytes / MEGABYTES:.0f} GB"] * (self.megabytes > 1)  # 1 is SLURM's default: not configured
        *most, last = [f"{self.cores} core{'s' * (self.cores > 1)}", *memory, *gpus]
        parts = f"{', '.join(most)} and {last}" if most else last
        return f"{self.count} node{'s' * (self.count > 1)} of {parts}"


@dataclass(frozen=True)
class Cluster:
    """The cluster as SLURM describes it."""

    site: Site
    nodes: tuple[Nodes, ...] = ()
    accounts: tuple[str, ...] = field(default=())
    """This user's accounts; empty if SLURM keeps no accounts."""

    def nodes_of(self, partition: Partition) -> list[Nodes]:
        """Return the nodes of a partition."""
        return [nodes for nodes in self.nodes if nodes.partition == partition.name]

    def gpu_count(self, partition: Partition) -> int:
        """Return the number of GPUs of a partition."""
        return sum(nodes.count * nodes.gpu_count for nodes in self.nodes_of(partition))

    def may_use(self, partition: Partition) -> bool:
        """Return whether a partition is up and open to one of this user's accounts."""
        mine = not self.accounts or partition.accounts == ("ALL",) or bool({*partition.accounts} & {*self.accounts})
        return partition.state == "UP" and mine


def query_cluster() -> Cluster:
    """Ask SLURM about the cluster.

    Raises:
        SchedulerError: SLURM is not installed, or does not answer.
    """
    here = site.query_site()
    answer = client.ask(["sinfo", "--noheader", "--format=%R|%D|%c|%m|%G"])
    nodes = tuple(found for found in map(Nodes.of, answer.splitlines()) if found)
    return Cluster(here, nodes, tuple(site.yours("account")) if here.keeps_accounts else ())


def findings(cluster: Cluster) -> Iterator[Finding]:
    """Yield one finding per fact about the cluster."""
    here = cluster.site
    count = len(here.partitions)
    yield Finding("SLURM", "ok", f"{here.version or 'it'} answers, {count} partition{'s' * (count != 1)}")
    yield from _partitions(cluster, list(here.partitions.values()))
    yield _accounts(cluster)
    yield _requeueing(here)
    yield Finding("stopping", "ok", _stopping(here))
    yield Finding("arrays", "ok", f"of at most {here.max_array_size:,} jobs; a longer sweep is cut")


def _partitions(cluster: Cluster, partitions: Sequence[Partition]) -> Iterator[Finding]:
    """Yield a finding per partition: of those with GPUs, and if there are few partitions, of all."""
    with_gpus = [one for one in partitions if cluster.gpu_count(one)]
    for one in partitions if len(partitions) <= MANY_PARTITIONS else with_gpus:
        yield _partition(cluster, one)
    if not with_gpus:
        names = ", ".join(one.name for one in partitions[:MANY_PARTITIONS])
        said = f"no partition has any ({names})"
        yield Finding("GPUs", "note", said, "submit with --set resources.backend=numpy, or a profile that says so")


def _partition(cluster: Cluster, one: Partition) -> Finding:
    nodes = "; ".join(nodes.sentence() for nodes in cluster.nodes_of(one)) or "no nodes"
    limit = f"at most {format_seconds(60 * one.max_minutes)}" if one.max_minutes else "no time limit"
    preempted = f"preempted ({one.preempt_mode})" if one.preempt_mode not in {"OFF", "GANG"} else "not preempted"
    said = f"{nodes}; {limit}; {preempted}{'; the default' * one.is_default}"
    if one.state != "UP":
        return Finding(f"partition {one.name}", "note", f"{said}; it is {one.state}", "it starts no jobs now")
    if not cluster.may_use(one):
        return Finding(
            f"partition {one.name}", "note", f"{said}; for {', '.join(one.accounts)}", "not for your accounts"
        )
    return Finding(f"partition {one.name}", "ok", said)


def _accounts(cluster: Cluster) -> Finding:
    if not cluster.site.keeps_accounts:
        said = "none are kept: no --account is needed"
        return Finding("accounts", "ok", f"{said}; `cnnjob status` goes by the run folders and the queue")
    if not cluster.accounts:
        return Finding("accounts", "note", "SLURM knows none of yours", "ask the site; sbatch may refuse your jobs")
    return Finding("accounts", "ok", f"yours: {', '.join(cluster.accounts)}")


def _requeueing(here: Site) -> Finding:
    if here.requeues:
        return Finding("requeueing", "ok", "allowed: a job that ends early is put back into the queue")
    return Finding("requeueing", "ok", "off unless asked for: a job that ends early submits its successor")


def _stopping(here: Site) -> str:
    signal = "a preempted job gets its own signal" if here.signals_preempted else "a preempted job gets SIGTERM"
    return f"{here.kill_wait_seconds} s from SIGTERM to SIGKILL at the time limit; {signal}"


def reachable() -> tuple[Cluster | None, Finding | None]:
    """Return the cluster; or None, and a finding that says why it cannot be asked."""
    if not client.is_there():
        return None, Finding(
            "SLURM", "note", "not on this machine", "train with `cnnjob train` or `cnnjob submit --local`, or log in "
            "to a machine that has it",
        )  # fmt: skip
    try:
        return query_cluster(), None
    except SchedulerError as error:
        said = str(error).splitlines()
        reason = " … ".join([said[0], *said[1:][-1:]])
        advice = "see `scontrol ping`, and SLURM_CONF where this is not a login node; no job can be submitted from here"
        return None, Finding("SLURM", "bad", reason, advice)
