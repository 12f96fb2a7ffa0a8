"""Every kernel compiled for the GPUs of today by CUDA's own compiler."""

import re

import pytest

from cnnjob.nn.cuda.device import KERNELS_FOLDER
from tests.cuda import nvrtc
from tests.cuda.emulation import KERNEL, kernels
from tests.cuda.sanitizer import CUBLAS_KERNELS, sanitizer_options

pytestmark = pytest.mark.skipif(nvrtc.library() is None, reason="NVRTC is not installed; pip install nvidia-cuda-nvrtc")


TILED = set(KERNEL.findall("\n".join(path.read_text() for path in (KERNELS_FOLDER / "tiled").glob("*.cu"))))
"""Kernels that need instructions of sm_80."""


@pytest.mark.parametrize("architecture", ["sm_75", "sm_80", "sm_90", "sm_100"])
def test_all_kernels_compile_without_a_warning(architecture: str) -> None:
    code = nvrtc.compiled(kernels(), architecture)
    assert code.startswith(b"\x7fELF")
    for name in KERNEL.findall(kernels()):
        is_compiled = bool(re.search(rb"\.text\.%b\0" % name.encode(), code))
        assert is_compiled == (architecture != "sm_75" or name not in TILED), name


# Names from NVIDIA's documentation and from profiles of cuBLAS 10 to 13.
CUBLAS_NAMES = [
    "ampere_sgemm_128x64_nn",
    "ampere_fp16_s16816gemm_fp16_128x128_ldg8_f2f_stages_32x5_nn",
    "sm80_xmma_gemm_f32f32_tf32f32_f32_nn_n_tilesize128x128x16_stage4_warpsize2x2x1_ffma_aligna4_alignc4_execute_kernel__5x_cublas",
    "_ZN7cutlass7Kernel2I51cutlass_80_tensorop_s1688gemm_128x128_16x5_nn_align4EEvNT_6ParamsE",
    "_ZN8cublasLt19splitKreduce_kernelILi32ELi16EiffffLb1ELb0ELb0EEEv",
    "nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NNT",
    "_Z17gemv2T_kernel_valIiiffffLi128ELi16ELi4ELi4ELb0ELb0E18cublasGemvParamsExIi30cublasGemvTensorStridedBatchedIKfEEEvT11_",
]


def test_the_sanitizer_leaves_out_the_kernels_of_cublas_and_none_of_ours() -> None:
    for name in CUBLAS_NAMES:
        assert re.search(CUBLAS_KERNELS, name), name
    for name in KERNEL.findall(kernels()):
        assert not re.search(CUBLAS_KERNELS, name), name
    for tool in ("memcheck", "racecheck"):
        options = sanitizer_options(tool)
        assert options[options.index("--kernel-name-exclude") + 1] == f"regex={CUBLAS_KERNELS}"


def test_a_mistake_is_found() -> None:
    with pytest.raises(nvrtc.CompileError, match=r"kernels.cu\(1\): error: identifier .* is undefined"):
        nvrtc.compiled("__global__ void kernel(float *x) { x[0] = nothing; }", "sm_80")


def test_nothing_is_used_that_cannot_be_run_on_the_cpu_or_gives_other_bits_each_time() -> None:
    source = re.sub(r"//.*", "", kernels())
    for word in ("atomicAdd", "atomicExch", "atomicCAS", "#include", "clock"):
        assert word not in source
    emulated = re.sub(r"#ifndef EMULATED.*?#endif", "", source, flags=re.DOTALL)
    for word in ("asm", "extern __shared__"):
        assert word not in emulated
