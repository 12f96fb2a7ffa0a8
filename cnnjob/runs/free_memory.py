"""Memory that this process can still use: what is free, within the limits of its job."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


def available_memory_bytes(
    proc: Path = PROC, cgroups: Path = CGROUPS, variables: Mapping[str, str] = os.environ
) -> int:
    """Return the memory that this process can use without swapping or being killed, in bytes.

    Args:
        proc: the folder of the kernel's reports on processes and memory.
        cgroups: the folder of the kernel's control groups.
        variables: environment variables, of which SLURM's are read.

    Returns:
        The least of the kernel's estimate, what the control groups leave, and what the SLURM job leaves.
    """
    free = _kernel_estimate(proc)
    # /proc/meminfo shows the whole machine, also inside a container and inside a job with less memory.
    return max(0, min([free, *_cgroup_limits(proc, cgroups), *_slurm_limits(proc, variables)]))


def _kernel_estimate(proc: Path) -> int:
    with suppress(OSError):
        match = re.search(r"^MemAvailable:\s+(\d+) kB", (proc / "meminfo").read_text(encoding="utf-8"), re.MULTILINE)
        if match:
            return int(match[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroup_limits(proc: Path, cgroups: Path) -> Iterator[int]:
    """Yield what each control group with a limit on memory leaves; page cache counts as free, since it is dropped."""
    with suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:  # version 2
                group = cgroups / path.lstrip("/")
                for folder in (group, *group.parents):
                    limit, statistics = _text(folder / "memory.max"), _statistics(folder)
                    if limit.strip().isdigit():
                        yield int(limit) - statistics.get("anon", 0)
                    if folder == cgroups:
                        break
            elif "memory" in controllers.split(","):  # version 1, which sums up the limits of all groups above
                statistics = _statistics(cgroups / "memory" / path.lstrip("/"))
                if limit_bytes := statistics.get("hierarchical_memory_limit"):
                    yield limit_bytes - statistics.get("total_rss", 0)


def _slurm_limits(proc: Path, variables: Mapping[str, str]) -> Iterator[int]:
    """Yield what the memory of the SLURM job leaves, which is not always enforced by control groups."""
    per_node, per_cpu, cpus = (
        int(value) if (value := variables.get(f"SLURM_{name}", "")).isdigit() else 0
        for name in ("MEM_PER_NODE", "MEM_PER_CPU", "CPUS_ON_NODE")
    )
    if megabytes := per_node or per_cpu * cpus:
        pages = _text(proc / "self" / "statm").split()
        resident = int(pages[1]) * os.sysconf("SC_PAGE_SIZE") if len(pages) > 1 else 0
        yield (megabytes << 20) - resident


def _statistics(folder: Path) -> dict[str, int]:
    rows = (line.split() for line in _text(folder / "memory.stat").splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}  # noqa: PLR2004 - name, value


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8")
    return ""
