"""What runs on the node: one life of a run, ended with an exit code that says how.

What is pickled for the node is a path; everything else is in the run's folder.
"""

import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import NoReturn

from cnnjob import files
from cnnjob.errors import EXIT_STOPPED, BusyError, CnnjobError
from cnnjob.jobs.job import Job
from cnnjob.runs import restart_log
from cnnjob.runs.process import cluster, job_id
from cnnjob.runs.run import Run
from cnnjob.slurm.job_array import JobArray
from cnnjob.slurm.job_index import number_of
from cnnjob.slurm.node import deadlines
from cnnjob.slurm.scheduler import client
from cnnjob.slurm.submit import code_snapshot
from cnnjob.training.stopping import Deadline
from cnnjob.training.train import Outcome, train

LATER_JOB_SECONDS, POLL_SECONDS = 60.0, 5.0
"""How long a job waits for a later one that has its run, and between two looks."""


@dataclass(frozen=True)
class NodeTask:
    """A callable that holds a path: any pickle of it, however old, is right."""

    folder: str
    """Of the run, or of the sweep that it is an element of."""
    margin_seconds: float
    """It stops so long before its end, should no signal have come."""
    cores: int | None = None
    """How many to use; all that SLURM gives by default."""
    minutes: int | None = None
    """Its time limit where there is no SLURM."""

    def __call__(self) -> NoReturn:
        """Train, and leave with the code of what happened; unfinished is never 0."""
        code = 1
        for number in (signal.SIGUSR2, signal.SIGTERM):  # submitit's handlers would requeue by its own count, or ignore
            signal.signal(number, signal.SIG_DFL)  # nothing is lost until the training takes them over
        try:
            code = self._live()
        except CnnjobError as error:
            code = error.exit_code
            with suppress(OSError):
                print(f"cnnjob: {error}", file=sys.stderr)  # noqa: T201 - the job's own log
        except BaseException:  # noqa: BLE001 - whatever it is, the batch script must learn of it
            with suppress(OSError):
                traceback.print_exc()
        with suppress(OSError):  # a log on a full disk changes no exit code
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)  # submitit has nothing to do after this: the run's folder tells

    def _live(self) -> int:
        code_snapshot.check_snapshot()
        if job_id() and not cluster() and (name := client.cluster()):
            os.environ["SLURM_CLUSTER_NAME"] = name  # SLURM sets it since long
        run = JobArray.read(Path(self.folder)).own_run()
        if _is_cancelled(run):
            print(f"{run.path}: {restart_log.CANCELLED}", flush=True)  # noqa: T201
            return EXIT_STOPPED
        end = inf if self.minutes else deadlines.first_end()
        deadline = deadlines.deadline(end, self.margin_seconds)
        if self.minutes:  # where there is no SLURM
            deadline = Deadline(time.time() + 60 * self.minutes)
        with deadlines.ended_in_time(end):
            outcome = self._train(run, deadline)
        with suppress(OSError):
            print(f"{run.path}: {outcome.state}", flush=True)  # noqa: T201
        return EXIT_STOPPED if outcome.state == "stopped" else 0

    def _train(self, run: Run, deadline: Deadline) -> Outcome:
        """Train, as soon as a later job has left the run: one that another submission made, and is cancelling."""
        end = time.monotonic() + LATER_JOB_SECONDS
        while True:
            try:
                return train(run, LogLines(), deadline=deadline, cores=self.cores, has_ended=client.job_is_over)
            except BusyError:
                if not _has_later_job(run) or time.monotonic() > end:
                    raise
            time.sleep(POLL_SECONDS)


def _is_cancelled(run: Run) -> bool:
    """Return whether the job that submitted this one was cancelled in that moment; this one is cancelled with it."""
    record = restart_log.cancel_of(run)
    if os.environ.get(restart_log.PREDECESSOR) not in (record.get("jobs") or []):
        return False
    files.write_json(restart_log.cancel_record(run), {**record, "jobs": [*record["jobs"], str(job_id())]})
    return True


def _has_later_job(run: Run) -> bool:
    """Return whether the job of a run's last attempt was submitted after this one."""
    attempts, own = run.attempts(), job_id()
    holder = str(attempts[-1].get("job_id")) if attempts else ""
    is_of_this_cluster = bool(attempts) and attempts[-1].get("cluster") == cluster()
    return bool(own) and is_of_this_cluster and number_of(holder) > number_of(str(own))


class LogLines:
    """One line an epoch in the job's log."""

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, flush=True)  # noqa: T201

    def start(self, job: Job, steps: int) -> None:
        """Print how much there is to do."""
        self.say(f"{job.train.epochs} epochs of {steps} steps, {time.strftime('%F %T')}")

    def step(self, epoch: int, step: int) -> None:
        """Nothing."""
