"""One submission at a time into a folder of runs, where its file system has locks.

The lock is POSIX's (``fcntl``), which NFS, Lustre and their like can hold between nodes; ``cnnjob doctor`` says whether
they do here. Nothing depends on it alone: see :func:`cnnjob.slurm.submission.submit`.
"""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK = ".submitting.lock"
WAIT_SECONDS, POLL_SECONDS = 300.0, 0.1
HELD = {errno.EACCES, errno.EAGAIN}
"""What a lock that another process has is refused with; any other error means that there are no locks."""


@contextmanager
def submitting(runs: Path) -> Iterator[bool]:
    """Hold the lock of a folder of runs, after waiting for another submission to end.

    Yields:
        Whether it is held: not where there is none to be had, nor after five minutes.
    """
    try:
        handle = os.open(runs / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError:  # of another user, perhaps
        yield False
        return
    try:
        with suppress(OSError):
            os.fchmod(handle, runs.stat().st_mode & 0o666)  # whoever may write here may lock here
        yield take(handle, WAIT_SECONDS)
    finally:
        os.close(handle)


def take(handle: int, seconds: float) -> bool:
    """Lock an open file, and wait so long while another process has it locked; return whether it is."""
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in HELD or time.monotonic() > end:
                return False
            time.sleep(POLL_SECONDS)
        else:
            return True
