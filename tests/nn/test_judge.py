"""torch as judge: the baseline networks' forward, loss, every gradient, and training steps."""

from typing import Any

import numpy as np
import pytest

from cnnjob import nn
from cnnjob.bindings import network_of, optimiser_of
from cnnjob.jobs import Job
from tests.nn.bench import distance

torch = pytest.importorskip("torch", reason="needs torch: pip install 'cnnjob[judge]'")

CASES = [("mnist-baseline", (28, 28, 1), 64), ("cifar10-baseline", (32, 32, 3), 128), ("cifar10", (32, 32, 3), 16)]


def functional(network: nn.Network, weights: dict[str, Any], images: Any) -> Any:
    """The network's outputs by torch's own operations; dropout is left out."""
    F, x = torch.nn.functional, images.permute(0, 3, 1, 2)
    for layer in network.layers:
        block = layer.block
        if isinstance(block, nn.Dropout):
            continue
        w, b = weights[f"{layer.name}/weights"], weights[f"{layer.name}/bias"]
        if isinstance(block, nn.Conv):
            x = F.conv2d(x, w.permute(3, 2, 0, 1), b, stride=block.stride, padding=block.pad)
        else:
            x = (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).flatten(1) @ w + b
        x = F.relu(x) if block.activation == "relu" else x
        x = F.max_pool2d(x, block.pool) if isinstance(block, nn.Conv) else x
    return x


@pytest.mark.parametrize(("name", "shape", "count"), CASES)
@pytest.mark.parametrize(("dtype", "tolerance", "steps"), [(np.float32, 1e-5, 1), (np.float64, 1e-12, 3)])
def test_forward_loss_gradients_and_steps_agree(
    name: str, shape: tuple[int, int, int], count: int, dtype: Any, tolerance: float, steps: int
) -> None:
    job = Job.load(name)
    blocks = [block for block in network_of(job.model, shape, 10).layers if not isinstance(block.block, nn.Dropout)]
    network = nn.Network.build([layer.block for layer in blocks], shape)
    backend, optimiser = nn.NumPyBackend(nn.Workers(2), dtype), optimiser_of(job.train)
    state = nn.State(network, optimiser, backend)
    state.initialise(network, 1)
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (count, *shape), np.uint8), random.integers(0, 10, count)
    images[:, : shape[0] // 3] = 0  # as on MNIST, where most pooling windows are tied
    feed = nn.training_feed(backend, images, labels, 3, count, 0)
    feed.order[:], feed.learning_rates[:] = np.tile(np.arange(count), 3), job.train.learning_rate
    pixels = nn.Pixels.unit(shape[-1])
    plan = nn.TrainingPlan(backend, network, state, optimiser, feed, pixels, count)
    evaluation = nn.EvaluationPlan(backend, network, state, pixels, count)

    weights = {key: torch.tensor(view.copy(), requires_grad=True) for key, view in state.weights.items()}
    factors = {key: parameter.learning_rate_factor for key, parameter in network.parameters.items()}
    groups = [
        {
            "params": [weight],
            "lr": job.train.learning_rate * factors[key],
            "weight_decay": job.train.weight_decay * key.endswith("weights"),
        }
        for key, weight in weights.items()
    ]
    judge = torch.optim.SGD(groups, momentum=job.train.momentum)
    x = torch.tensor(images).to(weights["classifier/bias"].dtype) / 255
    for step in range(steps):
        outputs = functional(network, weights, x)
        assert (
            distance(evaluation.probabilities(images, np.arange(count)), outputs.softmax(1).detach().numpy())
            < tolerance * 3**step
        )
        judge.zero_grad()
        loss = torch.nn.functional.cross_entropy(outputs, torch.tensor(labels))
        loss.backward()
        plan.step()
        assert abs(feed.losses[step] - loss.item()) < tolerance * 3**step * abs(loss.item())
        for key, gradient in state.layout.views(state.gradients).items():
            penalty = job.train.weight_decay * weights[key].detach() * key.endswith("weights")
            assert distance(gradient, (weights[key].grad + penalty).numpy()) < tolerance * 3**step, (step, key)
        judge.step()
