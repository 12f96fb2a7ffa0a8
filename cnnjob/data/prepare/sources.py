"""Find source files in a folder or download them, and verify their hashes before they are parsed."""

import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from cnnjob.data.prepare.catalogue import Entry
from cnnjob.data.prepare.download import cache_folder, first_accepted
from cnnjob.errors import DataError, JobError
from cnnjob.files import open_regular, sha256_of, short_digest

_HASH_BYTES = 1 << 20
_WEB_PAGE = (b"<!doctype html", b"<html")
_WEB_PAGE_BYTES = 1024

Files = dict[str, Path]


def obtain(entry: Entry, source: str | None, pin: str | None, *, progress: bool) -> Files:
    """Return the paths of a dataset's source files, downloading files that are not in the cache.

    Args:
        entry: the dataset.
        source: a folder, a file or a URL; None for the publisher's addresses.
        pin: the SHA-256 that the user expects; see :func:`pin_of`.
        progress: whether to show progress bars.

    Returns:
        The path of each file, by name.

    Raises:
        DataError: a file is missing, or no address served the correct file.
        JobError: the source is a single file but the dataset has several, or the address is not valid.
    """
    if source is None:
        return _from_mirrors(entry, progress=progress)
    if "://" in source:
        _require_address(source)
        return _from_url(entry, source, pin, progress=progress)
    try:
        return _find(entry, Path(source))
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error.strerror}). Change its permissions") from error


def _require_address(url: str) -> None:
    try:
        urlsplit(url)
    except ValueError as error:
        raise JobError(f"{url}: not a valid URL ({error}). Specify http://…, https://…, a file or a folder") from error


def check(entry: Entry, files: Mapping[str, Path], pin: str | None) -> dict[str, str]:
    """Hash files and refuse those that match neither the pin nor the published checksums.

    Args:
        entry: the dataset to which the files should belong.
        files: paths of the files, by name.
        pin: the SHA-256 that the user expects; None to accept only published files.

    Returns:
        The SHA-256 of each file, by name.

    Raises:
        DataError: a file does not match. The message states both checksums and, if no pin was given, the option that
            accepts the file.
    """
    sums = {name: _sums(path) for name, path in files.items()}
    sha256 = {name: sha for name, (_, sha) in sums.items()}
    found = pin_of(sha256)
    if pin is not None and pin.lower() == found:
        return sha256
    # A saved login or error page gets a separate message, which is more helpful than two checksums.
    for path in files.values():
        _refuse_web_page(path)
    if pin is not None:
        first = next(iter(files.values()))
        where = first if len(files) == 1 else first.parent
        raise DataError(f"{where}: not the pinned source (found sha256 {found}, expected {pin}). Copy it again")
    for name, both in sums.items():
        _require_published(entry, files[name], name, both, found)
    return sha256


def _require_published(entry: Entry, path: Path, name: str, sums: tuple[str, str], pin: str) -> None:
    """Refuse a file unless it matches every known checksum of the published file."""
    published = {file.name: file for file in (*entry.files, *entry.unpacked)}
    # A renamed archive is compared with the published one.
    expected = published.get(name, entry.files[0])
    known = {expected.md5, expected.sha256} - {""}
    if not known or not known <= set(sums):
        raise DataError(
            f"{path}: not the published file (found {_named(*sums)}; the published file {expected.name} has"
            f" {_named(expected.md5, expected.sha256)}). Copy or download it again, or, if you trust the source,"
            f" add --sha256 {pin}"
        )


def pin_of(sha256: Mapping[str, str]) -> str:
    """Return the value that ``--sha256`` is compared with: the SHA-256 of a single file, or of a list of checksums.

    For several files, it is the output of ``sha256sum * | sha256sum`` in a folder that contains only these files.

    Args:
        sha256: the SHA-256 of each file, by name.

    Returns:
        64 hexadecimal characters.
    """
    if len(sha256) == 1:
        return next(iter(sha256.values()))
    return sha256_of("".join(f"{sha256[name]}  {name}\n" for name in sorted(sha256)).encode())


def _named(md5: str, sha256: str) -> str:
    named = {"md5": md5, "sha256": sha256}
    return " ".join(f"{kind} {value}" for kind, value in named.items() if value) or "no known checksum"


def _sums(path: Path) -> tuple[str, str]:
    """Return the MD5 and SHA-256 of a file, computed in one pass."""
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    try:
        with open_regular(path) as file:
            while block := file.read(_HASH_BYTES):
                md5.update(block)
                sha256.update(block)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}). Copy it again") from error
    return md5.hexdigest(), sha256.hexdigest()


def _refuse_web_page(path: Path) -> None:
    with open_regular(path) as file:
        start = file.read(_WEB_PAGE_BYTES)
    if start.lstrip().lower().startswith(_WEB_PAGE):
        raise DataError(f"{path}: a web page instead of data (found {start[:40]!r}). Try another address")


def _find(entry: Entry, source: Path) -> Files:
    """Return the source itself if it is a file, or else the files of the first layout that the folder contains."""
    if source.is_file():
        return {source.name: _single(entry, source)}
    if not source.is_dir():
        raise DataError(f"{source}: no such file or folder. Specify the folder that contains the downloaded files")
    # The folder itself, or the folder created by unpacking the archive.
    layouts = [
        [folder / name for name in names] for folder in (source, source / entry.folder) for names in entry.layouts
    ]
    for paths in layouts:
        if all(path.is_file() for path in paths):
            return {path.name: path for path in paths}
    # The message lists the files missing from the layout that is closest to complete.
    nearest = max(layouts, key=lambda paths: sum(path.is_file() for path in paths))
    missing = ", ".join(path.name for path in nearest if not path.is_file())
    raise DataError(f"{source}: not a complete copy of {entry.name} (missing {missing}). Copy the missing files there")


def _single(entry: Entry, source: Path) -> Path:
    if entry.archive is None:
        names = ", ".join(file.name for file in entry.files)
        raise JobError(
            f"{source}: {entry.name} has {len(entry.files)} files (found one). Specify the folder that contains {names}"
        )
    return source


def _from_mirrors(entry: Entry, *, progress: bool) -> Files:
    folder = cache_folder() / entry.name

    def accept(path: Path) -> None:
        check(entry, {path.name: path}, None)

    return {
        file.name: first_accepted(
            [mirror + file.name for mirror in entry.mirrors], folder / file.name, accept, progress=progress
        )
        for file in entry.files
    }


def _from_url(entry: Entry, url: str, pin: str | None, *, progress: bool) -> Files:
    """Download the archive at ``url`` or, if ``url`` ends in a slash, all published files below it."""
    # Each address has its own cache folder, since another address may serve different content under the same names.
    folder = cache_folder() / entry.name / short_digest(sha256_of(url.encode()))
    if url.endswith("/"):
        addresses = {file.name: url + file.name for file in entry.files}
    else:
        name = PurePosixPath(unquote(urlsplit(url).path)).name  # unquoted first: an escaped slash also separates names
        if not name or not name.isprintable():
            raise JobError(
                f"{url}: no file name in the address. Specify the address of the archive, or one that ends in a slash"
            )
        addresses = {name: url}
        _single(entry, Path(name))

    def accept(path: Path) -> None:
        _refuse_web_page(path)
        if len(addresses) == 1:  # a pin covers all files together, so several files can only be checked at the end
            check(entry, {path.name: path}, pin)

    files = {
        name: first_accepted([address], folder / name, accept, progress=progress) for name, address in addresses.items()
    }
    _check_or_remove(entry, files, pin)
    return files


def _check_or_remove(entry: Entry, files: Files, pin: str | None) -> None:
    """Check downloaded files, and remove all of them from the cache if any is not accepted."""
    try:
        check(entry, files, pin)
    except DataError:
        for path in files.values():
            path.unlink()
        raise
