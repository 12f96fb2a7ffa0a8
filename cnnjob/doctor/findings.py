"""Findings of ``cnnjob doctor``, one line each."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "bad"]
"""``ok``: good. ``note``: works, with limits. ``bad``: something will fail."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    check: str
    """Name of what was checked, in one or two words."""
    level: Level
    message: str
    advice: str = ""
    """Advice to the user; empty if all is well."""
