"""Check for a usable GPU (driver, CuPy, CUDA libraries, compute capability), with advice if something is missing."""

import os
import stat
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

INSTALL = (
    "pip install 'cupy-cuda12x[ctk]', or 'cupy-cuda13x[ctk]' for a CUDA 13 driver and a GPU of compute capability 7.5 "
    "or newer"
)
"""Installation advice, appended to the reason after ``"; "``; callers split the message at the first ``"; "``."""
CUDA_12 = "pip uninstall cupy-cuda13x, then pip install 'cupy-cuda12x[ctk]', which also works with a CUDA 13 driver"
LIBRARIES = ("nvrtc", "cublas")
MIN_CUPY = 14
TEMPORARY_KERNEL_CACHE = "cnnjob-kernels-"
"""Beginning of the name of a kernel cache in the node's temporary folder."""
OLDEST_FOR_CUDA_12 = 50
"""Oldest compute capability that CUDA 12 supports, as 10 × major + minor."""


def why_unavailable() -> str | None:
    """Return why no GPU can be used and what to do about it, or None if one can be used."""
    choose_kernel_cache()  # before CuPy is imported
    try:
        cupy = import_module("cupy")
        pathfinder = import_module("cuda.pathfinder")
    except ImportError as error:
        return f"CuPy cannot be loaded ({error}); {INSTALL}"
    except OSError as error:
        return f"CuPy cannot store compiled kernels ({error}); set CUPY_CACHE_DIR to a writable folder"
    if int(cupy.__version__.split(".")[0]) < MIN_CUPY:
        return f"CuPy {cupy.__version__} is too old; {INSTALL}"
    return (
        _driver_problem(cupy.cuda.runtime)
        or _library_problem(pathfinder)
        or _capability_problem(cupy.cuda.runtime, min(cupy.cuda.nvrtc.getSupportedArchs()))
    )


def _driver_problem(runtime: Any) -> str | None:
    """Return the problem with the driver (missing, too old, or without a GPU), or None if there is none."""
    # Versions are 1000 × major + 10 × minor, and 0 without a driver. Minor versions of CUDA are compatible.
    driver, needed = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    if driver == 0:
        return "there is no NVIDIA driver; use a machine with an NVIDIA GPU (check with nvidia-smi)"
    if driver // 1000 < needed // 1000:
        versions = (
            f"the driver supports CUDA {_format_version(driver)}, but CuPy is built for CUDA {_format_version(needed)}"
        )
        return f"{versions}; install a newer driver, or: {INSTALL}"
    try:
        count = runtime.getDeviceCount()
    except RuntimeError as error:
        return f"the driver reports no GPU ({error}); check nvidia-smi and CUDA_VISIBLE_DEVICES"
    return None if count else "the driver reports no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES"


def _library_problem(pathfinder: Any) -> str | None:
    """Return which CUDA library cannot be loaded and why, or None if all can be loaded."""
    for name in LIBRARIES:
        try:
            pathfinder.load_nvidia_dynamic_lib(name)
        except (RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0]
            return f"the CUDA library {name} cannot be loaded ({reason}); {INSTALL}"
    return None


def _capability_problem(runtime: Any, oldest: int) -> str | None:
    """Return that the current GPU is too old for this version of CUDA, or None if it is not.

    Args:
        runtime: CuPy's interface to the CUDA runtime.
        oldest: oldest compute capability for which NVRTC compiles, as 10 × major + minor.
    """
    gpus = [runtime.getDeviceProperties(index) for index in range(runtime.getDeviceCount())]
    capabilities = [10 * gpu["major"] + gpu["minor"] for gpu in gpus]
    current = runtime.getDevice()
    if capabilities[current] >= oldest:
        return None
    reason = (
        f"{gpus[current]['name'].decode()} has compute capability {format_capability(capabilities[current])}, and CUDA "
        f"{_format_version(runtime.runtimeGetVersion())} needs {format_capability(oldest)} or newer"
    )
    newer = next((index for index, capability in enumerate(capabilities) if capability >= oldest), None)
    if newer is not None:
        # CUDA numbers only the visible GPUs, while the variable contains numbers among all GPUs, or UUIDs.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        variable = f"CUDA_VISIBLE_DEVICES={visible.split(',')[newer] if visible else newer}"
        return f"{reason}; to use {gpus[newer]['name'].decode()} instead, set {variable}"
    return f"{reason}; {CUDA_12 if capabilities[current] >= OLDEST_FOR_CUDA_12 else 'use a newer GPU'}"


def format_capability(capability: int) -> str:
    """Return a compute capability in dotted form, such as 7.5 for 75."""
    return f"{capability // 10}.{capability % 10}"


def _format_version(version: int) -> str:
    """Return a CUDA version in dotted form, such as 12.4 for 12040."""
    return f"{version // 1000}.{version % 1000 // 10}"


def choose_kernel_cache() -> str:
    """Set ``CUPY_CACHE_DIR``, unless it is already set, so that CuPy stores compiled kernels in the user's cache.

    CuPy reads the variable once, when it is imported, and the import fails if the folder cannot be created. CuPy writes
    each file atomically and checks it on reading, so many processes can share the folder. If the folder is not
    writable, for example because a cluster's nodes do not mount home directories, the kernels are stored in the node's
    temporary folder, where this user's later processes on the same node find them.

    Returns:
        The folder.
    """
    if folder := os.environ.get("CUPY_CACHE_DIR"):
        return folder
    cnnjob_cache, user_cache = os.environ.get("CNNJOB_CACHE_DIR"), os.environ.get("XDG_CACHE_HOME")
    try:
        if not cnnjob_cache:
            cnnjob_cache = str(Path(user_cache or Path.home() / ".cache") / "cnnjob")
        folder = _writable_folder(Path(cnnjob_cache) / "kernels")
    except (OSError, RuntimeError):  # Path.home() raises RuntimeError without a home directory
        folder = _temporary_kernel_cache()
    os.environ["CUPY_CACHE_DIR"] = folder
    return folder


def _temporary_kernel_cache() -> str:
    """Return this user's folder in the node's temporary folder; a new one if its name is taken by someone else."""
    folder = Path(tempfile.gettempdir()) / f"{TEMPORARY_KERNEL_CACHE}{os.getuid()}"
    try:
        folder.mkdir(mode=stat.S_IRWXU, exist_ok=True)
        found = folder.lstat()
        # What the folder contains is executed, and in a temporary folder any user can create anything.
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not stat.S_IMODE(found.st_mode) & 0o077:
            return _writable_folder(folder)
    except OSError:
        pass
    return tempfile.mkdtemp(prefix=TEMPORARY_KERNEL_CACHE)


def _writable_folder(folder: Path) -> str:
    """Create a folder if it does not exist; raise an ``OSError`` if no file can be written to it."""
    folder.mkdir(parents=True, exist_ok=True)
    # mkdir accepts an existing folder even on a read-only file system: only a file proves that it is writable.
    with tempfile.TemporaryFile(dir=folder):
        return str(folder)
