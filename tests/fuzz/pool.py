"""A forked process reads input after input; a new one takes over after a crash, a hang or too much memory."""

import faulthandler
import multiprocessing
import os
import resource
import shutil
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple, cast

from tests.fuzz.targets import Target

_ADDRESS_SPACE_BYTES = 1 << 30
"""What may be reserved beyond what the process has: more than the limit of memory, too little to harm the machine."""
_USUAL_MEGABYTES = 100
"""Of a process that reads nothing; what its parent, as the one that runs all tests, has beyond that does not count."""
_NO_MEMORY = ("memory allocation failed", "Cannot allocate memory")

Verdict = tuple[str, str]
"""The kind of a fault and what is to be said of it; both empty where there is none."""


@dataclass(frozen=True)
class Limits:
    """What reading one input may take."""

    seconds: float = 5
    megabytes: int = 512


class Fault(NamedTuple):
    """An input that was neither read nor refused as it should be."""

    number: int
    kind: str
    """``error``, ``crash``, ``time`` or ``memory``."""
    text: str
    content: bytes


def faults(
    target: Target, content_of: Callable[[int], bytes], count: int, limits: Limits | None = None
) -> Iterator[Fault]:
    """Read inputs, and give those that are faults.

    Args:
        target: reads them.
        content_of: an input by its number.
        count: how many there are.
        limits: 5 s and 512 MB by default.

    Yields:
        The faults, by number.
    """
    limits, number, slow = limits or Limits(), 0, -1
    while number < count:
        with _reader(target, content_of, range(number, count), limits) as verdicts:
            for kind, text in verdicts:
                if kind == "time" and slow != number:
                    slow = number  # once more, by itself: the machine may have been busy
                    break
                if kind:
                    yield Fault(number, kind, text, content_of(number))
                number += 1


@contextmanager
def _reader(
    target: Target, content_of: Callable[[int], bytes], numbers: range, limits: Limits
) -> Iterator[Iterator[Verdict]]:
    """The verdicts of a process of its own on inputs, until it ends."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    process = multiprocessing.get_context("fork").Process(
        target=_read_all, args=(target, content_of, numbers, limits, folder, theirs), daemon=True
    )
    try:
        with warnings.catch_warnings(
            action="ignore", category=DeprecationWarning
        ):  # of threads; the child's are its own
            process.start()
        theirs.close()
        yield _verdicts(ours, process, limits)
    finally:
        process.kill()
        process.join()
        ours.close()
        shutil.rmtree(folder, ignore_errors=True)


def _verdicts(
    connection: Connection, process: multiprocessing.context.ForkProcess, limits: Limits
) -> Iterator[Verdict]:
    while connection.poll(limits.seconds):
        try:
            verdict = cast("Verdict | None", connection.recv())
        except EOFError:
            process.join()
            yield "crash", f"the process ended with {process.exitcode}"
            return
        if verdict is None:
            return
        yield verdict
    yield "time", f"not done after {limits.seconds:g} s, twice"


def _read_all(
    target: Target,
    content_of: Callable[[int], bytes],
    numbers: range,
    limits: Limits,
    folder: Path,
    connection: Connection,
) -> None:
    """Read inputs in this process, which is new; it ends early when it took too much memory."""
    faulthandler.disable()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    warnings.resetwarnings()
    warnings.simplefilter("error")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _ADDRESS_SPACE_BYTES,) * 2)
    before = max(0.0, _megabytes() - _USUAL_MEGABYTES)
    for number in numbers:
        kind, text = _read(target, content_of(number), folder)
        megabytes = _megabytes() - before
        if megabytes > limits.megabytes:
            kind, text = "memory", f"took {megabytes:,.0f} MB. {text}"
        connection.send((kind, text))
        if kind == "memory":
            break
    connection.send(None)


def _megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def _read(target: Target, content: bytes, folder: Path) -> Verdict:
    try:
        target.read(content, folder)
    except target.errors as error:
        if _wanted_memory(error):
            return "memory", f"asked for more than there is: {error}"
    except BaseException:  # noqa: BLE001 - this is what is looked for
        return "error", traceback.format_exc()
    finally:
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return "", ""


def _wanted_memory(error: BaseException | None) -> bool:
    """Return whether a declared error hides that memory was not there."""
    while error:
        if isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False
