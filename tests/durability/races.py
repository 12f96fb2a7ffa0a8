"""Script: let processes race for one run, kill the winner, and let them race again.

python -m tests.durability.races FOLDER RACES SEED
"""

import os
import random
import signal
import sys
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from cnnjob import files
from cnnjob.errors import BusyError
from cnnjob.runs import claims
from cnnjob.runs.run import Run
from tests.durability.children import Child, in_child
from tests.durability.faults import print_json
from tests.durability.toys import snapshot, toy_run

RACERS = (2, 8)


def race_for(run: Run, gate: Connection, reports: Connection) -> None:
    """Claim a run as soon as the gate opens; the winner holds it until it is killed."""
    gate.recv()
    try:
        claims.claim(run)
    except BusyError as error:
        reports.send((os.getpid(), error.exit_code))
        return
    reports.send((os.getpid(), 0))
    signal.pause()


def race(run: Run, count: int) -> tuple[dict[int, Child], dict[int, int]]:
    """Let so many processes race; give them by process, and each one's exit code."""
    reports, said = Pipe(duplex=False)
    gates = [Pipe(duplex=False) for _ in range(count)]
    children = [Child.start(partial(race_for, run, waits, said)) for waits, _ in gates]
    for _, opens in gates:
        opens.send("go")
    codes = dict(reports.recv() for _ in range(count))
    return {child.pid: child for child in children}, codes


def claim_late(run: Run) -> int:
    """Claim a run that another process holds; say the exit code."""
    try:
        claims.claim(run)
    except BusyError as error:
        return error.exit_code
    return 0


def report(run: Run, count: int) -> None:
    """Race once, try to break in while the winner lives, kill the winner."""
    lives = len(run.attempt_files())
    children, codes = race(run, count)
    winners = [pid for pid, code in codes.items() if code == 0]
    losers = [pid for pid in children if pid not in winners]
    ends = [children[pid].wait().error for pid in losers]
    attempts = run.attempt_files()
    holder = files.read_json(attempts[-1])["pid"]
    before = snapshot(run.path)
    late = [in_child(partial(claim_late, run)).value for _ in range(2)]
    changed = snapshot(run.path) != before
    for pid in winners:
        children[pid].kill()
        children[pid].wait()
    print_json(
        {
            "racers": count,
            "winners": len(winners),
            "holder_won": holder in winners,
            "losing_codes": sorted({codes[pid] for pid in losers}),
            "crashes": [end for end in ends if end],
            "new_attempts": len(attempts) - lives,
            "late_codes": late,
            "changed": changed,
            "left_behind": [name for name in before if name.endswith(".tmp")],
        }
    )


def main(folder: Path, races: int, seed: int) -> None:
    """Report every race as a line of JSON."""
    draw = random.Random(seed)
    run = toy_run(folder)
    for _ in range(races):
        report(run, draw.randint(*RACERS))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]), int(sys.argv[3]))
