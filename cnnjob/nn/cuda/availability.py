"""Check for a usable GPU (driver, CuPy and CUDA libraries), with advice if something is missing."""

import os
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

INSTALL = "pip install 'cupy-cuda12x[ctk]' for a CUDA 12 driver, 'cupy-cuda13x[ctk]' for CUDA 13"
"""Installation advice, appended to the reason after ``"; "``; callers split the message at the first ``"; "``."""
LIBRARIES = ("nvrtc", "cublas")
MIN_CUPY = 14


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
    return _driver_problem(cupy.cuda.runtime) or _library_problem(pathfinder)


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


def _format_version(version: int) -> str:
    """Return a CUDA version in dotted form, such as 12.4 for 12040."""
    return f"{version // 1000}.{version % 1000 // 10}"


def choose_kernel_cache() -> None:
    """Set ``CUPY_CACHE_DIR``, unless it is already set, so that CuPy stores compiled kernels in the user's cache.

    CuPy reads the variable once, when it is imported, and the import fails if the folder cannot be created. CuPy writes
    each file atomically and checks it on reading, so many processes can share the folder. If the folder is not
    writable, for example because a cluster's nodes do not mount home directories, the process uses a temporary folder.
    """
    if os.environ.get("CUPY_CACHE_DIR"):
        return
    cnnjob_cache, user_cache = os.environ.get("CNNJOB_CACHE_DIR"), os.environ.get("XDG_CACHE_HOME")
    try:
        if not cnnjob_cache:
            cnnjob_cache = str(Path(user_cache or Path.home() / ".cache") / "cnnjob")
        folder = Path(cnnjob_cache) / "kernels"
        folder.mkdir(parents=True, exist_ok=True)
        # mkdir accepts an existing folder even on a read-only file system: only a file proves that it is writable.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError):  # Path.home() raises RuntimeError without a home directory
        folder = Path(tempfile.mkdtemp(prefix="cnnjob-kernels-"))
    os.environ["CUPY_CACHE_DIR"] = str(folder)
