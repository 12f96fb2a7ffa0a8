"""Findings of ``cnnjob doctor``, one line each."""

from dataclasses import asdict, dataclass
from typing import Literal

Verdict = Literal["ok", "note", "bad"]
"""``ok``: good. ``note``: works, with limits. ``bad``: something will fail."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    what: str
    verdict: Verdict
    found: str
    advice: str = ""
    """Advice to the user; empty if all is well."""

    def as_json(self) -> dict[str, str]:
        """Return the finding as a dict for JSON."""
        return asdict(self)
