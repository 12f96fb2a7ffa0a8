"""The shim that counts file operations and spoils one of them: ``faults.c``, loaded before everything else."""

import ctypes
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from tests.durability.children import REPOSITORY

SOURCE = Path(__file__).with_name("faults.c")
NO_COMPILER = "needs a C compiler: apt-get install gcc"


class Mode(IntEnum):
    """What happens at the armed operation; the names are those of ``faults.c``."""

    COUNT = 0
    KILL_BEFORE = 1
    KILL_HALF = 2
    KILL_AFTER = 3
    FAIL_ONCE = 4
    FAIL_ON = 5
    WRITE_SHORT = 6
    STOP_BEFORE = 7


@dataclass(frozen=True)
class Operation:
    """A file operation that was done, or begun."""

    name: str
    path: Path


def compiler() -> str | None:
    """The C compiler, if there is one."""
    return shutil.which("cc") or shutil.which("gcc")


def compile_shim(folder: Path) -> Path:
    """Compile the shim into a folder."""
    return _compiled(SOURCE, folder)


def compile_no_locks(folder: Path) -> Path:
    """Compile into a folder what takes the file locks away."""
    return _compiled(SOURCE.with_name("nolocks.c"), folder)


def _compiled(source: Path, folder: Path) -> Path:
    library = folder / f"{source.stem}.so"
    command = [compiler() or "cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, source, "-ldl"]
    subprocess.run([str(part) for part in command], check=True)
    return library


class Shim:
    """The shim of this process, which was started with it."""

    def __init__(self) -> None:
        """Find its functions among those already loaded."""
        self._library = ctypes.CDLL(None)
        self._library.faults_log.restype = ctypes.c_char_p
        self._library.faults_count.restype = ctypes.c_long
        self._library.faults_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int]

    def arm(self, folder: Path, at: int = 0, mode: Mode = Mode.COUNT, error: int = 0) -> None:
        """Count the operations below a folder from here on, and spoil one."""
        self._library.faults_arm(os.fsencode(folder), at, mode, error)

    def forget(self) -> None:
        """Start the count and the log anew, and disarm; forked children share both."""
        self._library.faults_arm(b"", 0, Mode.COUNT, 0)

    def operations(self) -> list[Operation]:
        """What was done since, by a forked child too."""
        lines = os.fsdecode(self._library.faults_log()).splitlines()
        return [Operation(name, Path(path)) for name, _, path in (line.partition(" ") for line in lines)]


def environment(**variables: Any) -> dict[str, str]:
    """The environment of a process that finds the package and these tests."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OPENBLAS_NUM_THREADS": "1", **variables}


def run_script(name: str, *arguments: object, shim: Path | None = None) -> list[dict[str, Any]]:
    """Run a script of this folder, under the shim if there is one; the JSON of every line that it prints."""
    return finish_script(start_script(name, *arguments, shim=shim))


def start_script(name: str, *arguments: object, shim: Path | None = None) -> "subprocess.Popen[str]":
    """Start a script of this folder."""
    preload = {"LD_PRELOAD": str(shim)} if shim else {}
    command = [sys.executable, "-m", f"tests.durability.{name}", *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment(**preload), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish_script(script: "subprocess.Popen[str]") -> list[dict[str, Any]]:
    """Wait for a script; the JSON of every line that it printed."""
    printed, complaints = script.communicate()
    assert script.returncode == 0, complaints
    return [json.loads(line) for line in printed.splitlines()]


def print_json(value: dict[str, Any]) -> None:
    """Report a line to :func:`finish_script`."""
    sys.stdout.write(json.dumps(value) + "\n")
