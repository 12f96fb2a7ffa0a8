"""A lock that lets only one process at a time submit into a runs folder, if the file system supports locks.

It is a POSIX lock (``fcntl``). On NFS, Lustre and similar file systems, such a lock can be valid on all nodes;
``cnnjob doctor`` reports whether this is the case at this site. Nothing depends on the lock alone: see
:func:`cnnjob.slurm.submit.submission.submit`.
"""

import errno
import fcntl
import os
import pwd
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cnnjob.errors import printable
from cnnjob.runs.process import now

LOCK = ".submitting.lock"
WAIT_SECONDS, POLL_SECONDS = 300.0, 0.1
"""Maximum time that a submission waits for the lock, and the pause between two attempts to acquire it."""
_MOST_BYTES = 400
HELD = {errno.EACCES, errno.EAGAIN}
"""Error numbers for a lock that another process holds; any other error means that locks are not supported."""


@contextmanager
def submitting(runs: Path, say: Callable[[str], None] = lambda _: None) -> Iterator[bool]:
    """Hold the lock on a folder of runs, after waiting for any other submission to end.

    Args:
        runs: the folder.
        say: called with a message before waiting for the lock.

    Yields:
        Whether the lock is held; False if the file system does not support locks, or after five minutes of waiting.
    """
    try:
        handle = os.open(runs / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError:  # the file may belong to another user; the checks after the submission work without the lock
        yield False
        return
    try:
        with suppress(OSError):
            os.fchmod(handle, runs.stat().st_mode & 0o666)  # anyone who can write to the folder can lock it
        held = acquire(
            handle, WAIT_SECONDS, lambda: say(f"{runs}: waiting for another submission to end{_read_owner(handle)}")
        )
        if held:
            owner = f"process {os.getpid()} of {_user_name()} on {socket.gethostname()}, since {now()}"
            _write_owner(handle, owner)
        yield held
        if held:
            _write_owner(handle, "")
    finally:
        os.close(handle)  # releases the lock; if the file were removed, two processes could lock two files


def acquire(handle: int, seconds: float, before_wait: Callable[[], None] = lambda: None) -> bool:
    """Lock an open file, waiting for another process to release it; return whether the lock was acquired.

    Args:
        handle: file descriptor, open for writing.
        seconds: how long to wait.
        before_wait: called once, before waiting.
    """
    # polled, because a blocking lock has no time limit
    end, announced = time.monotonic() + seconds, False
    while True:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in HELD or time.monotonic() > end:
                return False
            if not announced:
                announced = True
                before_wait()
            time.sleep(POLL_SECONDS)
        else:
            return True


def _write_owner(handle: int, owner: str) -> None:
    """Write the lock's owner into the lock file; ignore a failure, for example on a full disk."""
    with suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, owner.encode(errors="replace"), 0)


def _read_owner(handle: int) -> str:
    """Return a lock's owner in parentheses; empty if unknown."""
    try:
        owner = os.pread(handle, _MOST_BYTES, 0).decode(errors="replace")
    except OSError:
        owner = ""
    return f" ({printable(owner)})" if owner else ""


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"user {os.getuid()}"
