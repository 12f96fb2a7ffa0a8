"""Checks of the runs folder: the behaviour of its file system, and the free space."""

import errno
import fcntl
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from getpass import getuser
from pathlib import Path
from typing import NamedTuple

from cnnjob import files
from cnnjob.doctor.findings import Finding, Level
from cnnjob.errors import format_seconds
from cnnjob.runs.process import HEARTBEAT_LIMIT_SECONDS

GIGABYTE, KIBIBYTE = 1e9, 1024
TOO_LITTLE_SPACE_BYTES, LITTLE_SPACE_BYTES = 1e9, 10e9
FEW_INODES = 10_000
SLOW_RENAME_SECONDS = 0.5
CLOCK_NOTE_SECONDS, CLOCK_BAD_SECONDS = 5.0, HEARTBEAT_LIMIT_SECONDS / 5
"""Clock differences above which the finding is ``note`` or ``bad``. If ``bad``, a run may wrongly count as lost."""
WRITES, RACES, RACERS = 5, 20, 8
"""Number of timed writes, number of races to create a file, and number of threads per race."""
QUOTA_SECONDS = 20
QUOTA_NOTE_SHARE, QUOTA_BAD_SHARE = 0.85, 0.97
"""Used shares of a quota above which the finding is ``note`` or ``bad``."""
BLOCK_DEVICE = "block device"
LOCAL_TYPES = {BLOCK_DEVICE, "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs"}
"""File system types that are local to one machine."""
_OCTAL = re.compile(rb"\\([0-7]{3})")  # how the kernel escapes spaces, tabs, newlines and backslashes
COHERENT_TYPES = {"ceph", "gpfs", "lustre"}
"""Types of cluster file systems whose locks are valid on all nodes, unless a mount option disables that."""
THIS_MACHINE_ONLY = "on this machine only, not between nodes"
UNKNOWN_SCOPE = "on this machine; unknown between nodes"
REFUSED = 3
"""Exit code of a process that could not acquire a lock because another process holds it."""
LOCK_CODE = f"""import errno, fcntl, sys
file = open(sys.argv[1], "w")
try:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError as error:
    if error.errno not in (errno.EACCES, errno.EAGAIN):
        raise
    sys.exit({REFUSED})
"""
LOCK_SECONDS = 20
ELSEWHERE = "put the runs on another file system with --runs FOLDER"
CLEAN_UP = "to list files that no run needs: cnnjob clean"


class Mount(NamedTuple):
    """A mounted file system."""

    device: str
    point: str
    kind: str
    """Type of the file system."""
    options: tuple[str, ...] = ()


def check_filesystem(runs: Path, *, on_cluster: bool) -> Iterator[Finding]:
    """Check the runs folder or, if it does not exist yet, its nearest ancestor that does; all test files are removed.

    Args:
        runs: the runs folder.
        on_cluster: whether the folder must also be accessible from cluster nodes.

    Yields:
        One finding per check.
    """
    folder = next(path for path in (runs.resolve(), *runs.resolve().parents) if path.is_dir())
    mount = mount_of(folder, read_mounts()) or _unlisted_mount(folder)
    yield _check_location(folder, mount.kind, on_cluster=on_cluster)
    try:
        with tempfile.TemporaryDirectory(prefix=".cnnjob-doctor-", dir=folder) as name:
            trial = Path(name)
            for check in (_check_rename, _check_flush, _check_exclusive_creation, _check_clock):
                yield check(trial)
            yield _check_locks(trial, mount)
    except OSError as error:
        yield Finding("writing", "bad", f"cannot write to {folder} ({error.strerror or error})", ELSEWHERE)
    yield _check_free_space(folder)
    yield from _check_quota(folder, mount)


def _check_location(folder: Path, kind: str, *, on_cluster: bool) -> Finding:
    if on_cluster and kind in LOCAL_TYPES:
        message = f"{folder} is on this machine's local disk ({kind})"
        advice = "cluster nodes cannot access it; choose a shared folder with --runs FOLDER"
        return Finding("runs", "note", message, advice)
    return Finding("runs", "ok", f"{folder}, {kind}")


def _check_rename(folder: Path) -> Finding:
    """Check that a rename replaces a file atomically, and measure how long it takes, including fsync."""
    path, seconds, results = folder / "whole", [], list[Finding]()
    with _os_error_as_finding("rename", results):
        for number in range(WRITES):
            start = time.perf_counter()
            files.write_whole(path, content := bytes([number]) * 4096)
            seconds.append(time.perf_counter() - start)
            if path.read_bytes() != content:
                return Finding("rename", "bad", "a renamed file does not contain what was written", ELSEWHERE)
        median = statistics.median(seconds)
        message = f"a file is replaced atomically in {1e3 * median:.1f} ms, including the flush to disk"
        if median > SLOW_RENAME_SECONDS:
            advice = "checkpoints will be slow; increase train.checkpoint_seconds, or use a faster file system"
            results.append(Finding("rename", "note", message, advice))
        else:
            results.append(Finding("rename", "ok", message))
    return results[0]


def _check_flush(folder: Path) -> Finding:
    """Check that a folder can be flushed to disk; otherwise, a power failure may undo a rename."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        # EINVAL: the file system does not support fsync on folders. Any other error means that fsync failed.
        level: Level = "note" if error.errno == errno.EINVAL else "bad"
        message = f"a folder cannot be flushed ({error.strerror})"
        advice = "after a power failure, the newest checkpoint may be lost; the previous one remains"
        return Finding("fsync", level, message, advice)
    finally:
        os.close(handle)
    return Finding("fsync", "ok", "files and folders are flushed to disk")


def _check_exclusive_creation(folder: Path) -> Finding:
    """Check that if several threads create the same file, exactly one succeeds; claims of runs depend on this."""
    results: list[Finding] = []
    with _os_error_as_finding("exclusive create", results), ThreadPoolExecutor(RACERS) as racers:
        for race in range(RACES):
            path = folder / str(race)
            winners = sum(racers.map(lambda name, path=path: files.create_exclusive(path, name), [b"one"] * RACERS))
            if winners != 1:
                message = f"{winners} of {RACERS} threads created the same file"
                return Finding("exclusive create", "bad", message, ELSEWHERE)
        message = f"exactly one of {RACERS} threads created the file, in each of {RACES} races"
        results.append(Finding("exclusive create", "ok", message))
    return results[0]


@contextmanager
def _os_error_as_finding(check: str, results: list[Finding]) -> Iterator[None]:
    """Append a finding to ``results`` if the ``with`` block raises an OSError."""
    try:
        yield
    except OSError as error:
        results.append(Finding(check, "bad", f"refused ({error.strerror or error})", ELSEWHERE))


def _check_clock(folder: Path) -> Finding:
    """Compare the file system's clock, which determines the age of a heartbeat, with this machine's clock."""
    path = folder / "clock"
    path.touch()  # on a network file system, the server sets the time
    difference = abs(path.stat().st_mtime - time.time())
    if difference < CLOCK_NOTE_SECONDS:
        return Finding("clock", "ok", "the clocks of the file system and this machine agree")
    message = f"the file system's clock differs from this machine's by {format_seconds(difference)}"
    limit = format_seconds(HEARTBEAT_LIMIT_SECONDS)
    advice = f"report this to the administrators; a run counts as lost after {limit} without a heartbeat"
    return Finding("clock", "bad" if difference > CLOCK_BAD_SECONDS else "note", message, advice)


def _check_locks(folder: Path, mount: Mount) -> Finding:
    """Check that a file locked by one process cannot be locked by another; submissions depend on this."""
    advice = "concurrent submissions are detected only in SLURM's queue, which each of them queries afterwards"
    with (folder / "lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return Finding("locks", "note", f"refused ({error.strerror or error})", advice)
        # A process can always lock a file again that it has locked itself (POSIX), so another process has to try.
        if failure := lock_failure([sys.executable, "-P", "-c", LOCK_CODE, file.name]):
            return Finding("locks", "note", failure, advice)
    scope = _lock_scope(mount.kind, mount.options)
    if scope == THIS_MACHINE_ONLY:
        return Finding("locks", "note", f"valid {scope}", advice)
    return Finding("locks", "ok", f"valid {scope}")


def lock_failure(command: Sequence[str], seconds: float = LOCK_SECONDS) -> str:
    """Run a command that tries to lock a locked file; return the problem, or an empty string if the lock was refused.

    Args:
        command: a command that exits with ``REFUSED`` if another process holds the lock, and with 0 if it acquires
            the lock.
        seconds: time limit.
    """
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, errors="replace", timeout=seconds, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"not tested ({error})"
    if done.returncode == REFUSED:
        return ""
    if done.returncode == 0:
        return "two processes locked the same file"
    reason = done.stderr.strip().rpartition("\n")[2] or "no message"
    return f"not tested (exit code {done.returncode}: {reason})"


def _lock_scope(kind: str, options: Sequence[str]) -> str:
    """Return a description of the processes between which locks are valid, based on the mount's type and options."""
    if kind in LOCAL_TYPES:
        return "between processes on this machine"
    if {"nolock", "local_lock=all", "local_lock=posix", "localflock"} & {*options}:
        return THIS_MACHINE_ONLY
    return "between nodes too" if kind.startswith("nfs") or kind in COHERENT_TYPES else UNKNOWN_SCOPE


def _check_free_space(folder: Path) -> Finding:
    state = os.statvfs(folder)
    free, inodes = state.f_bavail * state.f_frsize, state.f_favail
    message = f"{free / GIGABYTE:,.1f} GB free"
    if free < TOO_LITTLE_SPACE_BYTES:
        return Finding("space", "bad", message, CLEAN_UP)
    if free < LITTLE_SPACE_BYTES:
        return Finding("space", "note", message, f"enough for small networks only; {CLEAN_UP}")
    if state.f_files and inodes < FEW_INODES:  # f_files is 0 if inodes are not limited, as on btrfs
        return Finding("space", "note", f"{message}, but only {inodes:,} inodes", "a run has about 20 files")
    return Finding("space", "ok", message)


def _check_quota(folder: Path, mount: Mount) -> Iterator[Finding]:
    """Check this user's quota with ``quota``, or with ``lfs quota`` on Lustre, if the command is installed."""
    is_lustre = mount.kind == "lustre"
    command = ["lfs", "quota", "-u", getuser(), str(folder)] if is_lustre else ["quota", "-w", "-p"]
    if not shutil.which(command[0]):
        return
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, errors="replace", timeout=QUOTA_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return
    for used, limit in _parse_quotas(done.stdout, str(folder) if is_lustre else mount.device):
        message = f"{used / GIGABYTE:,.1f} of {limit / GIGABYTE:,.1f} GB used"
        if used > QUOTA_NOTE_SHARE * limit:
            yield Finding("quota", "bad" if used > QUOTA_BAD_SHARE * limit else "note", message, CLEAN_UP)
        else:
            yield Finding("quota", "ok", message)


def _parse_quotas(answer: str, name: str) -> Iterator[tuple[int, int]]:
    """Yield the number of bytes used and the limit for a file system, from the output of ``quota`` or ``lfs quota``."""
    # Both commands print KiB, mark a value above its limit with *, and print 0 for no limit.
    lines = re.findall(r"^\s*(\S+)\s+(\d+)\*?\s+(\d+)\s+(\d+)\b", answer, re.MULTILINE)
    for file_system, used, soft, hard in lines:
        if f"{name}/".startswith(f"{file_system.rstrip('/')}/") and (limit := int(hard) or int(soft)):
            yield KIBIBYTE * int(used), KIBIBYTE * limit


def mount_of(folder: Path, mounts: Iterable[Mount]) -> Mount | None:
    """Return the mount that contains a folder: if there are several, the innermost; None if there is none."""
    innermost = None
    for mount in mounts:
        # >=, since a later mount on the same point hides the earlier one
        if folder.is_relative_to(mount.point) and len(mount.point) >= len(innermost.point if innermost else ""):
            innermost = mount
    return innermost


def read_mounts() -> Iterator[Mount]:
    """Yield all mounts in ``/proc/self/mounts``, oldest first; none if ``/proc`` is not mounted."""
    try:
        table = Path("/proc/self/mounts").read_bytes()
    except OSError:  # no /proc
        return
    for line in table.split(b"\n"):
        fields = [os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field)) for field in line.split(b" ")]
        if len(fields) > 3:  # noqa: PLR2004
            yield Mount(fields[0], fields[1], fields[2], tuple(fields[3].split(",")))


def _unlisted_mount(folder: Path) -> Mount:
    """Return the mount that contains a folder; used if ``/proc/self/mounts`` does not list the mount, as in a chroot.

    The device is found in sysfs, which lists disks by device number.
    """
    device = _block_device(folder.stat().st_dev)
    return Mount(device, "", BLOCK_DEVICE if device else "unknown file system")


def _block_device(number: int) -> str:
    """Return the path of the block device with the given device number; empty if there is none."""
    try:
        properties = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/uevent").read_text(encoding="utf-8")
    except OSError:
        return ""
    name = re.search(r"^DEVNAME=(.+)$", properties, re.MULTILINE)
    return f"/dev/{name[1]}" if name else ""
