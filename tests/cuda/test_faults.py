"""Faults planted in the kernels are caught by the tests that run them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cnnjob.nn.cuda.sources import kernel_files
from tests.cuda.emulation import needs_compiler
from tests.cuda.faults import FAULTS, Fault

pytestmark = [needs_compiler, pytest.mark.cuda_emulated]

ROOT = Path(__file__).parent.parent.parent
TESTS = [f"tests/cuda/{name}.py" for name in ("test_kernels", "test_steps")]


def passes(kernels: Path) -> bool:
    """Whether the tests pass with other kernels; a crash is no pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *TESTS]
    environment = {**os.environ, "CNNJOB_TEST_KERNELS": str(kernels)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False).returncode == 0


@pytest.fixture
def kernels(tmp_path: Path) -> Path:
    for path in kernel_files():
        shutil.copy(path, tmp_path)
    return tmp_path


def test_a_copy_without_a_fault_passes(kernels: Path) -> None:
    assert passes(kernels)


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_is_caught(kernels: Path, fault: Fault) -> None:
    fault.plant(kernels)
    assert not passes(kernels)
