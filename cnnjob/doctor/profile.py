"""Generation of a cluster profile from the information that SLURM provides about the cluster."""

from pathlib import Path

from cnnjob.doctor.cluster import Cluster, Nodes, query_cluster
from cnnjob.errors import JobError, format_seconds
from cnnjob.files import write_whole
from cnnjob.slurm.scheduler.site import Partition
from cnnjob.slurm.submit import profiles

MOST_CORES, MOST_GIGABYTES = 4, 16
"""Maximum cores and memory (GiB) to request: a run needs no more, and a larger request only delays its start."""
TIME_LIMIT_MINUTES = 120
"""Time limit in a profile. Jobs with a short time limit start earlier; a longer run resumes in its next attempt."""
MEMORY_SHARE, SBATCH_GIGABYTE = 0.95, 1024
"""Share of a node's memory to request, and the number of MiB in sbatch's ``G``."""
FOLDER = Path("slurm")


def write_profile(name: str, partition: str | None = None) -> Path:
    """Write ``slurm/NAME.toml`` from the information that SLURM provides about the cluster.

    Args:
        name: the profile's name: letters, digits, ``-`` and ``_``.
        partition: one of the cluster's partitions; by default, the one best suited to training.

    Returns:
        The path of the file.

    Raises:
        JobError: the profile already exists, or its name is not valid.
        SchedulerError: SLURM is not available, or the cluster has no partition with this name.
    """
    cluster, path = query_cluster(), FOLDER / f"{name}.toml"
    if not name.replace("-", "").replace("_", "").isalnum():
        raise JobError(f"--write-profile {name}: not a valid profile name. Use letters, digits, - and _")
    if path.exists():
        raise JobError(f"--write-profile {name}: {path} already exists. Choose another name, or remove the file")
    request = profiles.load_request(None, {"partition": partition})
    cluster.site.check(request)
    chosen = cluster.site.partition_of(request) if partition else best_partition(cluster)
    if chosen is None:
        raise JobError(
            "--write-profile: found no partition that accepts your jobs. If one does, specify it with --partition"
        )
    FOLDER.mkdir(exist_ok=True)
    write_whole(path, profile_text(name, cluster, chosen).encode())
    return path


def best_partition(cluster: Cluster) -> Partition | None:
    """Return the best partition for training; None if this user may not use any partition.

    Partitions with GPUs are preferred, then those that are not preempted, then the default partition, and then those
    with the most GPUs.
    """
    ranks = []
    for partition in filter(cluster.may_use, cluster.site.partitions.values()):
        gpu_count = cluster.gpu_count(partition)
        # GANG suspends jobs in turn (time slicing) but does not end them.
        is_kept = partition.preempt_mode in {"OFF", "GANG"}
        ranks.append((gpu_count > 0, is_kept, partition.is_default, gpu_count, partition))
    return max(ranks, key=lambda rank: rank[:-1])[-1] if ranks else None


def profile_text(name: str, cluster: Cluster, partition: Partition) -> str:
    """Return the text of a profile for a partition, with explanatory comments."""
    nodes = max(cluster.nodes_of(partition), key=lambda nodes: nodes.count * (1 + nodes.gpu_count), default=None)
    limit = f"at most {format_seconds(60 * partition.max_minutes)}" if partition.max_minutes else "no time limit"
    accounts = [name for name in cluster.accounts if partition.accounts == ("ALL",) or name in partition.accounts]
    account, others = accounts[:1], accounts[1:]
    lines = [
        f"# {name}: written by cnnjob doctor --write-profile {name}. All keys: gpu-site.toml.example",
        "#",
        f"#   cnnjob submit JOB --profile {name} --dry-run",
        "",
        f"# {nodes.describe() if nodes else 'No nodes listed'}; {limit}",
        f'partition = "{partition.name}"',
        *([f"# Your other accounts: {', '.join(others)}"] if others else []),
        *(f'account = "{name}"' for name in account),
        "# A run that needs more time resumes in its next attempt",
        f'time = "{min(TIME_LIMIT_MINUTES, partition.max_minutes or TIME_LIMIT_MINUTES)}m"',
        *(_resources(cluster, nodes) if nodes else ()),
    ]
    return "\n".join(lines) + "\n"


def _resources(cluster: Cluster, nodes: Nodes) -> list[str]:
    """Return a profile's lines that request one GPU, with its share of a node's cores and memory up to fixed limits."""
    shares = max(nodes.gpu_count, 1)
    cores = max(1, min(nodes.cores // shares, MOST_CORES))
    gigabytes = min(int(MEMORY_SHARE * nodes.megabytes / SBATCH_GIGABYTE / shares), MOST_GIGABYTES)
    lines = [f"cpus_per_task = {cores}"]
    if gigabytes > 0:
        lines.append(f'mem = "{gigabytes}G"')
    if not nodes.gpus:
        return [*lines, "# There are no GPUs", 'backend = "numpy"']
    lines += ["gpus = 1", f'gpu_request = "{"gpus-per-node" if cluster.site.counts_gpus else "gres"}"']
    kind, _ = max(nodes.gpus, key=lambda kind_and_count: kind_and_count[1])
    return [*lines, f'gpu_type = "{kind}"'] if kind else lines
