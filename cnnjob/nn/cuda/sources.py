"""CUDA C source of the kernels: several files that are compiled as one module."""

from pathlib import Path

FOLDER = Path(__file__).parent
SHARED = "kernels.cu"
"""File that comes first, since it defines what the others share."""


def kernel_files(folder: Path = FOLDER) -> list[Path]:
    """Return the source files in the order in which they are concatenated."""
    return sorted(folder.glob("*.cu"), key=lambda path: (path.name != SHARED, path.name))


def kernel_source(folder: Path = FOLDER) -> str:
    """Return the source of all kernels."""
    return "\n".join(path.read_text(encoding="utf-8") for path in kernel_files(folder))
