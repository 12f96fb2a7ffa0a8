"""Libraries of kernels: NVRTC makes PTX of a source, and g++ a library of its translation."""

import ctypes
import hashlib
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from tempfile import gettempdir

from tests.cuda import nvrtc
from tests.cuda.ptx.translation import kernels

HEADER, RUNTIME = (Path(__file__).with_name(name) for name in ("ptx.h", "ptx.cpp"))
SHIM = Path(__file__).parent.parent / "shim.h"
FLAGS = ("-std=c++17", "-w", "-fPIC", "-O1", "-march=native", "-ffp-contract=off", "-fwrapv", "-U_FORTIFY_SOURCE")


@cache
def library(source: str, architecture: str) -> ctypes.CDLL:
    """The kernels of a source in CUDA C, as CUDA's compiler makes them for an architecture, e.g. compute_90."""
    return built(nvrtc.ptx(source, architecture))


@cache
def built(ptx: str) -> ctypes.CDLL:
    """The kernels of a PTX text, to be launched by EmulatedDevice; compiled once, on all cores."""
    texts, cores = kernels(ptx), len(os.sched_getaffinity(0))
    found = _place("\n".join(texts), "so")
    if not found.exists():
        longest_first = sorted(texts, key=len, reverse=True)
        shares = [longest_first[place :: 2 * cores] for place in range(2 * cores)]
        units = [f'#include "{HEADER}"\n' + "\n".join(share) for share in shares if share]
        with ThreadPoolExecutor(cores) as pool:
            objects = list(pool.map(_object, [f'#include "{RUNTIME}"', *units]))
        _write(found, "-shared", "-Wl,-Bsymbolic", *map(str, objects))
    loaded = ctypes.CDLL(str(found))
    loaded.what_was_wrong.restype = ctypes.c_char_p
    return loaded


def _place(content: str, suffix: str) -> Path:
    """A name for what is made of a content, by all that it depends on."""
    parts = content, *(path.read_text() for path in (HEADER, RUNTIME, SHIM)), *FLAGS
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return Path(gettempdir()) / f"cnnjob-ptx-{digest}.{suffix}"


def _object(text: str) -> Path:
    found = _place(text, "o")
    if not found.exists():
        _write(found, *FLAGS, "-c", "-x", "c++", "-", content=text)
    return found


def _write(target: Path, *arguments: str, content: str = "") -> None:
    """Has the compiler write a file, which is whole when it is there."""
    mine = target.with_suffix(f".{os.getpid()}{target.suffix}")
    subprocess.run(["g++", *arguments, "-o", str(mine)], input=content, text=True, check=True)
    mine.rename(target)
