"""A device on the CPU: the kernels compiled by g++ through shim.h, on NumPy arrays, with NumPy's GEMM."""

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import gettempdir
from typing import Any, ClassVar

import numpy as np
import pytest

from cnnjob.nn.cuda.sources import FOLDER, kernel_source

Array = np.ndarray[Any, Any]

SOURCE = kernel_source(Path(os.environ.get("CNNJOB_TEST_KERNELS") or FOLDER))
"""What is tested; faults are planted in a copy of its files."""
SHIM = Path(__file__).with_name("shim.h")
ORDERS = {"forward": 0, "reversed": 1, "shuffled": 2}
FAILURES = {1: "some threads missed a barrier", 2: "threads at different barriers"}
KERNEL = re.compile(r"^KERNEL (\w+)\(", re.MULTILINE)
FLAGS = ("-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-U_FORTIFY_SOURCE", "-Wl,-Bsymbolic", "-ffp-contract=off")

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed; apt install g++")


def compiled(source: str) -> ctypes.CDLL:
    """The kernels of a source as a library of functions for the host; compiled once."""
    content = f'#include "{SHIM}"\n{source}\n' + "".join(
        f'extern "C" int emulate_{name}(const unsigned *grid, const unsigned *block, void **values, int order) '
        f"{{ return shim::launch(shim::Launch<{name}>::call, grid, block, values, order); }}\n"
        f'extern "C" int count_{name}() {{ return shim::Launch<{name}>::count(); }}\n'
        f'extern "C" size_t size_{name}(int place) {{ return shim::Launch<{name}>::size(place); }}\n'
        for name in KERNEL.findall(source)
    )
    digest = hashlib.sha256((content + SHIM.read_text() + str(FLAGS)).encode()).hexdigest()[:16]
    library = Path(gettempdir()) / f"cnnjob-kernels-{digest}.so"
    if not library.exists():
        mine = library.with_suffix(f".{id(content)}.so")
        command = ["g++", *FLAGS, "-x", "c++", "-", "-o", str(mine)]
        subprocess.run(command, input=content, text=True, check=True)
        mine.rename(library)
    return ctypes.CDLL(str(library))


class EmulatedDevice:
    """What cnnjob.nn.cuda.device does, on the CPU."""

    name = "emulated"
    precision = "float32"
    free_bytes = 1 << 30
    versions: ClassVar[dict[str, Any]] = {}

    def __init__(self, source: str | None = None, order: str = "forward") -> None:
        self._library = compiled(SOURCE if source is None else source)
        self._order = ORDERS[order]
        self.launched: set[str] = set()

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return np.zeros(shape, dtype)

    def copy(self, source: Array, target: Array) -> None:
        assert source.flags.c_contiguous
        assert target.flags.c_contiguous
        ctypes.memmove(target.ctypes.data, source.ctypes.data, source.nbytes)

    def launch(self, name: str, grid: tuple[int, int], block: tuple[int, int], arguments: Sequence[Any]) -> None:
        self.launched.add(name)
        values = [_value(argument) for argument in arguments]
        sizes = [getattr(self._library, f"size_{name}")(place) for place in range(len(values))]
        if getattr(self._library, f"count_{name}")() != len(values) or [ctypes.sizeof(v) for v in values] != sizes:
            raise TypeError(f"{name}: other arguments than it takes")
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        shape = [(ctypes.c_uint * 2)(*sides) for sides in (grid, block)]
        failure = getattr(self._library, f"emulate_{name}")(*shape, pointers, self._order)
        if failure:
            raise RuntimeError(f"{name}: {FAILURES[failure]}")

    def gemm(
        self, a: Array, b: Array, out: Array, *, transpose: tuple[bool, bool] = (False, False), beta: float = 0
    ) -> None:
        product = (a.T if transpose[0] else a) @ (b.T if transpose[1] else b)
        out[...] = product + np.float32(beta) * out if beta else product


def _value(argument: Any) -> Any:
    """An argument in memory: an array's address, or a NumPy scalar's bytes."""
    if isinstance(argument, np.ndarray):
        return ctypes.c_void_p(argument.ctypes.data)
    if not isinstance(argument, np.generic):
        raise TypeError(f"{argument!r}: neither an array nor a NumPy scalar")
    return (ctypes.c_char * argument.itemsize).from_buffer_copy(argument.tobytes())
