"""SLURM's notation for durations and points in time."""

import re
from datetime import datetime

_DURATION = re.compile(r"(?:(?P<days>[0-9]{1,9})-)?(?P<numbers>[0-9]{1,9}(?::[0-9]{1,9}){0,2})")


def parse_duration(text: str) -> int | None:
    """Convert a duration to seconds.

    Args:
        text: ``M``, ``M:S``, ``H:M:S``, ``D-H``, ``D-H:M`` or ``D-H:M:S``.

    Returns:
        The number of seconds; None for anything else, such as ``UNLIMITED``.
    """
    match = _DURATION.fullmatch(text)
    if not match:
        return None
    numbers = [int(number) for number in match["numbers"].split(":")]
    if match["days"] is not None:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    else:
        # without days, one or two numbers mean M or M:S, not H or H:M
        hours, minutes, seconds = numbers if numbers[2:] else (0, *numbers, 0)[:3]
    return ((int(match["days"] or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def parse_time(text: str) -> float | None:
    """Convert a point in time to seconds since the epoch.

    Args:
        text: ISO 8601, in the local time zone unless it specifies one.

    Returns:
        The number of seconds; None for anything else, such as ``Unknown`` or ``N/A``.
    """
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return None
