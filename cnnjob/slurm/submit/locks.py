"""One submission at a time into a folder of runs, where its file system has locks.

The lock is POSIX's (``fcntl``), which NFS, Lustre and their like can hold between nodes; ``cnnjob doctor`` says whether
they do here. Nothing depends on it alone: see :func:`cnnjob.slurm.submit.submission.submit`.
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
_MOST_BYTES = 400
HELD = {errno.EACCES, errno.EAGAIN}
"""What a lock that another process has is refused with; any other error means that there are no locks."""


@contextmanager
def submitting(runs: Path, say: Callable[[str], None] = lambda _: None) -> Iterator[bool]:
    """Hold the lock of a folder of runs, after waiting for another submission to end.

    Args:
        runs: the folder.
        say: called with a sentence where it must be waited for.

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
        held = take(
            handle, WAIT_SECONDS, lambda: say(f"{runs}: another submission is under way{_owner(handle)}, waiting")
        )
        if held:
            _sign(handle, f"process {os.getpid()} of {_user()} on {socket.gethostname()}, since {now()}")
        yield held
        if held:
            _sign(handle, "")
    finally:
        os.close(handle)


def take(handle: int, seconds: float, waits: Callable[[], None] = lambda: None) -> bool:
    """Lock an open file, and wait so long while another process has it locked; return whether it is.

    Args:
        handle: the file.
        seconds: how long to wait.
        waits: called once, before waiting.
    """
    end, is_said = time.monotonic() + seconds, False
    while True:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in HELD or time.monotonic() > end:
                return False
            if not is_said:
                is_said = True
                waits()
            time.sleep(POLL_SECONDS)
        else:
            return True


def _sign(handle: int, owner: str) -> None:
    """Write down who holds the lock; a full disk keeps nobody from it."""
    with suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, owner.encode(errors="replace"), 0)


def _owner(handle: int) -> str:
    """Return who holds a lock, as far as that is written down."""
    try:
        owner = os.pread(handle, _MOST_BYTES, 0).decode(errors="replace")
    except OSError:
        owner = ""
    return f" ({printable(owner)})" * bool(owner)


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"user {os.getuid()}"
