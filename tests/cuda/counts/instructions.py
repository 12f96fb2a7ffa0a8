"""How many instructions the kernels run, from their machine code for sm_90; tests/cuda/test_machine_code.py compares.

Kernels that are bound by memory or by their launch in any case are counted roughly.
"""

from typing import NamedTuple, Self

from cnnjob.nn.cuda.device_api import WARP
from cnnjob.nn.cuda.fused import FIRST_BLOCKS
from tests.cuda.counts.machine_code import MachineCode
from tests.cuda.counts.recording import GEMM, Launch
from tests.cuda.counts.traffic import PIECES, TRAFFIC, evaluate

PATH = "path"
"""The unit is a whole thread: a value in most kernels, an image in some."""
LISTING = "listing"
"""Read from the listing, where loops within loops depend on the shapes."""
TENSOR = "HMMA"
"""The unit is a product of tensor cores, of a whole warp."""


class Work(NamedTuple):
    """The instructions of a kernel, of all its threads together."""

    units: str
    """Number of units in a launch, a formula as in ``Traffic``."""
    each: float
    """Instructions per unit."""
    per: str = PATH
    """What a unit is: PATH, LISTING, TENSOR, or another instruction of the main loop: a load or a multiply-add."""
    rest: str = "0"
    """Instructions of warps outside the main loop, a formula likewise, if the unit is TENSOR."""
    loads: str = "0"
    """Bytes that come from the L2 cache, a formula likewise, if a launch reads values several times."""


VALUES = "images * size"

CONV_WARPS = "-(-images * outputs // {rows}) * -(-F // {tile}) * {tile} // 16"
"""Warps of a convolution with tiles of so many rows and columns."""
L1_MISSES = 0.15
"""Share of the first factor's chunks that the L1 cache lacks: each pixel once, and those around a tile."""

WORK = {
    # kernels.cu
    "zero_from": Work(VALUES, 35),
    "gather": Work(VALUES, 134),
    "add_bias": Work(VALUES, 51),
    "activation_slope": Work(VALUES, 101),
    "column_sums": Work("values.size", 4.4, "LDG"),
    "dense_slope": Work("2 * y.size", 11.4, "LDG"),
    "dropout": Work(VALUES, 191),
    "softmax": Work("32 * images", 515),
    "cross_entropy": Work("32 * images", 914),
    "tally": Work("2 * images", 6, "LDG"),
    # activations.cu
    "activate": Work(VALUES, 158),
    "activate_back": Work(VALUES, 193),
    "accumulate": Work(VALUES, 99),
    # batches.cu
    "draw_views": Work("images", 209),
    "gather_views": Work(VALUES, 371),
    # conv.cu, halves.cu
    "im2col": Work(VALUES, 198),
    "im2col_half": Work(VALUES, 202),
    "col2im": Work(f"(160 + K * 30 + K * K * 82) * {VALUES}", 1, LISTING),
    "col2im_half": Work(f"(160 + K * 30 + K * K * 82) * {VALUES}", 1, LISTING),
    "pool_byte": Work(f"(132 + 64 * P * P) * {VALUES}", 1, LISTING),
    "pool_short": Work(f"(132 + 64 * P * P) * {VALUES}", 1, LISTING),
    "unpool_byte": Work(f"(170 + 33 * P * P) * {VALUES}", 1, LISTING),
    "unpool_short": Work(f"(170 + 33 * P * P) * {VALUES}", 1, LISTING),
    "halve": Work(VALUES, 64),
    # fused.cu
    **{
        f"first_{way}_{K}_{P}_{C}": Work(TRAFFIC[f"first_{way}_{K}_{P}_{C}"].products, each, "FFMA")
        for way, all_each in (("forward", (3.2, 2.1, 2.0, 1.5, 2.2, 1.5)), ("backward", (5.1, 5.6, 3.7, 4.1, 3.3, 3.4)))
        for (K, P, C), each in zip(FIRST_BLOCKS, all_each, strict=True)
    },
    "head": Work("128 * images", 938),
    "batch_sums": Work("groups * parts + images * (units + classes + 2 * products)", 7.5, "LDG"),
    # muon.cu
    "muon_momentum": Work("2 * updates.size", 5.6, "LDG"),
    "muon_normalise": Work("updates.size", 4, "LDG"),
    "muon_product": Work(TRAFFIC["muon_product"].products, 1.33, "FFMA"),
    "muon_squares": Work("weights.size", 11, "LDG"),
    "muon_step": Work("2 * updates.size", 4, "LDG"),
    # norm.cu
    "moments": Work("x.size", 23.5, "LDG"),
    "batch_statistics": Work("54 * means.size", 1, LISTING),
    "running_statistics": Work("C", 44),
    "normalise": Work(VALUES, 168),
    "slope_sums": Work("2 * x.size", 43, "LDG"),
    "sum_parts": Work("2 * sums.size", 12, "LDG"),
    "normalise_back": Work(VALUES, 219),
    # pooling.cu
    "max_pool": Work(f"(132 + 64 * P * P) * {VALUES}", 1, LISTING),
    "max_pool_back": Work(VALUES, 252),
    "global_mean": Work("x.size", 32, "LDG"),
    "global_mean_back": Work(VALUES, 127),
    "global_max": Work("x.size", 37, "LDG"),
    "global_max_back": Work(VALUES, 125),
    "add_share": Work(VALUES, 52),
    # tiled_conv.cu: 128 products of a warp for 64 rows, 64 columns and a depth of 64
    "pack_weights": Work("taps * C * F / 2", 142),
    **{
        f"conv_{kind}_{tile}": Work(
            f"{CONV_WARPS.format(rows=256 // pool**2, tile=tile)} * -(-K * K * C // 64) * 128",
            each,
            TENSOR,
            f"{CONV_WARPS.format(rows=256 // pool**2, tile=tile)} * ({before} + {16 // pool**2} * {row})",
            f"2 * images * outputs * {pool**2} * -(-F // {tile}) * K * K * C * {L1_MISSES}",
        )
        for kind, pool, tile, each, before, row in (
            ("1", 1, 64, 3.17, 640, 260),
            ("1", 1, 128, 2.38, 640, 260),
            ("2", 2, 64, 3.17, 1340, 260),
            ("2", 2, 128, 2.38, 1340, 260),
            ("back", 1, 64, 3.17, 740, 560),
            ("back", 1, 128, 2.38, 740, 560),
        )
    },
    **{
        f"weight_sums_{tile}": Work(
            f"{tiles} * -(-images * outputs // 64) * 128",
            each,
            TENSOR,
            f"{tiles} * len(sums) * {rest}",
            f"2 * images * outputs * (-(-F // {tile}) * K * K * C + -(-K * K * C // {rows}) * F)",
        )
        for tile, rows, each, rest in ((64, 128, 3.27, 870), (128, 256, 2.46, 810))
        for tiles in (f"-(-K * K * C // {rows}) * -(-F // {tile}) * {rows * tile // 4096}",)
    },
    "add_weight_sums": Work("sums.size / 4", 8, "LDG"),
    # tiled_norm.cu, eight values a thread
    "to_halves": Work(VALUES, 154),
    "to_floats": Work(VALUES, 175),
    "normalise_halves": Work("size", 388),
    "finish_gradient": Work("rows * C / 8", 806),
    "norm_pool_back_1": Work("size", 677),
    "norm_pool_back_2": Work("size", 890),
    # updates.cu
    "sgd": Work(f"5 * {PIECES}", 4.8, "LDG"),
    "adam": Work(f"6 * {PIECES}", 10.2, "LDG"),
    "average": Work("3 * size", 4.9, "LDG"),
    "add_squares": Work("size", 8, "LDG"),
    "clip": Work("size", 6.8, "LDG"),
}


class Instructions(NamedTuple):
    """What the warps of a launch run."""

    all: float
    products: int
    """Those of them that are products of tensor cores."""

    @classmethod
    def of(cls, launch: Launch) -> Self:
        """Count the instructions of a launch; 0 for cuBLAS, whose code is not ours."""
        if launch.name == GEMM:
            return cls(0, 0)
        work = WORK[launch.name]
        units = evaluate(launch, work.units)
        if work.per == TENSOR:
            return cls(units * work.each + evaluate(launch, work.rest), units)
        return cls(units * work.each / WARP, 0)


def instructions_per_unit(code: MachineCode, work: Work) -> float:
    """What machine code says of the same, except of a listing's."""
    if work.per == PATH:
        return code.longest_path
    loop = code.loop_with(work.per)
    return loop.total() / max(1, loop[work.per])
