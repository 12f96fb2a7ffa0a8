"""Runs the tests of the kernels a second time, on what CUDA's own compiler makes of them (its PTX; see ptx/)."""

import pytest

from tests.cuda import nvrtc
from tests.cuda.emulation import ARCHITECTURE

NAMES = "kernels", "steps", "batches", "stages", "halves", "muon", "tiled", "tiled_kernels"
TWICE = {f"tests.cuda.test_{name}" for name in NAMES}
ALL_KERNELS = {"test_every_kernel_is_run"}
"""What is also run for the oldest architecture that has all instructions: PTX for it hardly differs."""
NEWEST, OLDEST = "compute_90", "compute_80"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__ in TWICE:
        architectures = [NEWEST, OLDEST] if metafunc.function.__name__ in ALL_KERNELS else [NEWEST]
        compiled_for = [
            pytest.param(one, marks=pytest.mark.cuda_emulated, id=f"ptx for {one}") for one in architectures
        ]
        metafunc.parametrize("architecture", [pytest.param(None, id="cuda"), *compiled_for], indirect=True)


@pytest.fixture(autouse=True)
def architecture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What NVRTC compiles the kernels for, or none, where g++ compiles them."""
    if getattr(request, "param", None):
        if not nvrtc.library():
            pytest.skip("NVRTC is not installed; pip install nvidia-cuda-nvrtc")
        monkeypatch.setenv(ARCHITECTURE, request.param)
