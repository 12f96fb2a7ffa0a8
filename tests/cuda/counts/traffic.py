"""What each kernel reads, writes and multiplies, declared by its parameters' names.

Bytes are those of device memory: every value once per launch, however many threads load it, since the caches serve the
others. A step in which a kernel has nothing to do (lookahead between two averages) counts as one in which it has.
"""

import re
from collections.abc import Iterable
from math import prod
from typing import NamedTuple, Self

import numpy as np

from cnnjob.nn.cuda.fused import FIRST_BLOCKS
from cnnjob.nn.cuda.updates import BLOCK_ELEMENTS
from tests.cuda.counts.recording import GEMM, Launch

PARTS = {
    "pixels": "images * prod(pixels.shape[1:])",
    "order": "images",
    "labels": "images",
    "rates": "1",
    "drops": "1",
    "shares": "1",
    "epoch_losses": "1",
    "epoch_hits": "1",
    "probabilities": "images * classes",
}
"""Numbers of values that a step uses of arrays that hold a whole dataset or epoch; of all others, it uses every one."""


class Traffic(NamedTuple):
    """What a kernel does with its arrays, each either NAME or NAME[number of values, a formula of its arguments]."""

    reads: str
    writes: str
    products: str = "0"
    """Multiply-adds of matrix products and convolutions, a formula likewise."""


PIECES = f"min(weights.size, counts.size * {BLOCK_ELEMENTS})"
"""The values that an update changes, which are in pieces."""
CHANNELS = "mean inverse scale shift"

TRAFFIC = {
    # kernels.cu
    "zero_from": Traffic("position", "values"),
    "gather": Traffic("pixels order position scale shift", "x"),
    "add_bias": Traffic("y bias", "y"),
    "activation_slope": Traffic("y dy", "slope"),
    "column_sums": Traffic("values", "sums"),
    "dense_slope": Traffic("y dy", "slope sums"),
    "dropout": Traffic("x position", "y"),
    "softmax": Traffic("logits position ticket", "probabilities position ticket"),
    "cross_entropy": Traffic("logits labels order position shares", "gradient losses hits"),
    "tally": Traffic("losses hits position", "epoch_losses epoch_hits"),
    # activations.cu
    "activate": Traffic("a b[b.size * (terms > 1)]", "y"),
    "activate_back": Traffic("a b[b.size * (terms > 1)] dy", "du"),
    "accumulate": Traffic("source target", "target"),
    # batches.cu
    "draw_views": Traffic("order position", "views"),
    "gather_views": Traffic("pixels order position views shares scale shift", "x"),
    # conv.cu, halves.cu
    "im2col": Traffic("x", "columns"),
    "im2col_half": Traffic("x", "columns"),
    "col2im": Traffic("columns[images * height * width * K * K * C]", "dx"),
    "col2im_half": Traffic("columns[images * height * width * K * K * C]", "dx"),
    "pool_byte": Traffic("z bias", "y winner"),
    "pool_short": Traffic("z bias", "y winner"),
    "unpool_byte": Traffic("slope winner", "dz"),
    "unpool_short": Traffic("slope winner", "dz"),
    "halve": Traffic("x", "y"),
    # fused.cu
    **{
        f"first_forward_{K}_{P}_{C}": Traffic(
            "pixels order position scale shift weights bias",
            "y winner[winner.size * keeps]",
            f"images * height * width * F * {P * P * K * K * C}",
        )
        for K, P, C in FIRST_BLOCKS
    },
    **{
        f"first_backward_{K}_{P}_{C}": Traffic(
            "pixels order position scale shift dy winner",
            "sums",
            f"images * height * width * F * {K * K * C}",  # one pixel per window has a gradient
        )
        for K, P, C in FIRST_BLOCKS
    },
    "head": Traffic(
        "x x_bias[values * hidden] weights bias labels order position ticket",
        "x[x.size * hidden] gradient dx[x.size * learns] losses hits epoch_losses epoch_hits ticket",
        "images * values * classes * (1 + learns)",
    ),
    "batch_sums": Traffic(
        "sums[groups * parts] dx[images * units] dz[images * classes] x[images * products // max(1, classes)]",
        "filters[taps] filter_bias[parts - taps] hidden_bias[units] bias[classes] weights[products]",
        "images * products",
    ),
    # muon.cu
    "muon_momentum": Traffic(
        "gradients[updates.size] velocity[updates.size] starts places counts", "velocity[updates.size] updates sums"
    ),
    "muon_normalise": Traffic("updates sums places counts owners firsts", "updates"),
    "muon_product": Traffic(
        "a b c[c.size * (beta != 0)] tiles",
        "out",
        "sum(minimum(64, tiles[:, 5:7] - tiles[:, 3:5]).prod(1) * tiles[:, 7])",
    ),
    "muon_squares": Traffic(f"weights[{PIECES}] starts counts", "sums"),
    "muon_step": Traffic(
        "weights[updates.size] updates sums[sums.size * normalise] starts places counts owners firsts norms factors"
        " decays scales rates position",
        "weights[updates.size]",
    ),
    # norm.cu
    "moments": Traffic("x", "means squares"),
    "batch_statistics": Traffic(
        "means squares running_mean running_variance", "running_mean running_variance mean inverse"
    ),
    "running_statistics": Traffic("running_mean running_variance", "mean inverse"),
    "normalise": Traffic(f"x {CHANNELS}", "y"),
    "slope_sums": Traffic(f"x dy {CHANNELS}", "sums products"),
    "sum_parts": Traffic("sums products", "of_sums of_products"),
    "normalise_back": Traffic(f"x dy {CHANNELS} dshift dscale", "dx"),
    # pooling.cu
    "max_pool": Traffic("x", "y winner"),
    "max_pool_back": Traffic("dy winner", "dx"),
    "global_mean": Traffic("x", "y"),
    "global_mean_back": Traffic("dy", "dx"),
    "global_max": Traffic("x", "y first"),
    "global_max_back": Traffic("dy first", "dx"),
    "add_share": Traffic("logits mean[mean.size * (1 - begins)]", "mean"),
    # updates.cu
    "sgd": Traffic(
        f"weights[{PIECES}] gradients[{PIECES}] velocity[(setting != 0) * {PIECES}] starts counts factors decays rates"
        " drops position ticket[last]",
        f"weights[{PIECES}] velocity[(setting != 0) * {PIECES}] position[2 * last] ticket[last]",
    ),
    "adam": Traffic(
        f"weights[{PIECES}] gradients[{PIECES}] first[{PIECES}] second[{PIECES}] starts counts factors decays rates"
        " drops position ticket[last]",
        f"weights[{PIECES}] first[{PIECES}] second[{PIECES}] position[2 * last] ticket[last]",
    ),
    "average": Traffic(
        "fast slow shares position ticket[last]", "slow fast[size * resets] position[2 * last] ticket[last]"
    ),
    "add_squares": Traffic("values", "sums"),
    "clip": Traffic("gradients sums", "gradients"),
    # tiled_conv.cu, tiled_norm.cu; an array may be absent
    "pack_weights": Traffic("weights", "ahead[taps * C * F] back[taps * C * F]"),
    **{
        f"conv_{kind}_{tile}": Traffic(
            f"x weights sources addend joined before {CHANNELS}",
            "y winner first second",
            f"images * outputs * F * K * K * C * {pool**2}",
        )
        for kind, pool in (("1", 1), ("2", 2), ("back", 1))
        for tile in (64, 128)
    },
    **{
        f"weight_sums_{tile}": Traffic("x dz sources", "sums", "images * outputs * F * K * K * C") for tile in (64, 128)
    },
    "add_weight_sums": Traffic("sums position", "gradient losses[0]"),
    "to_halves": Traffic("x", "y"),
    "to_floats": Traffic("x", "y"),
    "normalise_halves": Traffic(f"x addend {CHANNELS}", "y"),
    "finish_gradient": Traffic(f"floats addend joined before {CHANNELS}", "y first second"),
    "norm_pool_back_1": Traffic(f"x dy winner {CHANNELS} dshift dscale", "dz"),
    "norm_pool_back_2": Traffic(f"x dy winner {CHANNELS} dshift dscale", "dz"),
    # cuBLAS
    GEMM: Traffic("a b out[out.size * (beta != 0)]", "out", "out.size * a.size // len(out)"),
}


class Counts(NamedTuple):
    """What launches do in all."""

    launches: int
    read: int
    """Bytes."""
    written: int
    """Bytes."""
    flops: int
    """Operations of matrix products and convolutions, of which a multiply-add has two."""

    @classmethod
    def of(cls, launches: Iterable[Launch]) -> Self:
        """Add up what launches do."""
        rows = []
        for launch in launches:
            traffic = TRAFFIC[launch.name]
            read, written = (sum(_count_bytes(launch, arrays).values()) for arrays in traffic[:2])
            rows.append((1, read, written, 2 * evaluate(launch, traffic.products)))
        return cls(*map(sum, zip(*rows, strict=True)))


def declared_arrays(arrays: str) -> dict[str, str]:
    """The formula of each declared array: how many of its values are used."""
    found = re.findall(r"(\w+)(?:\[((?:[^][]|\[[^][]*\])*)\])?", arrays)
    return {name: formula or PARTS.get(name, f"{name}.size") for name, formula in found}


def count_values(launch: Launch, arrays: str) -> dict[str, int]:
    """The number of values of each declared array in a launch; that of an absent array is 0."""
    declared = declared_arrays(arrays).items()
    return {
        name: evaluate(launch, formula) if isinstance(launch.arguments[name], np.ndarray) else 0
        for name, formula in declared
    }


def _count_bytes(launch: Launch, arrays: str) -> dict[str, int]:
    return {name: count * launch.arguments[name].itemsize for name, count in count_values(launch, arrays).items()}


def evaluate(launch: Launch, formula: str) -> int:
    """The value of a formula in a launch's arguments, where ``blocks`` and ``threads`` are those of the launch."""
    arguments = {"blocks": prod(launch.grid), "threads": prod(launch.block)} | {
        name: value.item() if isinstance(value, np.generic) else value  # Python's numbers do not overflow
        for name, value in launch.arguments.items()
    }
    return int(eval(formula, {"prod": prod, "minimum": np.minimum}, arguments))
