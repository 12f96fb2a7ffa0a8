"""Run folders of known content, as training writes them."""

import socket
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from cnnjob import files
from cnnjob.jobs import json_files
from cnnjob.jobs.job import FORMAT, Job
from cnnjob.runs import claims, npz, process
from cnnjob.runs.run import Run

DATA_DIGEST = "d" * 64
COMMIT = "c0ffee" * 6 + "c0ff"
STEPS_AN_EPOCH = 100

JOB: Mapping[str, Any] = {
    "name": "tiny",
    "dataset": "tiny",
    "model": {"blocks": [{"conv": 5}, {"dense": 8}]},
    "train": {"epochs": 4, "batch_size": 10, "learning_rate": 0.05},
}

JOB_FILE = """
dataset = "tiny"
[model]
blocks = [{ conv = 5 }, { dense = 8 }]
[train]
epochs = 4
batch_size = 10
learning_rate = 0.05
"""
"""The same as a file, tiny.toml, says it."""

# Ten test images of four classes; the answers are right but for image 2 (a 0 taken for 1) and image 9 (a 3 for 0).
LABELS = np.array([0, 0, 0, 1, 1, 1, 2, 2, 3, 3])
ANSWERS = np.array([0, 0, 1, 1, 1, 1, 2, 2, 3, 0])
LOSS = float(-(8 * np.log(0.7) + 2 * np.log(0.1)) / 10)
CLASS_NAMES = np.array(["ant", "bee", "cat", "dog"])


def pending_run(root: Path, *, seed: int = 0, name: str = "tiny", **train: Any) -> Run:
    """A run that was submitted and has not started."""
    job = Job.checked({**JOB, "name": name, "seed": seed, "train": JOB["train"] | train}, "a test")
    return frozen_run(root, job)


def frozen_run(root: Path, job: Job) -> Run:
    """The folder of a job that has not started."""
    run = Run.of(job, DATA_DIGEST, root)
    run.path.mkdir(parents=True)
    data = {"path": "data/tiny.h5", "digest": DATA_DIGEST, "name": "tiny"}
    frozen = {"format": FORMAT, "job": job.model_dump(mode="json"), "data": data, "digest": job.digest(DATA_DIGEST)}
    files.write_json(run.job_file, json_files.add_seal(frozen))
    return run


def running_run(root: Path, *, epochs: int = 2, split: str | None = "validation", **job: Any) -> Run:
    """A run in its first life, this process, after some epochs."""
    run = pending_run(root, **job)
    claims.claim(run)
    environment = {"commit": COMMIT, "dirty": False, "data_sha256": DATA_DIGEST, "device": "cpu: test", "packages": {}}
    files.write_json(run.environment_file, environment)
    write_history(run, epochs, split)
    return run


def stopped_run(root: Path, *, why: str = "stopped: SIGTERM", **what: Any) -> Run:
    """A run whose first life has ended before the last epoch."""
    run = running_run(root, **what)
    change_json(run.attempt_files()[-1], ended=process.now(), why=why, step=150)
    return run


def lost_run(root: Path, **what: Any) -> Run:
    """A run whose process is gone without a word."""
    run = running_run(root, **what)
    change_json(run.attempt_files()[-1], pid=2**22 + 1, host=socket.gethostname())
    return run


def owner_record(job_id: str = "17", **facts: Any) -> dict[str, Any]:
    """The record of an attempt that has just begun in a job of the cluster lab."""
    return {**process.process_identity(), "cluster": "lab", "job_id": job_id, "started": process.now(), **facts}


def finished_run(root: Path, *, split: str | None = "validation", channels: int = 1, **job: Any) -> Run:
    """A run of four epochs in two lives: accuracy 0.8, the third epoch was the best."""
    run = stopped_run(root, epochs=4, split=split, **job)
    second = claims.claim(run)
    second.note(resumed_at_step=150)
    npz.write_arrays(run.predictions_file, predictions())
    kernels = np.arange(3 * 3 * channels * 5, dtype=np.float32).reshape(3, 3, channels, 5)
    weights = {"conv1/weights": kernels, "conv1/bias": kernels[0, 0, 0], "dense1/weights": np.eye(8, dtype=np.float32)}
    npz.write_arrays(run.weights_file, weights)
    files.write_json(run.result_file, result(split) | {"parameters": sum(array.size for array in weights.values())})
    second.end("finished", 400)
    return run


def predictions() -> dict[str, np.ndarray]:
    """The content of ``predictions.npz``: each answer has probability 0.7, each other class 0.1."""
    probabilities = np.full((10, 4), 0.1, np.float32)
    probabilities[np.arange(10), ANSWERS] = 0.7
    return {
        "probabilities": probabilities,
        "labels": LABELS,
        "class_names": CLASS_NAMES,
        "wrong_images": np.zeros((2, 6, 6, 1), np.uint8),
        "wrong_indices": np.array([2, 9]),
    }


def result(split: str | None) -> dict[str, Any]:
    """The content of ``result.json``."""
    return {
        "test_accuracy": 0.8,
        "test_loss": LOSS,
        "epochs": 4,
        "best_epoch": 3,
        "steps": 400,
        "train_seconds": 12.5,
        "parameters": 114,
        "device": "cpu: test",
        "backend": "numpy",
        "selected_on": split or "last",
        "attempts": 2,
        "bits_may_differ_from_step": None,
    }


def write_history(run: Run, epochs: int, split: str | None) -> None:
    """``history.jsonl``: the losses fall, the accuracies rise, the third epoch's is the best."""
    lines = []
    for epoch in range(1, epochs + 1):
        record: dict[str, Any] = {"epoch": epoch, "step": epoch * STEPS_AN_EPOCH, "learning_rate": 0.05}
        record |= {"train_loss": 1 / epoch, "train_accuracy": 1 - 0.5 / epoch}
        if split:
            best, loss = (0.8, LOSS) if split == "test" else (0.9, 0.5)
            record |= {f"{split}_loss": 3 * loss / epoch, f"{split}_accuracy": best - 0.1 * abs(epoch - 3)}
        ended = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=epoch)
        clock = {"seconds": 1.0, "images_per_second": 1000.0, "ended": ended.isoformat()}
        lines.append(files.canonical_json(record | clock))
    run.history_file.write_text("\n".join(lines) + "\n")


def change_json(path: Path, **facts: Any) -> None:
    """Change facts in a JSON file."""
    files.write_json(path, files.read_json(path) | facts)


def change_job(run: Run, **facts: Any) -> None:
    """Change facts in a run's job file, whose checksum is then right."""
    files.write_json(run.job_file, json_files.add_seal(files.read_json(run.job_file) | facts))


def change_arrays(path: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Change arrays in an ``.npz`` file, whose checksum is then right."""
    arrays = npz.read_arrays(path)
    change(arrays)
    npz.write_arrays(path, arrays)
