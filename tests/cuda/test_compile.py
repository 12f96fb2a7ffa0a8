"""Every kernel compiled for the GPUs of today by CUDA's own compiler."""

import re

import pytest

from tests.cuda import nvrtc
from tests.cuda.emulation import KERNEL, kernels

pytestmark = pytest.mark.skipif(nvrtc.library() is None, reason="NVRTC is not installed; pip install nvidia-cuda-nvrtc")


@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90", "sm_100"])
def test_all_kernels_compile_without_a_warning(architecture: str) -> None:
    code = nvrtc.compiled(kernels(), architecture)
    assert code.startswith(b"\x7fELF")
    for name in KERNEL.findall(kernels()):
        assert re.search(rb"\.text\.%b\0" % name.encode(), code), name


def test_a_mistake_is_found() -> None:
    with pytest.raises(nvrtc.CompileError, match=r"kernels.cu\(1\): error: identifier .* is undefined"):
        nvrtc.compiled("__global__ void kernel(float *x) { x[0] = nothing; }", "sm_80")


def test_nothing_is_used_that_cannot_be_run_on_the_cpu_or_gives_other_bits_each_time() -> None:
    source = re.sub(r"//.*", "", kernels())
    for word in ("atomicAdd", "atomicExch", "atomicCAS", "extern __shared__", "#include", "clock"):
        assert word not in source
    emulated = re.sub(r"#ifndef EMULATED.*?#endif", "", source, flags=re.DOTALL)
    assert "asm" not in emulated
