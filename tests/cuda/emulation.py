"""A device on the CPU: the kernels compiled by g++ through shim.h, on NumPy arrays, with NumPy's GEMM."""

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from typing import Any, ClassVar

import numpy as np
import pytest

from cnnjob.nn.cuda.device import kernel_source
from cnnjob.nn.tensors import Task
from tests.cuda.ptx.library import library

Array = np.ndarray[Any, Any]

SHIM = Path(__file__).with_name("shim.h")
ORDERS = {"forward": 0, "reversed": 1, "shuffled": 2}
FAILURES = {1: "some threads missed a barrier", 2: "threads at different barriers"}
KERNEL = re.compile(r"^(?:KERNEL|FUSED|TILED\(.*?\)) (\w+)", re.MULTILINE)
FLAGS = ("-std=c++17", "-w", "-fPIC", "-U_FORTIFY_SOURCE", "-ffp-contract=off")
FAULT = 3
"""A failure that the library has a message for."""
PLANTED = "CNNJOB_TEST_KERNELS"
ARCHITECTURE = "CNNJOB_TEST_ARCHITECTURE"
"""What NVRTC compiles the kernels for; without it g++ compiles them."""
MUON = {f"muon_{name}" for name in ("momentum", "normalise", "product", "squares", "step")}
"""Kernels whose grid has a block for each piece, as have the updates'."""

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed; apt install g++")


def kernels() -> str:
    """What is tested; faults are planted in a copy of it."""
    planted = os.environ.get(PLANTED)
    return Path(planted).read_text() if planted else kernel_source()


def flags() -> tuple[str, ...]:
    """The compiler's: it is quick with what is planted, whose tests end early."""
    return *FLAGS, "-O0" if PLANTED in os.environ else "-O1"


def compiled(source: str) -> ctypes.CDLL:
    """The kernels of a source as a library of functions for the host; compiled once."""
    content = with_entry_points(source)
    digest = hashlib.sha256((content + SHIM.read_text() + str(flags())).encode()).hexdigest()[:16]
    library = Path(gettempdir()) / f"cnnjob-kernels-{digest}.so"
    if not library.exists():
        mine = library.with_suffix(f".{os.getpid()}.so")
        linked = "-shared", "-Wl,-Bsymbolic", "-include", str(shim())
        command = ["g++", *flags(), *linked, "-x", "c++", "-", "-o", str(mine)]
        subprocess.run(command, input=content, text=True, check=True)
        mine.rename(library)
    return ctypes.CDLL(str(library))


def with_entry_points(source: str) -> str:
    """A source with functions that launch its kernels, and say what arguments they take."""
    return f"{source}\n" + "".join(
        f'extern "C" int emulate_{name}(const unsigned *grid, const unsigned *block, void **values, int order) '
        f"{{ return shim::launch(shim::Launch<{name}>::call, grid, block, values, order); }}\n"
        f'extern "C" int count_{name}() {{ return shim::Launch<{name}>::count(); }}\n'
        f'extern "C" size_t size_{name}(int place) {{ return shim::Launch<{name}>::size(place); }}\n'
        for name in KERNEL.findall(source)
    )


def shim() -> Path:
    """A copy of shim.h, compiled beforehand, which halves the time of all that includes it."""
    digest = hashlib.sha256((SHIM.read_text() + str(flags())).encode()).hexdigest()[:16]
    header = Path(gettempdir()) / f"cnnjob-shim-{digest}.h"
    ready = header.with_suffix(".h.gch")
    if not ready.exists():
        mine = header.with_suffix(f".{os.getpid()}.h")
        shutil.copy(SHIM, mine)
        mine.rename(header)  # another process may be reading it
        mine = header.with_suffix(f".{os.getpid()}.gch")
        subprocess.run(["g++", *flags(), "-x", "c++-header", str(header), "-o", str(mine)], check=True)
        mine.rename(ready)
    return header


class EmulatedDevice:
    """What cnnjob.nn.cuda.device does, on the CPU."""

    name = "emulated"
    free_bytes = 1 << 30
    versions: ClassVar[dict[str, Any]] = {}
    wide_stages = 3

    def __init__(
        self, source: str | ctypes.CDLL | None = None, order: str = "forward", precision: str = "float32"
    ) -> None:
        self.precision = precision
        if source is None:
            architecture = os.environ.get(ARCHITECTURE)
            source = library(kernels(), architecture) if architecture else kernels()
        self._library, self._is_ptx = (compiled(source), False) if isinstance(source, str) else (source, True)
        self._order = ORDERS[order]
        self.launched: set[str] = set()
        self.captures, self.replays, self.waits = 0, 0, 0
        self._recorded: list[Task] | None = None

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        self._require_no_capture()
        return np.zeros(shape, dtype)

    def copy(self, source: Array, target: Array) -> None:
        self._require_no_capture()
        assert source.flags.c_contiguous
        assert target.flags.c_contiguous
        ctypes.memmove(target.ctypes.data, source.ctypes.data, source.nbytes)

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return np.zeros(shape, dtype)

    def upload(self, source: Array, target: Array) -> Task:
        self.copy(source, target)
        return self._require_no_capture

    def wait(self) -> None:
        self._require_no_capture()
        self.waits += 1

    def capture(self, run: Task) -> Task:
        """What is launched is noted and not done; addresses and numbers are those of this moment."""
        self._require_no_capture()
        self.captures += 1
        recorded = self._recorded = []
        try:
            run()
        finally:
            self._recorded = None

        def replay() -> None:
            self.replays += 1
            for launch in recorded:
                launch()

        return replay

    def _require_no_capture(self) -> None:
        if self._recorded is not None:
            raise RuntimeError("not while a graph is recorded")

    def _do(self, launch: Task) -> None:
        if self._recorded is None:
            launch()
        else:
            self._recorded.append(launch)

    def launch(
        self,
        name: str,
        grid: tuple[int, int],
        block: tuple[int, int],
        arguments: Sequence[Any],
        shared_bytes: int = 0,
    ) -> None:
        self._do(partial(self._launch, name, grid, block, tuple(arguments), shared_bytes))

    def _launch(
        self, name: str, grid: tuple[int, int], block: tuple[int, int], arguments: Sequence[Any], shared_bytes: int
    ) -> None:
        self.launched.add(name)
        values = [_value(argument) for argument in arguments]
        sizes = [getattr(self._library, f"size_{name}")(place) for place in range(len(values))]
        if getattr(self._library, f"count_{name}")() != len(values) or [ctypes.sizeof(v) for v in values] != sizes:
            raise TypeError(f"{name}: other arguments than it takes")
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        shape = [(ctypes.c_uint * 2)(*sides) for sides in (grid, block)]
        if self._is_ptx:
            self._library.give_shared(shared_bytes)
        failure = getattr(self._library, f"emulate_{name}")(*shape, pointers, self._order)
        if failure:
            message = self._library.what_was_wrong().decode() if failure == FAULT else FAILURES[failure]
            raise RuntimeError(f"{name}: {message}")

    def gemm(
        self,
        a: Array,
        b: Array,
        out: Array,
        *,
        transpose: tuple[bool, bool] = (False, False),
        alpha: float = 1,
        beta: float = 0,
    ) -> None:
        assert a.dtype == b.dtype

        def multiply() -> None:
            first, second = (array.astype(np.float32) for array in (a, b))
            with np.errstate(all="ignore"):
                product = (first.T if transpose[0] else first) @ (second.T if transpose[1] else second)
                product *= np.float32(alpha)
                out[...] = product + np.float32(beta) * out if beta else product

        self._do(multiply)


class FewBlocks(EmulatedDevice):
    """A device whose grids are small, so that a thread has several values to see to, and a block several images."""

    def launch(
        self, name: str, grid: tuple[int, int], block: tuple[int, int], arguments: Sequence[Any], shared_bytes: int = 0
    ) -> None:
        if name.startswith("first_backward"):
            grid = min(2, grid[0]), grid[1]
        elif block == (256, 1) and name not in {"tally", "sgd", "adam", *MUON}:
            grid = 1, min(2, grid[1])
        super().launch(name, grid, block, arguments, shared_bytes)


def _value(argument: Any) -> Any:
    """An argument in memory: an array's address, or a NumPy scalar's bytes."""
    if isinstance(argument, np.ndarray):
        return ctypes.c_void_p(argument.ctypes.data)
    if not isinstance(argument, np.generic):
        raise TypeError(f"{argument!r}: neither an array nor a NumPy scalar")
    return (ctypes.c_char * argument.itemsize).from_buffer_copy(argument.tobytes())
