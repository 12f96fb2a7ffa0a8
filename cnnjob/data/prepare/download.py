"""Download files into the user's cache from the first address that serves the correct file."""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from cnnjob.errors import DataError, JobError

_ROUNDS = 2  # attempts per address
_PAUSE_SECONDS = 0.5
_TIMEOUT_SECONDS = 30
_CHUNK_BYTES = 64 << 10
_UNCHANGED = {"Accept-Encoding": "identity"}  # otherwise some servers send .gz files decompressed
_REASON_CHARACTERS = 100
_INSTEAD = "Try again later, or download the file elsewhere and pass it with --source"


def cache_folder() -> Path:
    """Return the folder for downloads: ``CNNJOB_CACHE_DIR`` if set, otherwise a folder in the user's cache."""
    if folder := os.environ.get("CNNJOB_CACHE_DIR"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cnnjob"


def first_accepted(addresses: Sequence[str], target: Path, accept: Callable[[Path], None], *, progress: bool) -> Path:
    """Return a file from the cache, or download it from the first address that serves an accepted file.

    Args:
        addresses: URLs of the same file, tried in order; those that fail are tried once more.
        target: path of the file in the cache.
        accept: function that raises DataError if a file is not the correct one; the file is then removed.
        progress: whether to show a progress bar.

    Returns:
        ``target``.

    Raises:
        DataError: no address served the correct file; the message lists the reason for each address.
    """
    if target.exists() and not _reason_of_refusal(target, accept):
        return target
    failures: dict[str, str] = {}
    pending = list(addresses)
    for round_ in range(_ROUNDS):
        time.sleep(_PAUSE_SECONDS if round_ else 0)
        for address in pending.copy():
            failures[address] = _transfer(address, target, progress=progress)
            if failures[address]:
                continue
            pending.remove(address)  # a complete but wrong file would be just as wrong on a second attempt
            failures[address] = _reason_of_refusal(target, accept)
            if not failures[address]:
                return target
    listed = "".join(f"\n  {urlsplit(address).netloc}: {failure}" for address, failure in failures.items())
    raise DataError(f"{target.name}: no address served the correct file. {_INSTEAD}. Tried:{listed}")


def _reason_of_refusal(target: Path, accept: Callable[[Path], None]) -> str:
    """Return why ``accept`` refuses a downloaded file, or an empty string if the file is accepted.

    A refused file is removed.
    """
    try:
        accept(target)
    except DataError as error:
        target.unlink(missing_ok=True)
        return str(error)
    return ""


def _transfer(address: str, target: Path, *, progress: bool) -> str:
    """Download a file; return the reason if the download fails, or an empty string if it succeeds."""
    import pooch  # type: ignore[import-untyped]

    if urlsplit(address).scheme not in {"http", "https"}:
        raise JobError(f"{address}: not a web address. Specify http://…, https://…, a file or a folder")
    pooch.get_logger().setLevel(logging.WARNING)
    bar = None
    if progress:
        from cnnjob.data.prepare.progress import DownloadBar  # noqa: PLC0415

        bar = DownloadBar(target.name)
    downloader = pooch.HTTPDownloader(bar or False, _CHUNK_BYTES, timeout=_TIMEOUT_SECONDS, headers=_UNCHANGED)
    try:  # without a checksum, since the caller checks the file
        pooch.retrieve(address, None, target.name, target.parent, downloader=downloader)
    except (OSError, ValueError) as error:  # all errors raised by requests are one or the other
        return _reason(error)
    finally:
        if bar:
            bar.close()
    return ""


def _reason(error: OSError | ValueError) -> str:
    """Return a short reason why a download failed.

    The messages of the libraries requests and urllib3 are long, because they repeat the reason several times.
    """
    from http.client import IncompleteRead  # noqa: PLC0415 - takes as long to import as reading 500 small images
    from ssl import SSLCertVerificationError  # noqa: PLC0415 - the same

    if isinstance(error, OSError) and error.errno is not None:  # a local disk error; requests sets no errno
        return str(error)
    if (response := getattr(error, "response", None)) is not None:
        return f"HTTP {response.status_code}"
    reasons: dict[type[BaseException], str] = {
        socket.gaierror: "host name not resolved",
        SSLCertVerificationError: "its certificate is not trusted",
        ConnectionRefusedError: "connection refused",
        TimeoutError: f"no answer in {_TIMEOUT_SECONDS} s",
        ConnectionResetError: "connection closed too early",
        IncompleteRead: "connection closed too early",
    }
    for cause in _causes(error):
        for kind, reason in reasons.items():
            if isinstance(cause, kind):
                return reason
    *_, deepest = _causes(error)
    return " ".join((str(deepest) or type(deepest).__name__).split())[:_REASON_CHARACTERS]


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, then the error that caused it, and so on; the original cause is last."""
    cause: BaseException | None = error
    while cause:
        yield cause
        cause = cause.__cause__ or cause.__context__
