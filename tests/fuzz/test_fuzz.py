"""Every target with some mutated inputs, with many behind `-m fuzz`; and that each kind of fault is found."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from unittest import mock

import pytest

from cnnjob.errors import DataError
from tests.fuzz.mutations import LARGEST, mutated, series
from tests.fuzz.pool import Limits, faults
from tests.fuzz.targets import Target, names, target


def shown(name: str, seed: int, count: int) -> list[str]:
    """The faults of a target as one reads them."""
    chosen = target(name)
    contents = series(chosen.seeds(), seed, text=chosen.text, finish=chosen.finish)
    return [f"{fault.kind} at {fault.number}: {fault.text}" for fault in faults(chosen, contents, count)]


@pytest.mark.parametrize("name", names())
def test_some_mutated_inputs(name: str) -> None:
    assert shown(name, seed=0, count=60) == []


@pytest.mark.fuzz
@pytest.mark.parametrize("name", names())
def test_many_mutated_inputs(name: str) -> None:
    assert shown(name, seed=1, count=2000) == []


@pytest.mark.parametrize("name", names())
@mock.patch.dict(os.environ)  # restores it: a target changes it, elsewhere in a process of its own
def test_a_seed_is_read(name: str, tmp_path: Path) -> None:
    chosen, read = target(name), 0
    for number, content in enumerate(chosen.seeds()):
        folder = tmp_path / str(number)
        folder.mkdir()
        with suppress(*chosen.errors):
            chosen.read(chosen.finish(content), folder)
            read += 1
    assert read


def hang(_: bytes) -> None:
    time.sleep(60)


def crash(_: bytes) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def swell(_: bytes) -> None:
    bytearray(600 << 20)


def swallow(_: bytes) -> None:
    try:
        bytearray(3 << 30)
    except MemoryError as error:
        raise DataError("too large") from error


def undeclared(_: bytes) -> None:
    raise ValueError("odd")


def leave(_: bytes) -> None:
    sys.exit(0)


def declared(_: bytes) -> None:
    raise DataError("as it should be")


@pytest.mark.parametrize(
    ("does", "kind", "text"),
    [
        (hang, "time", "not done after 0.5 s, twice"),
        (crash, "crash", f"the process ended with -{int(signal.SIGSEGV)}"),
        (swell, "memory", "took"),
        (swallow, "memory", "asked for more"),
        (undeclared, "error", "ValueError: odd"),
        (leave, "error", "SystemExit"),
    ],
)
def test_a_fault_is_found_and_the_next_inputs_are_read(does: Callable[[bytes], None], kind: str, text: str) -> None:
    def read(content: bytes, folder: Path) -> None:
        (folder / "file").write_bytes(content)
        (does if content == b"2" else declared)(content)

    contents = [str(number).encode() for number in range(5)]
    limits = Limits(seconds=0.5 if kind == "time" else 60)
    found = list(faults(Target(lambda: contents, read), contents.__getitem__, 5, limits))
    assert [(fault.number, fault.kind, fault.content) for fault in found] == [(2, kind, b"2")]
    assert text in found[0].text


def test_mutations_are_the_same_for_the_same_seed_differ_and_are_bounded() -> None:
    seeds = [b'{"a": [1, 2.5], "b": "c"}\n', bytes(range(256))]
    inputs, again, others = ([mutated(seeds, seed, number, text=True) for number in range(80)] for seed in (3, 3, 4))
    assert inputs == again
    assert inputs != others
    assert len(set(inputs)) > 60
    assert max(map(len, inputs)) <= LARGEST


def test_the_command_counts_and_reads_a_kept_input_again(tmp_path: Path) -> None:
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tests.fuzz", *arguments], capture_output=True, text=True, check=False
        )

    done = command("idx", "--count", "20", "--seed", "5", "--keep", str(tmp_path / "kept"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "idx: 20 inputs of seed 5, 0 faults" in done.stdout
    assert not (tmp_path / "kept").exists()
    assert command("idx", "--input", __file__).returncode == 0
