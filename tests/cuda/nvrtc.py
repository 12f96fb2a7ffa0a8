"""NVRTC by ctypes, from its wheel alone: compiles for GPUs on a machine that has none."""

import ctypes
import hashlib
import importlib.util
import os
from functools import cache
from pathlib import Path
from tempfile import gettempdir
from typing import Any

OPTIONS = b"-std=c++17", b"-ftz=true", b"--device-as-default-execution-space"
"""Ours, and what CuPy adds."""


@cache
def library() -> ctypes.CDLL | None:
    """libnvrtc, where the wheel ``nvidia-cuda-nvrtc`` is installed."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
    found = {
        kind: sorted(path for folder in folders for path in folder.rglob(f"lib{kind}.so.*"))
        for kind in ("nvrtc-builtins", "nvrtc")
    }  # the first is looked for by the second, and not found beside it
    return [ctypes.CDLL(str(paths[-1])) for paths in found.values()][-1] if all(found.values()) else None


class CompileError(Exception):
    """What the compiler said."""


def compiled(source: str, architecture: str) -> bytes:
    """Machine code for an architecture, as ``sm_90``; a warning is an error."""
    return _compiled(source, architecture, "CUBIN")


def ptx(source: str, architecture: str) -> str:
    """PTX for an architecture, as ``compute_90``; a warning is an error."""
    return _compiled(source, architecture, "PTX").rstrip(b"\0").decode()


def _compiled(source: str, architecture: str, what: str) -> bytes:
    """What NVRTC makes of a source; compiled once, also for other processes."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _call("Version", ctypes.byref(major), ctypes.byref(minor))
    given = source, architecture, what, str(OPTIONS), f"{major.value}.{minor.value}"
    digest = hashlib.sha256("\n".join(given).encode()).hexdigest()[:16]
    found = Path(gettempdir()) / f"cnnjob-nvrtc-{digest}"
    if not found.exists():
        mine = found.with_suffix(f".{os.getpid()}")
        mine.write_bytes(_compile(source, architecture, what))
        mine.rename(found)
    return found.read_bytes()


def _compile(source: str, architecture: str, what: str) -> bytes:
    nvrtc = library()
    assert nvrtc
    program = ctypes.c_void_p()
    _call("CreateProgram", ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
    try:
        options = [f"--gpu-architecture={architecture}".encode(), *OPTIONS]
        status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        log = _text("ProgramLog", program).rstrip(b"\0\n")
        if status or log:
            raise CompileError(log.decode())
        return _text(what, program)
    finally:
        _call("DestroyProgram", ctypes.byref(program))


def _text(what: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _call(f"Get{what}Size", program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    _call(f"Get{what}", program, text)
    return text.raw


def _call(name: str, *arguments: Any) -> None:
    status = getattr(library(), f"nvrtc{name}")(*arguments)
    assert status == 0, f"nvrtc{name}: status {status}"
