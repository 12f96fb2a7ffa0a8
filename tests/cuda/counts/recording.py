"""The kernels and GEMMs of one step of a job, recorded at the full batch size without memory and without a GPU."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cnnjob import nn
from cnnjob.data.prepare.catalogue import KNOWN
from cnnjob.jobs.job import Job
from cnnjob.nn.arena import Array, shape_only_array
from cnnjob.nn.tensors import Task
from cnnjob.training.build import build_optimiser, build_training_options
from cnnjob.training.memory import evaluation_batch
from cnnjob.training.setup import TrainingSetup
from tests.cuda.emulation import KERNEL, kernels

GEMM = "gemm"


@dataclass(frozen=True)
class Launch:
    """One kernel, or one product by cuBLAS, with its arguments by parameter name."""

    name: str
    grid: tuple[int, int]
    block: tuple[int, int]
    arguments: dict[str, Any]
    shared_bytes: int = 0

    def __repr__(self) -> str:
        return f"{self.name} {self.grid} {self.block}"  # its arrays have no memory that could be printed


class RecordingDevice:
    """A device whose arrays have shapes but no memory, and which notes what it is asked to run."""

    name = "recording"
    free_bytes = 1 << 40
    versions: ClassVar[dict[str, Any]] = {}

    def __init__(self, precision: str, wide_stages: int = 3) -> None:
        self.precision, self.wide_stages = precision, wide_stages
        self.launches: list[Launch] = []
        self._constants: dict[int, Array] = {}
        """What was copied to the device, by its address there."""

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return shape_only_array(shape, dtype)

    def copy(self, source: Array, target: Array) -> None:
        self._constants[target.ctypes.data] = source

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return shape_only_array(shape, dtype)

    def upload(self, source: Array, target: Array) -> Task:
        return self.wait

    def wait(self) -> None:
        pass

    def capture(self, run: Task) -> Task:
        return run

    def launch(
        self,
        name: str,
        grid: tuple[int, int],
        block: tuple[int, int],
        arguments: Sequence[Any],
        shared_bytes: int = 0,
    ) -> None:
        named = dict(zip(parameters()[name], arguments, strict=True))
        if isinstance(tiles := named.get("tiles"), np.ndarray):
            named["tiles"] = self._constants[tiles.ctypes.data]  # their sizes are counted
        self.launches.append(Launch(name, grid, block, named, shared_bytes))

    def gemm(self, a: Array, b: Array, out: Array, **settings: Any) -> None:
        self.launches.append(Launch(GEMM, (1, 1), (1, 1), {"a": a, "b": b, "out": out, **settings}))


@dataclass(frozen=True)
class RecordedJob:
    """A job's steps, and how many of them its training has."""

    name: str
    precision: str
    batch_size: int
    epochs: int
    training: list[Launch]
    """One training step."""
    evaluation: list[Launch]
    """One evaluation step, with all views of its images."""
    training_steps: int
    """Training steps per epoch."""
    evaluation_steps: int
    """Evaluation steps per epoch: of the validation images, and of the test images if the model is chosen on them."""
    test_steps: int
    """Evaluation steps at the end of the training, on the test images."""


def shipped_jobs() -> list[str]:
    """The names of the jobs that cnnjob comes with."""
    return sorted(path.stem for path in (Path(__file__).parents[3] / "jobs").glob("*.toml"))


@cache
def record(name: str, *settings: str, wide_stages: int = 3) -> RecordedJob:
    """Record a job's training step and evaluation step.

    Args:
        name: the job.
        settings: as in ``cnnjob train --set``.
        wide_stages: stages of wide tiles for which the GPU has shared memory; 0 if it has no instructions of sm_80.
    """
    job = Job.load(name, list(settings))
    dataset = next(entry for entry in KNOWN if entry.name == job.dataset).described(Path("not-prepared.h5"))
    setup, device = TrainingSetup.build(job, dataset), RecordingDevice(job.train.precision, wide_stages)
    backend, network, train = nn.CudaBackend(device, captures=False), setup.network, job.train
    optimiser, pixels = build_optimiser(train), nn.PixelNormalisation.unit(dataset.image_shape[-1])
    state, n_images = nn.State(network, optimiser, backend), dataset.shapes["train"][0]
    images, labels = device.zeros((n_images, *dataset.image_shape), np.uint8), device.zeros((n_images,), np.int64)
    inputs = nn.build_step_inputs(backend, images, labels, setup.steps_per_epoch, train.batch_size, job.seed)
    plan = nn.TrainingPlan(
        backend, network, state, optimiser, inputs, pixels, train.batch_size, build_training_options(job)
    )
    plan.step()
    training, device.launches = device.launches, []
    n_test, watched = dataset.shapes["test"][0], [setup.n_validation]
    if train.select_on == "test":
        watched.append(n_test)
    batch = evaluation_batch([n_test, *watched])
    evaluation = nn.EvaluationPlan(backend, network, state, pixels, batch, train.test_time_augmentation)
    evaluation.probabilities(images, np.arange(batch))
    steps = [-(-count // batch) for count in (*watched, n_test)]
    sizes = setup.steps_per_epoch, sum(steps[:-1]), steps[-1]
    return RecordedJob(name, train.precision, train.batch_size, train.epochs, training, device.launches, *sizes)


@cache
def parameters() -> dict[str, dict[str, str]]:
    """The parameters of every kernel: their types by name, in order, as in the source."""
    source = re.sub(r"//.*", "", kernels()).replace("\\\n", " ")
    found = {}
    for match in KERNEL.finditer(source):
        rest = source[match.end() :].lstrip()
        if not rest.startswith("("):  # a macro that stands for the parameters
            macro = re.match(r"\w+", rest)
            assert macro, match[1]
            definition = re.search(rf"^#define {macro[0]}\s*(\(.*)$", source, re.MULTILINE)
            assert definition, macro[0]
            rest = definition[1]
        declared = [" ".join(one.split()) for one in rest[1 : rest.index(")")].split(",")]
        pairs = [re.fullmatch(r"(.*?\W)(\w+)", one) for one in declared]
        found[match[1]] = {pair[2]: pair[1].replace(" ", "") for pair in pairs if pair}
    return found
