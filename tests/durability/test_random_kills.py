"""Killed at random moments, several times a run, by ``kill -9``."""

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.durability import commands
from tests.durability.conftest import Say
from tests.durability.faults import run_script
from tests.durability.scenarios import wrong_end
from tests.durability.toys import fingerprint, toy_job, toy_run

pytestmark = pytest.mark.durability

KILLS, STREAMED_KILLS = 120, 50
CLI_KILLS = 12
SEED = 20
EPOCHS = 40


@pytest.mark.parametrize(
    ("kills", "options"), [(KILLS, ()), (STREAMED_KILLS, ("streamed",))], ids=["in memory", "streamed"]
)
def test_killed_at_random_moments(folder: Path, say: Say, kills: int, options: tuple[str, ...]) -> None:
    runs = run_script("random_kills", folder, kills, SEED, *options)
    say(f"{sum(run['kills'] for run in runs)} kills of {len(runs)} runs, up to {max(r['kills'] for r in runs)}")
    assert not [run for run in runs if run["wrong"]]
    assert sum(run["kills"] for run in runs) >= kills
    assert max(run["kills"] for run in runs) >= 3


def test_the_command_killed_at_random_moments(folder: Path, say: Say) -> None:
    draw = random.Random(SEED)
    unbroken = folder / "unbroken"
    unbroken.mkdir()
    for place in (folder, unbroken):
        toy_job(place, epochs=EPOCHS, seconds=0.02)
    started = time.monotonic()
    assert commands.run_train(toy_job(unbroken, epochs=EPOCHS, seconds=0.02)).returncode == 0
    life = time.monotonic() - started
    kills = 0
    while kills < CLI_KILLS:
        kills += killed(commands.start_train(toy_job(folder, epochs=EPOCHS, seconds=0.02)), draw.uniform(0.2, 1) * life)
    assert commands.run_train(toy_job(folder, epochs=EPOCHS)).returncode == 0
    say(f"{kills} kills of the command, {len(toy_run(folder, epochs=EPOCHS).attempt_files())} lives")
    expected = fingerprint(toy_run(unbroken, epochs=EPOCHS))
    assert not list(wrong_end(toy_run(folder, epochs=EPOCHS), expected))


def killed(process: "subprocess.Popen[bytes]", after: float) -> bool:
    """Kill a command after a while; say whether it was still running."""
    time.sleep(after)
    process.kill()
    return process.wait() == -signal.SIGKILL
