"""Whether this machine can compute on a GPU, and if not, why, and what to do."""

import os
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

INSTALL = "pip install 'cupy-cuda12x[ctk]' for a driver of CUDA 12, 'cupy-cuda13x[ctk]' for CUDA 13"
LIBRARIES = ("nvrtc", "cublas")
OLDEST_CUPY = 14


def why_unavailable() -> str | None:
    """What a GPU cannot be used for here: what was found; what to do. None where nothing is lacking."""
    choose_kernel_cache()
    try:
        cupy = import_module("cupy")
        pathfinder = import_module("cuda.pathfinder")
    except ImportError as error:
        return f"CuPy cannot be loaded ({error}); {INSTALL}"
    except OSError as error:
        return f"CuPy cannot keep what it compiles ({error}); set CUPY_CACHE_DIR to a folder that can be written to"
    if int(cupy.__version__.split(".")[0]) < OLDEST_CUPY:
        return f"CuPy {cupy.__version__} is too old; {INSTALL}"
    return _lack_of_driver(cupy.cuda.runtime) or _lack_of_libraries(pathfinder)


def _lack_of_driver(runtime: Any) -> str | None:
    """A driver, one that is new enough, and a GPU that it shows."""
    driver, needed = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    if driver == 0:
        return "there is no NVIDIA driver; use a machine that has one, nvidia-smi lists its GPUs"
    if driver // 1000 < needed // 1000:
        found = f"the driver is for CUDA {_dotted(driver)}, this CuPy for CUDA {_dotted(needed)}"
        return f"{found}; install a newer driver, or: {INSTALL}"
    try:
        count = runtime.getDeviceCount()
    except RuntimeError as error:
        return f"the driver shows no GPU ({error}); see nvidia-smi and CUDA_VISIBLE_DEVICES"
    return None if count else "the driver shows no GPU; see nvidia-smi and CUDA_VISIBLE_DEVICES"


def _lack_of_libraries(pathfinder: Any) -> str | None:
    for name in LIBRARIES:
        try:
            pathfinder.load_nvidia_dynamic_lib(name)
        except (RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0]
            return f"CUDA's library {name} cannot be loaded ({reason}); {INSTALL}"
    return None


def _dotted(version: int) -> str:
    """12040 is 12.4."""
    return f"{version // 1000}.{version % 1000 // 10}"


def choose_kernel_cache() -> None:
    """Have CuPy keep compiled kernels in the user's cache, unless ``CUPY_CACHE_DIR`` says where.

    CuPy reads it once, when it is imported, and is not imported where the folder cannot be made. It writes each file
    whole and checks it when it is read, so that many jobs may share the folder. Where none can be written to, as with
    a home that the nodes of a cluster do not have, the process has a folder of its own.
    """
    if os.environ.get("CUPY_CACHE_DIR"):
        return
    own, users = os.environ.get("CNNJOB_CACHE_DIR"), os.environ.get("XDG_CACHE_HOME")
    try:
        folder = (Path(own) if own else Path(users or Path.home() / ".cache") / "cnnjob") / "kernels"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError):  # no home at all is the second
        folder = Path(tempfile.mkdtemp(prefix="cnnjob-kernels-"))
    os.environ["CUPY_CACHE_DIR"] = str(folder)
