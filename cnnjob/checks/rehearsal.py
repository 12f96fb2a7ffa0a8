"""Rehearse a job on this machine in a few seconds: train with the real code and data, stop, resume and report."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from cnnjob.data.dataset import Dataset
from cnnjob.errors import CnnjobError, plural
from cnnjob.jobs.job import Job
from cnnjob.reporting.report import report
from cnnjob.training.progress import NoProgress
from cnnjob.training.setup import TrainingSetup
from cnnjob.training.train import train

STEPS = 2
"""Number of steps in each of the two attempts."""


class _StopAfterSteps(NoProgress):
    """A progress callback that stops training after ``STEPS`` steps with a signal, as SLURM would."""

    def __init__(self) -> None:
        self._left = STEPS

    def step(self, epoch: int, step: int) -> None:  # noqa: ARG002 - the signature of a progress callback
        """Count the step, and send the signal after ``STEPS`` steps."""
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGUSR1)


def rehearse(job: Job, dataset: Dataset) -> Iterator[str]:
    """Run four steps of a job on one core, in a temporary folder that is removed afterwards.

    Args:
        job: the job.
        dataset: the job's dataset.

    Yields:
        One line for each stage that succeeds: the first attempt, the attempt that resumes the run, and the report.

    Raises:
        CnnjobError: a stage failed; the job would fail on the cluster too.
    """
    if job.resources.backend != "numpy":  # a login node may have no GPU
        job = job.model_copy(update={"resources": job.resources.model_copy(update={"backend": "auto"})})
    with TemporaryDirectory(prefix="cnnjob-") as folder:
        setup = TrainingSetup.checked(job, dataset)
        run = setup.create_run(Path(folder) / "runs")
        for attempt in (1, 2):
            outcome = train(run, _StopAfterSteps(), setup=setup, cores=1)
            if outcome.state == "finished":
                yield f"attempt {attempt}: finished, test accuracy {run.result()['test_accuracy']:.4f}"
                break
            [path] = sorted(run.checkpoints_folder.glob("step-*.npz"))[-1:]
            yield f"attempt {attempt}: {STEPS} steps, stopped by a signal, checkpoint of {path.stat().st_size:,} bytes"
        if len(run.attempts()) == 2 and run.attempts()[1].get("resumed_at_step") != STEPS:  # noqa: PLR2004
            raise CnnjobError(f"{run.name}: the second attempt did not resume where the first one stopped")
        written = report([run], Path(folder) / "report")
        yield f"report: {plural(len(written.files), 'file')}"
