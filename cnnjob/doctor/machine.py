"""Checks of this machine: Python, packages, processor and GPU."""

import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from cnnjob.doctor.findings import Finding
from cnnjob.errors import plural
from cnnjob.files import MOUNT_PROC, NO_PROC
from cnnjob.nn import available_cores
from cnnjob.nn.cuda.availability import (
    TEMPORARY_KERNEL_CACHE,
    choose_kernel_cache,
    format_capability,
    why_unavailable,
)
from cnnjob.nn.cuda.device import CudaDevice
from cnnjob.runs.environment import available_memory_bytes

GIGABYTE = 1e9
LITTLE_MEMORY_BYTES = 2e9
SMI_SECONDS = 30
_GPU_ERRORS = (RuntimeError, OSError, MemoryError)  # raised by CuPy and ctypes


def check_machine() -> Iterator[Finding]:
    """Check this machine; yield one finding per check."""
    yield Finding("Python", "ok", f"{platform.python_version()}, {sys.executable}")
    if not Path("/proc/self").exists():
        yield Finding("processes", "bad", f"{NO_PROC}, so no run can be trained", MOUNT_PROC)
    yield _check_packages()
    yield _check_processor()
    yield _check_gpu()


def _check_packages() -> Finding:
    """Check that the packages cnnjob requires are installed in supported versions."""
    try:
        declared = [Requirement(text) for text in metadata.requires("cnnjob") or ()]
    except metadata.PackageNotFoundError:
        return Finding(
            "packages", "note", "cnnjob runs from its source folder and is not installed", "pip install -e ."
        )
    # An empty extra excludes the requirements of optional extras.
    required = [need for need in declared if need.marker is None or need.marker.evaluate({"extra": ""})]
    unmet = [need for need in required if not need.specifier.contains(_installed_version(need.name), prereleases=True)]
    if unmet:
        versions = ", ".join(f"{need.name}{need.specifier} ({_installed_version(need.name)})" for need in unmet)
        command = " ".join(["pip install", *(f"'{need.name}{need.specifier}'" for need in unmet)])
        return Finding("packages", "bad", f"missing or too old: {versions}", command)
    return Finding("packages", "ok", f"all {len(required)} required packages, NumPy {_installed_version('numpy')}")


def _installed_version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "0"


def _check_processor() -> Finding:
    cores, memory = available_cores(), available_memory_bytes()
    message = f"{plural(cores, 'core')}, {memory / GIGABYTE:.1f} GB of memory free"
    if memory < LITTLE_MEMORY_BYTES:
        return Finding("processor", "note", message, "close other programs; MNIST needs 0.5 GB, CIFAR-10 1 GB")
    return Finding("processor", "ok", message)


def _check_gpu() -> Finding:
    """Check the GPU, which training uses by default if possible."""
    unavailable = why_unavailable()
    if unavailable:
        reason, _, advice = unavailable.partition("; ")
        if names := _gpus_of_driver():  # there is a GPU, but the installation cannot use it
            return Finding("GPU", "bad", f"{names}, but {reason}", advice)
        return Finding("GPU", "note", f"none; training will use the CPU ({reason})", advice)
    try:
        device = CudaDevice()
    except _GPU_ERRORS as error:
        return Finding("GPU", "bad", f"cannot be used ({error})", "to see which processes are using it: nvidia-smi")
    cuda = device.versions["cuda"]
    driver, free = f"{cuda // 1000}.{cuda % 1000 // 10}", f"{device.free_bytes / GIGABYTE:.1f} GB free"
    capability, cupy = format_capability(device.capability), device.versions["cupy"]
    message = f"{device.name}, compute capability {capability}, {free}; CuPy {cupy}, driver for CUDA {driver}"
    kernels = choose_kernel_cache()
    message += f"; compiled kernels are stored in {kernels}"
    if Path(kernels).name.startswith(TEMPORARY_KERNEL_CACHE):
        advice = (
            "other machines compile them again, since ~/.cache is not writable; to share them, set CNNJOB_CACHE_DIR"
        )
        return Finding("GPU", "note", message, advice)
    return Finding("GPU", "ok", message)


def _gpus_of_driver() -> str:
    """Return the GPUs that ``nvidia-smi`` lists; empty if it lists none or is not installed."""
    if not shutil.which("nvidia-smi"):
        return ""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SMI_SECONDS, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ""
    return "; ".join(line.strip() for line in done.stdout.splitlines() if line.strip())
