"""The kernels' machine code, compiled by NVRTC and read by CUDA's own tools: registers, spills, instructions."""

import runpy

import pytest

from tests.cuda.counts.instructions import LISTING, TENSOR, WORK, instructions_per_unit
from tests.cuda.counts.machine_code import machine_codes, missing_tools
from tests.cuda.emulation import KERNEL, kernels

pytestmark = pytest.mark.skipif(missing_tools() is not None, reason=str(missing_tools()))

STATIC_SHARED_BYTES = 49_152
"""What every GPU has for a block without being asked for more."""
TOLERANCE = 0.2
"""Other versions of NVRTC make other code."""
TENSOR_SHARE = 0.30
"""At least so much of a main loop with products of tensor cores must be these."""


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_no_kernel_spills_registers_to_memory(architecture: str) -> None:
    codes = machine_codes(architecture)
    assert codes.keys() == set(KERNEL.findall(kernels()))
    for name, code in codes.items():
        assert (code.spills, code.stack_bytes) == (0, 0), name
        assert code.registers <= 255, name
        assert code.shared_bytes <= STATIC_SHARED_BYTES, name
        if code.main_loop["HMMA"]:
            assert code.tensor_share >= TENSOR_SHARE, f"{name}: {code.main_loop}"


def test_the_model_counts_the_instructions_of_the_machine_code() -> None:
    codes = machine_codes("sm_90")
    assert WORK.keys() == codes.keys()
    for name, work in WORK.items():
        if work.per != LISTING:
            found = instructions_per_unit(codes[name], work)
            assert found == pytest.approx(work.each, rel=TOLERANCE), f"{name}: {work.per}"
        assert bool(codes[name].main_loop["HMMA"]) == (work.per == TENSOR), name


def test_the_command_prints_what_kernels_need(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["", "--machine-code"])
    runpy.run_module("tests.cuda.counts", run_name="__main__")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert {row[0] for row in rows} == WORK.keys()
    registers = {(row[0], row[1]): int(row[2]) for row in rows}
    assert registers["sgd", "sm_90"] == machine_codes("sm_90")["sgd"].registers


SPILLING = """
extern "C" __global__ void spilling(const float *x, float *y, const int *order) {
  float values[40];
  for (int i = 0; i < 40; i++) values[i] = x[i * 256 + threadIdx.x];
  for (int i = 0; i < 40; i++) y[i * 256 + threadIdx.x] = values[order[i]];
}
"""
PRODUCTS = """
extern "C" __global__ void products(const unsigned *a, const unsigned *b, float *d, int steps) {
  int t = threadIdx.x;
  float sums[4] = {};
#pragma unroll 1
  for (int i = 0; i < steps; i++)
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[t]), "r"(a[t + 32]), "r"(a[t + 64]), "r"(a[t + 96]), "r"(b[t]), "r"(b[t + 32]));
  for (int e = 0; e < 4; e++) d[4 * t + e] = sums[e];
}
"""


def test_memory_of_single_threads_and_products_are_seen() -> None:
    spilling = machine_codes("sm_80", SPILLING)["spilling"]
    assert spilling.spills > 0
    assert spilling.stack_bytes >= 160
    products = machine_codes("sm_80", PRODUCTS)["products"]
    assert products.spills == 0
    assert products.main_loop["HMMA"] == 1
    assert 0 < products.tensor_share < 1


def test_the_longest_path_is_that_of_one_thread() -> None:
    both = 'extern "C" __global__ void both(float *x) { if (x[0] > 0) x[1] = sinf(x[2]); else x[3] = 1; }'
    code = machine_codes("sm_80", both)["both"]
    assert code.main_loop.total() < code.longest_path < len(code.texts)
