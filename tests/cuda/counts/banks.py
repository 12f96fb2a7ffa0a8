"""Conflicts of shared-memory banks, from the addresses that the lanes of a warp access together.

Shared memory has 32 banks of 4 bytes. Lanes that access different words of one bank wait for each other. Of 8 bytes,
half a warp is served at a time, and of 16 a quarter; other widths are served word by word. The accesses are those of
the kernels' PTX, run on the CPU.
"""

import ctypes
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np

from cnnjob import nn
from cnnjob.nn.cuda.backend import CudaBackend
from cnnjob.nn.cuda.device_api import WARP
from cnnjob.nn.cuda.fused import FIRST_BLOCKS
from tests.cuda.emulation import Array, EmulatedDevice, kernels
from tests.cuda.ptx.library import library
from tests.cuda.shop import OF_ONE_PIXEL, WORKS, Work

ARCHITECTURE = "compute_90"
BANKS, WORD, MAX_WORDS = 32, 4, 1 << 16
"""Of a multiprocessor; the bytes of a word; a power of two that is more than all words."""
ACCESS = np.dtype(
    [("instruction", "u8"), *((name, "u4") for name in ("block", "thread", "turn", "size", "address"))], align=True
)
"""As in ptx.cpp."""


class Conflicts(NamedTuple):
    """The accesses of warps by one instruction."""

    instruction: str
    accesses: int
    ways: int
    """The most words of one bank in an access; 1 is without conflict."""
    mean: float
    """The mean of the same over all accesses."""


class BankDevice(EmulatedDevice):
    """An emulated device that records the kernels' accesses to shared memory."""

    def __init__(self, source: str | None = None, **settings: Any) -> None:
        self._compiled = library(source or kernels(), ARCHITECTURE)
        super().__init__(self._compiled, **settings)
        self._ways: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))

    def launch(self, name: str, *arguments: Any) -> None:
        self._compiled.record_accesses(1)
        try:
            super().launch(name, *arguments)
        finally:
            self._compiled.record_accesses(0)
        first = ctypes.c_void_p()
        count = self._compiled.take_accesses(ctypes.byref(first))
        if first.value and count:
            memory = (ctypes.c_char * (count * ACCESS.itemsize)).from_address(first.value)
            instructions, ways = warp_ways(np.frombuffer(memory, ACCESS))
            for instruction in np.unique(instructions):
                self._ways[name][int(instruction)] += ways[instructions == instruction].tolist()

    def conflicts(self, name: str) -> list[Conflicts]:
        """The accesses of a kernel's launches so far by instruction; empty if it has no shared memory."""
        return [
            Conflicts(ctypes.string_at(instruction).decode(), len(ways), max(ways), sum(ways) / len(ways))
            for instruction, ways in self._ways[name].items()
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
    device.precision = "float16"
    for work in OF_ONE_PIXEL.values():
        work.result(CudaBackend(device, captures=False), steps=1)
    return device


def warp_ways(accesses: Array) -> tuple[Array, Array]:
    """Return the instruction of each access of a warp, and its ways, both (accesses of warps,).

    Lanes are together that are at an instruction for the same time of their own. If a lane leaves out a pass of a
    loop, it is compared with later passes of the others, so the inputs should give all lanes the same to do.
    """
    warp = accesses["thread"].astype(np.int64) // WARP
    for key in ("turn", "block", "instruction"):
        warp += np.unique(accesses[key], return_inverse=True)[1] * (warp.max() + 1)
    _, first, warp = np.unique(warp, return_index=True, return_inverse=True)
    ways = np.ones(len(first), np.int64)
    for width in np.unique(accesses["size"]):
        chosen = accesses["size"] == width
        count_ways(warp[chosen], accesses["thread"][chosen] % WARP, accesses["address"][chosen], int(width), ways)
    return accesses["instruction"][first], ways


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
