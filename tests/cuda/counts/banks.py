"""Conflicts of shared-memory banks, from the addresses that the lanes of a warp access together in emulated kernels.

Shared memory has 32 banks of 4 bytes. Lanes that access different words of one bank wait for each other. Of 8 bytes,
half a warp is served at a time, and of 16 a quarter; other widths are served word by word.
"""

import ctypes
import hashlib
import os
import re
import subprocess
from collections import defaultdict
from pathlib import Path
from tempfile import gettempdir
from typing import Any, NamedTuple

import numpy as np

from cnnjob import nn
from cnnjob.nn.cuda.backend import CudaBackend
from cnnjob.nn.cuda.device_api import WARP
from cnnjob.nn.cuda.fused import FIRST_BLOCKS
from tests.cuda.emulation import FLAGS, SHIM, Array, EmulatedDevice, kernels, with_entry_points
from tests.cuda.shop import WORKS, Work

HEADER = Path(__file__).with_name("banks.h")
BANKS, WORD, MAX_WORDS = 32, 4, 1 << 16
"""Of a multiprocessor; the bytes of a word; a power of two that is more than all words."""
ACCESS = np.dtype([("site", "u8"), ("block", "u4"), ("thread", "u4"), ("turn", "u4"), ("bytes", "u4"), ("at", "u8")])
"""As in banks.h."""


SYMBOL = re.compile(r"^([0-9a-f]+) ([0-9a-f]+) \w (\w+)$", re.MULTILINE)
"""A line of nm: address, size, type and name."""


class Conflicts(NamedTuple):
    """The accesses of warps at one place of the source."""

    line: str
    accesses: int
    ways: int
    """The most words of one bank in an access; 1 is without conflict."""
    mean: float
    """The mean of the same over all accesses."""


class BankDevice(EmulatedDevice):
    """An emulated device that notes the kernels' accesses to shared memory."""

    def __init__(self, source: str | None = None, **settings: Any) -> None:
        super().__init__(source, **settings)
        self.source = kernels() if source is None else source
        self._path = self._compiled()
        self._library = ctypes.CDLL(str(self._path))
        self.owners: set[str] = set()
        """The functions with arrays in shared memory."""
        self._ranges = self._find_arrays()
        self._library.set_arrays(self._ranges, ctypes.c_size_t(len(self._ranges) // 2))
        self._ways: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))

    def _compiled(self) -> Path:
        """The kernels as a library with a call before each access; compiled once."""
        content = f'#include "{HEADER}"\n#line 1 "kernels"\n{with_entry_points(self.source)}'
        digest = hashlib.sha256((content + HEADER.read_text() + SHIM.read_text()).encode()).hexdigest()[:16]
        library = Path(gettempdir()) / f"cnnjob-banks-{digest}.so"
        if not library.exists():
            objects, mine = (library.with_suffix(f".{os.getpid()}.{suffix}") for suffix in ("o", "so"))
            options = (
                *FLAGS,
                "-O1",
                "-g1",
                "-fsanitize=thread",
                "-DNOTES_SHARED",
                "-include",
                str(SHIM),
                "-x",
                "c++",
                "-",
                "-c",
            )
            subprocess.run(["g++", *options, "-o", str(objects)], input=content, text=True, check=True)
            # Linked without -fsanitize, which would add ThreadSanitizer.
            subprocess.run(["g++", "-shared", "-Wl,-Bsymbolic", str(objects), "-ldl", "-o", str(mine)], check=True)
            objects.unlink()
            mine.rename(library)
        return library

    def _find_arrays(self) -> ctypes.Array[ctypes.c_void_p]:
        """The first address of each array in shared memory, and the first behind it."""
        listing = subprocess.run(["nm", "-S", str(self._path)], check=True, capture_output=True, text=True).stdout
        places = {name: (int(at, 16), int(size, 16)) for at, size, name in SYMBOL.findall(listing)}
        base = (ctypes.cast(self._library.take_accesses, ctypes.c_void_p).value or 0) - places["take_accesses"][0]
        # On a CPU, shared memory is static memory of the kernels, or of what they call.
        own = sorted(place for name, place in places.items() if re.match(r"_ZZ(?!N4shim|13take_accesses)", name))
        self.owners = {match[1] for name in places if (match := re.match(r"_ZZ\d+([a-z]\w*?)E\d", name))}
        ranges = [address for first, size in own for address in (base + first, base + first + size)]
        return (ctypes.c_void_p * len(ranges))(*ranges)

    def launch(self, name: str, *arguments: Any) -> None:
        super().launch(name, *arguments)
        first = ctypes.c_void_p()
        count = self._library.take_accesses(ctypes.byref(first))
        if first.value and count:
            memory = (ctypes.c_char * (count * ACCESS.itemsize)).from_address(first.value)
            sites, ways = warp_ways(np.frombuffer(memory, ACCESS))
            for site in np.unique(sites):
                self._ways[name][int(site)] += ways[sites == site].tolist()

    def conflicts(self, name: str) -> list[Conflicts]:
        """The accesses of a kernel's launches so far, line by line; empty if it has no shared memory."""
        sites = self._ways[name]
        command = ["addr2line", "-a", "-i", "-e", str(self._path), *(hex(site - 1) for site in sites)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout if sites else ""
        lines: dict[int, list[int]] = defaultdict(list)
        # The innermost line of the kernels' own; what is inlined there may be of shim.h.
        for places, ways in zip(re.split(r"^0x\w+$", output, flags=re.MULTILINE)[1:], sites.values(), strict=True):
            lines[int(re.findall(r"kernels:(\d+)", places)[0])] += ways
        text = self.source.splitlines()
        return [
            Conflicts(text[line - 1].strip(), len(ways), max(ways), sum(ways) / len(ways))
            for line, ways in sorted(lines.items())
        ]


FUSED = "muon, all", "decay, cycled adam", "averaged", "clipped", "maxima"
SEPARATE = "silu", "residual"
WIDTHS = {1: 28, 3: 32}
"""Pixels per row of images with so many channels."""


def run_kernels(device: BankDevice) -> BankDevice:
    """Run every kernel that has shared memory, with the row lengths of MNIST and CIFAR-10; return the device."""
    for name in (*FUSED, *SEPARATE):
        WORKS[name].result(CudaBackend(device, fuses=name in FUSED, captures=False))
    for kernel, pool, channels in FIRST_BLOCKS:
        # With so large a bias, every window has a gradient: all lanes do the same.
        conv = nn.Conv(filters=32, kernel=kernel, pool=pool, pad=kernel // 2, bias_init=9.0)
        work = Work([conv, nn.Dense(units=8)], (8, WIDTHS[channels], channels), count=1, optimiser=nn.Sgd())
        work.result(CudaBackend(device, captures=False), steps=1)
    return device


def warp_ways(accesses: Array) -> tuple[Array, Array]:
    """Return the place in the library of each access of a warp, and its ways, both (accesses of warps,).

    Lanes are together that are at a place for the same time of their own. If a lane leaves out a pass of a loop, it is
    compared with the passes after that, so the inputs should give all lanes the same to do.
    """
    warp = accesses["thread"].astype(np.int64) // WARP
    for key in ("turn", "block", "site"):
        warp += np.unique(accesses[key], return_inverse=True)[1] * (warp.max() + 1)
    _, first, warp = np.unique(warp, return_index=True, return_inverse=True)
    ways = np.ones(len(first), np.int64)
    for width in np.unique(accesses["bytes"]):
        chosen = accesses["bytes"] == width
        count_ways(warp[chosen], accesses["thread"][chosen] % WARP, accesses["at"][chosen], int(width), ways)
    return accesses["site"][first], ways


def count_ways(warp: Array, lanes: Array, addresses: Array, width: int, ways: Array) -> None:
    """Write the most words of one bank that each warp accesses at a time.

    Args:
        warp: for each access of a lane, the index of the access of its warp, (n,).
        lanes: the lane, (n,).
        addresses: the byte at which the access begins, (n,).
        width: the number of bytes of each.
        ways: receives the ways of each access of a warp; those that are already larger stay.
    """
    at_a_time, words_each = {8: WARP // 2, 16: WARP // 4}.get(width, WARP), -(-width // WORD)
    phases = WARP // at_a_time
    phase = warp * phases + lanes // at_a_time
    begin = addresses.astype(np.int64) // WORD
    # Of 8 and 16 bytes, all words of a part of the warp are served together; of other widths, one word of each lane.
    together = words_each if phases > 1 else 1
    for word in range(0, words_each, together):
        words = (begin[:, None] + np.arange(word, word + together)).ravel()
        distinct = np.unique(np.repeat(phase, together) * MAX_WORDS + words)
        banks = distinct // MAX_WORDS * BANKS + distinct % BANKS
        banks = np.bincount(banks, minlength=len(ways) * phases * BANKS)
        np.maximum(ways, banks.reshape(len(ways), -1).max(axis=1), out=ways)
