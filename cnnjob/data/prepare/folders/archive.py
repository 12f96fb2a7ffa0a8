"""Read image files in place from a zip or tar archive of a folder.

Several processes read the same archive concurrently, each at the offsets of the members assigned to it. A compressed
tar archive does not allow this, so it is first decompressed into a temporary file.
"""

import hashlib
import os
import struct
import weakref
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from cnnjob.data.prepare.archives import decompressed_file, tar_members
from cnnjob.data.prepare.folders.tree import (
    MAX_CONTENT_BYTES,
    FolderTree,
    Listing,
    Stamp,
    is_visible,
    stamp_of,
)
from cnnjob.errors import DataError
from cnnjob.files import open_regular

_DAMAGED = (EOFError, NotImplementedError, OSError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error)
_ENCRYPTED, _UTF8 = 1, 1 << 11
"""Bits in a zip member's flags: its content is encrypted; its name is in UTF-8, not in code page 437."""
_ENCODINGS = ("gbk", "shift_jis", "cp949", "cp866")
"""Encodings in which Chinese, Japanese, Korean and Russian versions of Windows store names."""
_UNICODE_PATH = 0x7075
"""Identifier of Info-ZIP's extra field with a member's name in UTF-8."""


def _build_listing(archive: Path, files: Iterable[str], folders: Iterable[str]) -> Listing:
    """Return a listing of an archive's members.

    Args:
        archive: path of the archive, for messages.
        files: paths of the files in the archive.
        folders: paths of the folders in the archive, including empty ones.

    Raises:
        DataError: a path points outside the archive, or occurs twice.
    """
    listing, seen, hidden = Listing(), set(), set()
    for path in sorted(files, key=lambda path: path.split("/")):
        parts = path.split("/")
        if path.startswith("/") or not {"", ".", ".."}.isdisjoint(parts):
            raise DataError(
                f"{archive}: the path of a member points outside the archive (found {path!r}). Create the archive again"
            )
        if path in seen:
            raise DataError(f"{archive}: two members have the same name (found {path}). Create the archive again")
        seen.add(path)
        first_hidden = next((index for index, name in enumerate(parts[:-1]) if not is_visible(name)), None)
        if first_hidden is None:
            listing.add_file(path)
        else:
            hidden.add("/".join(parts[: first_hidden + 1]))
    parents = {"/".join(path.split("/")[:depth]) for path in listing.files for depth in range(1, path.count("/") + 1)}
    visible = {path for path in folders if all(map(is_visible, path.split("/")))}
    listing.folders += sorted(parents | visible, key=lambda path: path.split("/"))
    listing.left_out += sorted(hidden)
    return listing


class _ArchiveTree(FolderTree):
    """An archive of image files, whose members share the stamp of the archive."""

    def stamp(self, name: str) -> Stamp | None:  # noqa: ARG002 - one file holds all members
        """Return the stamp of the archive, which all members share (see :func:`stamp_of`)."""
        return _stamp_of_file(self.root)

    def digest(self, name: str) -> bytes:
        """Return the SHA-256 of a member."""
        return hashlib.sha256(self.read(name)[0] or b"").digest()


class ZipTree(_ArchiveTree):
    """A zip archive of image files."""

    def __init__(self, root: Path, encoding: str | None = None) -> None:
        """Store the path of the archive; nothing is read yet.

        Args:
            root: the archive.
            encoding: encoding of names that are not in UTF-8; None for code page 437, the standard's default.
        """
        super().__init__(root)
        self._encoding = encoding
        self._opened: tuple[int, zipfile.ZipFile, Stamp] | None = None
        self._stored_names: dict[str, str] = {}  # by path, as zipfile has decoded them

    def list(self) -> Listing:
        """Return a listing of all members.

        Raises:
            DataError: the archive is damaged or encrypted, the path of a member is invalid or occurs twice, or the name
                of a folder, which may be a class, is in an unknown encoding.
        """
        self._opened = None  # reopen the archive, since it may have changed on disk
        members = self._archive()[0].infolist()
        stored = [_stored_name(info) for info in members]
        names = self._decoded(stored)
        # Some Windows programs separate folders with backslashes.
        separator = "\\" if not any("/" in name for name in names) else "/"
        files, folders = [], []
        for info, name in zip(members, names, strict=True):
            path = _normalised(name.replace(separator, "/"))
            if name.endswith(("/", separator)):
                folders.append(path)
            else:
                self._stored_names[path] = info.filename
                files.append(path)
        listing = _build_listing(self.root, files, [path for path in folders if path != "."])
        visible = {self._stored_names[path] for path in listing.files}
        if encrypted := [info for info in members if info.flag_bits & _ENCRYPTED and info.filename in visible]:
            raise DataError(
                f"{self.root}: contains encrypted files (found {len(encrypted):,}, e.g. {encrypted[0].filename}). "
                "Unpack the archive with its password, and specify the folder"
            )
        is_known = self._encoding is not None or all(map(_is_utf8, stored))
        unclear = [
            (name, raw)
            for name, raw in zip(names, stored, strict=True)
            if isinstance(raw, bytes) and not (is_known or raw.isascii())
        ]
        if in_folders := [pair for pair in unclear if not pair[0].rpartition(separator)[0].isascii()]:
            name, raw = in_folders[0]
            guesses = ""
            for encoding in _ENCODINGS:
                with suppress(UnicodeDecodeError):
                    guesses += f", {raw.decode(encoding)!r} in {encoding}"
            raise DataError(
                f"{self.root}: names of folders are in an unknown encoding (found {name!r} in code page 437{guesses}). "
                "State the right one, for example with --zip-encoding gbk"
            )
        if unclear:
            listing.remarks.append(
                f"names of files in an unknown encoding were read as code page 437 (found {unclear[0][0]!r}). If a "
                "table of labels contains these names, state the encoding, for example with --zip-encoding gbk"
            )
        return listing

    def _decoded(self, names: Sequence[str | bytes]) -> Sequence[str]:
        """Return names as text. Bytes are decoded with the stated encoding; without one, as UTF-8 if all can be."""
        encoding = self._encoding or ("utf-8" if all(map(_is_utf8, names)) else "cp437")
        decoded = []
        for name in names:
            try:
                decoded.append(name if isinstance(name, str) else name.decode(encoding))
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{self.root}: a name is not in the encoding {encoding} (found {name!r}). "
                    "State another --zip-encoding"
                ) from error
        return decoded

    def read(self, name: str) -> tuple[bytes | None, Stamp]:
        """Read a member; return its content and the archive's stamp (see :func:`stamp_of`).

        Raises:
            DataError: the member is missing, damaged or too large.
        """
        archive, stamp = self._archive()
        try:
            info = archive.getinfo(self._stored_names[name])
            # zipfile allocates memory for the sizes stated in the archive, regardless of the size of the archive.
            if info.file_size > MAX_CONTENT_BYTES or info.compress_size > min(stamp[2], MAX_CONTENT_BYTES):
                raise DataError(f"{self.path(name)}: too large (found {info.file_size:,} bytes). Unpack the archive")
            return archive.read(info), stamp
        except KeyError as error:
            raise DataError(f"{self.path(name)}: no such member") from error
        except _DAMAGED as error:
            raise DataError(f"{self.path(name)}: damaged ({error}). Copy or download the archive again") from error

    def _archive(self) -> tuple[zipfile.ZipFile, Stamp]:
        """Return the open archive and the archive's stamp.

        Each process opens the archive separately, because processes that share an open file also share its position.

        Raises:
            DataError: the archive is damaged.
        """
        if self._opened is None or self._opened[0] != os.getpid():
            file = open_regular(self.root)
            weakref.finalize(self, file.close)  # members are read until the last chunk has been written
            try:
                self._opened = os.getpid(), zipfile.ZipFile(file), stamp_of(os.fstat(file.fileno()))
            except _DAMAGED as error:
                raise DataError(f"{self.root}: damaged ({error}). Copy or download it again") from error
        return self._opened[1:]


class TarTree(_ArchiveTree):
    """A tar archive of image files; the archive may be compressed."""

    def __init__(self, root: Path) -> None:
        """Open the archive, decompressing it if necessary."""
        super().__init__(root)
        self._stamp = _stamp_of_file(root)
        self._file = decompressed_file(root)
        weakref.finalize(self, self._file.close)  # members are read until the last chunk has been written
        self._members: dict[str, tuple[int, int]] = {}

    def list(self) -> Listing:
        """Return a listing of all members.

        Raises:
            DataError: the archive is damaged, has changed since it was opened, or contains links.
        """
        if _stamp_of_file(self.root) != self._stamp:
            raise DataError(f"{self.root}: changed while being read. Leave the archive unchanged and prepare it again")
        files: list[str] = []
        folders: list[str] = []
        links: list[str] = []
        for name, kind, position, size in tar_members(self.root, self._file):
            path = _normalised(name)
            if path == ".":
                continue
            if kind == "file":
                self._members[path] = (position, size)
                files.append(path)
            else:
                (links if kind == "link" else folders).append(path)
        if linked := _build_listing(self.root, links, []).files:
            raise DataError(
                f"{self.path(linked[0])}: links in archives are not followed (found {len(linked)} in total). "
                "Unpack the archive and specify the folder"
            )
        return _build_listing(self.root, files, folders)

    def read(self, name: str) -> tuple[bytes | None, Stamp]:
        """Return the content of a member, and the archive's stamp from when the archive was opened.

        Raises:
            DataError: the member is missing or too large, or extends beyond the end of the archive.
        """
        if name not in self._members:
            raise DataError(f"{self.path(name)}: no such member")
        position, size = self._members[name]
        if size > MAX_CONTENT_BYTES:
            raise DataError(f"{self.path(name)}: too large (found {size:,} bytes). Unpack the archive")
        content = os.pread(self._file.fileno(), size, position)  # does not use the file position, which is shared
        if len(content) != size:
            raise DataError(
                f"{self.path(name)}: the archive ends within this member. Copy or download the archive again"
            )
        return content, self._stamp or (0, 0, 0, 0)


def _normalised(name: str) -> str:
    """Return a member's path without ``./``, double slashes or a trailing slash."""
    return str(PurePosixPath(name))


def _is_utf8(name: str | bytes) -> bool:
    try:
        return isinstance(name, str) or bool(name.decode()) or not name
    except UnicodeDecodeError:
        return False


def _stored_name(info: zipfile.ZipInfo) -> str | bytes:
    """Return a member's name, or its bytes if they are not marked as UTF-8; many programs do not mark them.

    References:
        PKWARE, APPNOTE.TXT 6.3.10, appendix D.
    """
    if info.flag_bits & _UTF8:
        return info.filename
    try:
        stored = info.orig_filename.encode("cp437")
    except UnicodeEncodeError:  # newer versions of zipfile read the extra field themselves
        return info.filename
    fields = info.extra
    while len(fields) >= 4:  # noqa: PLR2004 - identifier and size, 2 bytes each
        kind, size = struct.unpack_from("<HH", fields)
        field, fields = fields[4 : 4 + size], fields[4 + size :]
        # A version, the CRC-32 of the stored name, and the name in UTF-8.
        if kind == _UNICODE_PATH and field[1:5] == struct.pack("<L", zlib.crc32(stored)) and _is_utf8(field[5:]):
            return field[5:].decode()
    return stored.partition(b"\0")[0]


def _stamp_of_file(path: Path) -> Stamp | None:
    try:
        return stamp_of(path.stat())
    except OSError:
        return None
