"""States of runs: the run folder, then the queue, then the accounting."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cnnjob import files
from cnnjob.runs import summary
from cnnjob.runs.restart_log import cancellation_file
from cnnjob.runs.run import Run
from cnnjob.slurm import status
from tests.helpers.cli import cnnjob
from tests.helpers.fake_slurm import FakeSlurm, queue_row, recorded_calls, set_answers
from tests.helpers.run_folders import finished_run, pending_run, running_run, stopped_run
from tests.helpers.slurm_runs import (
    MakeRun,
    cancelled_by_script,
    cause_of,
    crash_loop,
    failed_run,
    lost_in_job,
    remote_run,
    silent_run,
    status_of,
    stopped_in_job,
    waiting_run,
    with_decision,
    with_job,
)

pytestmark = pytest.mark.usefixtures("idle_slurm")


@pytest.mark.parametrize(
    ("make", "squeue", "sacct", "state", "detail"),
    [
        # in the queue
        (waiting_run, queue_row("PENDING", "Priority"), "", "pending", "jobs of higher priority start first"),
        (waiting_run, queue_row("RUNNING", node="n1"), "", "running", "its job is starting"),
        (stopped_in_job, queue_row("PENDING", "BeginTime"), "", "pending",
         "its earliest start time has not been reached"),
        (stopped_in_job, queue_row("RUNNING"), "", "running", "its job is starting"),
        (stopped_in_job, queue_row("COMPLETING"), "", "stopped", "its job is ending"),
        (lost_in_job, queue_row("RUNNING"), "", "running", "no heartbeat for 0 s"),
        (failed_run, queue_row("RUNNING"), "", "failed", "its job is ending"),
        (failed_run, queue_row("PENDING", "Resources"), "", "pending", "the resources that it requests are in use"),
        (running_run, queue_row("PENDING"), "", "running", ""),
        (remote_run, queue_row("RUNNING"), "", "running", ""),
        (remote_run, queue_row("PENDING", "BeginTime"), "", "pending", "its earliest start time has not been reached"),
        (silent_run, queue_row("RUNNING"), "", "running", ""),
        (finished_run, queue_row("COMPLETING"), "", "finished", ""),
        # gone from it
        (pending_run, "", "", "pending", "not submitted"),
        (waiting_run, "", "", "lost", "job 17 left the queue before it started (cancelled or purged)"),
        (lambda root: with_job(stopped_in_job(root), "18"), "", "", "stopped",
         "job 18 left the queue before it started (cancelled or purged)"),
        (lambda root: with_decision(with_job(stopped_in_job(root), "18"), job_id="18", said="not restarted, no"),
         "", "",
         "stopped", "not restarted, no"),
        (waiting_run, "", "17|CANCELLED by 0|0:0||\n", "cancelled", "job 17 CANCELLED by 0"),
        (waiting_run, queue_row("CANCELLED"), "", "cancelled", "job 17 CANCELLED"),
        (waiting_run, "", "17|FAILED|1:0|n1|\n", "failed", "job 17 FAILED before the run began"),
        (waiting_run, "", "17|NODE_FAIL|1:0|n1|\n", "lost", "job 17 NODE_FAIL before the run began"),
        (stopped_in_job, "", "", "stopped", ""),
        (stopped_in_job, "", "17|CANCELLED by 1000|0:0||\n", "cancelled", "job 17 CANCELLED by 1000"),
        (stopped_in_job, "", "17|TIMEOUT|0:0||\n", "stopped", ""),
        (stopped_run, "", "17|CANCELLED by 1000|0:0||\n", "stopped", ""),
        (lost_in_job, "", "17|FAILED|9:0|n1|\n", "lost", ""),
        (remote_run, "", "", "running", ""),
        (silent_run, "", "", "lost", "job 17 is no longer in the queue, no heartbeat for 3 min 20 s"),
        (silent_run, "", "17|NODE_FAIL|0:0|n1|\n", "lost", "job 17 NODE_FAIL"),
        (silent_run, "", "17|CANCELLED by 5|0:0|n1|\n", "cancelled", "job 17 CANCELLED by 5"),
        # a runaway job, or accounting that is late
        (silent_run, "", "17|RUNNING|0:0|n1|\n", "lost",
         "job 17 is no longer in the queue, no heartbeat for 3 min 20 s"),
        (silent_run, "some words", "17|RUNNING|0:0|n1|\n", "running", "sacct reports RUNNING"),
        (waiting_run, queue_row("CANCELLED"), "17|PENDING|0:0||\n", "cancelled",
         "job 17 CANCELLED"),  # sacct is seconds late
        (running_run, "", "", "running", ""),
        (failed_run, "", "17|COMPLETED|0:0||\n", "failed", ""),
        # what the batch script said
        (cancelled_by_script, "", "", "cancelled", "job 17"),
        (cancelled_by_script, queue_row("CANCELLED"), "", "cancelled", "job 17 CANCELLED"),
        (cancelled_by_script, queue_row("DEADLINE"), "", "stopped", ""),
        *((cancelled_by_script, "", f"17|{end}|0:0|n1|\n", "stopped", "")
          for end in ("DEADLINE", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")),
        (cancelled_by_script, "", "17|CANCELLED by 5|0:0|n1|\n", "cancelled", "job 17 CANCELLED by 5"),
        # another job that had its number
        (stopped_in_job, "", "17|CANCELLED by 5|0:0|n1|2001-01-01T00:00:00\n", "stopped", ""),
        (waiting_run, queue_row("CANCELLED", comment="another's"), "", "lost",
         "job 17 left the queue before it started (cancelled or purged)"),
        (crash_loop, "", "", "failed", "3 restarts without progress"),
        (lambda root: with_decision(waiting_run(root), said="not restarted after the job's own error"), "", "",
         "failed", None),
        (lambda root: with_decision(stopped_in_job(root), said="not restarted, sbatch: no"), "", "", "stopped", None),
    ],
)  # fmt: skip
def test_states(idle_slurm: FakeSlurm, make: MakeRun, squeue: str, sacct: str, state: str, detail: str | None) -> None:
    run = make(Path("runs"))
    set_answers(idle_slurm, squeue, sacct)
    found = status_of(run)
    assert found.state == state
    assert detail is None or found.detail == detail
    assert len(recorded_calls(idle_slurm)) <= 2


def test_a_damaged_run_is_shown_as_such() -> None:
    run = stopped_run(Path("runs"))
    run.attempt_files()[-1].write_text("{")
    assert (status_of(run).state, "not readable as JSON" in cause_of(run).evidence) == ("damaged", True)
    other = pending_run(Path("others"))
    other.job_file.write_text("[]")
    assert status_of(other).state == "damaged"
    assert cnnjob("status", "runs", "others").exit_code == 0


def closed(run: Run, what: Path, mode: int = 0) -> str:
    """Close a file or folder of a run to its own user."""
    what.chmod(mode)
    return run.name


def test_runs_that_cannot_be_read_are_listed_with_their_reason() -> None:
    """Root may read anything, unless it gives up the two capabilities to do so."""
    drop = "-dac_override,-dac_read_search"
    as_user = ["/usr/bin/setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}"] if os.geteuid() == 0 else []
    if as_user and not Path(as_user[0]).exists():
        pytest.skip("root needs setpriv to see a folder without permission")
    good = stopped_run(Path("runs"), epochs=0)  # without a history no figure is drawn, which takes long
    bad = {number: stopped_run(Path("runs"), epochs=0, seed=number) for number in range(2, 8)}
    for run in bad.values():
        run.slurm_folder.mkdir()
    damaged = {
        closed(bad[2], bad[2].path), closed(bad[3], bad[3].path, 0o444), closed(bad[4], bad[4].attempts_folder),
        closed(bad[5], bad[5].job_file), closed(bad[6], bad[6].attempt_files()[0]),
    }  # fmt: skip
    closed(bad[7], bad[7].slurm_folder)
    words_ = ["report", "--json", *map(str, sorted(Path("runs").iterdir()))]
    script = f"""from typer.testing import CliRunner
from cnnjob.cli.main import app
for words in (["status"], ["status", "--json"], {words_}, ["clean"], ["cancel", "runs"]):
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, (words, found.output)
    print(found.stdout, end="@@")
"""
    done = subprocess.run([*as_user, sys.executable, "-c", script], capture_output=True, text=True, check=False)
    for path in [run.path for run in bad.values()] + [bad[4].attempts_folder]:
        path.chmod(0o755)  # so that the folder can be removed
    assert done.returncode == 0, done.stderr
    table, facts, report, *_ = done.stdout.split("@@")
    states = {one["run"]: (one["state"], one["detail"]) for one in json.loads(facts)}
    assert {name for name, (state, _) in states.items() if state == "damaged"} == damaged
    assert all("Permission denied" in states[name][1] for name in damaged)
    assert table.count("Permission") == len(damaged)
    assert [states[run.name][0] for run in (good, bad[7])] == ["stopped", "stopped"]
    reasons = {row["run"]: row["reason"] for row in json.loads(report)}
    assert all("Permission denied" in reasons[name] for name in damaged)


def test_a_job_is_known_by_its_comment(idle_slurm: FakeSlurm) -> None:
    run = pending_run(Path("a place"))
    other = pending_run(Path("a place"), seed=3)
    set_answers(idle_slurm, queue_row("PENDING", "Priority", comment=f"cnnjob {run.path.resolve()} 4"))
    assert [found.job_id for found in status.query_statuses([run, other]).statuses] == ["17", None]


def test_an_element_of_an_array(idle_slurm: FakeSlurm) -> None:
    runs = [with_job(pending_run(Path("runs"), seed=seed), f"17_{seed}") for seed in range(6)]
    set_answers(
        idle_slurm, queue_row("RUNNING", node="n1", job="17_0") + queue_row("PENDING", "Priority", job="17_[1,3-5:2%2]")
    )
    assert [found.state for found in status.query_statuses(runs).statuses] == [
        "running", "pending", "lost", "pending", "lost", "pending",
    ]  # fmt: skip


def test_a_later_life_without_a_job_is_not_cancelled_with_the_earlier_one(idle_slurm: FakeSlurm) -> None:
    run = with_job(stopped_run(Path("runs")), submitted="2001-01-01T00:00:00+00:00")
    set_answers(idle_slurm, "", "17|CANCELLED by 0|0:0||\n")
    assert status_of(run).state == "stopped"


def test_two_questions_for_a_thousand_runs(idle_slurm: FakeSlurm) -> None:
    made = with_job(pending_run(Path("runs")))
    for number in range(1, 1000):
        shutil.copytree(made.path, Path("runs") / f"tiny-{number:08x}")
        (Path("runs") / f"tiny-{number:08x}" / "slurm" / "job.json").write_text(json.dumps({"job_id": str(number)}))
    queue = "".join(queue_row("PENDING", "Priority", job=str(number)) for number in range(100, 200))
    set_answers(idle_slurm, queue, "".join(f"{number}|CANCELLED by 0|0:0||\n" for number in range(500, 600)))
    found = cnnjob("status")
    assert found.exit_code == 0, found.output
    assert recorded_calls(idle_slurm) == ["squeue", "sacct"]
    counts, *advice = found.stdout.splitlines()[-3:]
    assert counts == "1000 runs: 800 lost, 100 pending, 100 cancelled"
    assert advice == ["For the cause of a failure, name the run:", "  cnnjob status runs/tiny-00000001"]


def cancelled_by_cnnjob(root: Path) -> Run:
    run = stopped_in_job(root)
    files.write_json(cancellation_file(run), {"by": "me", "jobs": ["17"], "attempt": 1, **run.identity()})
    return run


@pytest.mark.parametrize("make", [failed_run, crash_loop, cancelled_by_cnnjob])
def test_sacct_is_not_queried_where_the_run_folder_says_how_it_ended(idle_slurm: FakeSlurm, make: MakeRun) -> None:
    run = make(Path("runs"))
    assert status_of(run).state in {"failed", "cancelled"}
    assert recorded_calls(idle_slurm) == ["squeue"]


def test_the_scheduler_is_left_alone_when_all_is_finished(idle_slurm: FakeSlurm) -> None:
    finished_run(Path("runs"))
    assert (cnnjob("status").exit_code, recorded_calls(idle_slurm)) == (0, [])


def test_a_look_believes_no_file() -> None:
    run = stopped_run(Path("runs"))
    run.history_file.write_text("[" * 5000)
    assert (status_of(run).state, status_of(run).summary.epoch) == ("stopped", 0)
    assert summary.RunSummary(Run(Path("x")), "pending", history=[{"epoch": "x", "train_loss": "y"}]).epoch == 0
