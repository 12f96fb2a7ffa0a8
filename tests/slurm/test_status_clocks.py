"""The status of runs on hosts whose clocks differ."""

from pathlib import Path

import pytest

from cnnjob.runs import process
from tests.helpers.cli import cnnjob
from tests.helpers.fake_slurm import FakeSlurm, row, says
from tests.helpers.run_folders import change_json, running_run
from tests.helpers.slurm_runs import elsewhere, one, stopped_in_job, submitted

pytestmark = pytest.mark.usefixtures("idle_slurm")


AHEAD = "its last sign of life is 2 h in the future, so the clock of n1 or of this machine is wrong"


@pytest.mark.parametrize(
    ("squeue", "sacct", "state", "detail"),
    [
        (row("RUNNING", node="n1"), "", "running", AHEAD),
        ("", "", "lost", f"job 17 is gone; {AHEAD}"),
        ("", "17|TIMEOUT|0:0|n1|\n", "lost", f"job 17 TIMEOUT; {AHEAD}"),
        ("some words", "", "running", AHEAD),
    ],
)
def test_a_sign_of_life_from_the_future(
    idle_slurm: FakeSlurm, squeue: str, sacct: str, state: str, detail: str
) -> None:
    run = elsewhere(submitted(running_run(Path("runs"))), -7201)
    says(idle_slurm, squeue, sacct)
    assert (one(run).state, one(run).detail) == (state, detail)
    assert AHEAD in cnnjob("status", str(run.path)).stdout


def test_an_attempt_that_started_in_the_future(idle_slurm: FakeSlurm) -> None:
    """Its clock does not decide which job is the newest."""
    run = submitted(stopped_in_job(Path("runs")), "18", submitted=process.now(), attempt=2)
    change_json(run.attempt_files()[-1], started="2999-01-01T00:00:00+00:00")
    says(idle_slurm, row("PENDING", "Priority", job="18"))
    assert (one(run).job_id, one(run).state) == ("18", "pending")
    says(idle_slurm, "", "18|CANCELLED by 5|0:0||\n")
    assert one(run).state == "cancelled"
    assert "in the future, so the clock of" in one(run).detail
