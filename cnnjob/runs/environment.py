"""The environment of a run: its code, packages and machine, and which of them affect the bits of its results.

This module also determines how much memory is available.
"""

import ctypes
import os
import platform
import re
import shlex
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from cnnjob import __version__
from cnnjob.runs.commit import find_commit

PACKAGES = ("numpy", "scipy", "h5py", "pydantic", "scikit-learn", "submitit")
PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


def describe(backend: str, precision: str, arithmetic: int, cores: int, gpu: Any = None) -> dict[str, Any]:
    """Return a description of the code, packages and hardware that this process uses.

    Args:
        backend: ``numpy`` or ``cuda``.
        precision: precision of the arithmetic.
        arithmetic: version of the arithmetic, :data:`cnnjob.nn.ARITHMETIC`.
        cores: number of cores that this process may use.
        gpu: the :class:`cnnjob.nn.cuda.device.CudaDevice`; None on a CPU.

    Returns:
        The content of ``environment.json``. Environments with equal ``bits`` give results that are equal bit for bit.
    """
    packages = _list_packages()
    return {
        "command": shlex.join(sys.argv),
        **find_commit(),
        "python": platform.python_version(),
        "packages": packages,
        "host": socket.gethostname(),
        "device": f"gpu: {gpu.name}" if gpu else f"cpu: {_read_processor()}",
        "cores": cores,
        "backend": backend,
        "precision": precision,
        "bits": {
            "backend": backend,
            "arithmetic": arithmetic,
            "cnnjob": packages["cnnjob"],
            "numpy": packages["numpy"],
            "machine": platform.machine(),
            # BLAS and NumPy choose kernels by the processor's features, and different kernels sum in different orders.
            **(_describe_gpu(gpu) if gpu else {"blas": _describe_blas(), "simd": _list_simd()}),
        },
    }


def environment_differences(first: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Compare two environments; return one line per difference that may change the bits of a result."""
    before, bits = first.get("bits"), now["bits"]
    if not isinstance(before, dict):
        return ["the environment of the first attempt is unknown"]
    return [
        f"{name} {bits.get(name)} instead of {before.get(name, 'an unknown value')}"
        for name in {**before, **bits}
        if not _is_the_same(name, before.get(name), bits.get(name))
    ]


def _is_the_same(name: str, before: Any, now: Any) -> bool:
    """Return whether a value of the environment equals the value in an earlier record.

    Older versions of cnnjob recorded a list of all loaded BLAS libraries. A list that contains NumPy's BLAS library
    counts as equal.
    """
    return before == now or (name == "blas" and str(now) in str(before).split(", "))


def _describe_gpu(device: Any) -> dict[str, Any]:
    """Return the GPU's name, the driver version and the versions of the CUDA libraries."""
    try:
        driver = re.search(r"Module +([\d.]+)", Path("/proc/driver/nvidia/version").read_text(encoding="utf-8"))
    except OSError:
        driver = None
    return {"gpu": device.name, "driver": driver[1] if driver else None, **device.versions}


def _read_processor() -> str:
    """Return the processor's model name, or the machine type (such as ``x86_64``) if Linux does not report one."""
    with suppress(OSError):
        found = re.search(r"^model name\s*:(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.machine()


def _describe_blas() -> str:
    """Return the version of NumPy's BLAS library, and the processor type whose kernels the library uses.

    SciPy and scikit-learn may load other BLAS libraries, but training does not use them.
    """
    from threadpoolctl import threadpool_info  # noqa: PLC0415 - importing it inspects every loaded library

    library = _find_blas()
    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    own = [pool for pool in pools if Path(pool["filepath"]).resolve() == library] or pools
    names = {f"{p['internal_api']} {p['version']} {p.get('architecture', '')}".strip() for p in own}
    return ", ".join(sorted(names)) or (library.name if library else "")


_FUNCTIONS = (
    *("scipy_openblas_get_corename64_", "scipy_openblas_get_corename", "openblas_get_corename64_"),
    *("openblas_get_corename", "bli_info_get_version_str", "cblas_sgemm64_", "cblas_sgemm_64", "cblas_sgemm"),
)
"""Symbols that NumPy's BLAS library may export, in search order.

Those of OpenBLAS and BLIS come before the common ``cblas_sgemm``, which is in a separate file in Debian's packages.
"""


class _Symbol(ctypes.Structure):
    """The result of ``dladdr`` for an address (``Dl_info`` in ``dlfcn.h``)."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _find_blas() -> Path | None:
    """Return the path of the BLAS library that NumPy is linked with; None if it is not found."""
    # dlsym on NumPy's own extension module searches that module and the libraries it is linked with, but no other
    # BLAS loaded into the process.
    numpy = ctypes.CDLL(sys.modules["numpy._core._multiarray_umath"].__file__)
    for name in _FUNCTIONS:
        if hasattr(numpy, name):
            symbol, address = _Symbol(), ctypes.cast(numpy[name], ctypes.c_void_p)
            if ctypes.CDLL(None).dladdr(address, ctypes.byref(symbol)):
                return Path(os.fsdecode(symbol.file)).resolve()
    return None


def _list_simd() -> str:
    """Return the SIMD extensions of this processor that NumPy's loops use."""
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    return " ".join(sorted(found))


@cache  # a process keeps what it has imported, even if something else is installed meanwhile
def _list_packages() -> dict[str, str]:
    """Return the versions of the packages that are used for computation and for reading and writing files."""
    return {"cnnjob": __version__, **{name: version(name) for name in PACKAGES}}


def available_memory_bytes(
    proc: Path = PROC, cgroups: Path = CGROUPS, variables: Mapping[str, str] = os.environ
) -> int:
    """Return the memory, in bytes, that this process can use without swapping or being killed.

    Args:
        proc: mount point of the proc file system.
        cgroups: mount point of the control groups.
        variables: environment variables, including SLURM's.

    Returns:
        The smallest of three numbers: the kernel's estimate, what is left under the control groups' limits, and what is
        left under the SLURM job's limit.
    """
    free = _read_kernel_estimate(proc)
    # /proc/meminfo shows the whole machine, even inside a container or a SLURM job with less memory.
    return max(0, min([free, *_read_cgroup_limits(proc, cgroups), *_read_slurm_limits(proc, variables)]))


def _read_kernel_estimate(proc: Path) -> int:
    with suppress(OSError):
        match = re.search(r"^MemAvailable:\s+(\d+) kB", (proc / "meminfo").read_text(encoding="utf-8"), re.MULTILINE)
        if match:
            return int(match[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _read_cgroup_limits(proc: Path, cgroups: Path) -> Iterator[int]:
    """Yield the bytes left under each control group's limit; the page cache counts as free, since it can be dropped."""
    with suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:  # version 2
                group = cgroups / path.lstrip("/")
                for folder in (group, *group.parents):
                    limit, statistics = _read_line(folder / "memory.max"), _read_statistics(folder)
                    if limit.strip().isdigit():
                        yield int(limit) - statistics.get("anon", 0)
                    if folder == cgroups:
                        break
            elif "memory" in controllers.split(","):  # version 1, whose limit accounts for all parents
                statistics = _read_statistics(cgroups / "memory" / path.lstrip("/"))
                if limit_bytes := statistics.get("hierarchical_memory_limit"):
                    yield limit_bytes - statistics.get("total_rss", 0)


def _read_slurm_limits(proc: Path, variables: Mapping[str, str]) -> Iterator[int]:
    """Yield the bytes left under the SLURM job's memory limit, which control groups do not always enforce."""
    per_node, per_cpu, cpus = (
        int(value) if (value := variables.get(f"SLURM_{name}", "")).isdigit() else 0
        for name in ("MEM_PER_NODE", "MEM_PER_CPU", "CPUS_ON_NODE")
    )
    if megabytes := per_node or per_cpu * cpus:
        pages = _read_line(proc / "self" / "statm").split()
        resident = int(pages[1]) * os.sysconf("SC_PAGE_SIZE") if len(pages) > 1 else 0
        yield (megabytes << 20) - resident


def _read_statistics(folder: Path) -> dict[str, int]:
    rows = (line.split() for line in _read_line(folder / "memory.stat").splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}  # noqa: PLR2004 - name, value


def _read_line(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8")
    return ""
