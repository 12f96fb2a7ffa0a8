"""Script: kill trainings at random moments until enough were killed; each goes on until it is finished.

python -m tests.durability.random_kills FOLDER KILLS SEED [streamed]
"""

import random
import signal
import sys
import time
from functools import partial
from pathlib import Path

from cnnjob.training import train as training
from tests.durability.children import Child, Ended, in_child
from tests.durability.faults import print_json
from tests.durability.scenarios import wrong_end
from tests.durability.toys import WIDE, fingerprint, toy_run

EPOCHS = 12
CADENCES = (0.0, 0.01, 0.05)
RUNS_PER_KILL = 4
"""A run may finish before it is killed, on a machine whose load has just fallen."""
FINISHED = {"finished", "was finished"}


def train(folder: Path, runs: str, seconds: float, in_memory_bytes: int | None = None) -> str:
    """Train the toy from its newest checkpoint."""
    run = toy_run(folder, epochs=EPOCHS, seconds=seconds, runs=runs, units=WIDE)
    return training.train(run, in_memory_bytes=in_memory_bytes).state


def killed_at(moment: float, child: Child) -> Ended:
    """Let a child live for a while."""
    time.sleep(moment)
    child.kill()
    return child.wait()


def kills_until_finished(folder: Path, runs: str, draw: random.Random, life: float, in_memory_bytes: int | None) -> int:
    """Kill a run again and again, and at last let it finish; say how often it was killed."""
    kills = 0
    for _ in range(draw.randint(1, 6)):
        seconds = draw.choice(CADENCES)
        ended = killed_at(
            draw.uniform(0, life / 2), Child.start(partial(train, folder, runs, seconds, in_memory_bytes))
        )
        assert ended.signal or ended.value in FINISHED, ended
        kills += ended.signal == signal.SIGKILL
    ended = in_child(partial(train, folder, runs, 0.05, in_memory_bytes))
    assert ended.value in FINISHED, ended
    return kills


def main(folder: Path, kills: int, seed: int, in_memory_bytes: int | None = None) -> None:
    """Report every run as a line of JSON."""
    draw = random.Random(seed)
    for runs in ("warm", "unbroken"):
        started = time.monotonic()
        assert in_child(partial(train, folder, runs, CADENCES[1])).value == "finished"
        life = time.monotonic() - started
    expected = fingerprint(toy_run(folder, epochs=EPOCHS, runs="unbroken", units=WIDE))
    done = 0
    for number in range(RUNS_PER_KILL * kills):
        runs = f"runs-{number}"
        times = kills_until_finished(folder, runs, draw, life, in_memory_bytes)
        wrong = list(wrong_end(toy_run(folder, epochs=EPOCHS, runs=runs, units=WIDE), expected))
        print_json({"kills": times, "wrong": wrong})
        done += times
        if done >= kills:
            break


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]), int(sys.argv[3]), 0 if sys.argv[4:] == ["streamed"] else None)
