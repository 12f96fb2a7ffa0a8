"""A tiny dataset and job, and what must be equal at the end, however a run got there."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cnnjob.data.dataset import Dataset
from cnnjob.data.prepare.writer import Chunk, DatasetContents, write
from cnnjob.files import canonical_json
from cnnjob.jobs.job import Job
from cnnjob.runs import checkpoints
from cnnjob.runs.run import Run
from cnnjob.training.setup import TrainingSetup

CLASSES = ("disc", "ring", "star")
COUNTS = {"train": 40, "test": 18}
WALL_CLOCK = ("seconds", "images_per_second", "ended")
COST = ("train_seconds", "cpu_hours", "peak_memory_bytes", "attempts")

UNITS = 6
WIDE = 3000
"""Units of a dense block with which a step's work is shared over the cores."""

JOB = """
dataset = "{dataset}"
seed = 7
data.augment = {{ flip = "random", translate = 1 }}
model.blocks = [{{ conv = 3, pool = 2, batch_norm = true }}, {{ dropout = 0.2 }}, {{ dense = {units} }}]
[train]
epochs = {epochs}
batch_size = 18
learning_rate = 0.05
schedule = "cosine"
lookahead = {{ every = 3 }}
checkpoint_seconds = {seconds}
"""


def pack_toy(path: Path) -> Dataset:
    """Random images of three classes, 8 × 8."""
    write(path, "toy", DatasetContents(CLASSES, {"toy": "0" * 64}, _blocks()), {"size": None, "test_fraction": None})
    return Dataset.open(path)


def _blocks() -> Iterator[Chunk]:
    random = np.random.default_rng(1)
    for split, count in COUNTS.items():
        images = random.integers(0, 256, (count, 8, 8, 1), np.uint8)
        yield Chunk("toy", split, 0, images, np.arange(count) % len(CLASSES), count)


def toy_run(folder: Path, *, epochs: int = 2, seconds: float = 0.0, runs: str = "runs", units: int = UNITS) -> Run:
    """The toy run under a folder that has the dataset; it is made where there is none."""
    job = Job.load(str(toy_job(folder, epochs=epochs, seconds=seconds, units=units)))
    return TrainingSetup.checked(job, Dataset.find(job.dataset, folder)).create_run(folder / runs)


def toy_job(folder: Path, *, epochs: int = 2, seconds: float = 0.0, units: int = UNITS) -> Path:
    """The toy's job file, and its dataset beside it."""
    dataset = folder / "toy.h5"
    if not dataset.exists():
        pack_toy(dataset)
    path = folder / f"toy{epochs}-{units}.toml"
    path.write_text(JOB.format(dataset=dataset, epochs=epochs, seconds=seconds, units=units))
    return path


def fingerprint(run: Run) -> dict[str, Any]:
    """What a finished run must have in common, to the byte, with the unbroken one."""
    last, _ = checkpoints.load_newest(run.checkpoints_folder, run.manifest()["digest"])
    assert last is not None
    return {
        "weights": _sha256(run.weights_file.read_bytes()),
        "predictions": _sha256(run.predictions_file.read_bytes()),
        "history": [canonical_json(_without(record, WALL_CLOCK)) for record in run.history()],
        "result": canonical_json(_without(run.result(), COST)),
        "checkpoint": {name: _sha256(array.tobytes()) for name, array in last.arrays.items()},
        "step": last.progress.step,
    }


def _without(record: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in keys}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def snapshot(folder: Path) -> dict[str, str]:
    """Every name below a folder, with its content's digest."""
    return {
        str(path.relative_to(folder)): _sha256(path.read_bytes()) if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def temporary_files(folder: Path) -> list[str]:
    """The temporary files that lie about below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*"))
