"""`python -m tests.fuzz TARGET… --count N --seed S`."""

# ruff: noqa: T201 - it is a command

import argparse
import sys
import time
from pathlib import Path

from tests.fuzz.mutations import series
from tests.fuzz.pool import Fault, faults
from tests.fuzz.targets import names, target

_SHOWN = 20


def main() -> int:
    """Read the inputs, say what was found, and keep it."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Read mutated inputs.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"all by default: {', '.join(names())}")
    parser.add_argument("--count", type=int, default=20_000, help="inputs of each target (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs (%(default)s)")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-faults"), help="where faults are kept (%(default)s)")
    parser.add_argument("--input", type=Path, help="read this file once instead")
    arguments = parser.parse_args()
    if unknown := {*arguments.targets} - {*names()}:
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    total = 0
    for name in arguments.targets or names():
        if arguments.input:
            content = arguments.input.read_bytes()
            found = list(faults(target(name), lambda _, content=content: content, 1))  # type: ignore[misc]
        else:
            found = _read_many(name, arguments.count, arguments.seed, arguments.keep)
        for fault in found[:_SHOWN]:
            print(f"{name}: {fault.kind} at input {fault.number} of seed {arguments.seed}: {fault.text.rstrip()}")
        total += len(found)
    return int(bool(total))


def _read_many(name: str, count: int, seed: int, folder: Path) -> list[Fault]:
    started = time.perf_counter()
    chosen, found = target(name), []
    content_of = series(chosen.seeds(), seed, text=chosen.text, finish=chosen.finish)
    for fault in faults(chosen, content_of, count):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}-{seed}-{fault.number}"
        path.write_bytes(fault.content)
        found.append(fault._replace(text=f"{fault.text.rstrip()}\n  kept as {path}"))
    seconds = time.perf_counter() - started
    print(f"{name}: {count:,} inputs of seed {seed}, {len(found)} faults, {seconds:.0f} s", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
