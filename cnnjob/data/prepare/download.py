"""Downloads into the user's cache, from the first address that serves the right file."""

import http.client
import logging
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from cnnjob.data.prepare.progress import DownloadBar
from cnnjob.errors import DataError, JobError

_ROUNDS = 2  # every address is tried so often
_PAUSE_SECONDS = 0.5
_TIMEOUT_SECONDS = 30
_CHUNK_BYTES = 64 << 10
_AS_IT_IS = {"Accept-Encoding": "identity"}  # else some servers' .gz files arrive unpacked
_REASON_CHARACTERS = 100
_REASONS: dict[type[BaseException], str] = {
    socket.gaierror: "name not resolved",
    ssl.SSLCertVerificationError: "its certificate is not trusted",
    ConnectionRefusedError: "refused",
    TimeoutError: f"no answer in {_TIMEOUT_SECONDS} s",
    ConnectionResetError: "closed before the end",
    http.client.IncompleteRead: "closed before the end",
}
_INSTEAD = "try later, or download it elsewhere and give it with --source"


def cache_folder() -> Path:
    """Where downloads are kept: ``CNNJOB_CACHE_DIR``, or the user's own cache folder."""
    import pooch  # type: ignore[import-untyped]

    return Path(os.environ.get("CNNJOB_CACHE_DIR") or pooch.os_cache("cnnjob"))


def first_accepted(addresses: Sequence[str], target: Path, accept: Callable[[Path], None], *, progress: bool) -> Path:
    """Give a file from the cache, or from the first address whose file is accepted.

    Args:
        addresses: URLs of the same file, tried in turn, and then once more.
        target: where the cache keeps it.
        accept: raises DataError for a file that is not the right one; such a file is removed.
        progress: whether to show a bar.

    Returns:
        ``target``.

    Raises:
        DataError: no address gave the right file; the message has what each gave.
    """
    if target.exists() and not _trouble_with(target, accept):
        return target
    troubles: dict[str, str] = {}
    pending = list(addresses)
    for round_ in range(_ROUNDS):
        time.sleep(_PAUSE_SECONDS if round_ else 0)
        for address in pending.copy():
            troubles[address] = _transfer(address, target, progress=progress)
            if troubles[address]:
                continue
            pending.remove(address)  # what is wrong with a whole file is wrong the next time too
            troubles[address] = _trouble_with(target, accept)
            if not troubles[address]:
                return target
    listed = "".join(f"\n  {urlsplit(address).netloc}: {trouble}" for address, trouble in troubles.items())
    raise DataError(f"{target.name}: no address gave the right file; {_INSTEAD}; found{listed}")


def _trouble_with(target: Path, accept: Callable[[Path], None]) -> str:
    """Why a file is not accepted, and then it is removed; or nothing."""
    try:
        accept(target)
    except DataError as error:
        target.unlink(missing_ok=True)
        return str(error)
    return ""


def _transfer(address: str, target: Path, *, progress: bool) -> str:
    """Download a file whole, or say why not."""
    import pooch

    if urlsplit(address).scheme not in {"http", "https"}:
        raise JobError(f"{address}: not an address of the web; give http://…, https://…, a file or a folder")
    pooch.get_logger().setLevel(logging.WARNING)
    bar = DownloadBar(target.name) if progress else None
    downloader = pooch.HTTPDownloader(bar or False, _CHUNK_BYTES, timeout=_TIMEOUT_SECONDS, headers=_AS_IT_IS)
    try:
        pooch.retrieve(address, None, target.name, target.parent, downloader=downloader)
    except (OSError, ValueError) as error:  # what requests raises is an OSError or a ValueError
        return _reason(error)
    finally:
        if bar:
            bar.close()
    return ""


def _reason(error: OSError | ValueError) -> str:
    """Why a download failed, in a few words: what requests and urllib3 raise tells it several times over."""
    if isinstance(error, OSError) and error.errno is not None:  # of this machine's disk; requests' own have no number
        return str(error)
    if (response := getattr(error, "response", None)) is not None:
        return f"HTTP {response.status_code}"
    for cause in _causes(error):
        for kind, reason in _REASONS.items():
            if isinstance(cause, kind):
                return reason
    *_, deepest = _causes(error)
    return " ".join((str(deepest) or type(deepest).__name__).split())[:_REASON_CHARACTERS]


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those it was raised from."""
    cause: BaseException | None = error
    while cause:
        yield cause
        cause = cause.__cause__ or cause.__context__
