"""Dense and dropout blocks in NumPy."""

from math import prod

import numpy as np

from cnnjob.nn.arena import Arena, Array
from cnnjob.nn.blocks import Dense, Dropout
from cnnjob.nn.random import Purpose, Uniform
from cnnjob.nn.tensors import ForwardBackward, StepInputs, Task, Tensor
from cnnjob.nn.workers import SHARDS, Workers, distribute_shards, split_evenly

MAX_UNSPLIT_PRODUCT = 1 << 20
"""Maximum number of multiplications for which a matrix product is not split among the cores."""

Arrays = dict[str, Array]


def dense(workers: Workers, arena: Arena, block: Dense, x: Tensor, y: Tensor, w: Arrays, dw: Arrays) -> ForwardBackward:
    """Plan a dense block: y = activation(output_scale·(x w + b)), with ReLU or no activation.

    Args:
        workers: the workers that compute the products.
        arena: memory for the buffers.
        block: the block's settings.
        x: input (N, …), without a border.
        y: output (N, U).
        w: ``weights`` (V, U), with V values per image, and ``bias`` (U,) if there is one.
        dw: gradients of the trainable parameters, overwritten by ``backward``.

    Returns:
        The forward and backward tasks.
    """
    N, U = y.value.shape
    flat, weights, dtype = x.value.reshape(N, -1), w["weights"], y.value.dtype  # (N, V), (V, U)
    dz, compute_dz = _plan_dz(arena, block, y)
    dx = x.gradient.reshape(N, -1) if x.trainable else None
    # Split along V, usually the longer side, and not along the images: each core reads its own part of the weights. The
    # partial products (parts, N, U) are summed in a fixed order.
    parts = split_evenly(len(weights), SHARDS if N * weights.size > MAX_UNSPLIT_PRODUCT else 1)
    products = arena.take((len(parts), N, U), dtype)

    def product(part: slice, out: Array) -> Task:
        def forward() -> None:
            np.matmul(flat[:, part], weights[part], out=out)

        return forward

    def gradients(part: slice) -> Task:
        def backward() -> None:
            if "weights" in dw:
                np.matmul(flat[:, part].T, dz, out=dw["weights"][part])
            if dx is not None:
                np.matmul(dz, weights[part].T, out=dx[:, part])

        return backward

    steps = [ForwardBackward(product(part, out), gradients(part)) for part, out in zip(parts, products, strict=True)]
    shards = distribute_shards(workers, steps, work=N * weights.size // 8)

    def forward() -> None:
        shards.forward()
        np.add.reduce(products, axis=0, out=y.value)
        np.add(y.value, w.get("bias", 0), out=y.value)
        if block.output_scale != 1:
            np.multiply(y.value, block.output_scale, out=y.value)
        if block.activation == "relu":
            np.maximum(y.value, 0, out=y.value)

    def backward() -> None:
        compute_dz()
        if "bias" in dw:
            np.add.reduce(dz, axis=0, out=dw["bias"])
        shards.backward()

    return ForwardBackward(forward, backward)


def _plan_dz(arena: Arena, block: Dense, y: Tensor) -> tuple[Array, Task]:
    """Return an array for the gradient of z = x w + b, (N, U), and the task that computes the gradient."""
    dz, mask = (arena.take(y.gradient.shape, dtype) for dtype in (y.value.dtype, bool))

    def run() -> None:
        np.multiply(y.gradient, block.output_scale, out=dz)
        if block.activation == "relu":
            np.greater(y.value, 0, out=mask)
            np.multiply(dz, mask, out=dz)

    return dz, run


def dropout(
    workers: Workers, arena: Arena, block: Dropout, x: Tensor, y: Tensor, inputs: StepInputs, layer_index: int
) -> ForwardBackward:
    """Plan a dropout block for training: y = x·m/(1−p), with m drawn at the address (seed, layer, step, element).

    Args:
        workers: the workers that compute the batch.
        arena: memory for the buffers.
        block: the block's settings, with the probability p that m = 0.
        x: input (N, …).
        y: output of the same shape.
        inputs: step inputs, with the seed and the step.
        layer_index: index of the layer in the network.

    Returns:
        The forward and backward tasks.
    """
    factor = x.value.dtype.type(1 / (1 - block.probability))
    values = prod(x.value.shape[1:])

    def plan_shard(images: slice) -> ForwardBackward:
        first, count = images.start * values, (images.stop - images.start) * values
        # Philox draws blocks of four numbers: a shard that starts inside a block draws all of it and skips some.
        blocks = -(-(first % 4 + count) // 4)
        words, uniforms = arena.take((6, blocks), np.uint64), arena.take((blocks, 4), np.float32)
        mask = arena.take((images.stop - images.start, *x.value.shape[1:]), x.value.dtype)
        uniform = Uniform(words, uniforms, first // 4)
        drawn = uniforms.reshape(-1)[first % 4 : first % 4 + count].reshape(mask.shape)

        def forward() -> None:
            uniform.draw(inputs.seed, Purpose.DROPOUT + layer_index, int(inputs.position[1]))
            np.greater_equal(drawn, block.probability, out=mask, casting="unsafe")  # bool → 0.0 or 1.0
            np.multiply(mask, factor, out=mask)
            np.multiply(x.value[images], mask, out=y.value[images])

        def backward() -> None:
            if x.trainable:
                np.multiply(y.gradient[images], mask, out=x.gradient[images])

        return ForwardBackward(forward, backward)

    steps = [plan_shard(images) for images in split_evenly(len(x.value), SHARDS)]
    return distribute_shards(workers, steps, work=x.value.size)
