"""Checks of the cluster through SLURM: partitions, GPUs, accounts, requeueing, signals and the size of job arrays."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cnnjob.doctor.findings import Finding
from cnnjob.errors import SchedulerError, format_seconds, plural
from cnnjob.slurm.scheduler import client, site
from cnnjob.slurm.scheduler.site import Partition, Site

MEGABYTES = 1000
MAX_PARTITIONS = 8
# sinfo appends + to a number if the nodes on a line differ; the number is then the minimum. The number of digits is
# limited because int() rejects strings with thousands of digits.
_NODES = re.compile(r"([^|]+)\|([0-9]{1,9})\|([0-9]{1,9})\+?\|([0-9]{1,18})\+?\|(.*)")
# Matches each GPU entry in a GRES column such as gpu:a100:4(S:0-1),gpu:2.
_GPUS = re.compile(r"\bgpu(?::(?P<type>[A-Za-z][\w.-]*))?:(?P<count>[0-9]{1,9})(?![0-9])")


@dataclass(frozen=True)
class Nodes:
    """Nodes with the same hardware in one partition."""

    partition: str
    count: int
    cores: int
    megabytes: int
    gpus: tuple[tuple[str, int], ...]
    """Types (``""`` if unspecified) and numbers of the GPUs on each node."""

    @classmethod
    def parse(cls, line: str) -> "Nodes | None":
        """Parse a line of ``sinfo`` output; return None if the line has a different format."""
        if not (match := _NODES.fullmatch(line.strip())):
            return None
        partition, count, cores, megabytes, gres = match.groups()
        gpus = tuple((gpu["type"] or "", int(gpu["count"])) for gpu in _GPUS.finditer(gres))
        return cls(partition, int(count), int(cores), int(megabytes), gpus)

    @property
    def gpu_count(self) -> int:
        """Number of GPUs per node."""
        return sum(count for _, count in self.gpus)

    def describe(self) -> str:
        """Return a description of the nodes, such as ``2 nodes with 4 cores, 8 GB and 2 a100``."""
        parts = [plural(self.cores, "core")]
        if self.megabytes > 1:  # 1 is SLURM's default if the memory is not configured
            parts.append(f"{self.megabytes / MEGABYTES:.0f} GB")
        parts += [f"{count} {kind}" if kind else plural(count, "GPU") for kind, count in self.gpus]
        *most, last = parts
        equipment = f"{', '.join(most)} and {last}" if most else last
        return f"{plural(self.count, 'node')} with {equipment}"


@dataclass(frozen=True)
class Cluster:
    """The cluster as SLURM describes it."""

    site: Site
    nodes: tuple[Nodes, ...] = ()
    accounts: tuple[str, ...] = field(default=())
    """This user's accounts; empty if the site does not use SLURM accounting."""

    def nodes_of(self, partition: Partition) -> list[Nodes]:
        """Return the nodes in a partition."""
        return [nodes for nodes in self.nodes if nodes.partition == partition.name]

    def gpu_count(self, partition: Partition) -> int:
        """Return the number of GPUs in a partition."""
        return sum(nodes.count * nodes.gpu_count for nodes in self.nodes_of(partition))

    def may_use(self, partition: Partition) -> bool:
        """Return whether a partition is up and open to one of this user's accounts."""
        mine = not self.accounts or partition.accounts == ("ALL",) or bool({*partition.accounts} & {*self.accounts})
        return partition.state == "UP" and mine


def query_cluster() -> Cluster:
    """Query SLURM about the cluster.

    Raises:
        SchedulerError: SLURM is not installed, or did not answer.
    """
    here = site.query_site()
    answer = client.ask(["sinfo", "--noheader", "--format=%R|%D|%c|%m|%G"])
    nodes = tuple(nodes for nodes in map(Nodes.parse, answer.splitlines()) if nodes)
    return Cluster(here, nodes, tuple(site.query_own_names("account")) if here.keeps_accounts else ())


def check_cluster(cluster: Cluster) -> Iterator[Finding]:
    """Check the settings of the cluster; yield one finding per setting or partition."""
    here = cluster.site
    name = f"SLURM {here.version}" if here.version else "SLURM"
    yield Finding("SLURM", "ok", f"{name} answers; {plural(len(here.partitions), 'partition')}")
    yield from _check_partitions(cluster, list(here.partitions.values()))
    yield _check_accounts(cluster)
    early_end = "a job that ends early"
    restart = f"{early_end} is requeued" if here.requeues else f"off; {early_end} submits a successor"
    yield Finding("requeueing", "ok", restart)
    signal = "its own signal" if here.signals_preempted else "SIGTERM"
    kill_wait = f"{here.kill_wait_seconds} s from SIGTERM to SIGKILL at the time limit"
    yield Finding("stopping", "ok", f"{kill_wait}; a preempted job receives {signal}")
    yield Finding("arrays", "ok", f"at most {here.max_array_size:,} tasks; a larger sweep is split into several arrays")


def _check_partitions(cluster: Cluster, partitions: Sequence[Partition]) -> Iterator[Finding]:
    """Yield one finding per partition; if there are many partitions, only for those with GPUs."""
    with_gpus = [partition for partition in partitions if cluster.gpu_count(partition)]
    for partition in partitions if len(partitions) <= MAX_PARTITIONS else with_gpus:
        yield _check_partition(cluster, partition)
    if not with_gpus:
        names = ", ".join(partition.name for partition in partitions[:MAX_PARTITIONS])
        advice = "submit with --set resources.backend=numpy, or with a profile that sets it"
        yield Finding("GPUs", "note", f"none in the partitions {names}", advice)


def _check_partition(cluster: Cluster, partition: Partition) -> Finding:
    mode, name = partition.preempt_mode, f"partition {partition.name}"
    properties = [
        *([nodes.describe() for nodes in cluster.nodes_of(partition)] or ["no nodes"]),
        f"at most {format_seconds(60 * partition.max_minutes)}" if partition.max_minutes else "no time limit",
        "not preempted" if mode in {"OFF", "GANG"} else f"preempted ({mode})",
        *(["the default"] if partition.is_default else []),
    ]
    if partition.state != "UP":
        message = "; ".join([*properties, f"state {partition.state}"])
        return Finding(name, "note", message, "it starts no jobs at present")
    if not cluster.may_use(partition):
        message = "; ".join([*properties, f"for accounts {', '.join(partition.accounts)}"])
        return Finding(name, "note", message, "none of your accounts is allowed to use it")
    return Finding(name, "ok", "; ".join(properties))


def _check_accounts(cluster: Cluster) -> Finding:
    if not cluster.site.keeps_accounts:
        message = "no SLURM accounting: --account is not needed; status comes from the run folders and the queue"
        return Finding("accounts", "ok", message)
    if not cluster.accounts:
        advice = "ask the administrators; sbatch may refuse your jobs"
        return Finding("accounts", "note", "SLURM lists no account for you", advice)
    return Finding("accounts", "ok", f"yours: {', '.join(cluster.accounts)}")


def query_if_reachable() -> tuple[Cluster | None, Finding | None]:
    """Return the cluster and None, or None and a finding that explains why the cluster cannot be queried."""
    if not client.has_slurm():
        advice = "train here with cnnjob train or cnnjob submit --local, or log in to a machine that has SLURM"
        return None, Finding("SLURM", "note", "not installed on this machine", advice)
    try:
        return query_cluster(), None
    except SchedulerError as error:
        if client.is_absent(error):  # installed, for example with a distribution's packages, but never configured
            advice = "train here with cnnjob train or cnnjob submit --local, or log in to a machine of a cluster"
            return None, Finding("SLURM", "note", "installed on this machine, but not configured", advice)
        lines = str(error).splitlines()
        reason = " … ".join([lines[0], *lines[1:][-1:]])
        advice = (
            "no job can be submitted from here; check the output of scontrol ping, and SLURM_CONF if this is not a "
            "login node"
        )
        return None, Finding("SLURM", "bad", reason, advice)
