"""One damaged file ends no command with a traceback, keeps none waiting, and hides no sound run."""

import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from tests.durability import corrupted
from tests.durability.conftest import Say
from tests.durability.faults import environment

pytestmark = pytest.mark.durability

COUNT = 600
EVERY = int(os.environ.get("CNNJOB_CORRUPTED_EVERY", "12"))


def test_damaged_run_folders_are_one_message_and_hide_no_other(say: Say) -> None:
    found = list(corrupted.faults(COUNT, seed=0, every=EVERY))
    say(f"{COUNT // EVERY} damaged folders, {len(found)} faults")
    assert not found, "\n".join(f"{fault.case}: {fault.command}: {fault.text}" for fault in found)


@pytest.mark.parametrize("damage", [corrupted.pipe, corrupted.huge, corrupted.odd_content])
def test_the_real_command_neither_waits_nor_breaks(tmp_path: Path, damage: corrupted.Damage) -> None:
    corrupted.prepare(root := tmp_path / "here")
    for run in sorted((root / "runs").iterdir()):
        for path in sorted(run.rglob("*.js*")):
            damage(path, Random(run.name))
    for arguments in (["status", "runs"], ["report", "runs"], ["clean", "--json"]):
        command = [sys.executable, "-m", "cnnjob", *arguments]
        done = subprocess.run(
            command, cwd=root, env=environment(), capture_output=True, text=True, timeout=120, check=False
        )
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
