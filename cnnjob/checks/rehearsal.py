"""A job rehearsed here, in seconds: the real code on the real data, stopped, resumed and reported."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from cnnjob.data.dataset import Dataset
from cnnjob.errors import CnnjobError
from cnnjob.jobs.job import Job
from cnnjob.reporting.report import report
from cnnjob.training.progress import NoProgress
from cnnjob.training.setup import TrainingSetup
from cnnjob.training.train import train

STEPS = 2
"""Of each of the two lives."""


class _Stops(NoProgress):
    """Asks a training to stop after some steps, as a cluster would."""

    def __init__(self) -> None:
        self._left = STEPS

    def step(self, epoch: int, step: int) -> None:  # noqa: ARG002 - a listener's form
        """Count down, then send the signal."""
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGUSR1)


def rehearse(job: Job, dataset: Dataset) -> Iterator[str]:
    """Run four steps of a job in a temporary folder, on one core; nothing of it stays.

    Args:
        job: the job.
        dataset: its data.

    Yields:
        What went well, a line each.

    Raises:
        CnnjobError: something did not; the same would have happened on the cluster.
    """
    anywhere = (
        job.resources if job.resources.backend == "numpy" else job.resources.model_copy(update={"backend": "auto"})
    )
    job = job.model_copy(update={"resources": anywhere})  # here there may be no GPU
    with TemporaryDirectory(prefix="cnnjob-") as folder:
        setup = TrainingSetup.checked(job, dataset)
        run = setup.create_run(Path(folder) / "runs")
        for life in (1, 2):
            outcome = train(run, _Stops(), setup=setup, cores=1)
            if outcome.state == "finished":
                yield f"life {life}: finished, test accuracy {run.result()['test_accuracy']:.4f}"
                break
            [path] = sorted(run.checkpoints_folder.glob("step-*.npz"))[-1:]
            yield f"life {life}: {STEPS} steps, stopped by a signal, a checkpoint of {path.stat().st_size:,} bytes"
        if len(run.attempts()) == 2 and run.attempts()[1].get("resumed_at_step") != STEPS:  # noqa: PLR2004
            raise CnnjobError(f"{run.name}: the second life did not go on where the first had stopped")
        written = report([run], Path(folder) / "report")
        yield f"report: {len(written.files)} files"
