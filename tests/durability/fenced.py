"""Script: a process that was taken for dead goes on, and must not write over its successor.

python -m tests.durability.fenced FOLDER
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from cnnjob import files
from cnnjob.errors import BusyError
from cnnjob.runs import checkpoints, claims, npz
from cnnjob.runs.checkpoints import Checkpoint, TrainingProgress
from cnnjob.runs.claims import Claim
from cnnjob.runs.run import Run
from cnnjob.training import train as training
from cnnjob.training.progress import NoProgress
from tests.durability.children import Child, in_child
from tests.durability.faults import print_json
from tests.durability.scenarios import train
from tests.durability.toys import snapshot, toy_run

STEP = 2
A_DAY = 86_400.0


class Pausing(NoProgress):
    """Stands still at a step until it is told to go on, as a process does on a frozen node."""

    def __init__(self, here: Connection) -> None:
        self.here, self.left = here, STEP

    def step(self, epoch: int, step: int) -> None:
        self.left -= 1
        if not self.left:
            self.here.send("paused")
            self.here.recv()


def forget_holder(run: Run) -> None:
    """Make the last life look like one on another host that has not been heard of for long."""
    path = run.attempt_files()[-1]
    files.write_json(path, files.read_json(path) | {"host": "elsewhere"})
    long_ago = path.stat().st_mtime - A_DAY
    for sign in (path, path.parents[1] / "heartbeat"):
        os.utime(sign, (long_ago, long_ago))


def superseded_training(folder: Path, successor: Callable[[Run], Any]) -> None:
    """A training stands still, its run passes to a successor, it goes on."""
    run = toy_run(folder.parent, runs=folder.name)
    here, there = Pipe()
    child = Child.start(partial(train_on, run, there))
    here.recv()
    forget_holder(run)
    successor(run)
    before = snapshot(run.path)
    here.send("go on")
    ended = child.wait()
    print_json({"what": folder.name, "error": ended.error, "changed": snapshot(run.path) != before})


def train_on(run: Run, here: Connection) -> str:
    return training.train(run, Pausing(here)).state


def superseded_writes(folder: Path) -> None:
    """Every write of a superseded claim, one by one."""
    run = toy_run(folder.parent, runs=folder.name)
    claim = claims.claim(run)
    forget_holder(run)
    assert not in_child(partial(claimed, run)).error
    checkpoint = Checkpoint(TrainingProgress(step=9), {"weights/a": np.ones(3)}, {"digest": run.manifest()["digest"]})
    for what, write in writes(run, claim, checkpoint).items():
        before = snapshot(run.path)
        print_json({"what": what, "error": error_of(write), "changed": snapshot(run.path) != before})


def claimed(run: Run) -> int:
    return claims.claim(run).number


def writes(run: Run, claim: Claim, checkpoint: Checkpoint) -> dict[str, Callable[[], Any]]:
    """The ways in which a life writes to its run."""
    return {
        "checkpoint": partial(checkpoints.save, run.checkpoints_folder, checkpoint, claim.check),
        "note": partial(claim.note, device="cpu"),
        "end": partial(claim.end, "finished", 9),
        "history": partial(files.write_whole, run.history_file, b"{}\n", fence=claim.check),
        "weights": partial(npz.write_arrays, run.weights_file, checkpoint.arrays, fence=claim.check),
        "result": partial(files.write_json, run.result_file, {}, fence=claim.check),
    }


def error_of(write: Callable[[], Any]) -> str:
    try:
        write()
    except BusyError as error:
        return type(error).__name__
    return ""


def main(folder: Path) -> None:
    """Report every write of a superseded process as a line of JSON."""
    superseded_training(folder / "while its successor trains", claims.claim)
    superseded_training(
        folder / "when its successor has finished", lambda run: in_child(partial(train, run.path.parent))
    )
    superseded_writes(folder / "writes")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
