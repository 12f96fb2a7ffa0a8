"""Files that can be named without their folder: those of a folder here, over those that come with the package.

Nothing else is loaded: the shell asks for these names at every press of TAB.
"""

from pathlib import Path


def named_toml_files(name: str) -> dict[str, Path]:
    """The TOML files of ``jobs`` or ``slurm``.

    Args:
        name: of the folder.

    Returns:
        Each file by its stem, in order of name.
    """
    package = Path(__file__).parents[1]
    found: dict[str, Path] = {}
    for folder in (Path(name), package / "share" / name, package.parent / name):
        for path in folder.glob("*.toml"):
            found.setdefault(path.stem, path)
    return dict(sorted(found.items()))
