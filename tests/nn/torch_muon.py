"""Muon in torch, for convolutions too: what airbench94_muon and Muon's published code compute, in full precision."""

from collections.abc import Sequence
from typing import Any

import torch

from cnnjob import nn
from cnnjob.checks.benchmarks.torch_networks import optimiser_like, tensors
from cnnjob.nn.blocks import Layer


class TorchMuon:
    """Updates the weights of layers, but for the first and the last unless the optimiser has them too."""

    def __init__(self, optimiser: nn.Muon, module: Any, layers: Sequence[Layer], learning_rate: float) -> None:
        self.optimiser = optimiser
        self.others = optimiser_like(torch, optimiser.others, module, layers, learning_rate * optimiser.others_factor)
        weights = [tensor for _, tensor, _ in tensors(module, layers) if tensor.ndim > 1]
        left_out = [*weights[: 1 - optimiser.first_layer], *weights[len(weights) - 1 + optimiser.classifier :]]
        chosen = {id(tensor) for tensor in weights} - {id(tensor) for tensor in left_out}
        groups = self.others.param_groups
        self.groups = [group for group in groups if id(group["params"][0]) in chosen]
        self.others.param_groups = [group for group in groups if id(group["params"][0]) not in chosen]
        for group in self.groups:
            group["lr"] /= optimiser.others_factor
            group["velocity"] = torch.zeros_like(group["params"][0])

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [*self.groups, *self.others.param_groups]

    def zero_grad(self) -> None:
        for group in self.param_groups:
            group["params"][0].grad = None

    def step(self) -> None:
        self.others.step()
        with torch.no_grad():
            self._step()

    def _step(self) -> None:
        optimiser = self.optimiser
        for group in self.groups:
            [weight], velocity = group["params"], group["velocity"]
            gradient = weight.grad
            velocity.mul_(optimiser.momentum).add_(gradient)
            momentum = gradient.add(velocity, alpha=optimiser.momentum) if optimiser.nesterov else velocity
            matrix = momentum.reshape(len(momentum), -1)  # (F, C·K·K) or (outputs, inputs)
            update = polynomial(matrix, optimiser.ns_steps)
            if optimiser.normalise_weights:
                weight.mul_(len(weight) ** 0.5 / weight.norm())
            weight.mul_(1 - group["lr"] * optimiser.weight_decay)
            weight.sub_(group["lr"] * scale(optimiser, matrix) * update.reshape(weight.shape))


def polynomial(matrix: Any, steps: int) -> Any:
    """Move singular values towards 1: s ← 3.4445s − 4.775s³ + 2.0315s⁵, by the decomposition itself."""
    u, values, v = torch.linalg.svd(matrix.double() / (matrix.norm() + 1e-7), full_matrices=False)
    for _ in range(steps):
        values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
    return ((u * values) @ v).to(matrix.dtype)


def scale(optimiser: nn.Muon, matrix: Any) -> float:
    outputs, inputs = matrix.shape
    if optimiser.adjust_learning_rate == "none":
        return 1.0
    return float(
        max(1, outputs / inputs) ** 0.5
        if optimiser.adjust_learning_rate == "original"
        else 0.2 * max(outputs, inputs) ** 0.5
    )


def judge_like(optimiser: nn.Optimiser, module: Any, layers: Sequence[Layer], learning_rate: float) -> Any:
    """A torch optimiser with the settings of ours, Muon included."""
    if isinstance(optimiser, nn.Muon):
        return TorchMuon(optimiser, module, layers, learning_rate)
    return optimiser_like(torch, optimiser, module, layers, learning_rate)
