"""A model of an NVIDIA H200 (SXM): the time of a step from counts alone. Nothing here was measured on a GPU."""

from collections.abc import Iterable
from itertools import product
from math import ceil, prod
from typing import NamedTuple

from cnnjob.nn.cuda.device_api import WARP
from tests.cuda.counts.instructions import WORK, Instructions
from tests.cuda.counts.recording import GEMM, Launch, RecordedJob
from tests.cuda.counts.traffic import Counts, evaluate

SMS, SUBCORES, RESIDENT = 132, 4, 2048
"""Multiprocessors, their parts that issue one warp instruction per clock, and the most threads of each
multiprocessor (NVIDIA's H100 white paper, 2022)."""
CACHED = 25e6
"""A launch that moves fewer bytes finds them in the L2 cache, whose nearer half has 25 MB."""
FLOPS = {("float32", "float32"): 256, ("float32", "tf32"): 2048, ("float16", "float16"): 4096}
"""Operations per clock and multiprocessor of products by the type of their factors and the precision (white paper)."""
TILES, SPLITS = ((256, 128), (128, 128), (128, 64), (64, 64)), (1, 2, 4, 8, 16, 32)
"""Rows and columns of a product that a block of cuBLAS may make, and the parts into which it may split the depth."""


class Gpu(NamedTuple):
    """What is less certain. Constants without a source are estimates; none is fitted to a measured time."""

    clock: float = 1.70e9
    """Hz under load (at most 1.98e9)."""
    hbm: float = 4.0e12
    """Bytes per second of device memory (4.8e12 by NVIDIA's data sheet)."""
    l2: float = 5.5e12
    """Bytes per second of the L2 cache (5.5 to 6e12 on an H100: Chips and Cheese, "Nvidia's H100: funny L2, and tons of
    bandwidth", 2023)."""
    gemm_share: float = 0.75
    """Of a bound that cuBLAS reaches."""
    gap: float = 1.3e-6
    """Seconds between two kernels of a CUDA graph."""
    ramp: float = 2500
    """Clocks until a block has its first values from memory, and from its last results to its end."""
    issue: float = 0.9
    """Share of clocks in which a busy subcore issues an instruction."""
    latency: float = 4
    """Clocks from an instruction to the next that needs its result, in a warp that is alone on its subcore (Luo et al.,
    "Benchmarking and dissecting the Nvidia Hopper GPU architecture", 2024)."""
    mma: float = 6.4
    """Clocks of a subcore for an ``mma.sync`` of 16 x 8 x 16 halves, or 16 x 8 x 8 floats in TF32: 62 % of the peak,
    which only ``wgmma`` reaches (Luo et al.)."""
    tile_share: float = 0.75
    """Of the bound of tensor cores that kernels of our own reach."""

    def step_seconds(self, launches: Iterable[Launch], precision: str) -> float:
        """The time of a step's launches, one after another."""
        return sum(self.gap + self.kernel_seconds(launch, precision) for launch in launches)

    def epoch_seconds(self, job: RecordedJob) -> float:
        """The time of an epoch, with its evaluation."""
        steps = (job.training_steps, job.training), (job.evaluation_steps, job.evaluation)
        return sum(count * self.step_seconds(launches, job.precision) for count, launches in steps)

    def training_seconds(self, job: RecordedJob) -> float:
        """The time of a training, with the evaluation of its test images at the end."""
        return job.epochs * self.epoch_seconds(job) + job.test_steps * self.step_seconds(job.evaluation, job.precision)

    def kernel_seconds(self, launch: Launch, precision: str) -> float:
        """The time of one launch: its narrowest bound, and what comes before and after it in any case."""
        ramp = self.ramp / self.clock
        if launch.name == GEMM:
            return ramp + self._gemm_seconds(launch, precision)
        counts, instructions = Counts.of([launch]), Instructions.of(launch)
        moved, blocks, warps = counts.read + counts.written, prod(launch.grid), ceil(prod(launch.block) / WARP)
        waves, subcores = ceil(blocks / (SMS * (RESIDENT // (warps * WARP)))), SMS * SUBCORES * self.clock
        bounds = [
            moved / (self.l2 if moved < CACHED else self.hbm),
            evaluate(launch, WORK[launch.name].loads) / self.l2,
            instructions.all / (subcores * self.issue),
            waves * instructions.all / (blocks * warps) * self.latency / self.clock,
        ]
        if instructions.products:
            # One block fills a multiprocessor, and the last of them may leave most of the others idle.
            idle = ceil(blocks / SMS) / (blocks / SMS)
            bounds.append(idle * instructions.products * self.mma / (subcores * self.tile_share))
        return ramp + max(bounds)

    def _gemm_seconds(self, launch: Launch, precision: str) -> float:
        """The time of a product by cuBLAS, with the fastest of its tiles and splits of the depth."""
        a, out = launch.arguments["a"], launch.arguments["out"]
        (rows, columns), depth = out.shape, a.size // len(out)
        kind = a.dtype.name, precision if a.dtype.name == precision else "tf32"
        rate, times = FLOPS[kind] * self.clock * self.gemm_share, []
        for (height, width), splits in product(TILES, SPLITS):
            part = ceil(depth / splits)
            products = 2 * height * width * part / rate
            loads = (height + width / 2) * part * a.itemsize / (self.l2 / SMS)  # two blocks share columns (sm_90)
            waves = ceil(ceil(rows / height) * ceil(columns / width) * splits / SMS)
            sums = self.ramp / self.clock + 2 * splits * out.nbytes / self.l2 if splits > 1 else 0
            times.append(waves * max(products, loads) + sums)
        counts = Counts.of([launch])
        moved = counts.read + counts.written
        return float(max(min(times), moved / self.hbm if moved > CACHED else 0))


H200 = Gpu()
FAST = Gpu(1.85e9, 4.3e12, 6.5e12, gemm_share=0.85, gap=1.0e-6, ramp=2000, issue=1.0, mma=6.0, tile_share=0.9)
SLOW = Gpu(1.60e9, 3.6e12, 4.5e12, gemm_share=0.60, gap=1.6e-6, ramp=3000, issue=0.75, mma=8.0, tile_share=0.65)
"""The same with all constants at the better or the worse end of what is likely."""
