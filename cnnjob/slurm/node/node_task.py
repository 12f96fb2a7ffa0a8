"""The task that SLURM runs on a node: one attempt to train a run.

The exit code of its process reports the outcome. The pickle that the node loads contains a path and a few numbers;
everything else is in the run's folder.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import NoReturn

from cnnjob import files
from cnnjob.errors import EXIT_STOPPED, BusyError, CnnjobError
from cnnjob.jobs.job import Job
from cnnjob.runs import restart_log
from cnnjob.runs.creation import open_run_dataset
from cnnjob.runs.process import cluster, job_id
from cnnjob.runs.run import Run
from cnnjob.slurm.job_array import JobArray
from cnnjob.slurm.job_index import number_of
from cnnjob.slurm.node import deadlines
from cnnjob.slurm.scheduler import client
from cnnjob.slurm.submit import code_snapshot
from cnnjob.training.progress import NoProgress, format_loss
from cnnjob.training.setup import TrainingSetup
from cnnjob.training.staging import STAGE, stage_dataset
from cnnjob.training.stopping import Deadline
from cnnjob.training.train import Outcome, train

LATER_JOB_SECONDS, POLL_SECONDS = 60.0, 5.0
"""Maximum time that a job waits for a later job to release the run, and the pause between two attempts."""
PROGRESS_SECONDS = 300.0
"""Time without output after which a line about the current step is printed."""


@dataclass(frozen=True)
class NodeTask:
    """The callable that submitit pickles. It contains no state of the run, so old pickles stay valid."""

    folder: str
    """Folder of the run, or of the sweep to which the array task belongs."""
    margin_seconds: float
    """Time before the end of the SLURM job at which training stops by itself if it has received no signal."""
    cores: int | None = None
    """Number of cores to use; None for all cores that SLURM has allocated."""
    minutes: int | None = None
    """Time limit when running without SLURM; None for no limit."""

    def __call__(self) -> NoReturn:
        """Train, then end the process with an exit code that reports the outcome; 0 means that the run is finished."""
        code = 1
        # submitit's handlers would requeue the job by its own rules, or ignore the signal. Until training installs its
        # own handlers, the default action is safe, since there is nothing to lose.
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        try:
            code = self._run_attempt()
        except CnnjobError as error:
            code = error.exit_code
            with suppress(OSError):
                print(f"cnnjob: {error}", file=sys.stderr)  # noqa: T201 - the job's own log
        except BaseException:  # noqa: BLE001 - the batch script needs an exit code for everything, even SystemExit
            with suppress(OSError):
                traceback.print_exc()
        with suppress(OSError):  # a log on a full disk must not change the exit code
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)  # skips submitit's result pickle: the run's folder has the result

    def _run_attempt(self) -> int:
        """Train this task's run and return the outcome's exit code."""
        code_snapshot.check_snapshot()
        if job_id() and not cluster() and (name := client.current_cluster()):
            # older versions of SLURM do not set this variable, and the records of this attempt would not name a cluster
            os.environ["SLURM_CLUSTER_NAME"] = name
        run = JobArray.read(Path(self.folder)).own_run()
        if _is_cancelled(run):
            print(f"{run.path}: {restart_log.CANCELLED}", flush=True)  # noqa: T201
            return EXIT_STOPPED
        end = inf if self.minutes else deadlines.read_first_end()
        deadline = deadlines.make_deadline(end, self.margin_seconds)
        if self.minutes:  # without SLURM
            deadline = Deadline(time.time() + 60 * self.minutes)
        with deadlines.ended_in_time(end):
            outcome = self._train(run, deadline)
        with suppress(OSError):
            print(f"{run.path}: {outcome.state}", flush=True)  # noqa: T201
        return EXIT_STOPPED if outcome.state == "stopped" else 0

    def _train(self, run: Run, deadline: Deadline) -> Outcome:
        """Train the run.

        If the run is owned by a SLURM job that was submitted later than this job, wait for a limited time: the later
        job is withdrawn and then releases the run.

        Raises:
            BusyError: another process owns the run and did not release it in time.
        """
        end = time.monotonic() + LATER_JOB_SECONDS
        while True:
            try:
                return train(
                    run,
                    LogLines(),
                    setup=self._staged_setup(run),
                    deadline=deadline,
                    cores=self.cores,
                    job_is_over=client.job_is_over,
                )
            except BusyError:
                # the later of two simultaneous submissions withdraws its job, which may have started first
                if not _has_later_job(run) or time.monotonic() > end:
                    raise
            time.sleep(POLL_SECONDS)

    @staticmethod
    def _staged_setup(run: Run) -> TrainingSetup | None:
        """Return a training setup that uses this node's copy of the dataset; None if no copy is requested."""
        if not os.environ.get(STAGE) or run.result_file.exists():
            return None
        return TrainingSetup.of_run(run, dataset=stage_dataset(open_run_dataset(run), LogLines().say))


def _is_cancelled(run: Run) -> bool:
    """Return whether this job's predecessor was cancelled; if so, record this job as cancelled too.

    ``cnnjob cancel`` may have read the queue before the predecessor submitted this job.
    """
    record = restart_log.try_read_cancellation(run)
    if os.environ.get(restart_log.PREDECESSOR) not in (record.get("jobs") or []):
        return False
    files.write_json(restart_log.cancellation_file(run), {**record, "jobs": [*record["jobs"], str(job_id())]})
    return True


def _has_later_job(run: Run) -> bool:
    """Return whether the job of the run's last attempt was submitted after this job."""
    attempts, this_job = run.attempts(), job_id()
    if not attempts or this_job is None:
        return False
    # job ids reflect the order of submission only within one cluster
    is_of_this_cluster = attempts[-1].get("cluster") == cluster()
    return is_of_this_cluster and number_of(str(attempts[-1].get("job_id"))) > number_of(this_job)


class LogLines(NoProgress):
    """A progress callback that prints one line per epoch to the job's log, and more lines during a long epoch."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Create the callback.

        Args:
            clock: returns the current time in seconds.
        """
        self._clock, self._printed = clock, clock()
        self._epochs = self._steps = 0
        self._loss = ""

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, flush=True)  # noqa: T201
        self._printed = self._clock()

    def start(self, job: Job, steps: int) -> None:
        """Print the number of epochs, the number of steps per epoch, and the current time."""
        self._epochs, self._steps = job.train.epochs, steps
        self.say(f"{job.train.epochs} epochs of {steps} steps, {time.strftime('%F %T')}")

    def loss(self, loss: float) -> None:
        """Store the loss of a step."""
        self._loss = f": loss {format_loss(loss)}"

    def step(self, epoch: int, step: int) -> None:
        """Print the step if nothing has been printed for ``PROGRESS_SECONDS``."""
        if self._clock() - self._printed >= PROGRESS_SECONDS:
            self.say(f"epoch {epoch}/{self._epochs}, step {step:,}/{self._steps:,}{self._loss}")
