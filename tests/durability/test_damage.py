"""Every flipped bit and every lost tail of a checkpoint is found, and the one before it is taken."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from cnnjob.errors import DataError
from cnnjob.runs.run import Run
from cnnjob.training import train
from cnnjob.training.progress import NoProgress
from tests.durability import commands
from tests.durability.damage import both, flipped, require_older, stopped_run
from tests.durability.toys import fingerprint, toy_job, toy_run

pytestmark = pytest.mark.durability

FLIPS = 600
TRUNCATIONS = 40
TRAININGS = 8


def test_every_flipped_bit_is_found(folder: Path) -> None:
    run = stopped_run(folder)
    content = both(run)[-1].read_bytes()
    spread = np.linspace(0, 8 * len(content) - 1, FLIPS, dtype=int)
    head_and_tail = [*range(64), *range(8 * len(content) - 8 * 96, 8 * len(content), 7)]
    bits = sorted({*spread.tolist(), *head_and_tail})
    assert len(bits) >= FLIPS
    for bit in bits:
        require_older(run, flipped(content, bit), f"bit {bit}")


def test_every_lost_tail_is_found(folder: Path) -> None:
    run = stopped_run(folder)
    content = both(run)[-1].read_bytes()
    lengths = {*np.linspace(0, len(content) - 1, TRUNCATIONS, dtype=int).tolist(), len(content) - 64}
    for length in sorted(lengths):
        require_older(run, content[:length], f"{length} of {len(content)} bytes")


def test_bytes_behind_the_end_are_found(folder: Path) -> None:
    run = stopped_run(folder)
    require_older(run, both(run)[-1].read_bytes() + b"\0", "one byte more")


def test_a_training_says_what_was_damaged_and_ends_with_the_same_bytes(folder: Path) -> None:
    unbroken = toy_run(folder, runs="unbroken")
    train.train(unbroken)
    stopped = stopped_run(folder)
    content = both(stopped)[-1].read_bytes()
    for bit in np.linspace(0, 8 * len(content) - 1, TRAININGS, dtype=int).tolist():
        run = Run(shutil.copytree(stopped.path, folder / f"{bit}" / stopped.name))
        both(run)[-1].write_bytes(flipped(content, bit))
        heard = Heard()
        assert train.train(run, heard).state == "finished"
        warned = [line for line in heard.lines if line.startswith("warning: ") and "damaged" in line]
        assert len(warned) == 1
        assert warned[0] in run.log_file.read_text()
        assert fingerprint(run) == fingerprint(unbroken)


class Heard(NoProgress):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_both_damaged_is_an_error_that_says_what_to_do(folder: Path) -> None:
    run = stopped_run(folder)
    for path in both(run):
        path.write_bytes(flipped(path.read_bytes(), 4000))
    kept = [path.read_bytes() for path in both(run)]
    with pytest.raises(DataError, match=r"no intact checkpoint is left\. Restore one from a backup, or remove"):
        train.train(run)
    done = commands.run_train(toy_job(folder))
    assert done.returncode == DataError.exit_code
    assert "Traceback" not in done.stderr
    assert f"remove {run.path} to start from scratch" in done.stderr
    assert [path.read_bytes() for path in both(run)] == kept
