"""What an examination finds, a line each."""

from dataclasses import asdict, dataclass
from typing import Literal

Verdict = Literal["ok", "note", "bad"]
"""``note``: it works, with less. ``bad``: something will fail."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    verdict: Verdict
    found: str
    advice: str = ""
    """What to do; empty where it is good."""

    def as_json(self) -> dict[str, str]:
        """The same as names and values."""
        return asdict(self)
