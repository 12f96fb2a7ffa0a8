"""A folder of the ordinary user's from which the toy job is submitted, and what can be seen of its run."""

import os
import re
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnnjob.runs.process import is_alive
from cnnjob.runs.restart_log import try_read_restart_log
from cnnjob.runs.run import Run
from cnnjob.slurm.node.restart import SIGNAL_CODES
from tests.cluster import lab
from tests.helpers.cli import JOB
from tests.helpers.toy_jobs import dataset

SMALL = ("--nodes", 1, "--kill-wait", 5)
REQUEST = ("--partition", "low", "--time", "10m", "--cpus-per-task", "1", "--mem", "500M")
Outcome = tuple[bytes, bytes, list[dict[str, Any]]]


def toml(epochs: int) -> str:
    """The toy's job file; it saves five times a second."""
    length = f"epochs = {epochs}\ncheckpoint_seconds = 0.2"
    return JOB.replace("epochs = 2", length) + '[resources]\nbackend = "numpy"\n'


@dataclass(frozen=True)
class Place:
    """A folder of the ordinary user's with the toy dataset and job."""

    cluster: lab.Cluster
    python: Path
    folder: Path

    @classmethod
    def make(cls, cluster: lab.Cluster, python: Path, name: str, epochs: int) -> "Place":
        """Make the folder in the user's home."""
        folder = cluster.home / name
        cluster.run("mkdir", folder)
        (folder / "data").mkdir()
        dataset(folder / "data")
        (folder / "toy.toml").write_text(toml(epochs))
        return cls(cluster, python, folder)

    def cnnjob(
        self, *words: object, check: bool = True, timeout: float = 60, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command here."""
        command = (self.python, "-m", "cnnjob", *words)
        return self.cluster.run(*command, cwd=self.folder, check=check, timeout=timeout, **variables)

    def submit(self, *options: object, setup: str = "", path: str = "", **profile: object) -> str:
        """Submit the toy, with a line of setup, other values of a profile and a PATH; the job's id."""
        lines = [f"{key} = {value}" for key, value in profile.items()]
        lines += [f"setup = ['''{setup}''']"] * bool(setup)
        (self.folder / "site.toml").write_text("\n".join(lines))
        words = ("submit", "toy.toml", *REQUEST, "--profile", "site.toml", *options)
        said = self.cnnjob(*words, PATH=path or os.environ["PATH"]).stdout
        found = re.search(r": submitted as job (\d+)", said)
        assert found, said
        return found[1]

    @property
    def run(self) -> Run:
        """The one run."""
        [path] = [path for path in (self.folder / "runs").iterdir() if not path.name.startswith(".")]
        return Run(path)

    # --- what can be seen

    def until_saved(self, n_attempts: int = 1) -> None:
        """Wait until this life has left a checkpoint of its own."""
        lab.until(lambda: len(self.run.attempt_files()) == n_attempts, 60, f"attempt {n_attempts}")
        before = self.saved()
        lab.until(lambda: self.saved() > before, 60, "a checkpoint")

    def saved(self) -> int:
        """The step of the newest checkpoint."""
        return max((int(path.stem[5:]) for path in self.run.checkpoints_folder.glob("step-*.npz")), default=0)

    def said(self) -> list[str]:
        """What was decided after each life."""
        lab.until(lambda: bool(try_read_restart_log(self.run)), 40, what="a decision")
        return [told["said"] for told in try_read_restart_log(self.run)]

    def until_ended(self, job: str, state: str) -> None:
        """Wait until the job and its batch script have ended, and stay so."""
        self.cluster.wait(job, state, seconds=60)
        lab.until(lambda: not self.cluster.admin("squeue", "--noheader", "--jobs", job), what="the end")
        assert self.cluster.state(job) == state

    def jobs(self, first: str) -> list[str]:
        """The jobs that have carried the run: the first one and its successors."""
        found = (re.match(r"job (\d+) resumes the run", told["said"]) for told in try_read_restart_log(self.run))
        return [first, *(one[1] for one in found if one)]

    def n_attempts(self, first: str) -> int:
        """How often it was started, be it for a moment."""
        return sum(int(self.cluster.job(job)["Restarts"]) + 1 for job in self.jobs(first))

    def restarted_by(self, first: str) -> dict[str, int]:
        """Who restarted it, and how often.

        ``the job`` has saved and asked its batch script to; ``the batch script`` found its process gone.
        """
        own = [told for told in try_read_restart_log(self.run) if told["restarted"] in {"requeued", "successor"}]
        script = sum(told["code"] >= SIGNAL_CODES for told in own)
        who = {"SLURM": self.n_attempts(first) - 1 - len(own), "the job": len(own) - script, "the batch script": script}
        return {name: count for name, count in who.items() if count}

    # --- what can be done to it

    @property
    def task(self) -> int:
        """The process of the newest attempt."""
        return int(self.run.attempts()[-1]["pid"])

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send its process a signal."""
        with suppress(ProcessLookupError):
            os.kill(self.task, number)

    def is_running(self) -> bool:
        """Whether the process of the newest attempt lives; all nodes are on this machine."""
        record = self.run.attempt_files()[-1]
        holder = self.run.attempts()[-1]
        return is_alive({**holder, "host": os.uname().nodename}, record)

    def hold(self, seconds: float) -> None:
        """Keep its process from going on so long, and after; SLURM lets it go on with every signal it sends."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.kill(signal.SIGSTOP)
            time.sleep(0.1)

    def importing(self) -> int:
        """The process that will train, as soon as it is there."""
        lab.until(lambda: bool(self._starting()), 60, "a task")
        return self._starting()[0]

    def _starting(self) -> list[int]:
        words = ("submitit.core._submit", str(self.folder))
        return [pid for pid, line in lab.commands() if all(word in line for word in words) and "srun" not in line]
