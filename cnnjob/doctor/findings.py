"""The findings of ``cnnjob doctor``, which are printed one per line."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "bad"]
"""``ok``: no problem. ``note``: works, with limitations. ``bad``: something will fail."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    check: str
    """Name of the check, in one or two words."""
    level: Level
    message: str
    advice: str = ""
    """Advice to the user; empty if nothing needs to be done."""
