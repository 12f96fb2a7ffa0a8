"""Networks for the CUDA backend, some steps of them, and all that comes out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from cnnjob import nn
from cnnjob.nn.arena import Arena
from cnnjob.nn.blocks import Block
from cnnjob.nn.cuda.fused import FIRST_BLOCKS
from cnnjob.nn.pixels import VIEWS, View
from cnnjob.nn.tensors import Tensor

Array = np.ndarray[Any, Any]
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Work:
    """What is to be computed."""

    blocks: Sequence[Block]
    shape: tuple[int, int, int] = (8, 7, 2)
    count: int = 5
    """Images of a step."""
    classes: int = 3
    optimiser: nn.Optimiser = nn.Sgd(0.9)  # noqa: RUF009 - frozen
    images: Array | None = None
    learning_rate: float = 0.1
    momentum_drop: float = 0.0
    """By how much the momentum of the first step is less."""
    options: nn.TrainingOptions = nn.TrainingOptions()  # noqa: RUF009 - a tuple
    views: str = "none"
    """Of the evaluation."""
    start: int = (1 << 33) + 5
    """The first step, counted from the start of the training."""

    def result(self, backend: nn.Backend, steps: int = 2) -> dict[str, Array]:
        """All that some steps compute, and then the probabilities of other images."""
        random = np.random.default_rng(1)
        head = nn.Dense(activation="none", units=self.classes)
        network = nn.Network.build([*self.blocks, head], self.shape)
        state, pixels = (
            nn.State(network, self.optimiser, backend),
            nn.PixelNormalisation.standardised(*(tuple(np.linspace(low, 0.6, self.shape[2])) for low in (0.3, 0.4))),
        )
        state.initialise(network, 2)
        total = (steps + 1) * self.count
        drawn = random.integers(0, 256, (total, *self.shape), np.uint8)
        images, labels = drawn if self.images is None else self.images, random.integers(0, self.classes, total)
        inputs = nn.build_step_inputs(backend, images, labels, steps, self.count, 3)
        backend.copy(random.permutation(total)[: steps * self.count], inputs.order)
        backend.copy(self.learning_rate / np.arange(1, steps + 1), inputs.learning_rates)
        backend.copy(np.linspace(0.8, 0.3, steps), inputs.mixup)
        backend.copy(self.momentum_drop / np.arange(1, steps + 1), inputs.momentum_drop)
        if self.optimiser.lookahead:
            backend.copy(self.optimiser.lookahead.alphas(range(steps), steps + 1), inputs.lookahead)
        if self.optimiser.ema:
            backend.copy(self.optimiser.ema.decays(range(steps)), inputs.ema)
        backend.copy(np.array([0, self.start]), inputs.position)
        plan = nn.TrainingPlan(backend, network, state, self.optimiser, inputs, pixels, self.count, self.options)
        for _ in range(steps):
            plan.step()
        buffers = {"weights": state.parameters}
        buffers |= state.slots
        buffers["gradients"] = state.gradients
        named = {f"{kind}/{name}": a for kind, flat in buffers.items() for name, a in state.read(flat).items()}
        written = {"losses": inputs.losses, "hits": inputs.n_correct, "position": inputs.position}
        results = {name: backend.host(array) for name, array in written.items()}
        evaluation = nn.EvaluationPlan(backend, network, state, pixels, 4, self.views)
        chosen = np.arange(total)[::-1][: 2 * self.count - 1]
        return named | results | {"probabilities": evaluation.probabilities(images, chosen)}


def normed(filters: int, *, scale: bool = True, momentum: float = 0.1, **others: Any) -> nn.Conv:
    """A convolution with batch normalisation, and without a bias, whose gradient would be nothing but rounding."""
    return nn.Conv(filters=filters, bias=False, batch_norm=nn.BatchNorm(momentum, eps=1e-3, scale=scale), **others)


STRIPES = np.zeros((15, 8, 8, 1), np.uint8)
STRIPES[:, :, ::4] = 200

WORKS = {
    "plain": Work([]),
    "dense": Work([nn.Dense(units=40), nn.Dense(units=3, activation="none")]),
    "baseline": Work([nn.Conv(filters=8, pool=2), nn.Dense(units=9)], (12, 12, 1), count=8, optimiser=nn.Sgd()),
    "two convolutions": Work(
        [nn.Conv(filters=4, kernel=5, pad=2, pool=2), nn.Conv(filters=6, pool=2), nn.Dense(units=7)], (12, 13, 3)
    ),
    "stride over the kernel": Work([nn.Conv(filters=3, pad=0), nn.Conv(filters=3, kernel=2, stride=3)], (14, 12, 1)),
    "stride, pool 3": Work([nn.Conv(filters=4), nn.Conv(filters=5, kernel=4, stride=2, pad=3, pool=3)], (13, 15, 5)),
    "even kernel, rows left out": Work(
        [nn.Conv(filters=5, kernel=2, pad=1, pool=2), nn.Conv(filters=1, pool=3)], (10, 9, 4)
    ),
    "kernel 1": Work([nn.Conv(filters=33, kernel=1, pad=0), nn.Conv(filters=2, kernel=1, pad=0)], (5, 6, 2)),
    "no activation": Work([nn.Conv(filters=3, activation="none", pool=2), nn.Conv(filters=1, activation="none")]),
    "dropout everywhere": Work(
        [nn.Dropout(0.2), nn.Conv(filters=3), nn.Dropout(0.5), nn.Conv(filters=4, pool=2), nn.Dropout(0.3)], (7, 7, 3)
    ),
    "ties": Work([nn.Conv(filters=4, kernel=1, pad=0, pool=2), nn.Conv(filters=3, pool=2)], (8, 8, 1), images=STRIPES),
    "all tied": Work([nn.Conv(filters=2, init=0.0, bias_init=0.5, pool=2), nn.Dense(units=4)]),
    "dead filters": Work([nn.Conv(filters=4, bias_init=-10.0, pool=2), nn.Dense(units=4, bias_init=-10.0)]),
    "pool 17": Work([nn.Conv(filters=2, pool=17)], (35, 34, 1), count=2),
    "many classes": Work([nn.Dense(units=4)], classes=70, count=9),
    "decay": Work([nn.Conv(filters=3), nn.Dense(units=6)], optimiser=nn.Sgd(0.8, 0.1)),
    "decay alone": Work([nn.Conv(filters=3), nn.Dense(units=6)], optimiser=nn.Sgd(0.0, 0.1)),
    "nesterov": Work([nn.Conv(filters=3), nn.Dense(units=6)], optimiser=nn.Sgd(0.8, 0.1, nesterov=True)),
    "nesterov, cycled momentum": Work([nn.Conv(filters=3)], optimiser=nn.Sgd(0.9, nesterov=True), momentum_drop=0.4),
    "decay, cycled adam": Work([nn.Conv(filters=3)], optimiser=nn.Adam(0.9, 0.1), momentum_drop=0.4, start=1),
    "decoupled": Work([nn.Conv(filters=3), nn.Dense(units=6)], optimiser=nn.Sgd(0.8, 0.1, decoupled=True)),
    "nesterov, decoupled, lookahead": Work(
        [nn.Conv(filters=3, learning_rate_factor=2.0)],
        optimiser=nn.Sgd(0.9, 0.3, nn.Lookahead(every=2), nesterov=True, decoupled=True),
    ),
    "adamw": Work(
        [nn.Conv(filters=3, learning_rate_factor=0.3), nn.Dense(units=6)],
        optimiser=nn.AdamW(0.8, 0.1, beta2=0.9),
        start=2,
    ),
    "adamw, lookahead": Work([nn.Dense(units=400)], optimiser=nn.AdamW(lookahead=nn.Lookahead(1), eps=1e-3), start=0),
    "adam": Work(
        [nn.Conv(filters=3, learning_rate_factor=0.3), nn.Dense(units=6)],
        optimiser=nn.Adam(0.8, 0.1, beta2=0.9),
        start=2,
    ),
    "adam, clipped": Work([nn.Dense(units=400)], optimiser=nn.Adam(eps=1e-3, clip_norm=0.2), start=0),
    "clipped": Work([nn.Conv(filters=3, frozen=True), nn.Dense(units=6)], optimiser=nn.Sgd(0.9, 0.1, clip_norm=0.1)),
    "not clipped": Work([nn.Dense(units=6)], optimiser=nn.Sgd(clip_norm=1e4)),
    "muon": Work(
        [nn.Conv(filters=30), nn.Conv(filters=40, learning_rate_factor=2.0), nn.Dense(units=6), nn.Dense(units=6)],
        optimiser=nn.Muon(weight_decay=0.1, others=nn.AdamW(0.8, 0.2, beta2=0.9)),
        start=2,
    ),
    "muon, all": Work(
        [nn.Conv(filters=4, bias=False), nn.Residual((nn.Conv(filters=4), nn.Conv(filters=4))), nn.Dense(units=6)],
        optimiser=nn.Muon(
            0.6,
            lookahead=nn.Lookahead(1),
            clip_norm=0.1,
            ns_steps=3,
            adjust_learning_rate="none",
            normalise_weights=True,
            first_layer=True,
            classifier=True,
            others=nn.Sgd(0.85, 0.1, nesterov=True),
            others_factor=0.2,
        ),
    ),
    "muon, others without momentum": Work(
        [nn.Conv(filters=3), nn.Dense(units=6)],
        optimiser=nn.Muon(0.9, nesterov=False, adjust_learning_rate="match_rms_adamw", others=nn.Sgd()),
    ),
    "muon, no others": Work(
        [
            nn.Conv(filters=3, bias=False),
            nn.Dense(units=6, bias=False),
            nn.Dense(units=3, frozen=True, fully_frozen=True),
        ],
        optimiser=nn.Muon(ns_steps=1, first_layer=True, classifier=True, others=nn.Sgd(0.5)),
    ),
    "averaged": Work([nn.Conv(filters=3), nn.Dense(units=6)], optimiser=nn.Sgd(0.9, ema=nn.Ema())),
    "averaged, lookahead": Work(
        [nn.Dense(units=400)], optimiser=nn.AdamW(lookahead=nn.Lookahead(1), eps=1e-3, ema=nn.Ema(0.4, warmup=False))
    ),
    "rates by block": Work([nn.Conv(filters=3, learning_rate_factor=3.0), nn.Dense(units=6, learning_rate_factor=0.0)]),
    "no bias": Work([nn.Conv(filters=4, bias=False, pool=2), nn.Dense(units=6, bias=False)], (9, 8, 2)),
    "frozen": Work(
        [nn.Conv(filters=4), nn.Conv(filters=4, frozen=True), nn.Dense(units=6, frozen=True, bias=False)], (6, 8, 2)
    ),
    "frozen, nothing learns before it": Work([nn.Conv(filters=4, frozen=True, bias=False), nn.Conv(filters=3)]),
    "fully frozen": Work(
        [
            nn.Conv(filters=4, batch_norm=nn.BatchNorm(eps=0.5), pool=2, frozen=True, fully_frozen=True),
            nn.Conv(filters=3, activation="gelu"),
            nn.Conv(filters=4, batch_norm=nn.BatchNorm(eps=0.5), frozen=True, fully_frozen=True),
            nn.Residual((nn.Conv(filters=5, frozen=True, fully_frozen=True), nn.Conv(filters=4, activation="none"))),
            nn.Dense(units=6, frozen=True, fully_frozen=True),
            nn.Dense(units=5),
        ],
        (9, 8, 2),
    ),
    "fully frozen up to the classifier": Work(
        [nn.Conv(filters=4, frozen=True, fully_frozen=True), nn.Dense(units=6, frozen=True, fully_frozen=True)]
    ),
    "bias of some epochs": Work(
        [nn.Conv(filters=3, bias_epochs=1, pool=2), nn.Dense(units=6), nn.Dense(units=5, bias_epochs=9)],
        optimiser=nn.Sgd(0.9, clip_norm=0.1),
        start=1,
    ),
    "first bias of no epoch": Work([nn.Conv(filters=3, bias_epochs=1, pool=2), nn.Dense(units=6)], (9, 8, 1), start=2),
    "output scale": Work([nn.Dense(units=6, output_scale=0.5), nn.Dense(units=5, output_scale=-3.0)]),
    "label smoothing": Work([nn.Conv(filters=3)], options=nn.TrainingOptions(label_smoothing=0.2)),
    "norm": Work([normed(3), normed(35, scale=False, momentum=0.3)]),
    "norm of many pixels": Work([normed(3, activation="none")], (17, 16, 1), count=7),
    "norm, activation and pool in every order": Work(
        [
            normed(4, order=("pool", "norm", "activation"), activation="gelu", pool=2),
            nn.Conv(filters=4, batch_norm=nn.BatchNorm(), bias=True, order=("activation", "norm", "pool"), pool=2),
            normed(3, order=("norm", "pool", "activation"), activation="gelu", pool=2),
        ],
        (14, 15, 2),
    ),
    "gelu": Work([nn.Conv(filters=4, activation="gelu", pool=2), nn.Dense(units=6, activation="gelu")]),
    "silu": Work(
        [
            nn.Conv(filters=4, activation="silu", pool=2),
            nn.Residual((normed(4, activation="silu"), normed(4, activation="none")), activation="silu"),
            nn.Dense(units=6, activation="silu"),
        ]
    ),
    "silu, one channel": Work([nn.Conv(filters=4, activation="silu", pool=2)], (8, 8, 1)),
    "means": Work([nn.Conv(filters=34, activation="gelu"), nn.GlobalPool("mean")], (5, 5, 1)),
    "maxima": Work([nn.Conv(filters=34, activation="gelu"), nn.GlobalPool("max")], (2, 3, 1)),
    "tied maxima": Work(
        [nn.Conv(filters=4, kernel=1, pad=0, activation="gelu", pool=2), nn.GlobalPool("max")],
        (8, 8, 1),
        images=STRIPES,
    ),
    "residual": Work(
        [
            normed(4),
            nn.Residual((normed(4), nn.Conv(filters=4, activation="none"))),
            nn.Residual((normed(6, stride=2),), activation="gelu"),
            nn.GlobalPool("mean"),
        ]
    ),
    "residual of nothing": Work(
        [nn.Conv(filters=2, init=0.0), nn.Residual((nn.Conv(filters=2, init=0.0, activation="none"),))]
    ),
    "residual on the images": Work(
        [
            nn.Residual((nn.Dropout(0.2), nn.Conv(filters=2, pad=1)), activation="none"),
            nn.Residual((nn.Conv(filters=3),)),
        ]
    ),
    "residual of a window": Work(
        [
            nn.Residual((nn.Conv(filters=4, pool=2), nn.Conv(filters=3, activation="none"))),
            nn.Residual((normed(4, pad=0), nn.Conv(filters=4, activation="none"))),
        ],
        (10, 13, 1),
    ),
    "augmented": Work(
        [nn.Conv(filters=4)], options=nn.TrainingOptions(nn.Augmentation("random", 2)), views="flip_translate", start=6
    ),
    "flipped by turns": Work(
        [nn.Conv(filters=4)], options=nn.TrainingOptions(nn.Augmentation("alternating")), views="flip", start=8
    ),
    "moved": Work([], (7, 5, 3), options=nn.TrainingOptions(nn.Augmentation(translate=4)), start=2),
    "augmented in every way": Work(
        [nn.Conv(filters=4), nn.Dense(units=5)],
        (8, 7, 3),
        options=nn.TrainingOptions(nn.Augmentation("random", crop=3, cutout=4, mixup=0.5), 0.1),
        start=4,
    ),
    "mixed": Work([], count=40, options=nn.TrainingOptions(nn.Augmentation(mixup=1.0))),
    "one image": Work([nn.Conv(filters=3, pool=2)], count=1),
    "no head": Work([nn.Dense(units=1025), nn.Dense(units=4)], count=3, classes=33),
    "head after pixels": Work([nn.Conv(filters=5, stride=2)], (9, 9, 3)),
    "bright": Work([nn.Conv(filters=3, bias_init=-1.0, pool=2), nn.Dropout(0.3)], (8, 8, 1), images=STRIPES),
    "all tied, one channel": Work([nn.Conv(filters=2, init=0.0, bias_init=0.5, pool=2)], (9, 8, 1)),
    "all zero, one channel": Work([nn.Conv(filters=2, init=0.0, pool=2)], (9, 8, 1)),
    "dead filters, one channel": Work([nn.Conv(filters=4, bias_init=-10.0, pool=2), nn.Dense(units=4)], (8, 8, 1)),
    "no activation, one channel": Work([nn.Conv(filters=4, activation="none", pool=2)], (8, 8, 1)),
    "no activation, no pooling": Work([nn.Conv(filters=4, activation="none"), nn.Conv(filters=3)], (8, 8, 3)),
}

for _kernel, _pool, _channels in FIRST_BLOCKS:  # more filters than lanes, more rows than a band, borders of all kinds
    _conv = nn.Conv(filters=32 + _kernel, kernel=_kernel, pool=_pool, pad=_kernel - 2 - _pool % 2, bias_init=-0.25)
    _shape = (16 + _kernel, 11 + _kernel, _channels)
    _blocks = [_conv, nn.Conv(filters=3, pad=2)]
    WORKS[f"first block {_kernel}, {_pool}, {_channels}"] = Work(_blocks, _shape, count=3, learning_rate=0.01)


@dataclass(frozen=True)
class TiledWork:
    """A work whose convolutions are computed in tiles of halves."""

    work: Work
    is_smooth: bool = True
    """No rounding decides a maximum or the side of a kink."""
    has_others: bool = False
    """It has a convolution that is computed otherwise, too."""


def smooth(filters: int, **others: Any) -> nn.Conv:
    """A normalised convolution with an activation that has no kink."""
    return normed(filters, activation="gelu", **others)


ORDER = ("pool", "norm", "activation")
TILED = {
    "with biases": TiledWork(Work([nn.Conv(filters=8), nn.Conv(filters=16)], (6, 5, 3)), is_smooth=False),
    "linear": TiledWork(Work([nn.Conv(filters=8, activation="none"), nn.Conv(filters=16, activation="none")])),
    "biases, no kink": TiledWork(
        Work(
            [nn.Conv(filters=24, kernel=2, pad=0, activation="gelu"), nn.Conv(filters=16, activation="silu")], (8, 8, 3)
        )
    ),
    "normalised": TiledWork(Work([smooth(8), smooth(16, scale=False), smooth(8)], (8, 7, 3))),
    "pooled": TiledWork(
        Work(
            [smooth(8, pool=2, order=ORDER), smooth(24, pool=2, order=ORDER), nn.Conv(filters=8, pool=2)], (13, 11, 3)
        ),
        is_smooth=False,
    ),
    "pooled later": TiledWork(Work([smooth(8, pool=2), smooth(16)], (6, 6, 3)), is_smooth=False),
    "wide": TiledWork(Work([smooth(8), smooth(136), smooth(8, kernel=1, pad=0)], (4, 5, 1))),
    "wide, pooled": TiledWork(
        Work([smooth(136, pool=2, order=ORDER), nn.Conv(filters=128, kernel=1, pad=0)], (9, 8, 3)), is_smooth=False
    ),
    "many pixels": TiledWork(Work([smooth(8), smooth(16)], (16, 17, 1), count=3)),
    "kernels of 5, 4 and 1": TiledWork(
        Work([smooth(8, kernel=5, pad=2), smooth(16, kernel=4, pad=1), smooth(8, kernel=1, pad=0)], (9, 8, 3))
    ),
    "residual": TiledWork(
        Work([smooth(8), nn.Residual((smooth(8), smooth(8)), activation="none"), smooth(16)], (6, 6, 3))
    ),
    "residual, ReLU": TiledWork(
        Work([normed(8), nn.Residual((normed(8), normed(8, activation="none"))), normed(16)], (6, 6, 3)),
        is_smooth=False,
    ),
    "residual without normalisation": TiledWork(
        Work(
            [
                nn.Conv(filters=8, activation="gelu"),
                nn.Residual((nn.Conv(filters=8, activation="silu"), nn.Conv(filters=8, activation="gelu")), "none"),
                nn.Residual((nn.Conv(filters=8, activation="none"),), "none"),
            ],
            (6, 5, 3),
        )
    ),
    "two residuals": TiledWork(
        Work(
            [smooth(8), *[nn.Residual((smooth(8), smooth(8)), activation="none")] * 2, nn.GlobalPool("mean")], (6, 6, 3)
        )
    ),
    "projection": TiledWork(
        Work([smooth(8), nn.Residual((smooth(16), smooth(16)), activation="none"), smooth(8)], (6, 6, 3))
    ),
    "projection, strided": TiledWork(
        Work([smooth(8), nn.Residual((smooth(16, pad=0), smooth(16, kernel=1, pad=0, stride=2)), "none")], (9, 9, 3))
    ),
    "projection of others": TiledWork(
        Work([smooth(8), nn.Residual((smooth(16, stride=2), smooth(16)), "none"), smooth(8)], (7, 7, 3)),
        has_others=True,
    ),
    "residual of a batch": TiledWork(
        Work([nn.Residual((smooth(8), smooth(8)), activation="none"), smooth(8)], (6, 6, 3)), has_others=True
    ),
    "frozen": TiledWork(
        Work([smooth(8, frozen=True), smooth(8, frozen=True), nn.Conv(filters=8, frozen=True, activation="gelu")])
    ),
    "fully frozen": TiledWork(Work([smooth(8, fully_frozen=True), smooth(8)], (6, 5, 3))),
    "among others": TiledWork(
        Work([smooth(8), nn.Dropout(0.3), smooth(8), smooth(5), smooth(16), nn.Dropout(0.1)], (6, 5, 3)),
        has_others=True,
    ),
    "residual with dropout": TiledWork(
        Work([smooth(8), nn.Residual((nn.Dropout(0.2), smooth(8)), activation="none"), smooth(8)], (6, 5, 3))
    ),
    "views": TiledWork(Work([smooth(8), smooth(16)], (5, 6, 3), views="flip_translate")),
}

OF_ONE_PIXEL = {
    name: Work(
        [smooth(filters), smooth(filters, kernel=1, pad=0), smooth(filters, pool=2, kernel=1, pad=0, order=ORDER)],
        (6, 6, 3),
        count=2,
    )
    for name, filters in (("narrow", 64), ("wide", 128))
}
"""Quick ones with every kernel for tiles: the depth of all products but the first is a single step or two."""
"""Networks of convolutions in halves."""


@cache
def reference(name: str) -> dict[str, Array]:
    return WORKS[name].result(nn.NumPyBackend(nn.Workers(1), np.float64))


def require_close(found: dict[str, Array], expected: dict[str, Array]) -> None:
    """1e-5 of the largest, per tensor; a number that is none is not close."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        scale = max(np.abs(array).max(), 1e-30)
        assert np.abs(found[name] - array).max() / scale < TOLERANCE, name


STEPS, COUNT = 3, 300
"""More images of a step than one block of threads draws for."""
CHANGES: list[nn.Augmentation | View | None] = [
    None,
    nn.Augmentation("random", 3),
    nn.Augmentation("alternating", 1),
    nn.Augmentation("alternating"),
    nn.Augmentation(translate=4),
    nn.Augmentation(crop=4),
    nn.Augmentation("random", cutout=3),
    nn.Augmentation("alternating", crop=2, cutout=6, mixup=0.3),
    nn.Augmentation(mixup=2.0),
    (1, -1, 2),
    *VIEWS["flip_translate"],
]


def batch(backend: nn.Backend, change: nn.Augmentation | View | None, epoch: int, seed: int = 5) -> Array:
    """The second batch of an epoch."""
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (STEPS * COUNT, 6, 5, 3), np.uint8), np.zeros(STEPS * COUNT, np.int64)
    inputs = nn.build_step_inputs(backend, images, labels, STEPS, COUNT, seed)
    backend.copy(random.permutation(STEPS * COUNT), inputs.order)
    backend.copy(np.array([1, epoch * STEPS + 1]), inputs.position)
    backend.copy(np.array([0.1, 0.7, 0.2]), inputs.mixup)
    pixels = nn.PixelNormalisation.standardised((0.4, 0.5, 0.45), (0.25, 0.3, 0.2))

    def build(arena: Arena) -> tuple[Tensor, Any]:
        x = Tensor.take(arena, (COUNT, 6, 5, 3), backend.dtype, border=1, trainable=False)
        return x, backend.compile_step(arena, inputs, [backend.gather(arena, inputs, x, pixels, change)])

    x, gather = Arena.allocate(backend, build)
    gather()
    return backend.host(x.padded).copy()


GUARD = -77


def guarded(shape: tuple[int, ...], dtype: Any) -> tuple[Array, Array]:
    """An array to be filled, and what stands behind it, which must stay as it is."""
    size = int(np.prod(shape))
    memory = np.full(size + 64, GUARD, dtype)
    return memory[:size].reshape(shape), memory[size:]
