"""Look-up of jobs and profiles by name, in the working directory and in the package.

This module imports nothing heavy: shell completion needs these names whenever TAB is pressed.
"""

from pathlib import Path


def named_toml_files(name: str) -> dict[str, Path]:
    """Return the TOML files in the folder ``jobs`` or ``slurm``.

    Args:
        name: name of the folder.

    Returns:
        The files by stem, sorted by stem. A file in the working directory replaces a file with the same name in the
        package.
    """
    # An installed package has the files under share/; in a checkout they are next to the package.
    package = Path(__file__).parents[1]
    files: dict[str, Path] = {}
    for folder in (Path(name), package / "share" / name, package.parent / name):
        for path in folder.glob("*.toml"):
            files.setdefault(path.stem, path)
    return dict(sorted(files.items()))
