"""Script, to be run under the shim: a process stands still right before a rename, past its last look at its claim.

Its successor claims the run and finishes it; then the process goes on.

python -m tests.durability.stalled FOLDER
"""

import os
import signal
import sys
from functools import partial
from pathlib import Path

from tests.durability.children import Child, in_child
from tests.durability.faults import Mode, Shim, print_json
from tests.durability.fenced import forget_holder
from tests.durability.scenarios import armed, train, wrong_end
from tests.durability.toys import fingerprint, snapshot, toy_run


def renames(shim: Shim, folder: Path) -> list[tuple[int, str]]:
    """The number and name of every rename of a life, but the last, which is after the run's end."""
    folder.mkdir()
    assert in_child(partial(armed, shim, train, folder)).value == "finished"
    done = enumerate(shim.operations(), start=1)
    shim.forget()
    return [(number, operation.path.name) for number, operation in done if operation.name == "rename"][:-1]


def stall(shim: Shim, folder: Path, number: int) -> dict[str, object]:
    """Stand still before an operation while a successor finishes the run, and go on."""
    folder.mkdir()
    child = Child.start(partial(armed, shim, train, folder, number, Mode.STOP_BEFORE))
    os.waitpid(child.pid, os.WUNTRACED)
    shim.forget()
    run = toy_run(folder.parent, runs=folder.name)
    forget_holder(run)
    successor = in_child(partial(train, folder)).value
    before = snapshot(run.path)
    os.kill(child.pid, signal.SIGCONT)
    ended = child.wait()
    after = snapshot(run.path)
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    return {"successor": successor, "error": ended.error, "changed": changed}


def main(folder: Path) -> None:
    """Report every rename as a line of JSON."""
    shim = Shim()
    moments = renames(shim, folder / "unbroken")
    expected = fingerprint(toy_run(folder, runs="unbroken"))
    for number, name in moments:
        report = stall(shim, folder / f"runs-{number}", number)
        wrong = list(wrong_end(toy_run(folder, runs=f"runs-{number}"), expected))
        print_json({"file": name, **report, "wrong": wrong})


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
