"""Checks of this machine: Python, packages, processor, GPU."""

import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from cnnjob.doctor.findings import Finding
from cnnjob.files import MOUNT_PROC, NO_PROC
from cnnjob.nn import available_cores
from cnnjob.nn.cuda.availability import why_unavailable
from cnnjob.nn.cuda.device import CudaDevice
from cnnjob.runs.environment import available_memory_bytes

GIGABYTE = 1e9
LITTLE_MEMORY_BYTES = 2e9
SMI_SECONDS = 30
_TROUBLE = (RuntimeError, OSError, MemoryError)  # what CuPy and ctypes raise


def findings() -> Iterator[Finding]:
    """Check this machine; yield one finding per check."""
    yield Finding("Python", "ok", f"{platform.python_version()}, {sys.executable}")
    if not Path("/proc/self").exists():
        yield Finding("processes", "bad", f"{NO_PROC}: no run can be trained", MOUNT_PROC)
    yield _packages()
    yield _processor()
    yield _gpu()


def _packages() -> Finding:
    """Check that the packages that cnnjob requires are installed in versions that it supports."""
    try:
        wanted = [Requirement(text) for text in metadata.requires("cnnjob") or ()]
    except metadata.PackageNotFoundError:
        return Finding("packages", "note", "cnnjob runs from a folder, it is not installed", "pip install -e .")
    # With an empty extra, requirements of optional extras are left out.
    wanted = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    lacking = [f"{one.name}{one.specifier} ({_version(one.name)})" for one in wanted if not _fits(one)]
    if lacking:
        names = " ".join(f"'{one.partition(' (')[0]}'" for one in lacking)
        return Finding("packages", "bad", f"lacking or too old: {', '.join(lacking)}", f"pip install {names}")
    return Finding("packages", "ok", f"all {len(wanted)} that are needed, NumPy {_version('numpy')}")


def _fits(wanted: Requirement) -> bool:
    return wanted.specifier.contains(_version(wanted.name), prereleases=True)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "0"


def _processor() -> Finding:
    cores, memory = available_cores(), available_memory_bytes()
    found = f"{cores} core{'s' * (cores > 1)}, {memory / GIGABYTE:.1f} GB of memory are free"
    if memory < LITTLE_MEMORY_BYTES:
        return Finding("processor", "note", found, "see what else runs here; MNIST takes 0.5 GB, CIFAR-10 1 GB")
    return Finding("processor", "ok", found)


def _gpu() -> Finding:
    """Check the GPU, which a training uses by default if it can."""
    lacking = why_unavailable()
    if lacking:
        found, _, advice = lacking.partition("; ")
        if names := _shown_by_driver():  # a GPU that CuPy cannot use is a fault of the installation, not a missing one
            return Finding("GPU", "bad", f"{names}, but {found}", advice)
        return Finding("GPU", "note", f"none here, trainings take the processor: {found}", advice)
    try:
        device = CudaDevice()
    except _TROUBLE as error:
        return Finding("GPU", "bad", f"it cannot be taken, {error}", "see nvidia-smi for what holds it")
    cuda = device.versions["cuda"]
    driver, free = f"{cuda // 1000}.{cuda % 1000 // 10}", f"{device.free_bytes / GIGABYTE:.1f} GB free"
    return Finding("GPU", "ok", f"{device.name}, {free}; CuPy {device.versions['cupy']}, a driver of CUDA {driver}")


def _shown_by_driver() -> str:
    """Return the GPUs that ``nvidia-smi`` lists; empty if there are none or it is not installed."""
    if not shutil.which("nvidia-smi"):
        return ""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SMI_SECONDS, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ""
    return "; ".join(line.strip() for line in done.stdout.splitlines() if line.strip())
