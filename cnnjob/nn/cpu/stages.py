"""Operations without parameters on NumPy: activations, pooling, and the sum of a residual block."""

from functools import partial

import numpy as np

from cnnjob.nn.blocks import Activation, GlobalPool
from cnnjob.nn.cpu.activations import WORKING, activation
from cnnjob.nn.memory import Arena, Array
from cnnjob.nn.operations import Activate, MaxPool
from cnnjob.nn.tensors import ForwardBackward, Task, Tensor
from cnnjob.nn.workers import SHARDS, Workers, shared, split_evenly


def activate(workers: Workers, arena: Arena, block: Activate, x: Tensor, y: Tensor) -> ForwardBackward:
    """Plan an activation of a tensor (N, …), see :func:`cnnjob.nn.cpu.activations.activation`."""
    kind = block.activation

    def shard(number: int, part: slice) -> ForwardBackward:
        u, dy = x.value[part], y.gradient[part]
        t, *working = arena.scratch(number, *[(u.shape, u.dtype)] * (1 + WORKING[kind]))
        act, slope_of = activation(arena, kind, y.value[part], working, trainable=y.trainable)

        def forward() -> None:
            np.copyto(t, u)  # `act` overwrites its input
            act(t)

        return ForwardBackward(forward, lambda: slope_of(dy, x.gradient[part]))

    return shared(
        workers, [shard(*place) for place in enumerate(split_evenly(len(x.value), SHARDS))], work=x.value.size
    )


def join(
    workers: Workers, arena: Arena, body: Tensor, shortcut: Tensor, y: Tensor, kind: Activation
) -> ForwardBackward:
    """Plan the end of a residual block: y = activation(body + shortcut), all (N, H, W, C).

    Backward writes the gradient of the sum to that of the body; the shortcut's gradient is the same.
    """

    def shard(number: int, part: slice) -> ForwardBackward:
        u, dy = body.value[part], y.gradient[part]
        t, *working = arena.scratch(number, *[(u.shape, u.dtype)] * (1 + WORKING[kind]))
        act, slope_of = activation(arena, kind, y.value[part], working, trainable=y.trainable)

        def forward() -> None:
            np.add(u, shortcut.value[part], out=t)
            act(t)

        return ForwardBackward(forward, lambda: slope_of(dy, body.gradient[part]))

    return shared(
        workers, [shard(*place) for place in enumerate(split_evenly(len(y.value), SHARDS))], work=y.value.size
    )


def accumulate(workers: Workers, source: Array, target: Array) -> Task:
    """Plan target ← target + source, both (N, …)."""
    parts = [(target[part], source[part]) for part in split_evenly(len(target), SHARDS)]
    tasks = [partial(np.add, into, values, out=into) for into, values in parts]
    return workers.share(tasks, work=target.size)


def max_pool(workers: Workers, arena: Arena, block: MaxPool, x: Tensor, y: Tensor) -> ForwardBackward:
    """Plan max-pooling: (N, H, W, C) → (N, H // P, W // P, C).

    Of equal maxima the first in row-major order receives the gradient. Rows and columns that do not fill a window
    receive none.
    """
    P, (H, W) = block.side, y.value.shape[1:3]

    def windows(array: Array) -> list[Array]:
        """Return views (n, H', W', C) of the P² places of a window, in row-major order."""
        inside = array[:, : H * P, : W * P]
        return [inside[:, i::P, j::P] for i in range(P) for j in range(P)]

    def shard(part: slice) -> ForwardBackward:
        out, dy, dx = y.value[part], y.gradient[part], x.gradient[part]
        phases, slopes = windows(x.value[part]), windows(dx) if y.trainable else []
        masks = arena.take((len(slopes), *out.shape), bool)

        def forward() -> None:
            np.copyto(out, phases[0])
            for phase in phases[1:]:
                np.maximum(out, phase, out=out)
            if len(masks):
                mark()

        def mark() -> None:
            # The last mask starts as the windows whose maximum is not found yet; what remains of it after the other
            # places is the last place's own mask, also where the maximum is NaN and equals nothing.
            free = masks[-1]
            free.fill(1)
            for mask, phase in zip(masks[:-1], phases, strict=False):
                np.equal(phase, out, out=mask)
                np.logical_and(mask, free, out=mask)
                np.logical_xor(mask, free, out=free)

        def backward() -> None:
            dx[:, H * P :], dx[:, :, W * P :] = 0, 0
            for slope, mask in zip(slopes, masks, strict=True):
                np.multiply(dy, mask, out=slope)

        return ForwardBackward(forward, backward)

    return shared(workers, [shard(part) for part in split_evenly(len(x.value), SHARDS)], work=x.value.size)


def global_pool(workers: Workers, arena: Arena, block: GlobalPool, x: Tensor, y: Tensor) -> ForwardBackward:
    """Plan the mean or the maximum over all pixels: (N, H, W, C) → (N, C).

    Of equal maxima the first in row-major order receives the gradient.
    """
    N, H, W, C = x.value.shape

    def shard(number: int, part: slice) -> ForwardBackward:
        z, dz, out, dy = x.value[part], x.gradient[part], y.value[part], y.gradient[part]
        (t,) = arena.scratch(number, ((len(z), H * W, C), z.dtype))
        first = arena.take((len(z), 1, C) if block.how == "max" else (0, 1, 1), np.int64)

        def forward() -> None:
            # Without its border an image is one run of pixels, (n, H·W, C), which a single reduction covers.
            np.copyto(t.reshape(z.shape), z)
            if block.how == "mean":
                np.add.reduce(t, axis=1, out=out)
                np.divide(out, H * W, out=out)
            else:
                np.maximum.reduce(t, axis=1, out=out)
                t.argmax(axis=1, out=first, keepdims=True)

        def backward() -> None:
            if block.how == "mean":
                np.divide(dy[:, None, None], H * W, out=dz)
            else:
                t.fill(0)
                np.put_along_axis(t, first, dy[:, None], axis=1)
                np.copyto(dz, t.reshape(dz.shape))

        return ForwardBackward(forward, backward)

    return shared(workers, [shard(*place) for place in enumerate(split_evenly(N, SHARDS))], work=x.value.size)
