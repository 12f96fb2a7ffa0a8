"""What this machine does: the baseline networks' training steps, turn by turn with torch's."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np

from cnnjob import nn
from cnnjob.bindings import network_of, optimiser_of
from cnnjob.jobs import Job

STEPS_A_ROUND = 5
CLASSES = 10
WORKLOADS = {"mnist-baseline": (28, 28, 1), "cifar10-baseline": (32, 32, 3)}

Run = Callable[[], None]
"""One training step."""


@dataclass(frozen=True)
class Row:
    """One engine on one workload; times are of one step."""

    workload: str
    engine: str
    batch_size: int
    median_ms: float
    min_ms: float
    max_ms: float
    speed_against_torch: float | None
    """torch's median (its better memory layout) over this one's; above 1 is faster than torch."""

    @property
    def steps_per_second(self) -> float:
        """At the median."""
        return 1000 / self.median_ms

    @property
    def images_per_second(self) -> float:
        """At the median."""
        return self.steps_per_second * self.batch_size

    def as_json(self) -> dict[str, Any]:
        """All figures by name."""
        return {
            **asdict(self),
            "steps_per_second": self.steps_per_second,
            "images_per_second": self.images_per_second,
        }


def measure(rounds: int, *, torch: bool) -> list[Row]:
    """Time the training steps of the baseline networks on made-up images.

    The engines take turns in one process, so that a change in the machine's speed meets all of them.

    Args:
        rounds: how often each engine has its turn of five steps; the first round is not counted.
        torch: whether to measure torch too, where it is installed.

    Returns:
        A row for each workload and engine.
    """
    return [row for workload in WORKLOADS for row in _workload(workload, rounds, torch=torch)]


def _workload(name: str, rounds: int, *, torch: bool) -> Iterator[Row]:
    job = Job.load(name)
    with _ours(job, WORKLOADS[name]) as step:
        engines = {"cnnjob numpy": step, **(_theirs(job, WORKLOADS[name]) if torch else {})}
        times: dict[str, list[float]] = {engine: [] for engine in engines}
        for turn in range(rounds + 1):
            for engine, run in engines.items():
                seconds = _time(run)
                times[engine] += seconds if turn else []
    medians = {engine: median(seconds) for engine, seconds in times.items()}
    best = min((value for engine, value in medians.items() if engine.startswith("torch")), default=None)
    for engine, seconds in times.items():
        ratio = best / medians[engine] if best else None
        middle, low, high = (1000 * value for value in (medians[engine], min(seconds), max(seconds)))
        yield Row(name, engine, job.train.batch_size, middle, low, high, ratio)


def _time(run: Run) -> list[float]:
    """Seconds of each step of a turn."""
    seconds = []
    for _ in range(STEPS_A_ROUND):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds


def _batch(job: Job, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Made-up images uint8 (N, H, W, C) and labels int64 (N,)."""
    random = np.random.default_rng(0)
    size = job.train.batch_size
    return random.integers(0, 256, (size, *shape), np.uint8), random.integers(0, CLASSES, size)


@contextmanager
def _ours(job: Job, shape: tuple[int, int, int]) -> Iterator[Run]:
    """A training step of this package; torch keeps its own threads, BLAS is not torch's."""
    from threadpoolctl import threadpool_limits  # noqa: PLC0415 - it looks at every loaded library

    images, labels = _batch(job, shape)
    network = network_of(job.model, shape, CLASSES)
    workers = nn.Workers(nn.available_cores())
    backend, optimiser = nn.NumPyBackend(workers), optimiser_of(job.train)
    state = nn.State(network, optimiser, backend)
    state.initialise(network, job.seed)
    feed = nn.training_feed(backend, images, labels, 1, len(images), job.seed)
    feed.order[:], feed.learning_rates[:] = np.arange(len(images)), job.train.learning_rate
    plan = nn.TrainingPlan(backend, network, state, optimiser, feed, nn.Pixels.unit(shape[-1]), len(images))

    def step() -> None:
        feed.position[0] = 0
        plan.step()

    with threadpool_limits(1, user_api="blas"), workers:
        yield step


def _theirs(job: Job, shape: tuple[int, int, int]) -> dict[str, Run]:
    """The same step by torch, in both memory layouts; nothing where torch is not installed."""
    try:
        import torch  # noqa: PLC0415 - slow to load
    except ImportError:
        return {}
    layouts = {"torch NCHW": torch.contiguous_format, "torch NHWC": torch.channels_last}
    return {name: _torch_step(torch, job, shape, layout) for name, layout in layouts.items()}


def _torch_step(torch: Any, job: Job, shape: tuple[int, int, int], layout: Any) -> Run:
    """A baseline network's step: one conv block that keeps the size, a dense block, the classifier."""
    conv, dense = job.model.model_dump()["blocks"]
    images, labels = _batch(job, shape)
    H, W, C = shape
    flat = conv["conv"] * (H // conv["pool"]) * (W // conv["pool"])
    network = torch.nn.Sequential(
        torch.nn.Conv2d(C, conv["conv"], conv["kernel"], padding=conv["pad"]),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(conv["pool"]),
        torch.nn.Flatten(),
        torch.nn.Linear(flat, dense["dense"]),
        torch.nn.ReLU(),
        torch.nn.Linear(dense["dense"], CLASSES),
    ).to(memory_format=layout)
    optimiser = torch.optim.SGD(network.parameters(), job.train.learning_rate)
    raw = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=layout)
    answers = torch.from_numpy(labels)

    def step() -> None:
        optimiser.zero_grad()
        outputs = network(raw.float() / 255)
        torch.nn.functional.cross_entropy(outputs, answers).backward()
        optimiser.step()

    return step
