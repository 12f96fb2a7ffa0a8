"""torch as judge: whole networks' forward, loss, every gradient, and ten training steps."""

import re
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, assume, given, reject, settings
from hypothesis import strategies as st

from cnnjob import nn
from cnnjob.jobs.job import Job
from cnnjob.nn.cpu.winograd import tile_side
from cnnjob.training.build import build_network, build_optimiser
from tests.nn.bench import distance

torch = pytest.importorskip("torch", reason="needs torch: pip install -e '.[judge]'")

from cnnjob.checks.benchmarks.torch_networks import fill, from_torch_order, module_of, optimiser_like, tensors  # noqa: E402
from tests.nn.torch_muon import judge_like  # noqa: E402

STEPS, RATE = 10, 0.002
COUNT = 8
"""Images of a step."""
ZERO = 1e-2
"""Of the network's largest gradient; a tensor's below it may be nothing but noise, as that of a shift which the next
normalisation takes away."""
ENOUGH = 128
"""Values of a channel that a normalisation needs, for its gradient to be more than noise."""
TOLERANCE = {np.float32: 1e-4, np.float64: 1e-10}


class Match:
    """One network, ours and torch's, on the same images."""

    def __init__(
        self,
        network: nn.Network,
        optimiser: nn.Optimiser,
        dtype: Any,
        count: int,
        smoothing: float = 0.0,
        seed: int = 0,
        dark: float = 0.0,
    ) -> None:
        self.network, self.tolerance, self.smoothing = network, TOLERANCE[dtype], smoothing
        self.clip_norm = optimiser.clip_norm
        random, shape = np.random.default_rng(seed), network.image_shape
        images = random.integers(0, 256, (STEPS * count, *shape), np.uint8)
        labels = random.integers(0, network.classes, STEPS * count)
        images[:, : round(dark * shape[0])] = 0
        backend, self.pixels = nn.NumPyBackend(nn.Workers(2), dtype), nn.PixelNormalisation.unit(shape[-1])
        self.state = nn.State(network, optimiser, backend)
        self.state.initialise(network, seed, images, self.pixels)
        self.inputs = nn.build_step_inputs(backend, images, labels, STEPS, count, 0)
        self.inputs.order[:], self.inputs.learning_rates[:] = np.arange(STEPS * count), RATE
        options = nn.TrainingOptions(None, smoothing)
        self.plan = nn.TrainingPlan(backend, network, self.state, optimiser, self.inputs, self.pixels, count, options)
        self.evaluation = nn.EvaluationPlan(backend, network, self.state, self.pixels, count)
        self.module = module_of(torch, network.layers).to(torch.from_numpy(np.zeros(1, dtype)).dtype)
        fill(torch, self.module, network, self.state.weights)
        self.judge = judge_like(optimiser, self.module, network.layers, RATE)
        self.x = (torch.from_numpy(images).permute(0, 3, 1, 2).to(next(self.module.parameters()).dtype)) / 255
        self.labels, self.count = torch.from_numpy(labels), count

    def step(self, step: int) -> None:
        """One training step of both, and what they say of loss and gradients."""
        part = slice(step * self.count, (step + 1) * self.count)
        self.module.train()
        self.judge.zero_grad()
        outputs = self.module(self.x[part])
        loss = torch.nn.functional.cross_entropy(outputs, self.labels[part], label_smoothing=self.smoothing)
        loss.backward()
        if self.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.clip_norm)
        self.plan.step()
        assert abs(self.inputs.losses[step] - loss.item()) <= self.tolerance * abs(loss.item()), step
        self.compare_gradients()
        self.judge.step()

    def compare_gradients(self) -> None:
        gradients = self.state.layout.views(self.state.gradients)
        zero = ZERO * max(np.abs(array).max() for array in gradients.values())
        for name, tensor, axes in tensors(self.module, self.network.layers):
            if tensor.grad is not None:
                found, wanted = gradients[name], from_torch_order(tensor.grad, axes, self.shape_of(name))
                assert np.abs(found - wanted).max() <= self.tolerance * max(np.abs(wanted).max(), zero), name

    def compare_state(self) -> None:
        """Weights and running statistics, and what an evaluation makes of them."""
        for name, tensor, axes in tensors(self.module, self.network.layers):
            found, wanted = self.state.weights[name], from_torch_order(tensor, axes, self.shape_of(name))
            assert np.abs(found - wanted).max() <= self.tolerance * max(np.abs(wanted).max(), ZERO), name
        self.module.eval()
        expected = self.module(self.x).softmax(1).detach().numpy()
        found = self.evaluation.probabilities(self.inputs.images, np.arange(len(self.x)))
        assert distance(found, expected) < self.tolerance

    def compare_inspection(self) -> None:
        """Outputs of the convolutions in an evaluation, and the gradient of a logit with respect to the pixels."""
        images, classes = self.inputs.images[: self.count], np.arange(self.count) % self.network.classes
        plan = nn.InspectionPlan(self.network, self.state.weights, self.pixels, self.count, self.state.parameters.dtype)
        maps, gradient = plan.run(images, classes)
        self.module.eval()
        outputs = dict(self.torch_outputs())
        x = self.x[: self.count].clone().requires_grad_()
        self.module(x)[torch.arange(self.count), torch.from_numpy(classes)].sum().backward()
        expected = x.grad.permute(0, 2, 3, 1).numpy()
        assert np.abs(gradient - expected).max() <= self.tolerance * np.abs(expected).max()
        assert maps.keys() == outputs.keys()
        for name, found in maps.items():
            assert distance(found, outputs[name].permute(0, 2, 3, 1).numpy()) < self.tolerance, name

    def torch_outputs(self) -> Iterator[tuple[str, Any]]:
        """What each convolution of the network gives for the first images, with its layer's name."""
        seen: dict[str, Any] = {}
        convolutions = {
            name.replace(".body.", "/").replace(".projection.", "/"): module
            for name, module in self.module.named_modules()
            if re.search(r"(^|\.)(conv\d+|projection\.projection)$", name)
        }
        hooks = [
            module.register_forward_hook(lambda *given, name=name: seen.update({name: given[-1].detach().clone()}))
            for name, module in convolutions.items()
        ]
        self.module(self.x[: self.count])
        for hook in hooks:
            hook.remove()
        return iter(seen.items())

    def shape_of(self, name: str) -> tuple[int, ...]:
        return next(layer.input_shape for layer in self.network.layers if name.startswith(f"{layer.name}/"))


BASELINES = [("mnist-baseline", (28, 28, 1), 16), ("cifar10-baseline", (32, 32, 3), 16), ("cifar10", (32, 32, 3), 8)]


@pytest.mark.parametrize(("name", "shape", "count"), BASELINES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_networks_of_the_jobs_agree(name: str, shape: tuple[int, int, int], count: int, dtype: Any) -> None:
    job = Job.load(name)
    layers = build_network(job.model, shape, 10).layers
    network = nn.Network.build([layer.block for layer in layers if not isinstance(layer.block, nn.Dropout)], shape)
    # On MNIST most windows are tied; with Winograd's method, rounding decides which of the tied pixels is the largest.
    dark = 0 if dtype == np.float32 and name == "cifar10" else 1 / 3
    match = Match(network, build_optimiser(job.train), dtype, count, dark=dark)
    for step in range(3):
        match.step(step)
    match.compare_inspection()


@st.composite
def convs(draw: st.DrawFn) -> nn.Conv:
    """A convolution with all that may follow it; a bias before a normalisation has no gradient to be compared."""
    norm = draw(
        st.none()
        | st.builds(
            nn.BatchNorm,
            momentum=st.sampled_from([0.1, 0.4]),
            eps=st.sampled_from([1e-3, 1e-2]),
            scale=st.booleans(),
            learning_rate_factor=st.sampled_from([1.0, 4.0]),
        )
    )
    pool = draw(st.sampled_from([1, 2, 3]))
    order = st.permutations(["norm", "activation", "pool"]).map(tuple)
    kernel = draw(st.integers(2 if norm else 1, 4))  # one value, normalised, has no gradient to be compared
    return nn.Conv(
        filters=draw(st.integers(2, 9)),
        kernel=kernel,
        stride=draw(st.sampled_from([1, 1, 2])),
        pad=draw(st.integers(0, min(2, kernel - 1))),
        pool=pool,
        activation=draw(st.sampled_from(["relu", "gelu", "silu", "none"])),
        batch_norm=norm,
        order=draw(order),  # type: ignore[arg-type]
        bias=norm is None and draw(st.booleans()),
        init=draw(st.sampled_from(["he", "dirac"])) if pool == 1 else "he",  # pixels that pass as they are often tie
        frozen=draw(st.sampled_from([False, False, True])),
        learning_rate_factor=draw(st.sampled_from([1.0, 2.0])),
    )


@st.composite
def networks(draw: st.DrawFn) -> nn.Network:
    """A network of every kind of block but dropout."""
    shape = draw(st.integers(8, 13)), draw(st.integers(8, 13)), draw(st.integers(1, 3))
    blocks: list[nn.Block] = draw(st.lists(convs(), min_size=1, max_size=2))
    if draw(st.booleans()):
        width, stride = draw(st.integers(2, 6)), draw(st.sampled_from([1, 2]))
        norm = draw(st.none() | st.just(nn.BatchNorm(eps=1e-3)))
        first = nn.Conv(filters=width, batch_norm=norm, bias=norm is None, stride=stride)
        start = replace(first, pool=draw(st.sampled_from([1, 2, 3])), pad=draw(st.sampled_from([0, 1])))
        body = start, replace(first, stride=1, activation="none")
        blocks.append(nn.Residual(body, draw(st.sampled_from(["relu", "gelu", "silu", "none"]))))
    if draw(st.booleans()):
        blocks.append(nn.GlobalPool(draw(st.sampled_from(["mean", "max"]))))
    if draw(st.booleans()):
        blocks.append(nn.Dense(units=5, activation=draw(st.sampled_from(["relu", "gelu", "silu", "none"]))))
    scale = draw(st.sampled_from([1.0, 0.5]))
    head = nn.Dense(units=4, activation="none", bias=draw(st.booleans()), output_scale=scale)
    try:
        network = nn.Network.build([*blocks, head], shape)
    except ValueError:
        reject()
    normalised = [layer for layer in network.layers if isinstance(layer.block, nn.Conv) and layer.block.batch_norm]
    assume(all(COUNT * prod(layer.output_shape[:2]) >= ENOUGH for layer in normalised))
    return network


OPTIMISERS: list[nn.Optimiser] = [
    nn.Sgd(0.9, 1e-3),
    nn.Sgd(0.8, 5e-4, nesterov=True),
    nn.Sgd(),
    nn.AdamW(0.9, 0.01, eps=1e-3),
    nn.Adam(0.8, 0.01, eps=1e-3, clip_norm=0.3),
    nn.Sgd(0.9, 1e-3, clip_norm=1.0),
]


@settings(max_examples=50, deadline=None, phases=[Phase.generate])  # to find the smallest takes minutes
@given(networks(), st.sampled_from(OPTIMISERS), st.sampled_from([0.0, 0.2]), st.integers(0, 999))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_drawn_networks_agree(
    dtype: Any, network: nn.Network, optimiser: nn.Optimiser, smoothing: float, seed: int
) -> None:
    """Forward, loss and every gradient at each of ten training steps, and weights and running statistics after them."""
    largest = [layer for layer in network.layers if layer.block == nn.GlobalPool("max")]
    assume(dtype == np.float64 or not largest)  # of two that are equal but for rounding, either may be the largest
    match = Match(network, optimiser, dtype, COUNT, smoothing, seed)
    for step in range(STEPS):
        match.step(step)
    match.compare_state()


MUON = nn.Muon(0.9, 0.1, first_layer=True, others=nn.Sgd(0.9, 1e-3, nesterov=True), others_factor=0.5)
NORMALISED = nn.Muon(0.6, 0.0, ns_steps=3, normalise_weights=True, classifier=True, others=nn.AdamW(eps=1e-3))


@pytest.mark.parametrize("optimiser", [MUON, NORMALISED])
def test_a_network_trained_by_muon_agrees(optimiser: nn.Muon) -> None:
    norm = nn.BatchNorm(eps=1e-3)
    blocks: list[nn.Block] = [
        nn.Conv(filters=6, batch_norm=norm, bias=False, activation="gelu"),
        nn.Residual((nn.Conv(filters=20, stride=2, bias=False, batch_norm=norm),), "gelu"),
        nn.Conv(filters=5, kernel=2, activation="gelu"),
        nn.Dense(units=7, activation="gelu"),
        nn.Dense(units=4, activation="none"),
    ]
    match = Match(nn.Network.build(blocks, (9, 8, 3)), optimiser, np.float64, COUNT)
    with pytest.raises(NotImplementedError):
        optimiser_like(torch, optimiser, match.module, match.network.layers, RATE)
    for step in range(STEPS):
        match.step(step)
    match.compare_state()


@st.composite
def wide_networks(draw: st.DrawFn) -> nn.Network:
    """Networks whose convolutions but the first suit Winograd's method, with smooth activations.

    Among so many values some lie so near to a kink of ReLU or to a tie in a window that rounding decides.
    """
    shape = draw(st.integers(10, 13)), draw(st.integers(10, 13)), 3
    activation: Any = st.sampled_from(["gelu", "silu"])
    filters = st.integers(16, 96)
    norms = [None, *draw(st.lists(st.none() | st.just(nn.BatchNorm(eps=1e-2)), min_size=1, max_size=2))]
    # A bias has next to no gradient if a normalisation follows its convolution or the next one.
    biased = [norm is None and following is None for norm, following in zip(norms, [*norms[1:], None], strict=True)]
    blocks: list[nn.Block] = [
        nn.Conv(draw(filters), pad=draw(st.integers(1, 2)), activation=draw(activation), batch_norm=norm, bias=bias)
        for norm, bias in zip(norms, biased, strict=True)
    ]
    if draw(st.booleans()):
        body = nn.Conv(draw(filters), activation=draw(activation)), nn.Conv(draw(filters), activation="none")
        blocks.append(nn.Residual(body, draw(activation)))
    return nn.Network.build([*blocks, nn.GlobalPool("mean"), nn.Dense(units=4, activation="none")], shape)


@settings(max_examples=50, deadline=None, phases=[Phase.generate])
@given(wide_networks(), st.sampled_from(OPTIMISERS), st.integers(0, 999))
def test_wide_networks_agree(network: nn.Network, optimiser: nn.Optimiser, seed: int) -> None:
    """With Winograd's method, in float32."""
    for layer in network.layers[1:]:
        if isinstance(layer.block, nn.Conv):
            assert tile_side(layer.block, layer.input_shape[-1], (COUNT, *layer.output_shape), np.float32)
    match = Match(network, optimiser, np.float32, COUNT, seed=seed)
    for step in range(3):
        match.step(step)
    match.compare_state()


@settings(max_examples=50, deadline=None, phases=[Phase.generate])
@given(networks(), st.integers(0, 999))
def test_inspections_of_drawn_networks_agree(network: nn.Network, seed: int) -> None:
    """What a convolution gives in an evaluation, and the gradient of the pixels, after a step of training."""
    match = Match(network, nn.Sgd(0.9), np.float64, COUNT, seed=seed)
    match.step(0)
    match.compare_inspection()


@pytest.mark.parametrize("name", ["mnist", "cifar10-resnet"])
def test_inspections_of_networks_with_dropout_and_residual_blocks_agree(name: str) -> None:
    job = Job.load(name)
    network = build_network(job.model, (28, 28, 1) if name == "mnist" else (16, 16, 3), 10)
    Match(network, build_optimiser(job.train), np.float64, 4).compare_inspection()


@pytest.mark.parametrize(
    "optimiser",
    [nn.Sgd(0.9, 1e-3, nesterov=True, clip_norm=0.05), nn.Sgd(0.0, 0.1), nn.AdamW(0.9, 0.01, eps=1e-3, clip_norm=0.1)],
)
def test_a_bias_that_is_trained_for_one_epoch_is_one_that_then_has_no_gradient(optimiser: nn.Optimiser) -> None:
    """As airbench does it: requires_grad of the whitening block's bias is False after some epochs."""
    whitening = nn.Conv(4, 2, pad=0, init="whitening", frozen=True, activation="gelu", bias_epochs=1)
    head = nn.Dense(units=4, activation="none")
    network = nn.Network.build([whitening, nn.Dense(units=5, bias_epochs=1), head], (8, 8, 2))
    match = Match(network, optimiser, np.float64, COUNT)
    for step in range(STEPS):
        match.step(step)
    names = {"conv1/bias", "dense1/bias"}
    before = {name: match.state.weights[name].copy() for name in names}
    for name, tensor, _ in tensors(match.module, network.layers):
        tensor.requires_grad_(tensor.requires_grad and name not in names)
    match.inputs.position[0] = 0  # the next epoch
    for step in range(3):
        match.step(step)
    match.compare_state()
    for name in names:
        np.testing.assert_array_equal(match.state.weights[name], before[name])
        assert before[name].any()


@pytest.mark.parametrize("optimiser", [nn.Sgd(0.95, 1e-3, nesterov=True), nn.Adam(0.9), nn.AdamW(0.9, 0.01)])
def test_a_cycle_of_rate_and_momentum_is_that_of_torch(optimiser: nn.Optimiser) -> None:
    network = nn.Network.build([nn.Conv(3, pool=2), nn.Dense(units=4, activation="none")], (8, 8, 2))
    match = Match(network, optimiser, np.float64, COUNT)
    schedule = nn.Schedule(0.02, "one_cycle", 0.35, 0.04, 1e-3, base_momentum=0.6)
    match.inputs.learning_rates[:] = schedule.rates(range(STEPS), STEPS)
    match.inputs.momentum_drop[:] = schedule.momentum_drops(range(STEPS), STEPS, optimiser.momentum)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        match.judge,
        0.02,
        STEPS,
        pct_start=0.35,
        base_momentum=0.6,
        max_momentum=optimiser.momentum,
        final_div_factor=40,
    )
    for step in range(STEPS):
        match.step(step)
        if step < STEPS - 1:
            cycle.step()
    match.compare_state()
