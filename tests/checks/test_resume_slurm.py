"""When both runs of verify-resume on a cluster count as over."""

import time
from pathlib import Path

import pytest

from cnnjob.checks import resume_slurm
from cnnjob.errors import CnnjobError
from tests.helpers.fake_slurm import FakeSlurm, queue_row, set_answers
from tests.helpers.run_folders import finished_run, stopped_run


def watch(runs: list[Path], seconds: float) -> resume_slurm._Watch:
    from cnnjob.runs.run import Run

    return resume_slurm._Watch([Run(path) for path in runs], time.monotonic() + seconds)


def test_runs_that_finished_in_time_are_over_at_the_time_limit(idle_slurm: FakeSlurm) -> None:
    """Their jobs may stay in the queue for a while, whatever the time limit."""
    runs = [finished_run(Path("a")), finished_run(Path("b"))]
    listed = "".join(queue_row("COMPLETING", comment=f"cnnjob {run.path.resolve()} 1") for run in runs)
    set_answers(idle_slurm, listed)
    paths = [run.path for run in runs]
    assert not watch(paths, 60).both_are_over()
    assert watch(paths, -1).both_are_over()
    set_answers(idle_slurm)
    assert watch(paths, 60).both_are_over()


def test_a_run_that_is_not_finished_at_the_time_limit_is_an_error(idle_slurm: FakeSlurm) -> None:
    set_answers(idle_slurm)
    runs = [finished_run(Path("a")).path, stopped_run(Path("b")).path]
    with pytest.raises(CnnjobError, match="not finished in time, so the jobs are cancelled"):
        watch(runs, -1).both_are_over()
