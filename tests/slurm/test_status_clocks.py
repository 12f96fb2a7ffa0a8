"""The status of runs on hosts whose clocks differ."""

from pathlib import Path

import pytest

from cnnjob.runs import process
from tests.helpers.cli import cnnjob
from tests.helpers.fake_slurm import FakeSlurm, queue_row, set_answers
from tests.helpers.run_folders import change_json, running_run
from tests.helpers.slurm_runs import on_another_host, status_of, stopped_in_job, with_job

pytestmark = pytest.mark.usefixtures("idle_slurm")


AHEAD = "its last heartbeat is 2 h in the future, so the clock of n1 or of this machine is wrong"


@pytest.mark.parametrize(
    ("squeue", "sacct", "state", "detail"),
    [
        (queue_row("RUNNING", node="n1"), "", "running", AHEAD),
        ("", "", "lost", f"job 17 is no longer in the queue; {AHEAD}"),
        ("", "17|TIMEOUT|0:0|n1|\n", "lost", f"job 17 TIMEOUT; {AHEAD}"),
        ("some words", "", "running", AHEAD),
    ],
)
def test_a_sign_of_life_from_the_future(
    idle_slurm: FakeSlurm, squeue: str, sacct: str, state: str, detail: str
) -> None:
    run = on_another_host(with_job(running_run(Path("runs"))), -7201)
    set_answers(idle_slurm, squeue, sacct)
    assert (status_of(run).state, status_of(run).detail) == (state, detail)
    assert AHEAD in cnnjob("status", str(run.path)).stdout


def test_an_attempt_that_started_in_the_future(idle_slurm: FakeSlurm) -> None:
    """Its clock does not decide which job is the newest."""
    run = with_job(stopped_in_job(Path("runs")), "18", submitted=process.now(), attempt=2)
    change_json(run.attempt_files()[-1], started="2999-01-01T00:00:00+00:00")
    set_answers(idle_slurm, queue_row("PENDING", "Priority", job="18"))
    assert (status_of(run).job_id, status_of(run).state) == ("18", "pending")
    set_answers(idle_slurm, "", "18|CANCELLED by 5|0:0||\n")
    assert status_of(run).state == "cancelled"
    assert "in the future, so the clock of" in status_of(run).detail
