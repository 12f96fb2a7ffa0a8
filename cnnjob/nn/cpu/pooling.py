"""Pooling in NumPy."""

import numpy as np

from cnnjob.nn.arena import Arena, Array
from cnnjob.nn.blocks import GlobalPool
from cnnjob.nn.operations import MaxPool
from cnnjob.nn.tensors import ForwardBackward, Tensor
from cnnjob.nn.workers import SHARDS, Workers, distribute_shards, split_evenly


def pool(workers: Workers, arena: Arena, block: MaxPool | GlobalPool, x: Tensor, y: Tensor) -> ForwardBackward:
    """Plan max-pooling or global pooling."""
    if isinstance(block, MaxPool):
        return _max_pool(workers, arena, block, x, y)
    return _global_pool(workers, arena, block, x, y)


def _max_pool(workers: Workers, arena: Arena, block: MaxPool, x: Tensor, y: Tensor) -> ForwardBackward:
    """Plan max-pooling: (N, H, W, C) → (N, H // P, W // P, C).

    If several values in a window equal the maximum, the first in row-major order receives the gradient. Rows and
    columns that do not fill a window have gradient 0.
    """
    P, (H, W) = block.side, y.value.shape[1:3]

    def phases_of(array: Array) -> list[Array]:
        """Return one view (n, H', W', C) per pixel of a pooling window, in row-major order."""
        inside = array[:, : H * P, : W * P]
        return [inside[:, i::P, j::P] for i in range(P) for j in range(P)]

    def plan_shard(images: slice) -> ForwardBackward:
        out, dy, dx = y.value[images], y.gradient[images], x.gradient[images]
        phases, dx_phases = phases_of(x.value[images]), phases_of(dx) if y.trainable else []
        masks = arena.take((len(dx_phases), *out.shape), bool)

        def forward() -> None:
            np.copyto(out, phases[0])
            for phase in phases[1:]:
                np.maximum(out, phase, out=out)
            if len(masks):
                mark_maxima()

        def mark_maxima() -> None:
            # The last mask starts as the windows whose maximum has not been found yet; what remains of it after the
            # other phases is the last phase's own mask, even where the maximum is NaN and equals nothing.
            unassigned = masks[-1]
            unassigned.fill(1)
            for mask, phase in zip(masks[:-1], phases, strict=False):
                np.equal(phase, out, out=mask)
                np.logical_and(mask, unassigned, out=mask)
                np.logical_xor(mask, unassigned, out=unassigned)

        def backward() -> None:
            dx[:, H * P :], dx[:, :, W * P :] = 0, 0
            for dx_phase, mask in zip(dx_phases, masks, strict=True):
                np.multiply(dy, mask, out=dx_phase)

        return ForwardBackward(forward, backward)

    shards = [plan_shard(images) for images in split_evenly(len(x.value), SHARDS)]
    return distribute_shards(workers, shards, work=x.value.size)


def _global_pool(workers: Workers, arena: Arena, block: GlobalPool, x: Tensor, y: Tensor) -> ForwardBackward:
    """Plan the mean or the maximum over all pixels: (N, H, W, C) → (N, C).

    Among equal maxima, the first in row-major order receives the gradient.
    """
    N, H, W, C = x.value.shape

    def plan_shard(number: int, images: slice) -> ForwardBackward:
        z, dz, out, dy = x.value[images], x.gradient[images], y.value[images], y.gradient[images]
        (t,) = arena.scratch(number, ((len(z), H * W, C), z.dtype))
        first_maxima = arena.take((len(z), 1, C) if block.how == "max" else (0, 1, 1), np.int64)

        def forward() -> None:
            # Without its border, an image is one run of pixels, (n, H·W, C), which a single reduction covers.
            np.copyto(t.reshape(z.shape), z)
            if block.how == "mean":
                np.add.reduce(t, axis=1, out=out)
                np.divide(out, H * W, out=out)
            else:
                np.maximum.reduce(t, axis=1, out=out)
                t.argmax(axis=1, out=first_maxima, keepdims=True)

        def backward() -> None:
            if block.how == "mean":
                np.divide(dy[:, None, None], H * W, out=dz)
            else:
                t.fill(0)
                np.put_along_axis(t, first_maxima, dy[:, None], axis=1)
                np.copyto(dz, t.reshape(dz.shape))

        return ForwardBackward(forward, backward)

    shards = [plan_shard(number, images) for number, images in enumerate(split_evenly(N, SHARDS))]
    return distribute_shards(workers, shards, work=x.value.size)
