"""Read a zip or tar archive of a folder of images in place: its members are the files.

Several processes read one archive at the same time, each at the positions of its own members. A compressed tar archive
cannot be read so, and is decompressed into a temporary file first.
"""

import hashlib
import os
import weakref
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from cnnjob.data.prepare.archives import decompressed_file, tar_members
from cnnjob.data.prepare.folders.tree import MAX_CONTENT_BYTES, FolderTree, Listing, Stamp, is_visible, stamp_of
from cnnjob.errors import DataError
from cnnjob.files import open_regular

_DAMAGED = (EOFError, NotImplementedError, OSError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error)
_ENCRYPTED = 1
"""Bit of a zip member's flags."""


def listing_of(archive: Path, files: Iterable[str], folders: Iterable[str]) -> Listing:
    """Return the listing of an archive's members.

    Args:
        archive: the archive, for messages.
        files: paths of its files.
        folders: paths of its folders, also empty ones.

    Raises:
        DataError: a path leads out of the archive, or occurs twice.
    """
    listing, seen, hidden = Listing(), set(), set()
    for path in sorted(files, key=lambda path: path.split("/")):
        parts = path.split("/")
        if path.startswith("/") or not {"", ".", ".."}.isdisjoint(parts):
            raise DataError(f"{archive}: a member whose path is not within it (found {path!r}). Make the archive anew")
        if path in seen:
            raise DataError(f"{archive}: two members of one name (found {path}). Make the archive anew")
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


class ZipTree(FolderTree):
    """A zip archive of image files."""

    def __init__(self, root: Path) -> None:
        """Take the archive; nothing is read yet."""
        super().__init__(root)
        self._opened: tuple[int, zipfile.ZipFile, Stamp] | None = None

    def list(self) -> Listing:
        """Return all members.

        Raises:
            DataError: the archive is damaged, or has members that cannot be read.
        """
        self._opened = None  # what is on disk now
        names = self._archive()[0].namelist()
        folders = [name.rstrip("/") for name in names if name.endswith("/")]
        return listing_of(self.root, [name for name in names if not name.endswith("/")], folders)

    def read(self, name: str) -> tuple[bytes | None, Stamp]:
        """Read a member.

        Raises:
            DataError: it is damaged, encrypted or too large.
        """
        archive, stamp = self._archive()
        try:
            info = archive.getinfo(name)
            if info.flag_bits & _ENCRYPTED:
                raise DataError(f"{self.path(name)}: it is encrypted. Unpack the archive, and give the folder")
            # zipfile reserves memory for the sizes that the archive states, whatever its own size is.
            if info.file_size > MAX_CONTENT_BYTES or info.compress_size > min(stamp[2], MAX_CONTENT_BYTES):
                raise DataError(f"{self.path(name)}: too large (found {info.file_size:,} bytes). Unpack the archive")
            return archive.read(info), stamp
        except KeyError as error:
            raise DataError(f"{self.path(name)}: no such member") from error
        except _DAMAGED as error:
            raise DataError(f"{self.path(name)}: damaged ({error}). Copy or download the archive again") from error

    def stamp(self, name: str) -> Stamp | None:  # noqa: ARG002 - one file holds all members
        """Return the archive's stamp, which is that of all its members."""
        return _stamp_of_file(self.root)

    def digest(self, name: str) -> bytes:
        """Return the SHA-256 of a member."""
        return hashlib.sha256(self.read(name)[0] or b"").digest()

    def _archive(self) -> tuple[zipfile.ZipFile, Stamp]:
        """Return the open archive: each process has its own, since a file has one position."""
        if self._opened is None or self._opened[0] != os.getpid():
            file = open_regular(self.root)
            weakref.finalize(self, file.close)  # members are read until the last chunk has been written
            try:
                self._opened = os.getpid(), zipfile.ZipFile(file), stamp_of(os.fstat(file.fileno()))
            except _DAMAGED as error:
                raise DataError(f"{self.root}: damaged ({error}). Copy or download it again") from error
        return self._opened[1:]


class TarTree(FolderTree):
    """A tar archive of image files, perhaps compressed."""

    def __init__(self, root: Path) -> None:
        """Open the archive, and decompress it if it is compressed."""
        super().__init__(root)
        self._stamp = _stamp_of_file(root)
        self._file = decompressed_file(root)
        weakref.finalize(self, self._file.close)  # its members are read until the last chunk has been written
        self._members: dict[str, tuple[int, int]] = {}

    def list(self) -> Listing:
        """Return all members.

        Raises:
            DataError: the archive is damaged, or was changed since it was opened.
        """
        if _stamp_of_file(self.root) != self._stamp:
            raise DataError(f"{self.root}: changed while it was read. Prepare it again when nothing changes it")
        files: list[str] = []
        folders: list[str] = []
        for name, is_folder, position, size in tar_members(self.root, self._file):
            path = str(PurePosixPath(name))
            if path == ".":
                continue
            (folders if is_folder else files).append(path)
            if not is_folder:
                self._members[path] = (position, size)
        return listing_of(self.root, files, folders)

    def read(self, name: str) -> tuple[bytes | None, Stamp]:
        """Read a member.

        Raises:
            DataError: it is missing, too large, or beyond the end of the archive.
        """
        if name not in self._members:
            raise DataError(f"{self.path(name)}: no such member")
        position, size = self._members[name]
        if size > MAX_CONTENT_BYTES:
            raise DataError(f"{self.path(name)}: too large (found {size:,} bytes). Unpack the archive")
        content = os.pread(self._file.fileno(), size, position)  # without a position that processes would share
        if len(content) != size:
            raise DataError(f"{self.path(name)}: the archive ends within it. Copy or download the archive again")
        return content, self._stamp or (0, 0, 0, 0)

    def stamp(self, name: str) -> Stamp | None:  # noqa: ARG002 - one file holds all members
        """Return the archive's stamp, which is that of all its members."""
        return _stamp_of_file(self.root)

    def digest(self, name: str) -> bytes:
        """Return the SHA-256 of a member."""
        return hashlib.sha256(self.read(name)[0] or b"").digest()


def _stamp_of_file(path: Path) -> Stamp | None:
    try:
        return stamp_of(path.stat())
    except OSError:
        return None
