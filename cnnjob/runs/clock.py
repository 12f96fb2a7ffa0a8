"""File system clocks: a file's age is measured by the clock that dated the file, not by this machine's clock.

A file server has its own clock, which may differ by hours from those of the machines that mount it. A file that has
just been touched shows the server's time; if no file can be written, this machine's clock is used instead.
"""

import os
import tempfile
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

SKEW_SECONDS = 60.0
"""Differences between clocks of up to this many seconds are ignored."""
_PERIOD_SECONDS = 60.0
"""Period, in seconds, in which a folder's clock is read only once; until the next reading, the time is extrapolated
from the time since boot, which cannot be set."""


def age_seconds(path: Path, *folders: Path) -> float:
    """Return the seconds since a path was modified, measured by its file system's clock; negative if in the future.

    Args:
        path: an existing path; a link is not followed.
        folders: folders where the clock may be read, as in :func:`file_system_time`.

    Raises:
        OSError: the path's status cannot be read.
    """
    return file_system_time(path, *folders) - path.lstat().st_mtime


def file_system_time(path: Path, *folders: Path) -> float:
    """Return the current time of a path's file system, in seconds since the epoch.

    If the file system's clock cannot be read, this machine's time is returned.

    Args:
        path: an existing path.
        folders: folders where a file may be created to read the clock, in order of preference; folders on other
            file systems are skipped.

    Raises:
        OSError: the path's status cannot be read.
    """
    since_boot = _difference(path, *folders)
    return time.time() if since_boot is None else time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot


def is_readable(path: Path, *folders: Path) -> bool:
    """Return whether the clock of a path's file system can be read.

    Raises:
        OSError: the path's status cannot be read.
    """
    return _difference(path, *folders) is not None


def _difference(path: Path, *folders: Path) -> float | None:
    """Return the time on the clock of a path's file system, minus the seconds since boot; None if that fails."""
    # CLOCK_BOOTTIME, since CLOCK_MONOTONIC stops while the machine is suspended.
    device, period = path.lstat().st_dev, int(time.clock_gettime(time.CLOCK_BOOTTIME) // _PERIOD_SECONDS)
    readings = (_read(folder.absolute(), device, period) for folder in folders)
    return next((reading for reading in readings if reading is not None), None)


def skew_seconds(folder: Path) -> float:
    """Return how many seconds this machine's clock is ahead of a folder's file system; negative if it is behind.

    The result is 0 for differences of up to ``SKEW_SECONDS``, and if the file system's clock cannot be read.
    """
    with suppress(OSError):
        ahead = time.time() - file_system_time(folder.resolve(), folder)
        return ahead if abs(ahead) > SKEW_SECONDS else 0.0
    return 0.0


def describe_skew(folder: Path) -> str:
    """Return a message if this machine's clock differs from that of a folder's file system, or an empty string."""
    seconds = skew_seconds(folder)
    if not seconds:
        return ""
    direction = "ahead of" if seconds > 0 else "behind"
    return (
        f"{folder}: the clock of this machine is {abs(seconds) / 60:,.0f} min {direction} the file system's clock, by "
        "which ages are measured. Ask the administrators to correct this machine's clock"
    )


@lru_cache(maxsize=2**14)
def _read(folder: Path, device: int, _period: int) -> float | None:
    """Touch a new file in a folder and return its timestamp minus the seconds since boot; None if that fails.

    Args:
        folder: the folder in which the file is created and then removed.
        device: the ``st_dev`` of the file system; if the folder is on a different file system, the result is None.
        _period: the number of the current period; because it is part of the cache key, a cached result expires when the
            period ends.
    """
    try:
        if folder.stat().st_dev != device:
            return None
        handle, name = tempfile.mkstemp(prefix=".clock.", suffix=".tmp", dir=folder)
    except OSError:
        return None
    try:
        os.utime(handle)  # as for a heartbeat: the server dates it, whereas a new file may have the client's time
        return os.fstat(handle).st_mtime - time.clock_gettime(time.CLOCK_BOOTTIME)
    except OSError:
        return None
    finally:
        os.close(handle)
        with suppress(OSError):
            os.unlink(name)  # noqa: PTH108 - name is a str
