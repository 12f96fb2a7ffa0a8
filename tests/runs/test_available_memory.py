"""Memory that a process can use, from the kernel's and SLURM's own reports."""

from pathlib import Path

from cnnjob.runs.environment import available_memory_bytes

GIB = 1 << 30


def reports(root: Path, groups: str, files: dict[str, str]) -> tuple[Path, Path]:
    """Folders that look like /proc and /sys/fs/cgroup, on a machine with 64 GiB free and a process of 1 GiB."""
    proc, cgroups = root / "proc", root / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 99999999 kB\nMemAvailable:   67108864 kB\n")
    (proc / "self" / "cgroup").write_text(groups)
    (proc / "self" / "statm").write_text("999999 262144 1 1 0 1 0\n")
    for name, content in files.items():
        (cgroups / name).parent.mkdir(parents=True, exist_ok=True)
        (cgroups / name).write_text(content)
    return proc, cgroups


def test_without_limits_it_is_the_kernels_estimate(tmp_path: Path) -> None:
    assert available_memory_bytes(*reports(tmp_path, "0::/\n", {}), {}) == 64 * GIB


def test_the_tightest_control_group_counts_and_page_cache_is_free(tmp_path: Path) -> None:
    files = {
        "job/memory.max": f"{8 * GIB}\n",
        "job/memory.stat": f"anon {2 * GIB}\nfile {5 * GIB}\n",
        "job/step/memory.max": "max\n",
        "memory.max": f"{32 * GIB}\n",
    }
    assert available_memory_bytes(*reports(tmp_path, "0::/job/step\n", files), {}) == 6 * GIB


def test_control_groups_of_version_1(tmp_path: Path) -> None:
    statistics = f"rss 5\nhierarchical_memory_limit {4 * GIB}\ntotal_rss {3 * GIB}\n"
    place = reports(tmp_path, "9:cpu,memory:/job\n3:pids:/user\n", {"memory/job/memory.stat": statistics})
    assert available_memory_bytes(*place, {}) == GIB


def test_the_memory_of_a_slurm_job_less_this_process(tmp_path: Path) -> None:
    place = reports(tmp_path, "0::/\n", {})
    assert available_memory_bytes(*place, {"SLURM_MEM_PER_NODE": "4096"}) == 3 * GIB
    assert available_memory_bytes(*place, {"SLURM_MEM_PER_CPU": "2048", "SLURM_CPUS_ON_NODE": "4"}) == 7 * GIB
    assert available_memory_bytes(*place, {"SLURM_MEM_PER_NODE": "100"}) == 0
    assert available_memory_bytes(*place, {"SLURM_MEM_PER_NODE": ""}) == 64 * GIB
