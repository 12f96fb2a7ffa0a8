"""The time as a file system tells it: the age of a file is never taken from this machine's clock.

A file server has a clock of its own, and two machines that share it may differ by hours. What was touched just now
shows the server's time; where nothing can be written, this machine's clock must do.
"""

import os
import tempfile
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

SKEW_SECONDS = 60.0
"""Clocks that differ by more are said to."""
_PERIOD_SECONDS = 60.0
"""A clock is read once per folder and period; in between, the time since the boot is added, which nobody sets."""


def age_seconds(path: Path, *folders: Path) -> float:
    """Return how long ago a path was changed, by its file system's clock; negative for a time in the future.

    Args:
        path: what is there.
        folders: where the clock may be read, as :func:`now_of`.

    Raises:
        OSError: the path cannot be looked at.
    """
    return now_of(path, *folders) - path.lstat().st_mtime


def now_of(path: Path, *folders: Path) -> float:
    """Return the time of a path's file system, as ``time.time()`` counts it; this machine's where it cannot be read.

    Args:
        path: what is there.
        folders: where the clock may be read, in this order; those on other file systems are left out.

    Raises:
        OSError: the path cannot be looked at.
    """
    since_boot = _difference(path, *folders)
    return time.time() if since_boot is None else time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot


def is_known(path: Path, *folders: Path) -> bool:
    """Return whether the clock of a path's file system can be read.

    Raises:
        OSError: the path cannot be looked at.
    """
    return _difference(path, *folders) is not None


def _difference(path: Path, *folders: Path) -> float | None:
    """Return the time of a path's file system less the seconds since the boot; None where it cannot be read."""
    device, period = path.lstat().st_dev, int(time.clock_gettime(time.CLOCK_BOOTTIME) // _PERIOD_SECONDS)
    readings = (_read(folder.absolute(), device, period) for folder in folders)
    return next((reading for reading in readings if reading is not None), None)


def skew_seconds(folder: Path) -> float:
    """Return how far this machine's clock is ahead of a folder's file system, negative for behind.

    0 for what clocks usually differ by, and where it cannot be known.
    """
    with suppress(OSError):
        ahead = time.time() - now_of(folder.resolve(), folder)
        return ahead if abs(ahead) > SKEW_SECONDS else 0.0
    return 0.0


def skew(folder: Path) -> str:
    """Return what is wrong with this machine's clock beside a folder's file system; empty where nothing is."""
    seconds = skew_seconds(folder)
    if not seconds:
        return ""
    way = "ahead of" if seconds > 0 else "behind"
    return (
        f"{folder}: the clock of this machine is {abs(seconds) / 60:,.0f} min {way} its file system's. Ages are by the "
        "file system's; ask the site to set the clock"
    )


@lru_cache(maxsize=2**14)
def _read(folder: Path, device: int, _period: int) -> float | None:
    """Touch a new file in a folder, and return its time less the seconds since the boot; None where that fails."""
    try:
        if folder.stat().st_dev != device:
            return None
        handle, name = tempfile.mkstemp(prefix=".clock.", suffix=".tmp", dir=folder)
    except OSError:
        return None
    try:
        os.utime(handle)  # as a heartbeat: by the server's clock, where a creation may have the client's
        return os.fstat(handle).st_mtime - time.clock_gettime(time.CLOCK_BOOTTIME)
    except OSError:
        return None
    finally:
        os.close(handle)
        with suppress(OSError):
            os.unlink(name)  # noqa: PTH108 - a name
