"""Script: train the toy on one core and on two, and change over at every step.

python -m tests.durability.affinity FOLDER
"""

import os
import sys
from functools import partial
from pathlib import Path

from cnnjob.training import train
from tests.durability.children import in_child
from tests.durability.faults import print_json
from tests.durability.scenarios import StopAt, wrong_end
from tests.durability.toys import WIDE, fingerprint, toy_run

STEPS = 4


def train_on(cores: set[int], folder: Path, stop_at: int = 0) -> str:
    """Train in a process that may use these cores only."""
    os.sched_setaffinity(0, cores)
    return train.train(toy_run(folder.parent, runs=folder.name, units=WIDE), StopAt(stop_at)).state


def main(folder: Path) -> None:
    """Report every change-over as a line of JSON."""
    two = set(sorted(os.sched_getaffinity(0))[:2])
    one = {min(two)}
    assert in_child(partial(train_on, two, folder / "unbroken")).value == "finished"
    expected = fingerprint(toy_run(folder, runs="unbroken", units=WIDE))
    for first, then in ((one, one), (one, two), (two, one)):
        for step in range(1, STEPS):
            runs = f"{len(first)}-{len(then)}-{step}"
            assert in_child(partial(train_on, first, folder / runs, step)).value == "stopped"
            assert in_child(partial(train_on, then, folder / runs)).value == "finished"
            run = toy_run(folder, runs=runs, units=WIDE)
            cores = [len(first), len(then)]
            print_json({"cores": cores, "step": step, "wrong": list(wrong_end(run, expected))})


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
