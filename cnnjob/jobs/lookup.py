"""Look up jobs and profiles by name, in the working directory and in the package.

This module imports nothing heavy: shell completion asks for these names at every press of TAB.
"""

from pathlib import Path


def named_toml_files(name: str) -> dict[str, Path]:
    """Return the TOML files of ``jobs`` or ``slurm``.

    Args:
        name: name of the folder.

    Returns:
        The file of each stem, sorted by stem; a file in the working directory takes precedence.
    """
    # An installed package has the files under share/; in a checkout they lie beside the package.
    package = Path(__file__).parents[1]
    files: dict[str, Path] = {}
    for folder in (Path(name), package / "share" / name, package.parent / name):
        for path in folder.glob("*.toml"):
            files.setdefault(path.stem, path)
    return dict(sorted(files.items()))
