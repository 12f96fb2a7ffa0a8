"""The one durable writer, and its verified reader.

A file is either whole or absent: it is written under a temporary name in the same
folder, flushed to the disk, renamed, and its folder is flushed too. A process killed at
any moment leaves the old file or the new one, and at most a temporary file that
:func:`remove_leftovers` clears.

Everything is read through :func:`open_regular`, with a limit to its size: a pipe or a
device in the place of a file can neither block nor act.
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
"""The folder of this package."""
TEMPORARY_SUFFIX = ".tmp"
NO_PROC = "/proc is not readable"
MOUNT_PROC = "In a chroot or container: mount -t proc proc /proc"
TEXT_BYTES = 16 * 2**20
"""Of a file of text or JSON, at most."""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_LEVELS = 64
"""Of tables in JSON, at most."""
_DIGITS = 20
"""Of an integer of 64 bits with its sign."""
_SHOWN = 40
"""Characters of something odd that a message quotes."""
_SURROGATE = re.compile(r"\\u[dD]")


def temporary_name(path: Path) -> Path:
    """A new name in the same folder that says whose it is: ``.NAME.HOST-TABLE-PID-RANDOM.tmp``."""
    owner = f"{socket.gethostname()}-{process_table()}-{os.getpid()}"
    return path.with_name(f".{path.name}.{owner}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary files of a path whose processes were killed on this host."""
    for leftover in path.parent.iterdir():
        if leftover.name.startswith(f".{path.name}.{socket.gethostname()}-") and writer_is_gone(leftover):
            with suppress(OSError):
                leftover.unlink(missing_ok=True)


def writer_is_gone(path: Path) -> bool | None:
    """Return whether the process is gone that wrote to a temporary name; None where it cannot be looked up here."""
    owner = rf"\..+\.{re.escape(socket.gethostname())}(?:-([0-9a-f]{{8}}))?-(\d{{1,9}})-[0-9a-f]+{TEMPORARY_SUFFIX}"
    found = re.fullmatch(owner, path.name)
    if not found or found[1] not in {None, process_table()}:  # an older version's has no table
        return None
    return is_gone(int(found[2]))


def is_gone(pid: int) -> bool:
    """Return whether no process of this table has a number."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return False


@cache
def process_table() -> str:
    """Return eight letters that name this machine's boot and the name space of this process's number."""
    try:
        known = f"{boot_id()} {pid_namespace()}"
    except CnnjobError:  # no /proc
        known = ""
    return hashlib.sha256(known.encode()).hexdigest()[:8]


def pid_namespace() -> str | None:
    """Return the name space of this process's number; None where ``/proc`` shows the processes of another one."""
    try:
        if os.readlink("/proc/self") != str(os.getpid()):  # noqa: PTH115 - a number
            return None
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - no path
    except OSError:
        return ""  # a system without name spaces


def boot_id() -> str:
    """Return the identifier of this machine's boot.

    Raises:
        CnnjobError: ``/proc`` cannot be read.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError as error:
        raise CnnjobError(f"{NO_PROC}; without it no run's owner can be known (found {error}). {MOUNT_PROC}") from error


def no_fence() -> None:
    """Allow every rename: the fence of a file that only one process can write."""


@contextmanager
def whole(path: Path, *, fence: Callable[[], None] = no_fence) -> Iterator[Path]:
    """Give a temporary path to write to, and publish it under ``path`` on success.

    Args:
        path: the final name; its folder must exist.
        fence: called first and again just before the rename; it may raise to forbid it.

    Yields:
        A path in the same folder that does not exist yet.
    """
    fence()
    _remove_abandoned(path)
    temporary = temporary_name(path)
    try:
        yield temporary
        flush_file(temporary)
        fence()
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def write_whole(path: Path, content: bytes | memoryview, *, fence: Callable[[], None] = no_fence) -> None:
    """Write ``content`` to ``path``, whole or not at all."""
    with whole(path, fence=fence) as temporary:
        temporary.write_bytes(content)


def append_text(path: Path, text: str) -> None:
    """Append to a regular file, which is made where there is none; a link is not followed.

    Raises:
        OSError: it cannot be written, or is a link or no regular file.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o666), "ab") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        file.write(text.encode(errors="backslashreplace"))


def create_exclusive(path: Path, content: bytes) -> bool:
    """Create ``path`` with ``content``, whole, unless it exists; say whether this call did.

    The file appears under its name by a hard link, which exactly one of several racing
    processes can make, on network file systems too.
    """
    temporary = temporary_name(path)
    try:
        temporary.write_bytes(content)
        flush_file(temporary)
        path.hardlink_to(temporary)
    except (FileExistsError, FileNotFoundError):  # the second: the winner has swept our temporary file away
        return False
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    flush_folder(path.parent)
    return True


def flush_file(path: Path) -> None:
    """Flush a file's content to the disk."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_folder(path: Path) -> None:
    """Flush a folder's entries to the disk, where its file system can."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot flush a folder
            raise
    finally:
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder."""
    for leftover in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def readable_json(value: Any) -> str:
    """Return JSON with one value per line and a newline at its end.

    Raises:
        ValueError: a number is NaN or infinite, which JSON does not have.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode(errors="backslashreplace").decode()  # a file name's undecodable byte, as JSON's \udcff


def write_json(path: Path, value: Any, *, fence: Callable[[], None] = no_fence) -> None:
    """Write a value as readable JSON, whole or not at all."""
    write_whole(path, readable_json(value).encode(), fence=fence)


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading; nothing else can block or act when it is opened.

    Args:
        path: a file, or a link to one.

    Returns:
        The open file, to be closed by the caller.

    Raises:
        DataError: it is missing, cannot be read, or is a folder, a pipe, a socket or a device.
    """
    note_names(path)
    try:
        _require_regular(path, path.stat().st_mode)  # opening a device can act on it
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a name that a damaged record says may hold a NUL
        raise DataError(f"{path}: cannot be read ({reason_of(error)})") from error
    try:
        _require_regular(path, os.fstat(file.fileno()).st_mode)  # another file may have taken the name
    except DataError:
        file.close()
        raise
    return file


def _require_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no file")
        raise DataError(f"{path}: not a regular file (found {kind}). Remove it, or name another")


def reason_of(error: Exception) -> str:
    """Return what an error of reading says, for a message."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def read_bytes(path: Path, at_most: int = TEXT_BYTES) -> bytes:
    """Read a regular file that must not be larger than expected.

    Args:
        path: a file, or a link to one.
        at_most: how many bytes it may have.

    Returns:
        Its content.

    Raises:
        DataError: it cannot be read, is no regular file, or is larger.
    """
    with open_regular(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            if size > at_most:
                raise DataError(f"{path}: too large (found {size:,} bytes, at most {at_most:,} are read)")
            return file.read(size)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({reason_of(error)})") from error


def read_text(path: Path, at_most: int = TEXT_BYTES) -> str:
    """Read a regular file of UTF-8 text, as :func:`read_bytes`; a byte order mark is left out.

    Raises:
        DataError: it cannot be read, is no regular file, is larger, or is not UTF-8.
    """
    try:
        return read_bytes(path, at_most).decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error})") from error


def read_tail(path: Path, count: int) -> str:
    """Return the last bytes of a file as text, and nothing of one that cannot be read.

    Args:
        path: a regular file, or a link to one.
        count: how many bytes.

    Returns:
        The text; what is not UTF-8 is replaced.
    """
    with suppress(DataError, OSError), open_regular(path) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - count))
        return file.read(count).decode(errors="replace")
    return ""


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        DataError: the file is missing, is no regular file, or is not JSON as :func:`parse_json` accepts it.
    """
    try:
        return parse_json(read_bytes(path))
    except ValueError as error:
        raise DataError(f"{path}: not readable as JSON ({error})") from error


def parse_json(content: bytes | str) -> Any:
    """Parse JSON that Python, SLURM's tools and other readers understand in the same way.

    Args:
        content: UTF-8.

    Returns:
        The value.

    Raises:
        ValueError: it is not JSON, or has a NaN, a number of more than 64 bits, a key twice, half a surrogate pair or
            more than 64 levels.
    """
    text = content.decode() if isinstance(content, bytes) else content
    try:
        value = _JSON.decode(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if text.count("[") + text.count("{") > _LEVELS:
        _require_shallow(value, _LEVELS)
    if _SURROGATE.search(text):
        json.dumps(value, ensure_ascii=False).encode(errors="surrogateescape")  # a file name's undecodable byte may be
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:_SHOWN]} is no finite number")
    return number


def _integer(text: str) -> int:
    if len(text) > _DIGITS or not -(2**63) <= (number := int(text)) < 2**63:
        raise ValueError(f"an integer of more than 64 bits, {text[:_SHOWN]}")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return members


def _require_shallow(value: Any, levels: int) -> None:
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for member in members:
        if isinstance(member, dict | list):
            if levels == 1:
                raise ValueError(f"more than {_LEVELS} levels")
            _require_shallow(member, levels - 1)


_JSON = json.JSONDecoder(parse_float=_finite, parse_int=_integer, parse_constant=_finite, object_pairs_hook=_unique)


def sha256_of(*parts: bytes | memoryview) -> str:
    """SHA-256 of the parts, one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


@contextmanager
def disk_errors_as_cnnjob_error(path: Path) -> Iterator[None]:
    """Say that the disk is full or failing; what was kept before is whole.

    Raises:
        CnnjobError: instead of an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise CnnjobError(
            f"{path}: cannot be read or written, {error}; see to the disk, and run the same command again"
        ) from error
