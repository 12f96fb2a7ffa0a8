"""Checks of the folder of runs: what its file system does in practice, and how much space is free."""

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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from getpass import getuser
from pathlib import Path

from cnnjob import files
from cnnjob.doctor.findings import Finding, Verdict
from cnnjob.runs.process import HEARTBEAT_LIMIT_SECONDS

GIGABYTE, KIBIBYTE = 1e9, 1024
NO_ROOM_BYTES, LITTLE_ROOM_BYTES = 1e9, 10e9
FEW_FILES = 10_000
SLOW_SECONDS = 0.5
CLOCK_SECONDS = 5.0
WRITES, RACES, RACERS = 5, 20, 8
"""Timed writes; races to create one file; threads in each race."""
QUOTA_SECONDS = 20
NEARLY, QUITE = 0.85, 0.97
"""Shares of a quota above which its use is a note, and bad."""
BLOCK = "block device"
LOCAL = {BLOCK, "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs"}
"""Types of file systems that belong to one machine."""
_OCTAL = re.compile(rb"\\([0-7]{3})")  # how the kernel writes spaces, tabs, newlines and backslashes
COHERENT = {"ceph", "gpfs", "lustre"}
"""Types of cluster file systems whose locks hold between nodes, unless a mount option says otherwise."""
HERE_ONLY = "on this machine only, not between nodes"
UNKNOWN = "here; whether they do between nodes is not known"
LOCK = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
LOCK_SECONDS = 20
ELSEWHERE = "put the runs on another file system, with --runs FOLDER"


def findings(runs: Path, *, on_cluster: bool) -> Iterator[Finding]:
    """Check the folder of runs, or its nearest existing parent; nothing is left behind in it.

    Args:
        runs: the folder of runs, which need not exist yet.
        on_cluster: whether the nodes of a cluster must see it too.

    Yields:
        One finding per check.
    """
    folder = next(path for path in (runs.resolve(), *runs.resolve().parents) if path.is_dir())
    device, kind = _mount(folder)
    yield _kind(folder, kind, on_cluster=on_cluster)
    try:
        with tempfile.TemporaryDirectory(prefix=".cnnjob-doctor-", dir=folder) as place:
            yield from (check(Path(place)) for check in (_rename, _flush, _exclusive, _clock))
            yield _locks(Path(place), kind, _options(folder))
    except OSError as error:
        yield Finding("writing", "bad", f"{folder} cannot be written, {error.strerror or error}", ELSEWHERE)
    yield _room(folder)
    yield from _quota(folder, device, kind)


@contextmanager
def _caught(what: str, found: list[Finding]) -> Iterator[None]:
    """Turn an OSError of the block into a finding."""
    try:
        yield
    except OSError as error:
        found.append(Finding(what, "bad", f"refused, {error.strerror or error}", ELSEWHERE))


def _rename(place: Path) -> Finding:
    """Check that a file can be replaced atomically, by writing a temporary one and renaming it; time it, with fsync."""
    path, seconds, found = place / "whole", [], list[Finding]()
    with _caught("rename", found):
        for number in range(WRITES):
            start = time.perf_counter()
            files.write_whole(path, content := bytes([number]) * 4096)
            seconds.append(time.perf_counter() - start)
            if path.read_bytes() != content:
                return Finding("rename", "bad", "a renamed file does not hold what was written", ELSEWHERE)
        one = statistics.median(seconds)
        said = f"a file is replaced whole, in {1e3 * one:.1f} ms with its flush to the disk"
        slow = "checkpoints will take their time; raise train.checkpoint_seconds, or use a faster file system"
        found.append(Finding("rename", "note", said, slow) if one > SLOW_SECONDS else Finding("rename", "ok", said))
    return found[0]


def _flush(place: Path) -> Finding:
    """Check that a folder can be flushed: without that a rename may be lost in a power cut."""
    handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        # EINVAL: the file system has no fsync of folders. Anything else is a failure of one that has.
        verdict: Verdict = "note" if error.errno == errno.EINVAL else "bad"
        said = f"a folder cannot be flushed, {error.strerror}"
        return Finding("fsync", verdict, said, "after a power cut the newest checkpoint may be the one before")
    finally:
        os.close(handle)
    return Finding("fsync", "ok", "files and folders are flushed to the disk")


def _exclusive(place: Path) -> Finding:
    """Check that if several threads create one file at once, exactly one succeeds: the claim of a run relies on it."""
    found: list[Finding] = []
    with _caught("exclusive create", found), ThreadPoolExecutor(RACERS) as racers:
        for race in range(RACES):
            path = place / str(race)
            winners = sum(racers.map(lambda name, path=path: files.create_exclusive(path, name), [b"one"] * RACERS))
            if winners != 1:
                said = f"{winners} of {RACERS} created the same file"
                return Finding("exclusive create", "bad", said, ELSEWHERE)
        found.append(Finding("exclusive create", "ok", f"one of {RACERS} at once, {RACES} times"))
    return found[0]


def _locks(place: Path, kind: str, options: Sequence[str]) -> Finding:
    """Check that a file locked by one process cannot be locked by another: submissions wait for each other that way."""
    alone = "submissions at the same time find each other in SLURM's queue only, which is asked after each"
    with (place / "lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return Finding("locks", "note", f"refused, {error.strerror or error}", alone)
        # POSIX locks belong to a process, which can always lock its own file again: another process has to try.
        command = [sys.executable, "-P", "-c", LOCK, file.name]
        others = subprocess.run(command, capture_output=True, timeout=LOCK_SECONDS, check=False)  # noqa: S603
    if not others.returncode:
        return Finding("locks", "note", "two processes locked the same file", alone)
    reach = _reach(kind, options)
    said = f"they hold {reach}"
    return Finding("locks", "note", said, alone) if reach == HERE_ONLY else Finding("locks", "ok", said)


def _reach(kind: str, options: Sequence[str]) -> str:
    """Return between which processes locks hold, judged by the mount's type and options."""
    if kind in LOCAL:
        return "between processes of this machine"
    if {"nolock", "local_lock=all", "local_lock=posix", "localflock"} & {*options}:
        return HERE_ONLY
    return "between nodes too" if kind.startswith("nfs") or kind in COHERENT else UNKNOWN


def _clock(place: Path) -> Finding:
    """Compare the file system's clock, by which the age of a heartbeat is measured, with this machine's."""
    path = place / "clock"
    path.touch()  # the time is set by the file server, not by this machine
    apart = abs(path.stat().st_mtime - time.time())
    if apart < CLOCK_SECONDS:
        return Finding("clock", "ok", "of the file system and of this machine agree")
    said = f"the file system's is {apart:.0f} s from this machine's"
    verdict: Verdict = "bad" if apart > HEARTBEAT_LIMIT_SECONDS / 5 else "note"
    return Finding("clock", verdict, said, "tell the site; a run is taken for dead after 300 s without a sign")


def _kind(folder: Path, kind: str, *, on_cluster: bool) -> Finding:
    if on_cluster and kind in LOCAL:
        said = f"{folder} is on this machine's own disk ({kind})"
        return Finding("runs", "note", said, "the nodes of a cluster see it only if they share it")
    return Finding("runs", "ok", f"{folder}, {kind}")


def _mount(folder: Path) -> tuple[str, str]:
    """Return the device and the type of a folder's file system.

    In a chroot ``/proc/self/mounts`` does not list the mount of the root; sysfs names the disk by its device number.
    """
    best = ("", "", "")
    for device, point, kind, _ in _mounts():
        if folder.is_relative_to(point) and len(point) >= len(best[1]):  # a later mount on a point hides an earlier one
            best = (device, point, kind)
    if best[1]:
        return best[0], best[2]
    device = _block_device(folder.stat().st_dev)
    return device, BLOCK if device else "unknown file system"


def _options(folder: Path) -> list[str]:
    """Return the mount options of a folder's file system; a list of one empty word if its mount is not listed."""
    points = [(len(point), options) for _, point, _, options in _mounts() if folder.is_relative_to(point)]
    return max(points, default=(0, ""))[1].split(",")


def _mounts() -> Iterator[tuple[str, str, str, str]]:
    """Yield device, mount point, type and options of every mount in ``/proc/self/mounts``; none without ``/proc``."""
    try:
        table = Path("/proc/self/mounts").read_bytes()
    except OSError:  # no /proc
        return
    for line in table.split(b"\n"):
        fields = [os.fsdecode(_OCTAL.sub(lambda found: bytes([int(found[1], 8)]), field)) for field in line.split(b" ")]
        if len(fields) > 3:  # noqa: PLR2004
            yield fields[0], fields[1], fields[2], fields[3]


def _block_device(number: int) -> str:
    """Return the path of the block device with a device number; empty if there is none."""
    try:
        said = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/uevent").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(r"^DEVNAME=(.+)$", said, re.MULTILINE)
    return f"/dev/{found[1]}" if found else ""


def _room(folder: Path) -> Finding:
    state = os.statvfs(folder)
    free, inodes = state.f_bavail * state.f_frsize, state.f_favail
    said = f"{free / GIGABYTE:,.1f} GB are free"
    if free < NO_ROOM_BYTES:
        return Finding("space", "bad", said, "make room; `cnnjob clean` lists what no run needs")
    if free < LITTLE_ROOM_BYTES:
        return Finding("space", "note", said, "enough for small networks; `cnnjob clean` lists what no run needs")
    if state.f_files and inodes < FEW_FILES:  # 0 where inodes are not limited, as on btrfs
        return Finding("space", "note", f"{said}, but room for {inodes:,} files only", "a run has about 20 files")
    return Finding("space", "ok", said)


def _quota(folder: Path, device: str, kind: str) -> Iterator[Finding]:
    """Check this user's quota with ``quota``, or ``lfs quota`` on Lustre, if that is installed."""
    command = ["lfs", "quota", "-u", getuser(), str(folder)] if kind == "lustre" else ["quota", "-w", "-p"]
    if not shutil.which(command[0]):
        return
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, errors="replace", timeout=QUOTA_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return
    for used, limit in _quotas(done.stdout, str(folder) if kind == "lustre" else device):
        said = f"{used / GIGABYTE:,.1f} of {limit / GIGABYTE:,.1f} GB are used"
        if used > NEARLY * limit:
            verdict: Verdict = "bad" if used > QUITE * limit else "note"
            yield Finding("quota", verdict, said, "make room; `cnnjob clean` lists what no run needs")
        else:
            yield Finding("quota", "ok", said)


def _quotas(answer: str, name: str) -> Iterator[tuple[int, int]]:
    """Yield bytes used and allowed, from the lines of ``quota`` or ``lfs quota`` about one file system."""
    # Both print KiB, mark a figure over its limit with *, and print 0 for no limit.
    for where, used, soft, hard in re.findall(r"^\s*(\S+)\s+(\d+)\*?\s+(\d+)\s+(\d+)\b", answer, re.MULTILINE):
        if f"{name}/".startswith(f"{where.rstrip('/')}/") and (limit := int(hard) or int(soft)):
            yield KIBIBYTE * int(used), KIBIBYTE * limit
