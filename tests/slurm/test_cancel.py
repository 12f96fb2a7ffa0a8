"""``cancel``: what is cancelled, recorded and printed."""

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cnnjob import files
from cnnjob.runs import process
from cnnjob.runs.restart_log import cancellation_file, try_read_cancellation
from cnnjob.slurm import run_state
from cnnjob.slurm.node.restart import main as restart
from tests.helpers.cli import cnnjob
from tests.helpers.fake_slurm import FakeSlurm, queue_row, recorded_calls, set_answers
from tests.helpers.run_folders import change_json, finished_run, pending_run, running_run
from tests.helpers.slurm_runs import ME, cause_of, status_of, stopped_in_job, waiting_run, with_job

pytestmark = pytest.mark.usefixtures("idle_slurm")


def test_cancelling_asks_once_and_cancels_at_once(idle_slurm: FakeSlurm) -> None:
    runs = [with_job(pending_run(Path("runs"), seed=seed), str(17 + seed)) for seed in range(3)]
    over = finished_run(Path("runs"), seed=9)
    set_answers(idle_slurm, queue_row("PENDING", job="17") + queue_row("RUNNING", job="18"))
    found = cnnjob("cancel", *(str(run.path) for run in (*runs, over)))
    assert (found.exit_code, found.stdout.splitlines()) == (0, [
        f"{runs[0].path}: cancelled job 17, which was waiting",
        f"{runs[1].path}: cancelled job 18, which will save before it ends",
        f"{runs[2].path}: nothing to cancel: lost",
        f"{over.path}: nothing to cancel: finished",
    ])  # fmt: skip
    assert recorded_calls(idle_slurm) == ["squeue", "sacct", "scancel 17 18", "squeue"]
    set_answers(idle_slurm)
    assert status_of(runs[0]).state == "cancelled"
    assert cause_of(runs[0]).sentence == f"it was cancelled by {ME} with cnnjob cancel"
    assert status_of(with_job(runs[0], "19")).state == "lost"


def test_a_requeue_under_way_does_not_bring_it_back(idle_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch script reads the record of it, whatever the scheduler says."""
    run = stopped_in_job(Path("runs"))
    set_answers(
        idle_slurm,
        queue_row("COMPLETING"),
        scontrol='echo "$@" >> ../asked; echo "JobId=17 JobState=RUNNING Restarts=0"',
    )
    assert "cancelled job 17" in cnnjob("cancel", str(run.path)).stdout
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    before = signal.getsignal(signal.SIGTERM)
    restart(str(run.path), "75")
    signal.signal(signal.SIGTERM, before)  # in its own process it ignores the signal from here on
    assert not [line for line in recorded_calls(idle_slurm) if "requeue" in line]
    assert status_of(run).state == "cancelled"


def test_what_scancel_refuses_is_said(idle_slurm: FakeSlurm) -> None:
    run = waiting_run(Path("runs"))
    # gc3pie, gc3libs/backends/tests/test_slurm.py: said with exit code 0
    denied = "scancel: error: Kill job error on job id 17: Access/permission denied"
    set_answers(idle_slurm, queue_row("PENDING"), scancel=f'echo "{denied}" >&2')
    found = cnnjob("cancel", str(run.path))
    assert (found.exit_code, found.stdout) == (4, f"{run.path}: job 17 was not cancelled: {denied}\n")
    assert status_of(run).state == "pending"
    gone = "scancel: error: Kill job error on job id 17: Job/step already completing or completed"
    idle_slurm.install(scancel=f'echo "{gone}" >&2; exit 1')
    assert "cancelled job 17" in cnnjob("cancel", str(run.path)).stdout


@pytest.mark.parametrize("answers", [{"squeue": "exit 1"}, {"scancel": "exit 1"}, {"squeue": None}])
def test_a_scheduler_that_cannot_cancel_is_exit_4(idle_slurm: FakeSlurm, answers: dict[str, str | None]) -> None:
    waiting_run(Path("runs"))
    set_answers(idle_slurm, queue_row("PENDING"))
    idle_slurm.install(**answers)
    found = cnnjob("cancel", "runs")
    assert (found.exit_code, found.stdout, found.stderr.count("\n")) == (4, "", 1)


@pytest.mark.parametrize("before", [{}, {"by": "me", "jobs": ["9"], "attempt": 0}])
def test_a_cancellation_that_fails_leaves_the_records_as_they_were(
    idle_slurm: FakeSlurm, before: dict[str, Any]
) -> None:
    runs = [with_job(pending_run(Path("runs"), seed=seed), str(17 + seed)) for seed in range(2)]
    record = cancellation_file(runs[1])
    if before:
        files.write_json(record, before | runs[1].identity())
    set_answers(idle_slurm, queue_row("PENDING") + queue_row("RUNNING", job="18"), scancel="exit 1")
    assert cnnjob("cancel", "runs").exit_code == 4
    assert not cancellation_file(runs[0]).exists()
    assert record.exists() == bool(before)
    assert {key: try_read_cancellation(runs[1]).get(key) for key in before} == before


def test_a_run_with_a_link_does_not_keep_the_others_from_their_end(idle_slurm: FakeSlurm) -> None:
    runs = [with_job(pending_run(Path("runs"), seed=seed), str(17 + seed)) for seed in range(2)]
    runs[0].slurm_folder.rename("moved")
    runs[0].slurm_folder.symlink_to(Path("moved").resolve())
    set_answers(idle_slurm, queue_row("PENDING") + queue_row("PENDING", job="18"))
    found = cnnjob("cancel", *(str(run.path) for run in runs))
    lines = found.stdout.splitlines()
    assert lines[0].startswith(f"{runs[0].path}: not cancelled: {runs[0].slurm_folder}: must not be a symbolic link")
    assert (found.exit_code, lines[1]) == (3, f"{runs[1].path}: cancelled job 18, which was waiting")
    assert [line for line in recorded_calls(idle_slurm) if "scancel" in line] == ["scancel 18"]
    assert [cancellation_file(run).exists() for run in runs] == [False, True]


def test_a_finished_run_is_not_cancelled_while_its_job_ends(idle_slurm: FakeSlurm) -> None:
    over, other = with_job(finished_run(Path("runs"))), pending_run(Path("runs"), seed=1)
    set_answers(idle_slurm, queue_row("COMPLETING"))
    assert cnnjob("cancel", str(over.path), str(other.path)).stdout.splitlines() == [
        f"{over.path}: nothing to cancel: finished", f"{other.path}: nothing to cancel: pending",
    ]  # fmt: skip
    assert not cancellation_file(over).exists()
    assert recorded_calls(idle_slurm) == ["squeue"]


def test_a_process_of_this_machine_is_asked_to_stop(idle_slurm: FakeSlurm) -> None:
    idle_slurm.install(squeue=None)
    run = running_run(Path("runs"))
    child = subprocess.Popen(["/bin/sleep", "60"])
    change_json(run.attempt_files()[-1], pid=child.pid, pid_started=process._start_of(child.pid))
    found = cnnjob("cancel", str(run.path))
    assert found.stdout == f"{run.path}: asked process {child.pid} to save and stop\n"
    assert child.wait(20) == -signal.SIGTERM
    change_json(run.attempt_files()[-1], ended=process.now(), why="stopped: SIGTERM", step=150)
    assert status_of(run).state == run_state.status_from_folder(run).state == "cancelled"
    assert run_state.status_from_folder(run, "no memory").state == "failed"
    assert cnnjob("cancel", str(run.path)).stdout == f"{run.path}: nothing to cancel: cancelled\n"


def test_a_process_of_another_machine_is_left_alone() -> None:
    run = running_run(Path("runs"))
    change_json(run.attempt_files()[-1], host="n1")
    said = f"process {os.getpid()} on n1 is training it. To make it save and stop:\n  ssh n1 kill -TERM {os.getpid()}\n"
    found = cnnjob("cancel", str(run.path))
    assert (found.exit_code, found.stdout) == (5, f"{run.path}: not cancelled: {said}")
