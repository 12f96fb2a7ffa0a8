"""Muon's update of some matrices, and its formula in float64: shared by the tests of both backends."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from cnnjob import nn
from cnnjob.nn.arena import Arena, BufferLayout
from cnnjob.nn.optimisers import Segment
from cnnjob.nn.plan import empty_step_inputs

Array = np.ndarray[Any, Any]
Shapes = Sequence[tuple[int, int]]
A, B, C = 3.4445, -4.7750, 2.0315
RATE = 0.05
KINDS: list[nn.Muon] = [
    nn.Muon(),
    nn.Muon(0.6, 0.0, ns_steps=3, adjust_learning_rate="none", normalise_weights=True),
    nn.Muon(0.9, 0.1, nesterov=False, adjust_learning_rate="match_rms_adamw"),
]


def formula(w: Array, g: Array, v: Array, optimiser: nn.Muon) -> tuple[Array, Array]:
    """The published update of a weight (outputs, inputs), in float64; w and v after it."""
    v = optimiser.momentum * v + g
    u = g + optimiser.momentum * v if optimiser.nesterov else v
    x = u.T if len(u) > len(u[0]) else u
    x = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(optimiser.ns_steps):
        gram = x @ x.T
        x = A * x + (B * gram + C * gram @ gram) @ x
    x = x.T if len(u) > len(u[0]) else x
    outputs, inputs = w.shape
    if optimiser.normalise_weights:
        w = w * (outputs**0.5 / np.linalg.norm(w))
    if optimiser.adjust_learning_rate == "original":
        x = x * max(1, outputs / inputs) ** 0.5
    elif optimiser.adjust_learning_rate == "match_rms_adamw":
        x = x * 0.2 * max(outputs, inputs) ** 0.5
    return w * (1 - RATE * optimiser.weight_decay) - RATE * x, v


class Matrices:
    """Weights, gradients and velocities of some matrices, and their update by a backend."""

    def __init__(self, shapes: Shapes, optimiser: nn.Muon, backend: nn.Backend, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.layout = BufferLayout.of({str(i): shape for i, shape in enumerate(shapes)}, backend.dtype.itemsize)
        self.flat = [backend.zeros((self.layout.size,), backend.dtype) for _ in range(3)]
        self.w, self.g, self.v = map(self.layout.views, self.flat)
        for arrays, scale in ((self.w, 1.0), (self.g, 1e-3), (self.v, 1e-3)):
            for array in arrays.values():
                array[...] = random.normal(scale=scale, size=array.shape)
        self.inputs = inputs = empty_step_inputs((1, 1, 1), backend)
        inputs.learning_rates = np.array([RATE])
        segments = [
            Segment(self.layout.slice_of(name), 1.0, decays=True, kind="hidden", shape=shape)
            for name, shape in zip(self.layout.shapes, shapes, strict=True)
        ]
        buffers = self.flat[0], self.flat[1], {"velocity": self.flat[2]}

        def build(arena: Arena) -> Any:
            task = backend.update(arena, replace(optimiser, others=nn.Sgd()), segments, buffers, inputs)
            return backend.compile_step(arena, inputs, [task])

        self._update = Arena.allocate(backend, build)

    def update(self) -> None:
        self.inputs.position[...] = 0
        with threadpool_limits(1):  # as a training has it
            self._update()

    def require(self, optimiser: nn.Muon, tolerance: float, *, of_the_update: bool) -> None:
        """Update them once, and compare: relative to the largest value of the update, or else of the weights."""
        if of_the_update:
            self.flat[0][...] = 0
        before = [self.layout.views(flat.astype(np.float64)) for flat in self.flat]
        self.update()
        for name in self.w:
            w, g, v = (views[name].T for views in before)
            w, v = formula(w, g, v, optimiser)
            for found, wanted in ((self.w[name].T, w), (self.v[name].T, v)):
                assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max(), self.w[name].shape


def drawn(count: int, largest: int) -> Shapes:
    sides = np.random.default_rng(1).integers(1, largest, (count, 2))
    return [(int(rows), int(columns)) for rows, columns in sides]


def require_no_division_by_zero(backend: nn.Backend) -> None:
    matrices = Matrices([(4, 5)], replace(KINDS[1], momentum=0.0, nesterov=False), backend)
    matrices.g["0"][...] = 0
    before = matrices.w["0"].copy()
    matrices.update()
    np.testing.assert_allclose(matrices.w["0"], before * 5**0.5 / np.linalg.norm(before), rtol=1e-6)
    matrices.w["0"][...] = 0
    matrices.update()
    assert not matrices.w["0"].any()
