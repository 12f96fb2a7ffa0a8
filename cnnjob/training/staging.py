"""Copies of datasets on a node's local disk, which is faster than a shared file system that many jobs read from."""

import fcntl
import os
import shutil
import stat
import tempfile
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


def local_folder() -> Path:
    """Return the folder for copies on this node, inside the SLURM job's own local folder if the site provides one."""
    root = os.environ.get("SLURM_TMPDIR") or tempfile.gettempdir()
    return Path(root) / f"cnnjob-{os.getuid()}"


def stage_dataset(dataset: Dataset, say: Callable[[str], object], folder: Path | None = None) -> Dataset:
    """Copy a dataset to the node's local disk, once per node, and return the copy.

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
        with _lock(copy.with_suffix(".lock"), lambda: say(f"{copy}: another process is copying the dataset; waiting")):
            if staged := _find_copy(copy, dataset):
                say(f"{copy}: using the copy of {dataset.path} on this node")
                return staged
            return _copy(dataset, copy, say)
    except OSError as error:
        raise DataError(
            f"{copy}: {dataset.path} cannot be copied to this node's disk ({files.reason_of(error)}). Free space "
            "there, set TMPDIR to another disk, or train without --stage"
        ) from error


def _make_private(folder: Path) -> None:
    """Create the folder for this user's copies; refuse a folder that another user could have written to."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise DataError(
            f"{folder}: not a folder that only this user can write to. Remove it, or set TMPDIR to another disk"
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
    """Return the copy of a dataset if it exists; every training run checks its content against the digests."""
    with suppress(DataError):
        staged = Dataset.open(copy)
        if staged.digest == dataset.digest and copy.stat().st_size == dataset.path.stat().st_size:
            return staged
    return None


def _copy(dataset: Dataset, copy: Path, say: Callable[[str], object]) -> Dataset:
    size, free = dataset.path.stat().st_size, shutil.disk_usage(copy.parent).free
    if size > free:
        raise DataError(
            f"{copy.parent}: too little space for a copy of {dataset.path} (found {free / 1e9:.1f} GB free, "
            f"{size / 1e9:.1f} GB needed). Set TMPDIR to another disk, or train without --stage"
        )
    say(f"{copy}: copying {dataset.path} ({size / 1e9:.1f} GB) to this node")
    with files.whole(copy) as temporary:
        shutil.copyfile(dataset.path, temporary)
        staged = Dataset.open(temporary)
        if staged.digest != dataset.digest:
            raise DataError(f"{dataset.path}: replaced while it was being copied. Run the same command again")
        staged.verify()
    return Dataset.open(copy)
