"""The real command, ``python -m cnnjob``, in a process of its own."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.durability.faults import environment


def train_command(job: Path, runs: str = "runs") -> list[str]:
    """``cnnjob train`` of a job file, its runs beside it."""
    return [sys.executable, "-m", "cnnjob", "train", str(job), "--runs", str(job.with_name(runs))]


def run_train(job: Path, runs: str = "runs", **variables: Any) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    command = train_command(job, runs)
    return subprocess.run(command, env=environment(**variables), capture_output=True, text=True, check=False)


def start_train(job: Path) -> subprocess.Popen[bytes]:
    """Start it."""
    return subprocess.Popen(train_command(job), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
