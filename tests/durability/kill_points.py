"""Script, to be run under the shim: kill or hinder everything at each of its file operations.

python -m tests.durability.kill_points FOLDER kill|fail PART PARTS
"""

import errno
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.durability.children import in_child
from tests.durability.faults import Mode, Operation, Shim, print_json
from tests.durability.scenarios import Scenario, armed, reported, scenarios

ERRORS = (errno.ENOSPC, errno.EIO)


def kills(operation: Operation) -> Iterator[tuple[Mode, int]]:
    """Every way to kill at an operation."""
    yield Mode.KILL_BEFORE, 0
    if operation.name == "write":
        yield Mode.KILL_HALF, 0
    yield Mode.KILL_AFTER, 0


def failures(operation: Operation) -> Iterator[tuple[Mode, int]]:
    """Every way in which an operation can fail, once or from there on."""
    for mode in (Mode.FAIL_ONCE, Mode.FAIL_ON):
        for error in ERRORS:
            yield mode, error
    if operation.name == "write":
        yield Mode.WRITE_SHORT, 0


WAYS = {"kill": kills, "fail": failures}


Point = tuple[int, Operation, Mode, int]


def points(shim: Shim, scenario: Scenario, place: Path, ways: str) -> list[Point]:
    """Every point of a scenario, found by doing it once unhindered."""
    ended = in_child(partial(armed, shim, scenario.act, scenario.place(place)))
    assert not ended.signal
    assert not ended.error, ended
    done = list(enumerate(shim.operations(), start=1))
    shim.forget()
    assert not list(unflushed([operation for _, operation in done]))
    new = done[-scenario.new :] if scenario.new else done
    return [(number, operation, *way) for number, operation in new for way in WAYS[ways](operation)]


def unflushed(done: list[Operation]) -> Iterator[str]:
    """What is published before its content is on the disk, or without its name being flushed; a kill cannot show it."""
    for place, operation in enumerate(done):
        if operation.name in {"rename", "link"}:
            before, after = done[place - 1], done[place + 1 : place + 3]
            if before.name != "fsync" or not before.path.name.startswith(f".{operation.path.name}."):
                yield f"{operation.path.name}: published after {before}"
            if Operation("fsync", operation.path.parent) not in after:
                yield f"{operation.path.name}: its folder was not flushed but {after}"


def main(folder: Path, ways: str, part: int, parts: int) -> None:
    """Report every point of a part as a line of JSON; one core a part."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[part % len(cores)]})
    shim = Shim()
    for scenario in scenarios(folder, shim):
        for point in points(shim, scenario, folder / "place", ways)[part::parts]:
            spoil(shim, scenario, folder / "place", point)


def spoil(shim: Shim, scenario: Scenario, place: Path, point: Point) -> None:
    """Spoil one operation of a scenario, and report what came of it."""
    number, operation, mode, error = point
    scenario.place(place)
    ended = in_child(partial(armed, shim, scenario.act, place, number, mode, error))
    done = shim.operations()
    shim.forget()
    wrong = list(scenario.wrong(place, done))
    print_json(reported(scenario, number, operation, ended) | {"mode": mode.name, "errno": error, "wrong": wrong})


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
