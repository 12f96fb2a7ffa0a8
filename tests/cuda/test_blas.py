"""What is asked of cuBLAS, with a stand-in for the library that follows its definition."""

import ctypes
import gc
import itertools
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cnnjob.nn.cuda.blas import COMPUTE_FLOAT32, COMPUTE_TF32, Blas
from tests.cuda.stand_ins import standin

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed; apt install gcc")

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return ctypes.CDLL(str(standin(tmp_path_factory.mktemp("cublas"))))


def blas(library: ctypes.CDLL, *, tf32: bool = False) -> Blas:
    return Blas(library, SimpleNamespace(ptr=0x1234), np.zeros(4096, np.uint8), tf32=tf32)


def matrix(rows: int, columns: int, apart: int, seed: int) -> Array:
    """A matrix of small whole numbers in a wider one, whose other values are no numbers."""
    wide = np.full((rows, columns + apart), np.nan, np.float32)
    wide[:, :columns] = np.random.default_rng(seed).integers(-9, 9, (rows, columns))
    return wide[:, :columns]


@pytest.mark.parametrize(("M", "N", "K"), [(3, 5, 7), (1, 4, 2), (4, 1, 3), (2, 3, 1), (1, 1, 1)])
@pytest.mark.parametrize("apart", [0, 3])
def test_products_of_row_major_matrices(library: ctypes.CDLL, M: int, N: int, K: int, apart: int) -> None:
    ours = blas(library)
    for ta, tb in itertools.product((False, True), repeat=2):
        a = matrix(*((K, M) if ta else (M, K)), apart, 1)
        b = matrix(*((N, K) if tb else (K, N)), apart, 2)
        product = (a.T if ta else a) @ (b.T if tb else b)
        for alpha, beta in ((1.0, 0.0), (1.0, 1.0), (-0.5, 2.0)):
            out = matrix(M, N, apart, 3)
            around = out.base
            assert around is not None
            expected = alpha * product + beta * out
            if not beta:
                out[...] = np.nan
            ours.gemm(a, b, out, transpose=(ta, tb), alpha=alpha, beta=beta)
            np.testing.assert_array_equal(out, expected)
            assert np.isnan(around[:, N:]).all()


@pytest.mark.parametrize("into", [np.float32, np.float16])
def test_factors_in_float16_are_summed_in_float32(library: ctypes.CDLL, into: Any) -> None:
    ours = blas(library, tf32=True)
    a, b = matrix(3, 7, 1, 1).astype(np.float16), matrix(7, 5, 2, 2).astype(np.float16)
    out = np.ones((3, 5), into)
    ours.gemm(a, b, out, alpha=0.5, beta=2)
    np.testing.assert_array_equal(out, (0.5 * (a.astype(np.float32) @ b.astype(np.float32)) + 2).astype(into))
    assert library.standin_compute() == COMPUTE_FLOAT32


@pytest.mark.parametrize("compute", [COMPUTE_FLOAT32, COMPUTE_TF32])
def test_the_handle_is_on_its_stream_with_its_workspace_and_its_precision(library: ctypes.CDLL, compute: int) -> None:
    ours = blas(library, tf32=compute == COMPUTE_TF32)
    ours.gemm(*(np.ones((2, 2), np.float32) for _ in range(3)))
    library.standin_stream.restype = ctypes.c_void_p
    assert library.standin_stream() == 0x1234
    assert library.standin_workspace_bytes() == 4096
    assert library.standin_compute() == compute
    assert ours.version == 130000


def test_shapes_that_do_not_fit_and_a_failing_library_are_said(library: ctypes.CDLL) -> None:
    ours = blas(library)
    a, b = np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"cannot multiply \(2, 3\) by \(2, 3\) into \(2, 3\)"):
        ours.gemm(a, b, np.ones((2, 3), np.float32))
    with pytest.raises(RuntimeError, match=r"cublasGemmEx: invalid value \(cuBLAS status 7\)"):
        ours.gemm(np.ones((2, 0), np.float32), np.ones((0, 3), np.float32), a)


def test_a_handle_is_destroyed_with_its_object_before_its_workspace_and_its_stream(library: ctypes.CDLL) -> None:
    class Stream:
        ptr = 0x1234

        def __del__(self) -> None:
            ended.append(library.standin_handles())

    ended: list[int] = []
    gc.collect()
    before = library.standin_handles()
    for _ in range(3):
        ours = Blas(library, Stream(), np.zeros(4096, np.uint8))
        ours.gemm(*(np.ones((2, 2), np.float32) for _ in range(3)))
        assert library.standin_handles() <= before + 2
    assert library.standin_handles() == before + 1
    del ours
    assert ended == [before + 1, before + 1, before]
    assert library.standin_handles() == before


def test_a_process_that_ends_does_not_wait_for_a_driver_that_is_gone(tmp_path: Path) -> None:
    script = f"""
import atexit, ctypes
from types import SimpleNamespace
import numpy as np
from cnnjob.nn.cuda.blas import Blas
library = ctypes.CDLL({str(standin(tmp_path))!r})
blas = Blas(library, SimpleNamespace(ptr=1), np.zeros(64, np.uint8))
atexit.register(library.standin_end_driver)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
