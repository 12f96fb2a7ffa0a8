"""What the durability tests share."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.durability import faults

Say = Callable[[str], None]

MEMORY = Path("/dev/shm")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory where there is one: a killed process needs no disk, and a flush costs nothing there."""
    place = tempfile.mkdtemp(prefix="cnnjob-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None)
    yield Path(place).resolve()
    shutil.rmtree(place)


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled shim."""
    if not faults.compiler():
        pytest.skip(faults.NO_COMPILER)
    return faults.compile_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Say:
    """Show the figures of a test whether it passes or not."""
    terminal = request.config.get_terminal_writer()
    return lambda text: terminal.line(f"\n{text}")
