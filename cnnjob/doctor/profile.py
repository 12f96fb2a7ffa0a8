"""A cluster profile, written from what SLURM says about the cluster."""

from pathlib import Path

from cnnjob.doctor.cluster import Cluster, Nodes
from cnnjob.errors import JobError, format_seconds
from cnnjob.files import write_whole
from cnnjob.slurm.scheduler.site import Partition
from cnnjob.slurm.submit import profiles

MOST_CORES, MOST_GIGABYTES = 4, 16
"""Most cores and GB to request: a run needs no more, and unused resources make every job wait longer, its own too."""
MINUTES = 120
"""Time limit of a profile: a short one starts earlier, and a run that needs longer resumes in its next attempt."""
SHARED_OUT, SBATCH_GIGABYTE = 0.95, 1024
"""Share of a node's memory to request; and megabytes (MiB) in sbatch's ``G``."""
FOLDER = Path("slurm")


def write(name: str, cluster: Cluster, partition: str | None = None) -> Path:
    """Write ``slurm/NAME.toml``.

    Args:
        name: the profile's name: letters, digits, ``-`` and ``_``.
        cluster: the cluster that it is for.
        partition: one of its partitions; by default the one that suits a training best.

    Returns:
        The path of the file.

    Raises:
        JobError: the profile exists already, or the name is not valid.
        SchedulerError: there is no such partition.
    """
    path = FOLDER / f"{name}.toml"
    if not name.replace("-", "").replace("_", "").isalnum():
        raise JobError(f"--write-profile {name}: no name of a profile; use letters, digits, - and _")
    if path.exists():
        raise JobError(f"--write-profile {name}: there is {path} already; choose another name, or move it away")
    asked = profiles.load(None, {"partition": partition})
    cluster.site.check(asked)
    chosen = cluster.site.partition_of(asked) if partition else best(cluster)
    if chosen is None:
        raise JobError("--write-profile: SLURM names no partition that starts your jobs; name one with --partition")
    FOLDER.mkdir(exist_ok=True)
    write_whole(path, content(name, cluster, chosen).encode())
    return path


def best(cluster: Cluster) -> Partition | None:
    """Return the best partition for a training: one with GPUs, not preempted, the default, with the most GPUs."""
    usable = [one for one in cluster.site.partitions.values() if cluster.may_use(one)]

    def merit(one: Partition) -> tuple[bool, bool, bool, int]:
        gpus = cluster.gpu_count(one)
        # GANG only suspends jobs in turns (time slicing): no job is ended by it.
        return gpus > 0, one.preempt_mode in {"OFF", "GANG"}, one.is_default, gpus

    return max(usable, key=merit, default=None)


def content(name: str, cluster: Cluster, partition: Partition) -> str:
    """Return the profile's text, in which comments give the reason of each choice."""
    nodes = max(cluster.nodes_of(partition), key=lambda one: one.count * (1 + one.gpu_count), default=None)
    limit = f"at most {format_seconds(60 * partition.max_minutes)}" if partition.max_minutes else "no time limit"
    lines = [
        f"# {name}: as `cnnjob doctor --write-profile {name}` found it. Every key: gpu-site.toml.example",
        "#",
        f"#   cnnjob submit JOB --profile {name} --dry-run",
        "",
        f"# {nodes.sentence() if nodes else 'No nodes were told'}; {limit}",
        f'partition = "{partition.name}"',
        *_account(cluster, partition),
        *["# A run that needs longer goes on in its next life", f'time = "{_minutes(partition)}m"'],
        *(_resources(cluster, nodes) if nodes else ()),
    ]
    return "\n".join(lines) + "\n"


def _account(cluster: Cluster, partition: Partition) -> list[str]:
    mine = [one for one in cluster.accounts if partition.accounts == ("ALL",) or one in partition.accounts]
    others = [f"# Yours too: {', '.join(mine[1:])}"] * (len(mine) > 1)
    return [*others, *(f'account = "{one}"' for one in mine[:1])]


def _minutes(partition: Partition) -> int:
    return min(MINUTES, partition.max_minutes or MINUTES)


def _resources(cluster: Cluster, nodes: Nodes) -> list[str]:
    """Return the lines that request one GPU and its share of a node's cores and memory, at most what a run needs."""
    shares = max(nodes.gpu_count, 1)
    cores = max(1, min(nodes.cores // shares, MOST_CORES))
    gigabytes = min(int(SHARED_OUT * nodes.megabytes / SBATCH_GIGABYTE / shares), MOST_GIGABYTES)
    memory = [f'mem = "{gigabytes}G"'] * (gigabytes > 0)
    if not nodes.gpus:
        return [f"cpus_per_task = {cores}", *memory, "# There are no GPUs", 'backend = "numpy"']
    kind, _ = max(nodes.gpus, key=lambda one: one[1])
    types = [f'gpu_type = "{kind}"'] * bool(kind)
    form = f'gpu_request = "{"gpus-per-node" if cluster.site.counts_gpus else "gres"}"'
    return [f"cpus_per_task = {cores}", *memory, "gpus = 1", form, *types]
