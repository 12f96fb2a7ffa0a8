"""``examples.npz``: the images, what the network makes of them, and the size of the file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnnjob import nn
from cnnjob.data.dataset import Dataset
from cnnjob.jobs.job import Job
from cnnjob.nn.random import Purpose, generator
from cnnjob.runs import metrics, npz
from cnnjob.runs.run import Run
from cnnjob.training.build import build_network, build_optimiser
from cnnjob.training.inference import examples
from cnnjob.training.inference.classifier import Classifier, load_classifier
from cnnjob.training.inference.evaluation import evaluate
from tests.helpers.toy_jobs import CLASSES, dataset, trained


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(tmp_path_factory.mktemp("made")).run


def unpacked(maps: np.ndarray) -> np.ndarray:
    return np.stack([maps >> 4, maps & 15], axis=2).reshape(len(maps), -1, *maps.shape[2:])


def test_a_finished_run_has_examples(run: Run) -> None:
    found, predictions = npz.read_arrays(run.examples_file), run.predictions()
    images, _ = Dataset.open(Path(run.data()["path"])).load("test")
    expected = metrics.example_images(predictions["probabilities"], predictions["labels"], examples.MAX_EXAMPLES)
    assert found["indices"].tolist() == expected.tolist()
    assert (found["images"] == images[expected]).all()
    assert found["saliency"].shape == (len(expected), 6, 6)
    assert found["saliency"].dtype == np.uint8
    assert (found["saliency"].max(axis=(1, 2)) == 255).sum() >= 4  # all ReLUs may be off for one
    assert {name: array.shape for name, array in found.items() if "/" in name} == {"maps/conv1": (4, 2, 3, 3)}
    assert found["filters"].tolist() == [[0, 1, 2, 3] + 12 * [-1]]


def test_they_are_what_the_network_computes(run: Run) -> None:
    found, classifier = npz.read_arrays(run.examples_file), load_classifier(run)
    images, classes = found["images"], metrics.predicted(run.predictions()["probabilities"][found["indices"]])
    weights = classifier.state.weights
    plan = nn.InspectionPlan(classifier.network, weights, classifier.pixels, len(images))
    maps, _ = plan.run(images, classes)
    noise = generator(0, Purpose.SALIENCY).normal(0, examples.NOISE, (examples.NOISY_COPIES, 1, 6, 6, 1))
    noisy = np.clip(images + noise, 0, 255).round().astype(np.uint8)
    steepest = np.abs(np.mean([plan.run(copies, classes)[1] for copies in noisy], axis=0)).max(axis=-1)
    white = np.percentile(steepest, 99, axis=(1, 2), keepdims=True)
    assert np.abs(found["saliency"] - 255 * np.minimum(steepest / np.maximum(white, 1e-30), 1)).max() <= 0.51
    first = maps["conv1"][:4].transpose(0, 3, 1, 2)
    low, high = first.min(axis=(2, 3), keepdims=True), first.max(axis=(2, 3), keepdims=True)
    share = np.where(high > low, (first - low) / np.where(high > low, high - low, 1), 0)
    assert np.abs(unpacked(found["maps/conv1"]) - 15 * share).max() <= 0.51
    assert found["constant"].tolist() == [np.count_nonzero((high == low).all(axis=0))]


def test_an_evaluation_on_the_own_test_images_restores_them(run: Run, tmp_path: Path) -> None:
    own, before = Dataset.open(Path(run.data()["path"])), run.examples_file.read_bytes()
    run.examples_file.unlink()
    evaluate(run, own, "train")
    assert not run.examples_file.exists()
    evaluate(run, dataset(tmp_path, images=100))
    assert not run.examples_file.exists()
    evaluate(run, own)
    assert run.examples_file.read_bytes() == before


def arrays_of(network: nn.Network, images: np.ndarray) -> dict[str, np.ndarray]:
    """The examples of a network with its initial weights."""
    backend, pixels = nn.NumPyBackend(nn.Workers(1)), nn.PixelNormalisation.unit(images.shape[-1])
    state = nn.State(network, build_optimiser(Job.load("mnist").train), backend)
    state.initialise(network, 0, images, pixels)
    plan = nn.EvaluationPlan(backend, network, state, pixels, len(images))
    classifier = Classifier(network, state, plan, pixels)
    probabilities = classifier.probabilities(images)
    return examples.example_arrays(classifier, probabilities, images, np.arange(len(images)) % network.classes)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("name", ["cifar10-small", "cifar10-resnet"])
def test_the_file_is_small_even_for_deep_networks(name: str) -> None:
    job = Job.load(name)
    body = [nn.Conv(16, batch_norm=nn.BatchNorm()), nn.Conv(16, batch_norm=nn.BatchNorm(), activation="none")]
    networks = [build_network(job.model, (32, 32, 3), 10)]
    if name == "cifar10-resnet":
        deep: Any = [nn.Conv(16), *(nn.Residual(tuple(body)) for _ in range(9)), nn.Dense(10, "none")]
        networks.append(nn.Network.build(deep, (32, 32, 3)))
    for network in networks:
        found = arrays_of(network, noise(12, 32, 32, 3))
        assert len(npz.arrays_to_bytes(found)) <= 70_000
        assert all(array.shape[0] >= 2 for key, array in found.items() if key.startswith("maps/"))


def test_large_and_narrow_images_are_reduced() -> None:
    blocks: list[nn.Block] = [nn.Conv(3, stride=2, pool=2), nn.Dense(4, activation="none")]
    images = noise(5, 100, 7, 3)
    found = arrays_of(nn.Network.build(blocks, images.shape[1:]), images)
    assert found["images"].shape[1:] == (34, 3, 3)
    first = images[found["indices"][0]]
    assert found["images"][0, 0, 0].tolist() == first[:3, :3].mean(axis=(0, 1)).round().tolist()
    assert found["saliency"].shape[1:] == (34, 3)
    assert found["maps/conv1"].shape[1:] == (2, 25, 2)


def test_a_network_without_convolutions_or_without_gradients_has_examples() -> None:
    dense = nn.Network.build([nn.Dense(len(CLASSES), "none", init=0.0)], (6, 6, 1))
    found = arrays_of(dense, noise(9, 6, 6, 1))
    assert found.keys() == {"indices", "images", "saliency", "filters", "constant"}
    assert not found["saliency"].any()


def test_the_maps_that_vary_most_are_kept_and_dead_filters_counted() -> None:
    network = nn.Network.build([nn.Conv(40), nn.Dense(3, activation="none")], (6, 6, 1))
    images, pixels = noise(9, 6, 6, 1), nn.PixelNormalisation.unit(1)
    state = nn.State(network, build_optimiser(Job.load("mnist").train), nn.NumPyBackend(nn.Workers(1)))
    state.initialise(network, 0)
    state.weights["conv1/weights"][..., :30] = 0
    state.weights["conv1/weights"][..., 30:] = np.abs(state.weights["conv1/weights"][..., 30:])
    plan = nn.EvaluationPlan(nn.NumPyBackend(nn.Workers(1)), network, state, pixels, 9)
    classifier = Classifier(network, state, plan, pixels)
    found = examples.example_arrays(classifier, classifier.probabilities(images), images, np.arange(9) % 3)
    assert found["filters"][0, 6:].tolist() == list(range(30, 40))
    assert found["constant"].tolist() == [30]
