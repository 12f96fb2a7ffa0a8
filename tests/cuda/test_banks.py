"""Conflicts of shared-memory banks, from the addresses of the emulated kernels."""

import numpy as np
import pytest

from cnnjob.nn.cuda.device_api import scalars
from tests.cuda.counts.banks import BankDevice, run_kernels
from tests.cuda.counts.recording import parameters
from tests.cuda.emulation import needs_compiler

pytestmark = needs_compiler


def test_no_kernel_has_bank_conflicts() -> None:
    device = run_kernels(BankDevice())
    found = {name: device.conflicts(name) for name in parameters()}
    assert device.owners & parameters().keys() <= {name for name, accesses in found.items() if accesses}
    for name, accesses in found.items():
        assert not name.startswith("first_") or sum(access.accesses for access in accesses) > 100, name
        for access in accesses:
            assert access.ways == 1, f"{name}: {access.line}"


PLANTED = """
#define KERNEL extern "C" __global__ void
KERNEL planted(float *x, int apart) {
  __shared__ float words[1024];
  __shared__ unsigned char bytes[1024];
  __shared__ double doubles[1024];
  int t = threadIdx.x;
  words[t * apart] = x[t];
  bytes[t * apart] = 1;
  doubles[t * apart] = 2;
  x[t] = words[t] + bytes[t] + doubles[t];
}
"""


@pytest.mark.parametrize(
    ("apart", "words", "of_bytes", "doubles"),
    [(0, 1, 1, 1), (1, 1, 1, 1), (2, 2, 1, 2), (4, 4, 1, 4), (8, 8, 2, 8), (32, 32, 8, 16), (33, 1, 1, 1)],
)
def test_conflicts_are_those_of_the_addresses(apart: int, words: int, of_bytes: int, doubles: int) -> None:
    device = BankDevice(PLANTED)
    device.launch("planted", (1, 1), (32, 1), scalars([np.zeros(32, np.float32), apart]))
    found = {access.line.partition("[")[0]: access.ways for access in device.conflicts("planted")[:3]}
    assert found == {"words": words, "bytes": of_bytes, "doubles": doubles}
