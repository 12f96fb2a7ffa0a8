"""Stand-ins for CuPy and cuBLAS in a folder of packages, for processes that tests start."""

import subprocess
from pathlib import Path


def standin(folder: Path) -> Path:
    """The stand-in, compiled."""
    library = folder / "libcublas.so"
    command = ["gcc", "-shared", "-fPIC", "-O1", str(Path(__file__).with_name("standin_cublas.c")), "-o", str(library)]
    subprocess.run(command, check=True)
    return library


ROOT = Path(__file__).parent.parent.parent


def make_libraries(folder: Path) -> Path:
    """Make a folder of packages in which CuPy is the stand-in."""
    (folder / "cuda").mkdir()
    module = "tests.cuda.standin_cupy"
    (folder / "cupy.py").write_text(f"from {module} import *\nfrom {module} import __version__, KERNEL_CACHE\n")
    (folder / "cuda" / "pathfinder.py").write_text(f"from {module} import load_nvidia_dynamic_lib\n")
    standin(folder)
    return folder


def places(libraries: Path) -> dict[str, str]:
    """Where another process finds the stand-ins."""
    return {"PYTHONPATH": f"{libraries}:{ROOT}", "STANDIN_CUBLAS": str(libraries / "libcublas.so")}
