"""Checkpoints that are damaged."""

from pathlib import Path

from cnnjob.runs import checkpoints
from cnnjob.runs.run import Run
from cnnjob.training import train
from tests.durability.scenarios import StopAt
from tests.durability.toys import toy_run

STEP = 3


def stopped_run(folder: Path) -> Run:
    """A run that was stopped at a step, with two checkpoints."""
    run = toy_run(folder)
    assert train.train(run, StopAt(STEP)).state == "stopped"
    assert len(both(run)) == checkpoints.KEPT
    return run


def both(run: Run) -> list[Path]:
    """The checkpoints, the older first."""
    return sorted(run.checkpoints_folder.glob("step-*.npz"))


def flipped(content: bytes, bit: int) -> bytes:
    """The content with one bit changed."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def require_older(run: Run, content: bytes, what: str) -> None:
    """The newest checkpoint, of this content, is refused, and the older one is taken with a warning."""
    newest = run.checkpoints_folder / f"step-{STEP:09d}.npz"  # the one before this test is set aside by now
    newest.write_bytes(content)
    found, warnings = checkpoints.load_newest(run.checkpoints_folder, run.manifest()["digest"])
    assert found is not None, what
    assert found.progress.step == STEP - 1, what
    assert len(warnings) == 1, what
    assert str(newest) in warnings[0], what
