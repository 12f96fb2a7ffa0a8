"""What is killed or hindered at each of its file operations, and what must hold afterwards."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from cnnjob.data.dataset import Dataset
from cnnjob.data.prepare import prepare
from cnnjob.errors import DataError
from cnnjob.runs import checkpoints
from cnnjob.runs.run import Run
from cnnjob.training import train as training
from cnnjob.training.progress import NoProgress
from tests.durability.children import Ended, in_child
from tests.durability.faults import Mode, Operation, Shim
from tests.durability.toys import fingerprint, pack_toy, temporary_files, toy_run

CHECKPOINT = "step-"
PACKED = "packed.h5"


@dataclass(frozen=True)
class Scenario:
    """Something that is done in a folder of its own."""

    name: str
    act: Callable[[Path], Any]
    """What is spoilt."""
    wrong: Callable[[Path, Sequence[Operation]], Iterator[str]]
    """What does not hold after it, told what was done; it goes on to the end."""
    template: Path | None = None
    """What the folder holds before, and None for nothing."""
    new: int | None = None
    """How many of its last operations no other scenario has; None for all."""

    def place(self, folder: Path) -> Path:
        """Make the folder as it is before."""
        shutil.rmtree(folder, ignore_errors=True)
        if self.template:
            return shutil.copytree(self.template, folder)
        folder.mkdir()
        return folder


def scenarios(folder: Path, shim: Shim) -> list[Scenario]:
    """All of them.

    Args:
        folder: for what they share.
        shim: spoils the earlier lives of the resumed runs.
    """
    unbroken = folder / "unbroken"
    assert in_child(partial(train, unbroken)).value == "finished"
    must_be = partial(wrong_run, expected=fingerprint(toy_run(folder, runs=unbroken.name)))
    killed = _killed_run(folder / "killed", shim)
    pack_toy(folder / "old" / PACKED)
    _images(folder / "images")
    return [
        Scenario("first life", train, must_be),
        Scenario("stopped life", partial(train, stop_at=3), must_be, new=24),
        Scenario("life after a kill", train, must_be, killed),
        Scenario("first packing", pack, wrong_dataset),
        Scenario(
            "packing over another", partial(pack, force=True), partial(wrong_dataset, must_exist=True), folder / "old"
        ),
    ]


def _killed_run(folder: Path, shim: Shim) -> Path:
    """A run whose first life was stopped, and whose second was killed in the middle of a checkpoint."""
    assert in_child(partial(train, folder, stop_at=2)).value == "stopped"
    template = shutil.copytree(folder, folder.with_name("stopped"))
    assert in_child(partial(armed, shim, train, folder)).value == "finished"
    done = list(enumerate(shim.operations(), start=1))
    at = [number for number, operation in done if operation.name == "write" and CHECKPOINT in operation.path.name][1]
    shutil.rmtree(folder)
    shutil.copytree(template, folder)
    assert in_child(partial(armed, shim, train, folder, at, Mode.KILL_HALF)).signal == signal.SIGKILL
    assert temporary_files(folder)
    return folder


def armed(
    shim: Shim, act: Callable[[Path], Any], folder: Path, at: int = 0, mode: Mode = Mode.COUNT, error: int = 0
) -> Any:
    """Do something in a folder whose operations are counted, and one of them spoilt."""
    shim.arm(folder, at, mode, error)
    return act(folder)


class StopAt(NoProgress):
    """Asks the process to stop at a step."""

    def __init__(self, at: int) -> None:
        self.left = at

    def step(self, epoch: int, step: int) -> None:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGTERM)


def train(folder: Path, stop_at: int = 0) -> str:
    """Train the toy from where it stands; the folder holds the runs, the dataset lies beside it."""
    return training.train(toy_run(folder.parent, runs=folder.name), StopAt(stop_at)).state


def wrong_run(folder: Path, done: Sequence[Operation], expected: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a run whose last life was killed or hindered, before and after it goes on."""
    published = [operation.path for operation in done if operation.name == "rename"]
    steps = [int(path.stem.removeprefix(CHECKPOINT)) for path in published if path.name.startswith(CHECKPOINT)]
    run = toy_run(folder.parent, runs=folder.name)
    yield from wrong_checkpoint(run, max(steps, default=0))
    if run.state() not in {"pending", "lost", "stopped", "failed", "finished"}:
        yield f"state {run.state()}"
    again = in_child(partial(train, folder))
    if again.value not in {"finished", "was finished"}:
        yield f"does not go on: {again}"
    else:
        yield from wrong_end(run, expected)
        left = temporary_files(run.path)
        if left and again.value == "finished":  # a run that was finished already is not claimed, nor swept
            yield f"left behind: {left}"


def wrong_checkpoint(run: Run, step: int) -> Iterator[str]:
    """What is wrong with a run's newest checkpoint, which must be of this step at least."""
    try:
        found, warnings = checkpoints.load_newest(run.checkpoints_folder, run.manifest()["digest"])
    except DataError as error:
        yield f"no checkpoint loads: {error}"
        return
    if warnings:
        yield f"damaged: {warnings}"
    if (found.progress.step if found else 0) < step:
        yield f"the checkpoint of step {step} was published and {found and found.progress.step} loads"


def wrong_end(run: Run, expected: dict[str, Any]) -> Iterator[str]:
    """In what a finished run differs from the unbroken one."""
    found = fingerprint(run)
    yield from (f"{key}: {found[key]} instead of {value}" for key, value in expected.items() if found[key] != value)
    if len(list(run.checkpoints_folder.iterdir())) > checkpoints.KEPT:
        yield "more than the newest two checkpoints are kept"
    if run.state() != "finished":
        yield f"state {run.state()}"


def _images(folder: Path) -> None:
    """A folder of images, two classes of four."""
    for name, grey in (("dark", 40), ("light", 200)):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            Image.new("L", (16, 16), grey + number).save(folder / name / f"{number}.png")


def pack(folder: Path, *, force: bool = False) -> bool:
    """Pack the images beside a folder into it; say whether they were packed now."""
    source = folder.with_name("images")
    return prepare.prepare("folder", folder / PACKED, source=source, test_fraction=0.5, force=force).created


def wrong_dataset(folder: Path, done: Sequence[Operation], *, must_exist: bool = False) -> Iterator[str]:
    """What is wrong with a dataset whose packing was killed or hindered, before and after it is packed again."""
    path = folder / PACKED
    must_exist |= any(operation.name == "rename" for operation in done)
    if must_exist or path.exists():
        yield from _damage(path)
    again = in_child(partial(pack, folder, force=True))
    if again.value is not True:
        yield f"does not pack again: {again}"
    yield from _damage(path)
    if sorted(child.name for child in folder.iterdir()) != [path.name]:
        yield f"left behind: {temporary_files(folder)}"


def _damage(path: Path) -> Iterator[str]:
    try:
        Dataset.open(path).verify()
    except DataError as error:
        yield f"not whole: {error}"


def reported(scenario: Scenario, number: int, operation: Operation, ended: Ended) -> dict[str, Any]:
    """A point, for the test that reads it."""
    return {
        "scenario": scenario.name,
        "number": number,
        "operation": operation.name,
        "file": operation.path.name,
        "signal": ended.signal,
        "value": ended.value,
        "error": ended.error,
        "text": ended.text,
        "expected": ended.expected,
    }
