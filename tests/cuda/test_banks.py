"""Conflicts of shared-memory banks, from the addresses in the kernels' PTX, run on the CPU."""

import re

import numpy as np
import pytest

from cnnjob.nn.cuda.device_api import scalars
from tests.cuda import nvrtc
from tests.cuda.counts.banks import ARCHITECTURE, BankDevice, run_kernels
from tests.cuda.counts.instructions import TENSOR, WORK
from tests.cuda.counts.recording import parameters
from tests.cuda.emulation import kernels, needs_compiler

pytestmark = [
    needs_compiler,
    pytest.mark.cuda_emulated,
    pytest.mark.skipif(nvrtc.library() is None, reason="NVRTC is not installed; pip install nvidia-cuda-nvrtc"),
]

TENSOR_KERNELS = [name for name, work in WORK.items() if work.per == TENSOR]
OUTSIDE = {"conv_": 8, "finish_gradient": 8}
"""Ways of conflicts outside the main loop: where a block looks up its pixels, and where it stores its sums."""


def test_main_loops_have_no_bank_conflicts() -> None:
    device = run_kernels(BankDevice())
    found = {name: device.conflicts(name) for name in parameters()}
    entries = nvrtc.ptx(kernels(), ARCHITECTURE).split(".entry ")[1:]
    with_shared = {re.split(r"\W", entry, maxsplit=1)[0] for entry in entries if re.search(r"\b(ld|st)\.shared", entry)}
    assert with_shared <= {name for name, accesses in found.items() if accesses}
    for name, accesses in found.items():
        assert not name.startswith("first_") or sum(access.accesses for access in accesses) > 100, name
        for access in accesses:
            in_main_loop = access.instruction.startswith(("ldmatrix", "cp.async"))
            most = next((ways for kernel, ways in OUTSIDE.items() if name.startswith(kernel)), 1)
            assert access.ways <= (1 if in_main_loop else most), f"{name}: {access}"
    for name in TENSOR_KERNELS:
        instructions = " ".join(access.instruction for access in found[name])
        assert "ldmatrix" in instructions, name
        assert "cp.async" in instructions, name


READING = """
#define KERNEL extern "C" __global__ void
KERNEL reading(float *x, int apart) {
  __shared__ float words[1024];
  __shared__ unsigned char bytes[1024];
  __shared__ double doubles[1024];
  int t = threadIdx.x;
  for (int i = t; i < 1024; i += 32) {
    words[i] = x[t];
    bytes[i] = t;
    doubles[i] = x[t];
  }
  __syncthreads();
  x[t] = words[t * apart] + bytes[t * apart] + doubles[t * apart];
}
"""


@pytest.mark.parametrize(
    ("apart", "words", "of_bytes", "doubles"),
    [(0, 1, 1, 1), (1, 1, 1, 1), (2, 2, 1, 2), (4, 4, 1, 4), (8, 8, 2, 8), (32, 32, 8, 16), (33, 1, 1, 1)],
)
def test_conflicts_are_those_of_the_addresses(apart: int, words: int, of_bytes: int, doubles: int) -> None:
    device = BankDevice(READING)
    device.launch("reading", (1, 1), (32, 1), scalars([np.zeros(32, np.float32), apart]))
    ways = {access.instruction.split()[0]: access.ways for access in device.conflicts("reading")}
    reads = {"ld.shared.f32": words, "ld.shared.u8": of_bytes, "ld.shared.f64": doubles}
    assert {name: ways.pop(name) for name in reads} == reads
    assert {*ways.values()} == {1}
