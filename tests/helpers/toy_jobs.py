"""A tiny dataset and a tiny job: a whole training in a fraction of a second."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cnnjob.checks.comparison import TIMING_KEYS
from cnnjob.data.dataset import Dataset
from cnnjob.data.prepare.writer import Chunk, DatasetContents, write
from cnnjob.jobs.job import Job
from cnnjob.runs.run import Run
from cnnjob.training.setup import TrainingSetup
from cnnjob.training.train import Outcome, train

CLASSES = ("row", "column", "corner")

JOB: dict[str, Any] = {
    "name": "toy",
    "dataset": "toy",
    "data": {"validation_fraction": 0.25},
    "model": {"blocks": [{"conv": 4, "kernel": 3, "pool": 2}, {"dense": 8}]},
    "train": {"epochs": 2, "batch_size": 8, "learning_rate": 0.05},
    "resources": {"backend": "numpy"},
}


def job(**changes: Any) -> Job:
    """The toy job; changes are dotted with two underscores, as train__epochs=3."""
    content: dict[str, Any] = {key: dict(value) if isinstance(value, dict) else value for key, value in JOB.items()}
    for key, value in changes.items():
        *parents, last = key.split("__")
        table = content
        for parent in parents:
            table = table.setdefault(parent, {})
        table[last] = value
    return Job.checked(content, "toy.toml")


def dataset(folder: Path, images: int = 216) -> Dataset:
    """Three kinds of blots, so many to train on and 40 to test; written once a folder."""
    path = folder / "toy.h5"
    if not path.exists():
        write(path, "toy", DatasetContents(CLASSES, {"toy": "0" * 64}, blots({"train": images, "test": 40})), {})
    return Dataset.open(path)


def blots(counts: dict[str, int]) -> Iterator[Chunk]:
    """Noise with a bright row, column or corner: learnable, but not at once."""
    random = np.random.default_rng(1)
    for split, count in counts.items():
        images, labels = random.integers(0, 160, (count, 6, 6, 1), np.uint8), np.arange(count) % 3
        images[labels == 0, 2] += 70
        images[labels == 1, :, 3] += 70
        images[labels == 2, 4:, 4:] += 90
        yield Chunk("toy", split, 0, images, labels, len(labels))


def run_of(job: Job, dataset: Dataset, root: Path) -> Run:
    """Return the run of a job on a dataset in a folder of runs."""
    return TrainingSetup.checked(job, dataset).create_run(root)


def trained(root: Path, **changes: Any) -> Outcome:
    """Train the toy job in a folder, to its end."""
    root.mkdir(exist_ok=True)
    return train(run_of(job(**changes), dataset(root), root / "runs"))


def outcome_of(run: Run) -> tuple[bytes, bytes, list[dict[str, Any]]]:
    """What must be the same to the last bit: weights, predictions, and history but for the wall clock."""
    records = [{k: v for k, v in r.items() if k not in TIMING_KEYS} for r in run.history()]
    return run.weights_file.read_bytes(), run.predictions_file.read_bytes(), records


def corrupt(path: Path, place: int = -100) -> None:
    """Flip a bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


WILD: dict[str, Any] = {
    "model__blocks": [{"dense": 8, "activation": "none", "init": 10.0, "learning_rate_factor": 1e6}] * 3,
    "data__validation_fraction": 0.0,
    "train__select_on": "last",
    "train__batch_size": 216,
    "train__epochs": 1,
    "train__learning_rate": 1000.0,
}
"""One step, whose loss is finite and after which the outputs are not; no images choose the weights."""
