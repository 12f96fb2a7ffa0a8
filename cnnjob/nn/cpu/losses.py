"""Softmax and loss in NumPy: probabilities, the loss, its gradient, and the number of correct predictions."""

from collections.abc import Sequence

import numpy as np

from cnnjob.nn.arena import Arena, Array
from cnnjob.nn.tensors import StepInputs, Task, Tensor


def softmax(arena: Arena, logits: Array) -> tuple[Array, Array, Task]:
    """Plan the softmax of (N, K) logits.

    Returns:
        Probabilities (N, K); sums of exp(logit − largest logit), (N, 1); and the task that computes both.
    """
    N, K = logits.shape
    p, largest, total = (arena.take(shape, logits.dtype) for shape in ((N, K), (N, 1), (N, 1)))

    def run() -> None:
        # Subtract the largest logit, so that no exponential overflows and the sum is at least 1.
        np.maximum.reduce(logits, axis=1, keepdims=True, out=largest)
        np.subtract(logits, largest, out=p)
        np.exp(p, out=p)
        np.add.reduce(p, axis=1, keepdims=True, out=total)
        np.divide(p, total, out=p)

    return p, total, run


def mean_outputs(
    arena: Arena, inputs: StepInputs, logits: Tensor, view_weights: Sequence[float]
) -> tuple[list[Task], Task]:
    """Plan the softmax of the weighted mean of the logits (N, K) over several views.

    The last task writes the result to ``inputs.probabilities`` and advances ``inputs.position`` to the next step.

    Returns:
        One task per view, to run after the view's forward pass, and the last task.
    """
    # A single view has weight 1: its logits are the mean.
    if len(view_weights) == 1:
        return [lambda: None], _write_probabilities(inputs, *softmax(arena, logits.value))
    mean, work = (arena.take(logits.value.shape, logits.value.dtype) for _ in range(2))

    def plan_view(number: int, weight: float) -> Task:
        def add_view() -> None:
            # The first view of a step overwrites the previous step's mean.
            if number == 0:
                np.multiply(logits.value, weight, out=mean)
            else:
                np.multiply(logits.value, weight, out=work)
                np.add(mean, work, out=mean)

        return add_view

    views = [plan_view(number, weight) for number, weight in enumerate(view_weights)]
    return views, _write_probabilities(inputs, *softmax(arena, mean))


def _write_probabilities(inputs: StepInputs, p: Array, _: Array, compute_softmax: Task) -> Task:
    """Return a task that writes the softmax to ``inputs.probabilities`` and advances ``inputs.position``."""

    def run() -> None:
        compute_softmax()
        first = int(inputs.position[0]) * len(p)
        inputs.probabilities[first : first + len(p)] = p
        inputs.position += 1

    return run


def cross_entropy(
    arena: Arena, inputs: StepInputs, logits: Tensor, label_smoothing: float, *, mixes: bool = False
) -> Task:
    """Plan the loss, its gradient, and the number of correct predictions.

    The loss is the batch mean of −Σ t log softmax(logits), with the targets t = (1 − ε)·onehot(label) + ε/K, where ε is
    ``label_smoothing`` (Szegedy et al. 2016, §7). Its gradient with respect to the logits is (softmax − t) / N (Bishop
    2006, eq. 4.109).

    If ``mixes``, onehot(label) is replaced by share·onehot(label) + (1 − share)·onehot(label of the previous image),
    with the share of the step in ``inputs.mixup`` (Zhang et al. 2018, eq. 2). A prediction then counts as correct if it
    is the label with the larger share.
    """
    N, K = logits.value.shape
    p, total, compute_softmax = softmax(arena, logits.value)
    labels, others, predictions, rows = (arena.take((N,), np.int64) for _ in range(4))
    correct, dtype = arena.take((N,), bool), logits.value.dtype.type
    chosen, spread, per_image = (arena.take((N,), dtype) for _ in range(3))
    flat, flat_gradient = logits.value.reshape(-1), logits.gradient.reshape(-1)

    def run() -> None:
        step = inputs.position[0]
        inputs.labels.take(inputs.order[step * N : (step + 1) * N], out=labels, mode="clip")
        logits.value.argmax(axis=1, out=predictions)
        share = float(inputs.mixup[step]) if mixes else 1.0
        others[0], others[1:] = labels[-1], labels[:-1]
        np.equal(predictions, labels if share >= 1 / 2 else others, out=correct)
        inputs.n_correct[step] = np.count_nonzero(correct)
        compute_softmax()
        # 0, K, 2K, …: the index of each image's first logit (np.arange would allocate), plus the label.
        rows.fill(K)
        rows[0] = 0
        np.cumsum(rows, out=rows)
        np.add(rows, labels, out=labels)
        np.add(rows, others, out=others)
        flat.take(labels, out=chosen, mode="clip")
        if mixes:
            flat.take(others, out=spread, mode="clip")
            np.multiply(chosen, share, out=chosen)
            np.multiply(spread, 1 - share, out=spread)
            np.add(chosen, spread, out=chosen)
        if label_smoothing:
            np.multiply(chosen, 1 - label_smoothing, out=chosen)
            np.add.reduce(logits.value, axis=1, out=spread)
            np.multiply(spread, label_smoothing / K, out=spread)
            np.add(chosen, spread, out=chosen)  # Σ t·logits
        # −Σ t log softmax = log Σ exp(logits − largest) + largest − Σ t·logits, without the logarithm of a softmax that
        # may have underflowed to 0.
        np.maximum.reduce(logits.value, axis=1, out=per_image)
        np.subtract(per_image, chosen, out=chosen)
        np.log(total[:, 0], out=per_image)
        np.add(per_image, chosen, out=per_image)
        inputs.losses[step] = np.add.reduce(per_image, dtype=np.float64) / N
        if label_smoothing:
            np.subtract(p, label_smoothing / K, out=p)
        np.divide(p, N, out=logits.gradient)
        flat_gradient[labels] -= dtype(share * (1 - label_smoothing) / N)
        if mixes:
            flat_gradient[others] -= dtype((1 - share) * (1 - label_smoothing) / N)

    return run
