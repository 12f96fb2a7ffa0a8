"""Copies of datasets on a node's local disk, which is faster than a shared file system that many jobs read from."""

import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cnnjob import files
from cnnjob.data.dataset import Dataset
from cnnjob.errors import DataError

STAGE = "CNNJOB_STAGE"
"""Environment variable that makes a SLURM job copy its dataset to the node's local disk before training."""
DIGITS = 16
"""Number of digits of the dataset's digest in the copy's name."""
_UNUSED_SECONDS = 7 * 24 * 3600
"""Time since its last use after which another dataset's copy is removed when a new copy is made."""
_IN_USE: list[int] = []
"""Descriptors of the copies that this process uses; their shared locks, held until it ends, keep them from removal."""


def local_folder() -> Path:
    """Return the folder for this user's copies on this node.

    The folder is in ``SLURM_TMPDIR`` if the site sets this variable, and otherwise in the system's temporary folder.
    """
    root = os.environ.get("SLURM_TMPDIR") or tempfile.gettempdir()
    return Path(root) / f"cnnjob-{os.getuid()}"


def stage_dataset(dataset: Dataset, say: Callable[[str], object], folder: Path | None = None) -> Dataset:
    """Copy a dataset to the node's local disk, once per node, and return the copy.

    Copies of other datasets that no process is using are removed if they have not been used for a week, or if their
    space is needed.

    Args:
        dataset: the dataset.
        say: called with one line of text about each action.
        folder: the folder for copies; :func:`local_folder` by default.

    Returns:
        The copy, which was checked in full against the dataset's digests when it was made.

    Raises:
        DataError: the dataset is damaged, or the copy cannot be written.
    """
    folder = folder or local_folder()
    copy = folder / f"{dataset.digest[:DIGITS]}.h5"
    try:
        _make_private(folder)
        lock = copy.with_suffix(".lock")
        with _lock(lock, lambda: say(f"{copy}: another process is copying the dataset; waiting")):
            if staged := _find_copy(copy, dataset):
                say(f"{copy}: using the copy of {dataset.path} on this node")
            else:
                staged = _copy(dataset, copy, say)
            _IN_USE.append(os.open(copy, os.O_RDONLY | os.O_CLOEXEC))
            fcntl.flock(_IN_USE[-1], fcntl.LOCK_SH)
            os.utime(lock)  # the time of the last use
            return staged
    except OSError as error:
        raise DataError(
            f"{copy}: {dataset.path} cannot be copied to this node's disk ({files.reason_of(error)}). Free space "
            "there, set TMPDIR to a folder on another disk, or train without --stage"
        ) from error


def _make_private(folder: Path) -> None:
    """Create the folder for this user's copies; refuse a folder that another user could have written to."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise DataError(
            f"{folder}: not a folder that only this user can write to. Remove it, or set TMPDIR to another folder"
        )


@contextmanager
def _lock(path: Path, waits: Callable[[], object]) -> Iterator[None]:
    """Hold a lock on this node; the lock is released when the process ends for any reason."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waits()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _find_copy(copy: Path, dataset: Dataset) -> Dataset | None:
    """Return the copy of a dataset, or None; the arrays are not checked here, since every training run checks them."""
    with suppress(DataError):
        staged = Dataset.open(copy)
        if staged.digest == dataset.digest and copy.stat().st_size == dataset.path.stat().st_size:
            return staged
    return None


def _copy(dataset: Dataset, copy: Path, say: Callable[[str], object]) -> Dataset:
    size = dataset.path.stat().st_size
    others = [path for path in copy.parent.glob("*.h5") if path != copy]
    for other in sorted(others, key=_last_used):
        is_old = time.time() - _last_used(other) > _UNUSED_SECONDS
        if (is_old or size > shutil.disk_usage(copy.parent).free) and _remove_unused(other):
            say(f"{other}: removed, since no process uses this copy")
    if size > (free := shutil.disk_usage(copy.parent).free):
        raise DataError(
            f"{copy.parent}: too little space for a copy of {dataset.path} (found {free / 1e9:.1f} GB free, "
            f"{size / 1e9:.1f} GB needed). Set TMPDIR to a folder on another disk, or train without --stage"
        )
    say(f"{copy}: copying {dataset.path} ({size / 1e9:.1f} GB) to this node")
    with files.whole(copy) as temporary:
        shutil.copyfile(dataset.path, temporary)
        staged = Dataset.open(temporary)
        if staged.digest != dataset.digest:
            raise DataError(f"{dataset.path}: replaced while it was being copied. Run the same command again")
        staged.verify()
    return Dataset.open(copy)


def _last_used(copy: Path) -> float:
    with suppress(OSError):
        return copy.with_suffix(".lock").stat().st_mtime
    return 0.0


def _remove_unused(copy: Path) -> bool:
    """Remove a copy unless another process uses it or is about to use it; return whether the copy was removed."""
    lock = copy.with_suffix(".lock")
    handles: list[int] = []
    try:
        # First the lock held while a process looks for the copy, then the one held while a process uses it.
        for path, flags in ((lock, os.O_RDWR | os.O_CREAT), (copy, os.O_RDONLY)):
            handles.append(os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            fcntl.flock(handles[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        copy.unlink()
        lock.unlink()
    except OSError:  # in use, or already removed by another process
        return False
    finally:
        for handle in handles:
            os.close(handle)
    return True
