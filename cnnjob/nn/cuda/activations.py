"""Activations on a device, and the sums at the end of residual blocks."""

from collections.abc import Sequence
from math import prod

from cnnjob.nn.arena import Array
from cnnjob.nn.blocks import Activation
from cnnjob.nn.cuda.device_api import Device, bordered, each, row_length
from cnnjob.nn.operations import Activate
from cnnjob.nn.tensors import ForwardBackward, Task, Tensor

ACTIVATIONS = {"none": 0, "relu": 1, "gelu": 2, "silu": 3}
"""Code of each activation in the kernels."""


def activate(device: Device, block: Activate, x: Tensor, y: Tensor) -> ForwardBackward:
    """Plan the activation of a tensor (N, …)."""
    return _plan_activation(device, [x.value], x.gradient, y, block.activation)


def residual_add(device: Device, body: Tensor, shortcut: Tensor, y: Tensor, kind: Activation) -> ForwardBackward:
    """Plan the end of a residual block: y = activation(body + shortcut), all (N, H, W, C).

    The backward task writes the gradient of the sum to ``body.gradient``; the shortcut's gradient is the same.
    """
    return _plan_activation(device, [body.value, shortcut.value], body.gradient, y, kind)


def _plan_activation(
    device: Device, terms: Sequence[Array], d_sum: Array, y: Tensor, kind: Activation
) -> ForwardBackward:
    """Plan y = activation(sum), where the sum has one or two terms, and the gradient with respect to the sum."""
    N, *inner = y.value.shape
    # A single term is passed twice; given the number of terms, the kernel reads it only once.
    source = *bordered(terms[0]), *bordered(terms[-1]), len(terms)
    settings = row_length(y.value.shape), ACTIVATIONS[kind]
    forward = each(device, "activate", N, prod(inner), *source, *bordered(y.value), *settings)
    if not y.trainable:
        return ForwardBackward(forward, forward)
    gradients = *bordered(y.gradient), *bordered(d_sum)
    return ForwardBackward(forward, each(device, "activate_back", N, prod(inner), *source, *gradients, *settings))


def accumulate(device: Device, source: Array, target: Array) -> Task:
    """Plan target ← target + source, both (N, …)."""
    N, *inner = target.shape
    arrays = *bordered(source), *bordered(target), row_length(target.shape)
    return each(device, "accumulate", N, prod(inner), *arrays)
