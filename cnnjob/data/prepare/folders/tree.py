"""List the files in a folder once, so that all later steps use the same list.

Links to files and folders are followed. A link to a folder that contains it is an error.
"""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from typing import NoReturn

from cnnjob.errors import DataError
from cnnjob.files import open_regular

_CLUTTER = frozenset({"__macosx", "@eadir", "thumbs.db", "desktop.ini", "lost+found", "$recycle.bin"})
# Suffixes of annotations, tables and code.
_NO_IMAGES = frozenset({
    *("txt", "csv", "tsv", "json", "jsonl", "xml", "yaml", "yml", "toml", "md", "rst", "html", "log", "ini", "cfg"),
    *("readme", "license", "licence", "changelog", "copying", "authors", "makefile"),  # without a suffix
    *("xls", "xlsx", "ods", "doc", "docx", "odt", "rtf", "parquet", "feather"),
    *("mat", "npy", "npz", "pkl", "h5", "hdf5", "db", "sqlite", "py", "ipynb", "sh", "lst", "names", "cache"),
})  # fmt: skip
_IMAGE_SUFFIXES = frozenset({
    *("png", "jpg", "jpeg", "jpe", "jfif", "gif", "bmp", "tif", "tiff", "webp", "ppm", "pgm", "pbm", "pnm"),
    *("heic", "heif", "avif", "jp2", "jxl", "tga", "dcm"),
})  # fmt: skip
_MAX_DEPTH = 50
MAX_CONTENT_BYTES = 64 << 20
_MAX_LINKED_FOLDERS = 100_000  # two folder links per level double the number of paths at each level

Inode = tuple[int, int]
Stamp = tuple[int, int, int, int]


def is_visible(name: str) -> bool:
    """Return whether a name is neither hidden nor typical of files and folders that desktops and archivers create."""
    return not name.startswith(".") and name.lower() not in _CLUTTER


def is_named_as_image(name: str) -> bool:
    """Return whether a file name has the suffix of an image format, including formats that are not supported."""
    return name.lower().rpartition(".")[2] in _IMAGE_SUFFIXES


@dataclass
class Listing:
    """The contents of a folder or archive, as relative paths with forward slashes.

    Attributes:
        files: files that may be images.
        folders: all visible folders, including empty ones.
        left_out: files and folders that are not used: hidden ones, those created by desktop environments or archive
            programs, and files whose names show that they are not images.
        remarks: remarks for the user on how the listing was read.
        stamps: stamps of the files that have been read so far, by path (see :func:`stamp_of`).
        unusual: paths of files that are links, pipes or devices.
    """

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    stamps: dict[str, Stamp] = field(default_factory=dict)
    unusual: set[str] = field(default_factory=set)

    def add_file(self, path: str) -> None:
        """Add a file whose parent folders are all visible."""
        name = path[path.rfind("/") + 1 :].lower()
        may_be_image = is_visible(name) and name[name.rfind(".") + 1 :] not in _NO_IMAGES
        (self.files if may_be_image else self.left_out).append(path)


class FolderTree:
    """A folder of image files."""

    def __init__(self, root: Path) -> None:
        """Store the path of the folder; nothing is read yet."""
        self.root = root
        self._unusual: set[str] | None = None  # as in the last listing

    def list(self) -> Listing:
        """Return a listing of all files and folders in the tree.

        Raises:
            DataError: a folder cannot be read, or symbolic links form a loop.
        """
        listing = Listing()
        _add_contents(self.root, "", (_inode(self.root),), [0], listing)
        self._unusual = listing.unusual
        return listing

    def path(self, name: str) -> Path:
        """Return the path of a file, for messages."""
        return self.root / name

    def read(self, name: str) -> tuple[bytes | None, Stamp]:
        """Read a file.

        Returns:
            The file's content and the file's stamp. The content is None if the file is too large to be held in memory.
            The stamp changes whenever the file is replaced or written to.

        Raises:
            DataError: the file is missing, cannot be read, or is not a regular file.
        """
        path = f"{self.root}/{name}"  # pathlib and Python's file objects take as long as decoding a small image
        # Merely opening a device can affect it, and a link may point to one.
        is_listed = self._unusual is not None and name not in self._unusual
        try:
            is_regular = is_listed or S_ISREG(os.stat(path).st_mode)  # noqa: PTH116
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC) if is_regular else -1
        except OSError:
            descriptor = -1
        if descriptor < 0:
            open_regular(Path(path)).close()  # raises an error that states the cause
        try:
            status = os.fstat(descriptor)
            if not S_ISREG(status.st_mode):  # replaced since it was listed
                open_regular(Path(path)).close()
            content = os.read(descriptor, status.st_size + 1) if status.st_size <= MAX_CONTENT_BYTES else None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}). Repair or remove it") from error
        finally:
            os.close(descriptor)
        return content, stamp_of(status)

    def stamp(self, name: str) -> Stamp | None:
        """Return a file's stamp, as :meth:`read` does, without reading the file; None if it no longer exists."""
        try:
            return stamp_of(os.stat(f"{self.root}/{name}"))  # noqa: PTH116 - pathlib takes three times as long
        except OSError:
            return None

    def digest(self, name: str) -> bytes:
        """Return the SHA-256 of a file without holding the whole file in memory."""
        with open_regular(self.root / name) as file:
            return hashlib.file_digest(file, "sha256").digest()


def stamp_of(status: os.stat_result) -> Stamp:
    """Return a file's stamp: its device, inode, size and change time.

    If the file is replaced or written to, at least one of these values changes.
    """
    return status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns


def _add_contents(folder: Path, prefix: str, above: tuple[Inode, ...], n_linked: list[int], listing: Listing) -> None:
    """Add everything below a folder to a listing; the entries of each folder are sorted by name.

    Args:
        folder: the folder.
        prefix: path of the folder relative to the root, with a trailing slash; empty for the root.
        above: inodes of the folder and of all folders above it.
        n_linked: a list whose only element is the number of folder links followed so far; the element is updated.
        listing: the listing, which is updated.

    Raises:
        DataError: a folder cannot be read, is nested too deeply, or is a link that forms a loop.
    """
    if len(above) > _MAX_DEPTH + 1:
        raise DataError(
            f"{folder}: nested too deeply (found more than {_MAX_DEPTH} levels). Move the images to a higher folder"
        )
    try:
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        _raise_unreadable(folder, error)
    for entry in entries:
        path = prefix + entry.name
        if not _is_folder(entry):
            listing.add_file(path)
            if not entry.is_file(follow_symlinks=False):
                listing.unusual.add(path)
            continue
        if not is_visible(entry.name):
            listing.left_out.append(path)
            continue
        listing.folders.append(path)
        inode = _inode(Path(entry.path))
        if entry.is_symlink():
            n_linked[0] += 1
            if inode in above or n_linked[0] > _MAX_LINKED_FOLDERS:
                target = Path(entry.path).readlink()
                raise DataError(f"{entry.path}: a link that forms a loop (it points to {target}). Remove it")
        _add_contents(Path(entry.path), f"{path}/", (*above, inode), n_linked, listing)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: opening it as a file fails again, with a proper message
        return False


def _inode(folder: Path) -> Inode:
    try:
        status = folder.stat()
    except OSError as error:
        _raise_unreadable(folder, error)
    return status.st_dev, status.st_ino


def _raise_unreadable(folder: Path, error: OSError) -> NoReturn:
    if isinstance(error, FileNotFoundError):
        raise DataError(f"{folder}: no such folder. Specify the folder that contains the class folders") from error
    if isinstance(error, NotADirectoryError):
        raise DataError(
            f"{folder}: not a folder (found a file). Specify the folder that contains the class folders"
        ) from error
    raise DataError(f"{folder}: cannot be read ({error.strerror}). Change its permissions, or remove it") from error
