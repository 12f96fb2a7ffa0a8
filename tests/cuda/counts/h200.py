"""A model of an NVIDIA H200 (SXM): milliseconds of a step from counts alone. Nothing here was measured on a GPU.

Constants without a source are estimates; none is fitted to a measured time.
"""

from collections.abc import Iterable
from itertools import product
from math import ceil, prod

from cnnjob.nn.cuda.device_api import WARP
from tests.cuda.counts.instructions import WORK, Instructions
from tests.cuda.counts.recording import GEMM, Launch, RecordedJob
from tests.cuda.counts.traffic import Counts, evaluate

SMS, SUBCORES, CLOCK = 132, 4, 1.70e9
"""Multiprocessors, their parts that issue one warp instruction per clock (NVIDIA's H100 white paper, 2022), and Hz
under load (at most 1.98e9)."""
HBM, L2 = 4.0e12, 5.5e12
"""Bytes per second of device memory, 5/6 of the 4.8e12 in NVIDIA's data sheet, and of the L2 cache (5.5 to 6e12 on an
H100: Chips and Cheese, "Nvidia's H100: funny L2, and tons of bandwidth", 2023)."""
CACHED = 25e6
"""A launch that moves fewer bytes finds them in the L2 cache, whose nearer half has 25 MB."""
FLOPS = {("float32", "float32"): 256, ("float32", "tf32"): 2048, ("float16", "float16"): 4096}
"""Operations per clock and multiprocessor of products by the type of their factors and the precision (NVIDIA's
H100 white paper, 2022)."""
GEMM_SHARE = 0.75
"""Of a bound that cuBLAS reaches."""
TILES = ((256, 128), (128, 128), (128, 64), (64, 64))
"""Rows and columns of a product that a block of cuBLAS may make."""
SPLITS = (1, 2, 4, 8, 16, 32)
"""Into how many parts it may split the depth."""
GAP = 1.3e-6
"""Seconds between two kernels of a CUDA graph."""
RAMP = 2500 / CLOCK
"""Seconds until a block has its first values from memory, and from its last results to its end."""
ISSUE = 0.9
"""Share of clocks in which a busy subcore issues an instruction."""
PRODUCT = 6.4
"""Clocks of a subcore for an ``mma.sync`` of 16 x 8 x 16 halves, or 16 x 8 x 8 floats in TF32: 62 % of the peak, which
only ``wgmma`` reaches (Luo et al., "Benchmarking and dissecting the Nvidia Hopper GPU architecture", 2024)."""
OWN_SHARE = 0.75
"""Of the bound of tensor cores that kernels of our own reach."""
STEP = 4
"""Clocks from an instruction to the next that needs its result, in a warp that is alone on its subcore (Luo et al.)."""
RESIDENT = 2048
"""Threads of a multiprocessor."""


def step_seconds(launches: Iterable[Launch], precision: str) -> float:
    """The time of a step's launches, one after another."""
    return sum(GAP + kernel_seconds(launch, precision) for launch in launches)


def epoch_seconds(job: RecordedJob) -> float:
    """The time of an epoch, with its evaluation."""
    training, evaluation = (step_seconds(launches, job.precision) for launches in (job.training, job.evaluation))
    return job.training_steps * training + job.evaluation_steps * evaluation


def training_seconds(job: RecordedJob) -> float:
    """The time of a training, with the evaluation of its test images at the end."""
    return job.epochs * epoch_seconds(job) + job.test_steps * step_seconds(job.evaluation, job.precision)


def kernel_seconds(launch: Launch, precision: str) -> float:
    """The time of one launch: its narrowest bound, and what comes before and after it in any case."""
    if launch.name == GEMM:
        return RAMP + _gemm_seconds(launch, precision)
    counts, instructions = Counts.of([launch]), Instructions.of(launch)
    moved, blocks, warps = counts.read + counts.written, prod(launch.grid), ceil(prod(launch.block) / WARP)
    waves = ceil(blocks / (SMS * (RESIDENT // (warps * WARP))))
    bounds = [
        moved / (L2 if moved < CACHED else HBM),
        evaluate(launch, WORK[launch.name].loads) / L2,
        instructions.all / (SMS * SUBCORES * CLOCK * ISSUE),
        waves * instructions.all / (blocks * warps) * STEP / CLOCK,
    ]
    if instructions.products:
        # One block fills a multiprocessor, and the last of them may leave most of the others idle.
        idle = ceil(blocks / SMS) / (blocks / SMS)
        bounds.append(idle * instructions.products * PRODUCT / (SMS * SUBCORES * CLOCK * OWN_SHARE))
    return RAMP + max(bounds)


def _gemm_seconds(launch: Launch, precision: str) -> float:
    """The time of a product by cuBLAS, with the fastest of its tiles and splits of the depth."""
    a, out = launch.arguments["a"], launch.arguments["out"]
    (rows, columns), depth = out.shape, a.size // len(out)
    kind = a.dtype.name, precision if a.dtype.name == precision else "tf32"
    rate = FLOPS[kind] * CLOCK * GEMM_SHARE
    times = []
    for (height, width), splits in product(TILES, SPLITS):
        part = ceil(depth / splits)
        products = 2 * height * width * part / rate
        loads = (height + width / 2) * part * a.itemsize / (L2 / SMS)  # two blocks share columns (sm_90)
        waves = ceil(ceil(rows / height) * ceil(columns / width) * splits / SMS)
        sums = RAMP + 2 * splits * out.nbytes / L2 if splits > 1 else 0
        times.append(waves * max(products, loads) + sums)
    counts = Counts.of([launch])
    moved = counts.read + counts.written
    return float(max(min(times), moved / HBM if moved > CACHED else 0))
