"""The other blocks on NumPy: the batch, dense, dropout, and the loss."""

from math import prod

import numpy as np

from cnnjob.nn.blocks import Dense, Dropout
from cnnjob.nn.memory import Arena, Array
from cnnjob.nn.random import Purpose, Uniform
from cnnjob.nn.signals import Feed, Signal, Step, Task
from cnnjob.nn.workers import Workers, shares

ELEMENT_SHARDS = 8
SMALL_PRODUCT = 1 << 20
"""Multiplications of a matrix product that is not worth sharing."""

Arrays = dict[str, Array]


def gather(workers: Workers, arena: Arena, feed: Feed, x: Signal, scale: Array, shift: Array) -> Task:
    """Plan the batch: x = image·scale + shift for each channel, of the images that ``feed.order`` names."""
    N, H, W, C = x.value.shape
    dtype, pixels = x.value.dtype, (H, W, C)
    image_scale, image_shift = (
        arena.constant(np.broadcast_to(values, pixels).astype(dtype)) for values in (scale, shift)
    )

    def shard(number: int, part: slice) -> Task:
        images, values = arena.scratch(number, *(((part.stop - part.start, *pixels), of) for of in (np.uint8, dtype)))

        def load() -> None:
            first = feed.position[0] * N
            np.take(feed.images, feed.order[first + part.start : first + part.stop], 0, images, "clip")
            np.copyto(values, images)
            np.multiply(values, image_scale, out=values)
            np.add(values, image_shift, out=x.value[part])

        return load

    tasks = [shard(number, part) for number, part in enumerate(shares(N, ELEMENT_SHARDS))]
    return lambda: workers.run(tasks)


def dense(workers: Workers, arena: Arena, block: Dense, x: Signal, y: Signal, w: Arrays, dw: Arrays) -> Step:
    """Plan a dense block: y = activation(x w + b).

    Args:
        workers: the cores.
        arena: where buffers come from.
        block: its activation.
        x: (N, …), without a border.
        y: (N, U).
        w: ``weights`` (values of an image, U) and ``bias`` (U,).
        dw: their gradients, overwritten by ``backward``; empty when the block only evaluates.

    Returns:
        The two halves.
    """
    N, U = y.value.shape
    flat, weights, dtype = x.value.reshape(N, -1), w["weights"], y.value.dtype  # (N, V), (V, U)
    slope, mask = (arena.take((N, U) if dw else (0, 0), of) for of in (dtype, bool))
    dx = x.gradient.reshape(N, -1) if x.learns else None
    parts = shares(len(weights), ELEMENT_SHARDS if N * weights.size > SMALL_PRODUCT else 1)
    products = [arena.scratch(number, ((N, U), dtype))[0] for number in range(len(parts))]

    def product(part: slice, out: Array) -> Task:
        def forward() -> None:
            np.matmul(flat[:, part], weights[part], out=out)

        return forward

    def gradients(part: slice) -> Task:
        def backward() -> None:
            np.matmul(flat[:, part].T, slope, out=dw["weights"][part])
            if dx is not None:
                np.matmul(slope, weights[part].T, out=dx[:, part])

        return backward

    forwards = [product(part, out) for part, out in zip(parts, products, strict=True)]
    backwards = [gradients(part) for part in parts]

    def forward() -> None:
        workers.run(forwards)
        np.add(products[0], w["bias"], out=y.value)
        for array in products[1:]:
            np.add(y.value, array, out=y.value)
        if block.activation == "relu":
            np.maximum(y.value, 0, out=y.value)

    def backward() -> None:
        if block.activation == "relu":
            np.greater(y.value, 0, out=mask)
            np.multiply(y.gradient, mask, out=slope)
        else:
            np.copyto(slope, y.gradient)
        np.add.reduce(slope, axis=0, out=dw["bias"])
        workers.run(backwards)

    return Step(forward, backward)


def dropout(workers: Workers, arena: Arena, block: Dropout, x: Signal, y: Signal, feed: Feed, place: int) -> Step:
    """Plan a dropout block for training: y = x·m/(1−p), with m by address (seed, place, step, element).

    Args:
        workers: the cores.
        arena: where buffers come from.
        block: the probability p of m = 0.
        x: (N, …).
        y: the same shape.
        feed: seed and step.
        place: the layer's number in the network.

    Returns:
        The two halves.
    """
    factor = x.value.dtype.type(1 / (1 - block.probability))
    values = prod(x.value.shape[1:])

    def shard(part: slice) -> Step:
        first, count = part.start * values, (part.stop - part.start) * values
        blocks = -(-(first % 4 + count) // 4)
        words, uniforms = arena.take((6, blocks), np.uint64), arena.take((blocks, 4), np.float32)
        keep = arena.take((part.stop - part.start, *x.value.shape[1:]), x.value.dtype)
        uniform = Uniform(words[:2], words[2:], uniforms, first // 4)
        drawn = uniforms.reshape(-1)[first % 4 : first % 4 + count].reshape(keep.shape)

        def forward() -> None:
            uniform.draw(feed.seed, Purpose.DROPOUT + place, int(feed.position[1]))
            np.greater_equal(drawn, block.probability, out=keep, casting="unsafe")
            np.multiply(keep, factor, out=keep)
            np.multiply(x.value[part], keep, out=y.value[part])

        def backward() -> None:
            if x.learns:
                np.multiply(y.gradient[part], keep, out=x.gradient[part])

        return Step(forward, backward)

    steps = [shard(part) for part in shares(len(x.value), ELEMENT_SHARDS)]
    forwards, backwards = [step.forward for step in steps], [step.backward for step in steps]
    return Step(lambda: workers.run(forwards), lambda: workers.run(backwards))


def softmax(arena: Arena, logits: Signal) -> tuple[Array, Array, Task]:
    """Plan the softmax of (N, K) logits.

    Returns:
        Probabilities (N, K); log-sum-exp less the largest logit (N, 1); and the task that fills them.
    """
    N, K = logits.value.shape
    p, largest, total = (arena.take(shape, logits.value.dtype) for shape in ((N, K), (N, 1), (N, 1)))

    def run() -> None:
        np.maximum.reduce(logits.value, axis=1, keepdims=True, out=largest)
        np.subtract(logits.value, largest, out=p)
        np.exp(p, out=p)
        np.add.reduce(p, axis=1, keepdims=True, out=total)
        np.divide(p, total, out=p)

    return p, total, run


def cross_entropy(arena: Arena, feed: Feed, logits: Signal) -> Task:
    """Plan the loss: mean over the batch of −log softmax(logits)[label], its gradient, and the hits.

    The gradient with respect to the logits is (softmax − onehot(label)) / N (Bishop 2006, eq. 4.109).
    """
    N, K = logits.value.shape
    p, total, softmax_of = softmax(arena, logits)
    labels, guesses, rows = (arena.take((N,), np.int64) for _ in range(3))
    right = arena.take((N,), bool)
    chosen, per_image = (arena.take((N,), logits.value.dtype) for _ in range(2))
    flat, flat_gradient = logits.value.reshape(-1), logits.gradient.reshape(-1)

    def run() -> None:
        step = feed.position[0]
        feed.labels.take(feed.order[step * N : (step + 1) * N], out=labels, mode="clip")
        logits.value.argmax(axis=1, out=guesses)
        np.equal(guesses, labels, out=right)
        feed.hits[step] = np.count_nonzero(right)
        softmax_of()
        rows.fill(K)
        rows[0] = 0
        np.cumsum(rows, out=rows)  # where each image's outputs start
        np.add(rows, labels, out=labels)
        flat.take(labels, out=chosen, mode="clip")
        np.maximum.reduce(logits.value, axis=1, out=per_image)
        np.subtract(per_image, chosen, out=chosen)
        np.log(total[:, 0], out=per_image)
        np.add(per_image, chosen, out=per_image)
        feed.losses[step] = np.add.reduce(per_image, dtype=np.float64) / N
        np.divide(p, N, out=logits.gradient)
        flat_gradient[labels] -= logits.value.dtype.type(1 / N)

    return run
