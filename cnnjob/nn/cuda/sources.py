"""The kernels' CUDA C: a few files, compiled as one."""

from pathlib import Path

FOLDER = Path(__file__).parent
SHARED = "kernels.cu"
"""Comes first, since it holds what the others share."""


def kernel_files(folder: Path = FOLDER) -> list[Path]:
    """The files in the order in which they are put together."""
    return sorted(folder.glob("*.cu"), key=lambda path: (path.name != SHARED, path.name))


def kernel_source(folder: Path = FOLDER) -> str:
    """All kernels."""
    return "\n".join(path.read_text(encoding="utf-8") for path in kernel_files(folder))
