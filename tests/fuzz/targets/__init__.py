"""The targets: each file of this folder is one, under its own name, as its `TARGET`.

To add one, write `targets/NAME.py`:

    TARGET = Target(seeds=lambda: [b"..."], read=lambda content, folder: parse(content))
"""

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cnnjob.errors import CnnjobError, DataError


@dataclass(frozen=True)
class Target:
    """A reader of bytes from outside."""

    seeds: Callable[[], Sequence[bytes]]
    """Valid inputs, as small as their format allows: the fewer bytes, the more mutations hit the structure."""
    read: Callable[[bytes, Path], object]
    """Reads an input; the folder is empty and the input's own, for readers that take a path."""
    errors: tuple[type[Exception], ...] = (DataError,)
    """What the reader may raise. A bare CnnjobError is never meant, only its subclasses are."""
    text: bool = False
    """Whether lines, words and brackets are mutated too."""
    finish: Callable[[bytes], bytes] = bytes
    """Applied to each mutated input: compresses it, or makes its checksum fit."""

    def __post_init__(self) -> None:
        """Refuse a target that would call every error declared."""
        assert not {Exception, BaseException, CnnjobError} & {*self.errors}


def names() -> list[str]:
    """The names of all targets."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def target(name: str) -> Target:
    """Import a target."""
    found: Target = importlib.import_module(f"{__name__}.{name}").TARGET
    return found
