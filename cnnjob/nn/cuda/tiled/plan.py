"""Convolutions in halves on tensor cores, with the normalisation, activation and residual sum that follow them.

A stage is a convolution and what follows it, up to the next convolution. Between stages, activations and gradients are
halves (N, H, W, C) without a border; everything else stays in float32. The kernels are in ``tiled_conv.cu`` and
``tiled_norm.cu``. Forward, a stage has one kernel for the convolution with its pooling and the channels' moments, one
for the statistics, and one for the normalisation. Backward, it has one for the sums over the batch, one for the
gradient before the pooling, two for the gradient of the weights, and one for the gradient of the input, which also
applies the slope of the activation that made the input. Gradients are multiplied by a power of two, so that few are
too small.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from cnnjob.nn.arena import Arena, Array
from cnnjob.nn.cuda.activations import ACTIVATIONS
from cnnjob.nn.cuda.deferred import NO_TASKS, DeferredAccumulation, DeferredPart
from cnnjob.nn.cuda.device_api import LANES, MAX_BLOCKS, THREADS, WARP, Device, bordered, each, in_order, scalars
from cnnjob.nn.cuda.tiled.launches import (
    DEPTH,
    NARROW,
    NULL,
    ROWS,
    WIDE,
    Finish,
    combine,
    convolve,
    each_chunk,
    source_table,
    stage_bytes,
    tile_columns,
)
from cnnjob.nn.cuda.tiled.stages import CHUNK, Stage, Stages, source_of
from cnnjob.nn.operations import Norm
from cnnjob.nn.tensors import ForwardBackward, StepInputs, Task

HALF = np.dtype(np.float16)
WEIGHT_ROWS, WEIGHT_BLOCKS = {NARROW: 128, WIDE: 256}, {NARROW: 1056, WIDE: 264}
"""Rows of a tile of the weights' gradient, and the approximate number of thread blocks that sum it.

The number does not depend on the GPU, so that the order of every sum is fixed.
"""
TABLE_BYTES = 1024
"""Shared memory for the sources of two stages of the weights' gradient."""
LOSS_SCALE = 1024
"""Factor for gradients, multiplied by the number of images in the batch and rounded up to a power of two."""
GRADIENT_ROWS, GRADIENT_BLOCK = 512, (8, 32)
"""Pixels that each thread block adds up where a gradient enters a stage from outside, and its threads."""


class TiledPlan:
    """The plan of all stages of a step."""

    def __init__(self, device: Device, arena: Arena, parts: Sequence[DeferredPart], inputs: StepInputs) -> None:
        """Find the stages among a step's parts, in order."""
        self._device, self._arena, self._inputs, self._stages = device, arena, inputs, Stages(parts)
        self.prologue: list[Task] = []
        """Tasks that run once at the beginning of a step, however many views of the images it has."""
        self._pending: dict[int, Array] = {}
        """Gradients to which those of other readers are still to be added, by the identity of a tensor's values."""
        self._unplanned = Counter(source_of(stage.conv.x) for stage in self._stages.stages)
        """Number of stages that read a tensor and whose backward task is not planned yet, likewise."""
        self._loss_scale = loss_scale(next((len(stage.conv.x.value) for stage in self._stages.stages), 1))

    def tasks(self, parts: Sequence[DeferredPart]) -> dict[DeferredPart, ForwardBackward]:
        """Plan the tasks of the parts of all stages; all other parts must be planned alone."""
        planned = {part: NO_TASKS for stage in self._stages.stages for part in stage.parts}
        for stage in self._stages.stages:
            planned[stage.conv] = ForwardBackward(self._plan_forward(stage), in_order([]))
        for stage in reversed(self._stages.stages):
            if stage.conv.y.trainable:
                # A frozen convolution may have no backward task, while the normalisation after it is trained.
                last = stage.after or stage.conv
                planned[last] = ForwardBackward(planned[last].forward, self._plan_backward(stage))
        # The gradient of an identity shortcut is added by the convolution that reads the same tensor.
        targets = {id(stage.y.gradient) for stage in self._stages.stages if self._stages.producer(id(stage.y.value))}
        for part in parts:
            if isinstance(part, DeferredAccumulation) and id(part.target) in targets:
                planned[part] = NO_TASKS
        return planned

    # ---- forward -----------------------------------------------------------------------------------------------------

    def _plan_forward(self, stage: Stage) -> Task:
        """Plan a stage's forward task, and allocate its buffers."""
        device, arena, conv, norm = self._device, self._arena, stage.conv, stage.norm
        (N, H, W, F), training = conv.y.value.shape, conv.y.trainable
        tasks = [self._plan_input(stage)]
        self.prologue.append(self._plan_packing(stage))
        stage.out = arena.take((N, H, W, F), HALF)
        stage.sums = arena.take((N, H, W, F), HALF) if training and not stage.is_one_kernel else stage.out
        stage.winners = arena.take((N, H, W, F), np.uint8) if training and stage.block.pool > 1 else NULL
        mean, inverse, ones = (arena.constant(np.full(F, value, np.float32)) for value in (0, 1, 1))
        zeros = arena.take((F,), np.float32)
        w = stage.after.weights if stage.after and norm else {"shift": conv.weights.get("bias", zeros)}
        stage.channels = [mean, inverse, w.get("scale", ones), w["shift"]]
        shortcut = self._stages.producer(id(stage.join.reads[1].value)) if stage.join else None
        addend = shortcut.out if shortcut else NULL
        kind, is_joined = stage.kind, bool(stage.join and stage.join.activation == "relu")
        if stage.sums is stage.out:
            mean, inverse, scale, shift = stage.channels
            finish = Finish(NULL, NULL, addend, NULL, NULL, mean, inverse, scale, shift, kind, is_joined)
            if norm:
                self.prologue.append(self._plan_running_statistics(stage, norm))
            tasks.append(self._plan_conv(stage, finish))
        else:
            rows = ROWS // stage.block.pool**2
            parts = -(-N * H * W // rows)
            first, second = (arena.take((parts, F), np.float32) if norm else NULL for _ in range(2))
            tasks.append(self._plan_conv(stage, Finish(first, second)))
            if norm:
                running = w["mean"], w["variance"], norm.settings.momentum, norm.settings.eps
                arguments = first, second, np.int64(N * H * W), np.int64(rows), parts, F, *running, mean, inverse
                tasks.append(combine(device, "batch_statistics", F, 1, *arguments))
            values = [stage.sums, *stage.channels, addend, stage.out, kind, is_joined, F]
            tasks.append(each_chunk(device, "normalise_halves", N * H * W * F, *values))
        if not self._stages.producer(id(stage.y.value)):
            target = bordered(stage.y.value)
            tasks.append(each(device, "to_floats", N, H * W * F // CHUNK, stage.out, 1.0, *target, W, F, F))
        return in_order(tasks)

    def _plan_running_statistics(self, stage: Stage, norm: Norm) -> Task:
        """Plan the mean and 1/√(variance + eps) of an evaluation."""
        assert stage.after  # noqa: S101 - it has the normalisation
        mean, inverse, *_ = stage.channels
        w, (F,) = stage.after.weights, mean.shape
        arguments = scalars([w["mean"], w["variance"], norm.settings.eps, mean, inverse, F])
        return partial(self._device.launch, "running_statistics", (-(-F // THREADS), 1), (THREADS, 1), arguments)

    def _plan_input(self, stage: Stage) -> Task:
        """Set the stage's input in halves; plan its conversion unless another stage computes it in halves."""
        x = stage.conv.x
        stage.source = self._stages.producer(source_of(x))
        if stage.source:
            stage.input = stage.source.out
            return in_order([])
        N, H, W, C = x.value.shape
        D = -(-C // CHUNK) * CHUNK
        stage.input = self._arena.take((N, H, W, D), HALF)
        return each(self._device, "to_halves", N, H * W * D // CHUNK, *bordered(x.value), stage.input, W, C, D)

    def _plan_packing(self, stage: Stage) -> Task:
        """Plan the packing of the weights for the convolution and, if it is needed, for the gradient of its input."""
        weights, D = stage.conv.weights["weights"], stage.input.shape[-1]
        K, _, C, F = weights.shape

        def take(depth: int, columns: int) -> Array:
            return self._arena.take((-(-depth // DEPTH) * DEPTH, columns), HALF)

        stage.ahead = take(K * K * D, F)
        stage.back = take(K * K * F, C) if stage.conv.x.trainable else NULL
        grid = (min(-(-weights.size // (2 * THREADS)), MAX_BLOCKS), 1)
        arguments = scalars([weights, stage.ahead, stage.back, K * K, C, D, F])
        return partial(self._device.launch, "pack_weights", grid, (THREADS, 1), arguments)

    def _plan_conv(self, stage: Stage, finish: Finish) -> Task:
        """Plan the convolution and its pooling, and what its kernel does to the outputs."""
        block, (_, H, W, _), (top, left) = stage.block, stage.sums.shape, stage.conv.x.offset
        i, j, a, b = np.ix_(range(H), range(W), range(block.pool), range(block.pool))
        rows = (i * block.pool + a) * block.stride - block.pad + top
        columns = (j * block.pool + b) * block.stride - block.pad + left
        table = self._arena.constant(source_table(stage.input.shape[1:], block.kernel, rows, columns))
        arrays = stage.input, stage.ahead, table, stage.sums, stage.winners
        return convolve(self._device, f"conv_{block.pool}", ROWS // block.pool**2, block.kernel, arrays, finish)

    # ---- backward ----------------------------------------------------------------------------------------------------

    def _plan_backward(self, stage: Stage) -> Task:
        """Plan a stage's backward task, given the gradient of its output."""
        device, arena, conv, P = self._device, self._arena, stage.conv, stage.block.pool
        N, H, W, F = stage.sums.shape
        tasks: list[Task] = []
        if not self._stages.producer(id(stage.y.value)):
            tasks.append(self._plan_entry(stage, bordered(stage.y.gradient), NULL))
        elif (pending := self._pending.pop(id(stage.y.value), None)) is not None:  # only joins read the output
            tasks.append(self._plan_entry(stage, (NULL, np.int64(0), 0), pending))
        if stage.join:
            self._pending[id(stage.join.reads[1].value)] = stage.gradient

        zeros, unused = ([arena.take((F,), np.float32) for _ in range(2)] for _ in range(2))
        dw = stage.after.gradients if stage.after and stage.norm else {"shift": conv.gradients.get("bias", unused[0])}
        sums = dw.get("shift", unused[0]), dw.get("scale", unused[1])
        parts = len(stage.partial_sums[0])
        tasks.append(combine(device, "sum_parts", F, 2, *stage.partial_sums, *sums, parts, F, 1 / self._loss_scale))

        height, width, taps, D = H * P, W * P, stage.block.kernel**2, stage.input.shape[-1]
        tile = tile_columns(F)
        tiles = -(-taps * D // WEIGHT_ROWS[tile]) * -(-F // tile)
        share = -(-N * height * width // (max(1, WEIGHT_BLOCKS[tile] // tiles) * DEPTH)) * DEPTH
        n_shares = -(-N * height * width // share) if "weights" in conv.gradients else 0
        dz, weight_sums, dx = arena.scratch(
            0, ((N, height, width, F), HALF), ((n_shares, taps * D, F), np.float32), (stage.input.shape, HALF)
        )
        if stage.norm or stage.join or P > 1:
            kind = stage.kind if stage.join else ACTIVATIONS["none"]  # otherwise, the gradient already has the slope
            means = (*(sums if stage.norm else zeros), self._loss_scale)
            arguments = stage.sums, stage.gradient, stage.winners, *stage.channels, kind, *means, dz, N * H * W, W, F
            tasks.append(each_chunk(device, f"norm_pool_back_{P}", N * H * W * F, *arguments))
        else:
            dz = stage.gradient
        if n_shares:
            tasks += self._plan_weight_gradient(stage, dz, weight_sums, share)
        if conv.x.trainable:
            tasks.append(self._plan_input_gradient(stage, dz, dx))
        return in_order(tasks)

    def _plan_finish(self, stage: Stage, n_parts: int, addend: Any) -> Finish:
        """Allocate a stage's gradient and its partial sums; return how a kernel makes them."""
        stage.gradient = self._arena.take(stage.sums.shape, HALF)
        first, second = (self._arena.take((n_parts, stage.sums.shape[-1]), np.float32) for _ in range(2))
        stage.partial_sums = first, second
        has_relu = stage.join.activation == "relu" if stage.join else stage.is_one_kernel and stage.kind
        joined = stage.out if has_relu else NULL
        if stage.is_one_kernel:
            return Finish(first, second, addend, joined)
        mean, inverse, scale, shift = stage.channels
        slope = stage.sums, mean, inverse, scale, shift, stage.kind, bool(stage.join)
        return Finish(first, second, addend, joined, *slope)

    def _plan_entry(self, stage: Stage, floats: Any, halves: Any) -> Task:
        """Plan the gradient of a stage's output from that of other parts: in float32, or in halves."""
        N, H, W, F = stage.sums.shape
        parts = -(-N * H * W // GRADIENT_ROWS)
        finish = self._plan_finish(stage, parts, halves)
        sizes = H * W, W, F, N * H * W, GRADIENT_ROWS
        arguments = scalars([*floats, self._loss_scale, stage.gradient, *finish, *sizes])
        grid = (-(-F // NARROW), parts)
        return partial(self._device.launch, "finish_gradient", grid, GRADIENT_BLOCK, arguments)

    def _plan_weight_gradient(self, stage: Stage, dz: Array, sums: Array, share: int) -> list[Task]:
        """Plan the gradient of the weights: partial sums over shares of the outputs, and their sum."""
        device, gradient = self._device, stage.conv.gradients["weights"]
        (N, height, width, F), (_, H, W, D), (K, _, C, _) = dz.shape, stage.input.shape, gradient.shape
        tile, (top, left) = tile_columns(F), stage.conv.x.offset
        i, j = np.ix_(range(height), range(width))
        S, pad = stage.block.stride, stage.block.pad
        table = source_table((H, W, D), K, i * S - pad + top, j * S - pad + left)
        sizes = H * W * D, W, D, K, height * width, F, N, share
        arguments = scalars([stage.input, dz, self._arena.constant(table), sums, *sizes])
        grid = (-(-K * K * D // WEIGHT_ROWS[tile]) * -(-F // tile), len(sums))
        threads = WEIGHT_ROWS[tile] * tile // (64 * 64) * WARP
        shared = stage_bytes(device, WEIGHT_ROWS[tile], tile) + TABLE_BYTES
        multiply = partial(device.launch, f"weight_sums_{tile}", grid, (threads, 1), arguments, shared)
        inputs = self._inputs
        settings = sums, gradient, 1 / self._loss_scale, len(sums), K * K, C, D, F // 4
        arguments = scalars([*settings, inputs.losses, inputs.position])
        add = partial(device.launch, "add_weight_sums", (-(-gradient.size // (4 * WARP)), 1), (WARP, LANES), arguments)
        return [multiply, add]

    def _plan_input_gradient(self, stage: Stage, dz: Array, dx: Array) -> Task:
        """Plan the gradient of a stage's input; the last stage that reads a tensor adds the gradients of the others."""
        device, x, source = self._device, stage.conv.x, stage.source
        (_, height, width, F), (N, H, W, C), (top, left) = dz.shape, stage.input.shape, x.offset
        K, S, pad = stage.block.kernel, stage.block.stride, stage.block.pad
        # Output i of the convolution reads row i·S − pad + k through tap k, so output (r + pad − k)/S reads row r, if
        # S divides it. S > 1 only if K = 1. The weights are packed with taps in reverse order.
        rows, columns = np.arange(H)[:, None] - top + pad - (K - 1), np.arange(W)[None] - left + pad - (K - 1)
        table = source_table(
            (height, width, F), K, rows // S, columns // S, exists=(rows % S == 0) & (columns % S == 0)
        )
        finish, later = Finish(), list[Task]()
        if source:
            key = id(source.y.value)
            addend = self._pending.pop(key, NULL)
            self._unplanned[key] -= 1
            if self._unplanned[key]:
                dx = self._pending[key] = self._arena.take(dx.shape, HALF)
                finish = Finish(addend=addend)
            else:
                finish = self._plan_finish(source, -(-N * H * W // ROWS), addend)
                dx = source.gradient
        else:
            target = bordered(x.gradient)
            factor = 1 / self._loss_scale
            later.append(each(device, "to_floats", N, H * W * C // CHUNK, dx, factor, *target, W, C, C))
        arrays = dz, stage.back, self._arena.constant(table), dx, NULL
        return in_order([convolve(device, "conv_back", ROWS, K, arrays, finish), *later])


def loss_scale(batch_size: int) -> float:
    """Return the power of two by which the gradients of a batch are multiplied in halves."""
    return float(1 << (LOSS_SCALE * batch_size - 1).bit_length())
