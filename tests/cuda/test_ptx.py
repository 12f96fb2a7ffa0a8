"""Faults that only the PTX of kernels shows, on the CPU: missing barriers, misaligned addresses, copies not awaited."""

import ctypes
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from cnnjob.nn.cuda.backend import CudaBackend
from cnnjob.nn.cuda.device_api import scalars
from tests.cuda import nvrtc
from tests.cuda.emulation import KERNEL, ORDERS, EmulatedDevice, FewBlocks, kernels, needs_compiler
from tests.cuda.ptx.library import library
from tests.cuda.ptx.parsing import PtxError
from tests.cuda.shop import ORDER, TILED, WORKS, Work, smooth

pytestmark = [
    needs_compiler,
    pytest.mark.cuda_emulated,
    pytest.mark.skipif(nvrtc.library() is None, reason="NVRTC is not installed; pip install nvidia-cuda-nvrtc"),
]

ARCHITECTURE = "compute_90"
FEW_COLUMN_BYTES = 20_000
WIDE = [f"conv_{kind}_128" for kind in ("1", "2", "back")]
HARMLESS = {
    # The last barrier of block_sum, where only thread 0 reads the sum: it also wrote it.
    *((name, 9) for name in ("muon_momentum", "muon_squares", "add_squares")),
    # The barrier between the first two steps of multiply_tiles, where nothing is prepared in shared memory.
    *((name, 3) for name in WIDE),
    # The last barrier of multiply_tiles, where nothing in shared memory follows.
    ("weight_sums_64", 3),
    ("weight_sums_128", 4),
}
SHALLOW = [smooth(16), smooth(24, pool=2, order=ORDER)]
DEEP = [smooth(24), smooth(136, pool=2, order=ORDER)]
TILES = {
    **{name: work.work for name, work in TILED.items()},
    "three steps, pooled": Work(SHALLOW, (8, 8, 3)),
    "four steps, pooled": Work(DEEP, (16, 16, 1)),
}
"""Besides those of all tests some whose last step reads the stage of shared memory that is overwritten afterwards."""

Run = Callable[[ctypes.CDLL], EmulatedDevice]


def in_parts(name: str, compiled: ctypes.CDLL, *, fuses: bool) -> EmulatedDevice:
    device = FewBlocks(compiled)
    WORKS[name].result(CudaBackend(device, FEW_COLUMN_BYTES, fuses=fuses))
    return device


def in_tiles(name: str, compiled: ctypes.CDLL) -> EmulatedDevice:
    device = EmulatedDevice(compiled, precision="float16")
    TILES[name].result(CudaBackend(device), 1)
    return device


def in_long_shares(compiled: ctypes.CDLL) -> EmulatedDevice:
    """Four steps of a wide tile of weights' gradients: the works are too small for it."""
    device, (C, F, outputs) = EmulatedDevice(compiled), (8, 128, 256)
    arrays = [aligned(size, 0) for size in (2 * C * outputs, 2 * F * outputs, 8 * outputs, 4 * C * F)]
    sizes = [C * outputs, outputs, C, 1, outputs, F, 1, outputs]
    device.launch("weight_sums_128", (1, 1), (256, 1), scalars([*arrays, *sizes]), 3 * (256 + F) * 128 + 1024)
    return device


@pytest.fixture(scope="module")
def compiled() -> ctypes.CDLL:
    return library(kernels(), ARCHITECTURE)


@pytest.fixture(scope="module")
def runs(compiled: ctypes.CDLL) -> dict[str, list[Run]]:
    """By kernel, the steps that launch it."""
    found: dict[str, list[Run]] = defaultdict(list)
    tried: list[Run] = [
        in_long_shares,
        *(partial(in_parts, name, fuses=fuses) for name in WORKS for fuses in (False, True)),
        *(partial(in_tiles, name) for name in TILES),
    ]
    for run in tried:
        for kernel in run(compiled).launched:
            found[kernel].append(run)
    return found


def test_a_barrier_that_is_removed_is_missed(compiled: ctypes.CDLL, runs: dict[str, list[Run]]) -> None:
    unseen = set()
    names = KERNEL.findall(kernels())
    barriers = [(name, place + 1) for name in names for place in range(getattr(compiled, f"barriers_{name}")())]
    try:
        for name, place in barriers:
            compiled.skip_barrier(name.encode(), place)
            if not any(fails(run, compiled, name) for run in runs[name]):
                unseen.add((name, place))
    finally:
        compiled.skip_barrier(b"", 0)
    assert len(barriers) > 150
    assert unseen == HARMLESS


def fails(run: Run, compiled: ctypes.CDLL, kernel: str) -> bool:
    """Whether the kernel is stopped, and says which instruction of which threads is at fault."""
    try:
        run(compiled)
    except RuntimeError as error:
        message = str(error)
        assert message.startswith(
            tuple(f"{kernel}: {name}" for name in ("ld.sh", "st.sh", "st.gl", "ldmatrix", "cp.a"))
        )
        assert any(part in message for part in ("a barrier", "nothing has been written", "no barrier", "awaits"))
        return True
    return False


FAULTS = """
#define KERNEL extern "C" __global__ void

struct alignas(16) Four { float values[4]; };
struct alignas(8) Two { float values[2]; };

KERNEL copy_fours(const Four *x, Four *y) { y[threadIdx.x] = x[threadIdx.x]; }

KERNEL copy_float(const float *x, float *y) { y[threadIdx.x] = x[threadIdx.x]; }

KERNEL twos_of_shared(float *y, int apart) {
  __shared__ float tile[68];
  tile[threadIdx.x] = threadIdx.x;
  if (threadIdx.x < 4) tile[64 + threadIdx.x] = 0;
  __syncthreads();
  *(Two *)(y + 2 * threadIdx.x) = *(const Two *)(tile + threadIdx.x * 2 % 64 + apart);
}

KERNEL beyond_shared(float *y, int place) {
  __shared__ float tile[64];
  tile[threadIdx.x + place] = y[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = tile[63 - threadIdx.x + place];
}

KERNEL unwritten(float *y) {
  __shared__ float tile[64];
  if (threadIdx.x != 7) tile[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = tile[threadIdx.x];
}

KERNEL neighbours(float *y, int way) {
  __shared__ unsigned char tile[64];
  volatile unsigned char *bytes = tile;
  bytes[threadIdx.x] = threadIdx.x;  // four of a word by four threads
  __syncwarp();
  if (way == 0) y[threadIdx.x] = bytes[threadIdx.x ^ 1];        // of its warp
  if (way == 1) y[threadIdx.x] = bytes[threadIdx.x ^ 32];       // of another
  if (way == 2) bytes[threadIdx.x ^ 1] = 0;
  if (way == 3) { y[threadIdx.x] = bytes[threadIdx.x]; bytes[threadIdx.x ^ 1] = 0; }
}

KERNEL copies(const float *x, float *y, int way) {
  extern __shared__ Four fours[];
  unsigned place = (unsigned)__cvta_generic_to_shared(fours + threadIdx.x);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(place), "l"(x + 4 * threadIdx.x) : "memory");
  asm volatile("cp.async.commit_group;" ::: "memory");
  if (way != 1) asm volatile("cp.async.wait_group 0;" ::: "memory");
  if (way != 2) __syncthreads();
  *(Four *)(y + 4 * threadIdx.x) = fours[way == 3 ? threadIdx.x : 63 - threadIdx.x];
}

KERNEL __launch_bounds__(64) few_threads(int *x) { x[threadIdx.x] = 1; }

KERNEL both_kinds(float *y, int beyond) {
  extern __shared__ Four fours[];
  __shared__ float tile[65];
  float *floats = (float *)fours;
  floats[threadIdx.x + beyond] = 100 + threadIdx.x;
  tile[threadIdx.x] = threadIdx.x;
  __syncthreads();
  y[threadIdx.x] = floats[63 - threadIdx.x + beyond] + tile[63 - threadIdx.x];
}

KERNEL quotient(int *x, int divisor) { x[threadIdx.x] /= divisor; }

KERNEL half_a_warp(float *x) { x[threadIdx.x] = __shfl_xor_sync(0xffff, x[threadIdx.x], 1); }
"""


@pytest.fixture(scope="module")
def faults() -> ctypes.CDLL:
    return library(FAULTS, ARCHITECTURE)


def launch(faults: ctypes.CDLL, kernel: str, arguments: list[Any], order: str = "forward", threads: int = 64) -> None:
    shared_bytes = {"copies": 1024, "both_kinds": 256}.get(kernel, 0)
    EmulatedDevice(faults, order).launch(kernel, (1, 1), (threads, 1), scalars(arguments), shared_bytes)


X, Y = np.arange(260, dtype=np.float32), np.zeros(260, np.float32)


def aligned(count: int, place: int) -> np.ndarray[Any, Any]:
    """Bytes whose address is so many behind a multiple of 16."""
    memory = np.zeros(count + 32, np.uint8)
    first = -memory.ctypes.data % 16 + place
    return memory[first : first + count]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("kernel", "size", "place", "message"),
    [
        (
            "copy_fours",
            16,
            4,
            r"copy_fours: ld\.global.*\.v4\.f32 \{.*\}, \[%rd\d+\]: the address is not a multiple of 16",
        ),
        ("copy_fours", 16, 8, r"copy_fours: ld\.global.*\.v4\.f32 .*: the address is not a multiple of 16 \(it is 0x"),
        ("copy_float", 4, 2, r"copy_float: ld\.global.*\.f32 %f\d+, \[%rd\d+\]: the address is not a multiple of 4"),
    ],
)
def test_a_misaligned_access_is_found(
    faults: ctypes.CDLL, order: str, kernel: str, size: int, place: int, message: str
) -> None:
    launch(faults, kernel, [aligned(size * 64, 0), aligned(size * 64, 0)], order)
    with pytest.raises(RuntimeError, match=message):
        launch(faults, kernel, [aligned(size * 64, place), aligned(size * 64, 0)], order)
    with pytest.raises(RuntimeError, match=f"{kernel}: st.global.* the address is not a multiple of {size}"):
        launch(faults, kernel, [aligned(size * 64, 0), aligned(size * 64, place)], order)


def test_a_kernel_of_the_package_with_a_misaligned_array_is_found(compiled: ctypes.CDLL) -> None:
    device = EmulatedDevice(compiled)
    with pytest.raises(RuntimeError, match=r"add_share: ld\.global.*f32 %f\d+, .*: the address is not a multiple of 4"):
        device.launch("add_share", (1, 1), (256, 1), scalars([aligned(64, 1), aligned(64, 0), 1.0, 1, 1, 16]))


FAULTY: list[tuple[str, list[Any], str]] = [
    (
        "twos_of_shared",
        [Y, 1],
        r"ld\.shared\.v2\.f32 .*: the address is not a multiple of 8 \(it is \d+ in shared memory\)",
    ),
    (
        "beyond_shared",
        [Y, 1],
        r"st\.shared\.f32 .*: the address is outside of 256 bytes of shared memory \(it is \d+\)",
    ),
    ("unwritten", [Y], r"ld\.shared\.f32 .*: nothing has been written to shared byte 28 \(block 0, 0, thread 7\)"),
    ("neighbours", [Y, 1], r"a read, after a write to shared byte|nothing has been written to shared byte"),
    ("neighbours", [Y, 3], "(a write, after a read of|a read, after a write to) shared byte"),
    ("copies", [X, Y, 1], "ld.shared.* shared byte .* awaits an asynchronous copy of thread"),
    ("copies", [X, Y, 2], "a read, after a write to shared byte|nothing has been written|awaits an asynchronous copy"),
    ("both_kinds", [Y, 1], r"st\.shared\.f32 .*: the address is outside of 528 bytes of shared memory \(it is 528\)"),
    ("quotient", [Y.view(np.int32), 0], r"div\.s32 .*: division by zero"),
    ("half_a_warp", [Y], r"shfl\.sync\.bfly\.b32 .*: the mask is not that of all lanes \(it is 0xffff\)"),
]
HARMLESS_WAYS: list[tuple[str, list[Any]]] = [
    ("twos_of_shared", [Y, 2]),
    ("beyond_shared", [Y, 0]),
    ("neighbours", [Y, 0]),
    ("neighbours", [Y, 2]),
    ("copies", [X, Y, 0]),
    ("copies", [X, Y, 3]),
    ("quotient", [Y.view(np.int32), -1]),
]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("kernel", "arguments", "message"), FAULTY)
def test_what_no_gpu_allows_is_found(
    faults: ctypes.CDLL, order: str, kernel: str, arguments: list[Any], message: str
) -> None:
    with pytest.raises(RuntimeError, match=f"^{kernel}: .*({message})"):
        launch(faults, kernel, arguments, order)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("kernel", "arguments"), HARMLESS_WAYS)
def test_what_is_allowed_passes(faults: ctypes.CDLL, order: str, kernel: str, arguments: list[Any]) -> None:
    launch(faults, kernel, arguments, order)


def test_a_copy_arrives(faults: ctypes.CDLL) -> None:
    y = np.zeros(256, np.float32)
    launch(faults, "copies", [X, y, 0])
    np.testing.assert_array_equal(y.reshape(64, 4), X[:256].reshape(64, 4)[::-1])


def test_dynamic_shared_memory_is_behind_all_other(faults: ctypes.CDLL) -> None:
    launch(faults, "both_kinds", [Y, 0])
    np.testing.assert_array_equal(Y[:64], 100 + 2 * np.arange(63, -1, -1))
    with pytest.raises(RuntimeError, match="both_kinds: 232720 bytes of shared memory, of at most 232448"):
        EmulatedDevice(faults).launch("both_kinds", (1, 1), (64, 1), scalars([Y, 0]), 232448)


def test_a_block_has_no_more_threads_than_a_kernel_is_compiled_for(faults: ctypes.CDLL) -> None:
    x = np.zeros(128, np.int32)
    launch(faults, "few_threads", [x], threads=64)
    with pytest.raises(RuntimeError, match="few_threads: 128 threads, where it is compiled for 64"):
        launch(faults, "few_threads", [x], threads=128)


def test_an_instruction_that_is_not_known_is_an_error_that_names_it() -> None:
    source = 'extern "C" __global__ void sum(int *x) { atomicAdd(x, 1); }'
    with pytest.raises(PtxError, match=r"(atom|red)\.global\.add\.u32 .*: an instruction that is not known"):
        library(source, ARCHITECTURE)
