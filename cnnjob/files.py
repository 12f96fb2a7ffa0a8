"""Durable writing and guarded reading of files.

A file is either complete or absent: it is written under a temporary name in the same folder, flushed to disk and
renamed, and then the folder is flushed too. A process killed at any moment leaves the old file or the new one, and at
most one temporary file, which :func:`remove_leftovers` removes.

Every file is read through :func:`open_regular`, up to a maximum size, so a pipe or a device found in place of a file
can neither block the process nor cause side effects.
"""

import errno
import hashlib
import json
import math
import os
import re
import secrets
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import Any

from cnnjob.errors import CnnjobError, DataError, note_names

PACKAGE = Path(__file__).parent
"""Folder of this package."""
TEMPORARY_SUFFIX = ".tmp"
NO_PROC = "/proc is not readable"
MOUNT_PROC = "In a chroot or container: mount -t proc proc /proc"
GIT_LFS_POINTER = b"version https://git-lfs"
"""First bytes of the small text file that Git stores instead of a large file."""
A_GIT_LFS_POINTER = "a Git LFS pointer instead of the file itself. Run git lfs pull in its repository"
TEXT_BYTES = 16 * 2**20
"""Maximum size of a text or JSON file, in bytes."""
_FILE_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_MAX_LEVELS = 64
"""Maximum nesting depth of JSON."""
_MAX_DIGITS = 20
"""Maximum length of a 64-bit integer in decimal, sign included."""
_MAX_QUOTED = 40
"""Maximum length of an invalid value quoted in a message, in characters."""
_SURROGATE = re.compile(r"\\u[dD]")


def temporary_name(path: Path) -> Path:
    """Return a new path for a temporary file in the same folder as ``path``.

    The file name, ``.NAME.HOST-TABLE-PID-RANDOM.tmp``, identifies this process.
    """
    owner = f"{socket.gethostname()}-{process_table()}-{os.getpid()}"
    return path.with_name(f".{path.name}.{owner}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary files for ``path`` that were left by processes killed on this host."""
    # No glob: a name may contain characters with a special meaning in patterns.
    for leftover in path.parent.iterdir():
        if leftover.name.startswith(f".{path.name}.{socket.gethostname()}-") and writer_is_gone(leftover):
            with suppress(OSError):
                leftover.unlink(missing_ok=True)


def writer_is_gone(path: Path) -> bool | None:
    """Return whether the process that wrote a temporary file is gone; None if this cannot be determined."""
    owner = rf"\..+\.{re.escape(socket.gethostname())}(?:-([0-9a-f]{{8}}))?-(\d{{1,9}})-[0-9a-f]+{TEMPORARY_SUFFIX}"
    found = re.fullmatch(owner, path.name)
    if not found or found[1] not in {None, process_table()}:  # names from older versions lack the table
        # The same pid in another container, or before the last boot, is a different process.
        return None
    return is_gone(int(found[2]))


def is_gone(pid: int) -> bool:
    """Return whether no process in the current pid namespace has this pid."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass  # it exists, but belongs to another user
    return False


@cache
def process_table() -> str:
    """Return eight hexadecimal digits that identify the machine's current boot and this process's pid namespace."""
    try:
        known = f"{boot_id()} {pid_namespace()}"
    except CnnjobError:  # no /proc
        known = ""
    return hashlib.sha256(known.encode()).hexdigest()[:8]


def pid_namespace() -> str | None:
    """Return this process's pid namespace as ``pid:[N]``; None if ``/proc`` shows the processes of another namespace.

    On a system without namespaces, the result is an empty string.
    """
    try:
        # A container may have the host's /proc mounted. Pids looked up there would then refer to other processes.
        if os.readlink("/proc/self") != str(os.getpid()):  # noqa: PTH115 - a number
            return None
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - no path
    except OSError:
        return ""  # a system without namespaces


def boot_id() -> str:
    """Return the random UUID that the kernel assigned to this boot of the machine.

    Raises:
        CnnjobError: ``/proc`` cannot be read.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError as error:
        raise CnnjobError(f"{NO_PROC}, so the owner of a run cannot be identified ({error}). {MOUNT_PROC}") from error


def no_fence() -> None:
    """Allow every rename; used as the fence for files that only one process can write."""


@contextmanager
def whole(path: Path, *, fence: Callable[[], None] = no_fence, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to ``path`` on success.

    Args:
        path: the final name; its folder must exist.
        fence: called at the start and again just before the rename; it raises an error to prevent the rename.
        flush: whether to flush the file to disk. If not, the file may be empty after a power cut, but not after the
            process is killed.

    Yields:
        A path in the same folder that does not exist yet.
    """
    fence()
    _remove_abandoned(path)
    temporary = temporary_name(path)
    try:
        yield temporary
        # Flush the content before renaming: after a power cut, a rename without its content would leave an empty file.
        if flush:
            flush_file(temporary)
        # Writing a large checkpoint takes time, during which another attempt may have claimed the run.
        fence()
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if flush:
        flush_folder(path.parent)  # only this makes the rename itself durable


def write_whole(
    path: Path, content: bytes | memoryview, *, fence: Callable[[], None] = no_fence, flush: bool = True
) -> None:
    """Write ``content`` to ``path``, completely or not at all; the arguments are those of :func:`whole`."""
    with whole(path, fence=fence, flush=flush) as temporary:
        temporary.write_bytes(content)


def append_text(path: Path, text: str) -> None:
    """Append text to a regular file, creating it if it is missing; symbolic links are not followed.

    Raises:
        OSError: the file cannot be written, or is a symbolic link or not a regular file.
    """
    # O_NONBLOCK: opening a pipe without a reader would block. O_NOCTTY: a terminal must not become the controlling one.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o666), "ab") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        file.write(text.encode(errors="backslashreplace"))


def create_exclusive(path: Path, content: bytes) -> bool:
    """Create ``path`` with ``content``, unless it already exists; return whether this call created it.

    The file is complete as soon as it exists: its name is created as a hard link, which succeeds for exactly one of
    several racing processes, even on network file systems.
    """
    # O_EXCL would also let only one process win, but the others could then read a file that is still empty.
    temporary = temporary_name(path)
    try:
        temporary.write_bytes(content)
        flush_file(temporary)
        path.hardlink_to(temporary)
    except (FileExistsError, FileNotFoundError):  # the latter: the winner has already removed our temporary file
        return False
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    flush_folder(path.parent)
    return True


def flush_file(path: Path) -> None:
    """Flush a file's content to disk."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_folder(path: Path) -> None:
    """Flush a folder's entries to disk, if its file system supports that."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot flush a folder
            raise
    finally:
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Remove every temporary file in a run's folder, whichever process wrote it; the caller must own the run."""
    for leftover in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no spaces, so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def readable_json(value: Any) -> str:
    """Return JSON with one value per line and a newline at the end.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot express.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # Python represents an undecodable byte of a file name as a lone surrogate, which becomes a JSON escape like \udcff.
    return text.encode(errors="backslashreplace").decode()


def write_json(path: Path, value: Any, *, fence: Callable[[], None] = no_fence) -> None:
    """Write a value as readable JSON, completely or not at all."""
    write_whole(path, readable_json(value).encode(), fence=fence)


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading; refuse anything else, because opening it could block or cause side effects.

    Args:
        path: a file, or a link to one.

    Returns:
        The open file, to be closed by the caller.

    Raises:
        DataError: the file is missing or cannot be read, or it is a folder, a pipe, a socket or a device.
    """
    note_names(path)
    try:
        _require_regular(path, path.stat().st_mode)  # before opening, since merely opening a device can affect it
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a path read from a damaged record may contain a NUL
        raise DataError(f"{path}: cannot be read ({reason_of(error)})") from error
    try:
        # Between stat and open, something else may have been renamed to this path.
        _require_regular(path, os.fstat(file.fileno()).st_mode)
    except DataError:
        file.close()
        raise
    return file


def _require_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _FILE_KINDS.get(stat.S_IFMT(mode), "a file of an unknown kind")
        raise DataError(f"{path}: not a regular file (found {kind}). Remove it, or choose another file")


def reason_of(error: Exception) -> str:
    """Return an error's text without the error number and the path, for a message that already contains the path."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def read_bytes(path: Path, at_most: int = TEXT_BYTES) -> bytes:
    """Read a regular file, up to a maximum size.

    Args:
        path: a file, or a link to one.
        at_most: maximum size in bytes.

    Returns:
        The file's content.

    Raises:
        DataError: the file cannot be read, is not a regular file, or is larger than ``at_most``.
    """
    with open_regular(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            if size > at_most:
                raise DataError(f"{path}: too large (found {size:,} bytes; the maximum is {at_most:,})")
            return file.read(size)  # not read(): a file that grows in the meantime must not exceed the limit
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({reason_of(error)})") from error


def read_text(path: Path, at_most: int = TEXT_BYTES) -> str:
    """Read UTF-8 text as :func:`read_bytes` does; drop a byte order mark and convert CRLF line endings to LF.

    Raises:
        DataError: the file cannot be read, is not a regular file, is larger than ``at_most``, or is not UTF-8.
    """
    try:
        return read_bytes(path, at_most).decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error})") from error


def read_tail(path: Path, count: int) -> str:
    """Return the end of a file as text; an empty string if the file cannot be read.

    Args:
        path: a regular file, or a link to one.
        count: maximum number of bytes.

    Returns:
        The text; bytes that are not valid UTF-8 are replaced by U+FFFD.
    """
    with suppress(DataError, OSError), open_regular(path) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - count))
        return file.read(count).decode(errors="replace")
    return ""


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: the file is missing or is not a regular file, or :func:`parse_json` rejects its content.
    """
    try:
        return parse_json(read_bytes(path))
    except ValueError as error:
        raise DataError(f"{path}: not readable as JSON ({error})") from error


def parse_json(content: bytes | str) -> Any:
    """Parse JSON strictly: accept only what Python, SLURM's tools and other parsers all interpret in the same way.

    Args:
        content: text, or UTF-8 bytes.

    Returns:
        The value.

    Raises:
        ValueError: the content is not JSON, or contains NaN or infinity, an integer of more than 64 bits, a duplicate
            key or a lone surrogate, or is nested more than 64 levels deep.
    """
    text = content.decode() if isinstance(content, bytes) else content
    try:
        value = _JSON.decode(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    # Counting brackets, including those in strings, gives a quick upper bound on the depth.
    if text.count("[") + text.count("{") > _MAX_LEVELS:
        _require_shallow(value, _MAX_LEVELS)
    if _SURROGATE.search(text):
        # Encoding rejects lone surrogates except U+DC80 to U+DCFF, which stand for undecodable bytes of file names.
        json.dumps(value, ensure_ascii=False).encode(errors="surrogateescape")
    return value


def _finite(text: str) -> float:
    number = float(text)  # 1e999 is valid JSON, and infinity in Python
    if not math.isfinite(number):
        raise ValueError(f"{text[:_MAX_QUOTED]} is not a finite number")
    return number


def _integer(text: str) -> int:
    # The length is checked first: beyond 4300 digits, int() raises an error about changing Python's limit.
    if len(text) > _MAX_DIGITS or not -(2**63) <= (number := int(text)) < 2**64:
        raise ValueError(f"integer of more than 64 bits: {text[:_MAX_QUOTED]}")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("duplicate key in an object")
    return members


def _require_shallow(value: Any, levels: int) -> None:
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for member in members:
        if isinstance(member, dict | list):
            if levels == 1:
                raise ValueError(f"nested more than {_MAX_LEVELS} levels deep")
            _require_shallow(member, levels - 1)


_JSON = json.JSONDecoder(parse_float=_finite, parse_int=_integer, parse_constant=_finite, object_pairs_hook=_unique)


def sha256_of(*parts: bytes | memoryview) -> str:
    """Return the SHA-256 of the concatenated parts, in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def short_digest(digest: str) -> str:
    """Return the first eight digits of a digest, as used in run folder names and to identify datasets and commits."""
    return digest[:8]


@contextmanager
def disk_errors_as_cnnjob_error(path: Path) -> Iterator[None]:
    """Turn an OSError, for example from a full disk, into a CnnjobError; files written earlier remain intact.

    Raises:
        CnnjobError: in place of an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise CnnjobError(
            f"{path}: cannot be read or written ({reason_of(error)}). Check the disk, then run the same command again"
        ) from error
