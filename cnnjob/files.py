"""The one durable writer, and its verified reader.

A file is either whole or absent: it is written under a temporary name in the same
folder, flushed to the disk, renamed, and its folder is flushed too. A process killed at
any moment leaves the old file or the new one, and at most a temporary file that
:func:`remove_leftovers` clears.

Arrays are kept as ``.npz`` (no pickles; plain NumPy opens them) whose zip comment is the
SHA-256 of every other byte of the file, so that a flipped bit or a lost tail is found.
"""

import errno
import hashlib
import io
import json
import os
import re
import secrets
import socket
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from cnnjob.errors import DataError

TEMPORARY_SUFFIX = ".tmp"
_DIGEST_LABEL = b"sha256:"
_DIGEST_CHARACTERS = 64
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)  # a fixed date: equal arrays give equal files


def temporary_name(path: Path) -> Path:
    """A new name in the same folder that says whose it is: ``.NAME.HOST-PID-RANDOM.tmp``."""
    owner = f"{socket.gethostname()}-{os.getpid()}"
    return path.with_name(f".{path.name}.{owner}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary files of a path whose processes were killed on this host."""
    for leftover in path.parent.iterdir():
        if leftover.name.startswith(f".{path.name}.{socket.gethostname()}-") and writer_is_gone(leftover):
            with suppress(OSError):
                leftover.unlink(missing_ok=True)


def writer_is_gone(path: Path) -> bool | None:
    """Whether the process is gone that wrote to a temporary name; None where it was of another host."""
    found = re.fullmatch(rf"\..+\.{re.escape(socket.gethostname())}-(\d+)-[0-9a-f]+{TEMPORARY_SUFFIX}", path.name)
    return not Path("/proc", found[1]).exists() if found else None


def _always() -> None:
    """Allow every rename: the fence of a file that only one process can write."""


@contextmanager
def whole(path: Path, *, fence: Callable[[], None] = _always) -> Iterator[Path]:
    """Give a temporary path to write to, and publish it under ``path`` on success.

    Args:
        path: the final name; its folder must exist.
        fence: called just before the rename; it may raise to forbid it.

    Yields:
        A path in the same folder that does not exist yet.
    """
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


def write_whole(path: Path, content: bytes | memoryview, *, fence: Callable[[], None] = _always) -> None:
    """Write ``content`` to ``path``, whole or not at all."""
    with whole(path, fence=fence) as temporary:
        temporary.write_bytes(content)


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


def write_json(path: Path, value: Any, *, fence: Callable[[], None] = _always) -> None:
    """Write a value as readable JSON, whole or not at all."""
    write_whole(path, readable_json(value).encode(), fence=fence)


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        DataError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON, {error}") from error


def read_record(path: Path, *keys: str) -> dict[str, Any]:
    """Read a JSON object that must have some keys.

    Raises:
        DataError: the file is missing, is not JSON, or is not such an object.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not content.keys() >= set(keys):
        wanted = f"an object with {', '.join(keys)}" if keys else "an object"
        raise DataError(f"{path}: damaged, it is not {wanted}; restore it, or remove its run")
    return content


def sha256_of(*parts: bytes | memoryview) -> str:
    """SHA-256 of the parts, one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], *, fence: Callable[[], None] = _always) -> None:
    """Write named arrays as an ``.npz`` that carries the digest of the whole file."""
    write_whole(path, arrays_to_bytes(arrays), fence=fence)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read named arrays and verify the digest of the whole file.

    Raises:
        DataError: the file is missing, cut short or altered.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read, {error}") from error
    return arrays_from_bytes(content, str(path))


def arrays_to_bytes(arrays: Mapping[str, np.ndarray]) -> memoryview:
    """The content of the ``.npz`` file that :func:`write_arrays` writes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = _DIGEST_LABEL + b"0" * _DIGEST_CHARACTERS
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy", _ZIP_EPOCH), "w") as entry:
                np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)
    content = buffer.getbuffer()  # filled in place: a large network's checkpoint is held once, not twice
    content[-_DIGEST_CHARACTERS:] = sha256_of(content[:-_DIGEST_CHARACTERS]).encode()
    return content


def arrays_from_bytes(content: bytes | memoryview, where: str) -> dict[str, np.ndarray]:
    """Verify and read what :func:`arrays_to_bytes` made.

    Raises:
        DataError: the content is cut short or altered; ``where`` names it.
    """
    body, found = content[:-_DIGEST_CHARACTERS], content[-_DIGEST_CHARACTERS:]
    if bytes(body[-len(_DIGEST_LABEL) :]) != _DIGEST_LABEL or sha256_of(body).encode() != found:
        raise DataError(f"{where}: damaged, its checksum does not fit its {len(content):,} bytes")
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return dict(archive.items())
