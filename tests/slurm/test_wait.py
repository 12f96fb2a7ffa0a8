"""Waiting for runs: ``--wait`` and its exit codes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from cnnjob.cli import submit as cli
from cnnjob.errors import SchedulerError
from cnnjob.runs.run import Run
from cnnjob.slurm import wait
from tests.helpers.cli import cnnjob
from tests.helpers.fake_slurm import PENDING_FIELDS, FakeSlurm
from tests.helpers.run_folders import finished_run, pending_run, stopped_run
from tests.helpers.slurm_runs import (
    cancelled_by_script,
    crash_loop,
    failed_run,
    lost_in_job,
    stopped_in_job,
    with_decision,
    with_job,
    with_log,
    write_result,
)
from tests.helpers.slurm_runs import waiting_run as waits_in_queue


def own_error(root: Path) -> Run:
    """A run whose job ended before it could claim it."""
    run = with_decision(waits_in_queue(root), code=2, said="not restarted after the job's own error")
    return with_log(run, "cnnjob: resources.backend: no CuPy\ncnnjob: x: not restarted after the job's own error\n")


def submitted_again(root: Path) -> Run:
    return with_job(stopped_in_job(root), "18")


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait, "FIRST_SECONDS", 0.01)


@pytest.mark.usefixtures("patient")
def test_waiting_ends_when_all_have_ended(counting_slurm: FakeSlurm) -> None:
    runs = [finished_run(Path("a")), stopped_run(Path("b")), pending_run(Path("c"))]
    counting_slurm.install(
        squeue=f'[ -e looked ] || echo "5{PENDING_FIELDS}cnnjob {runs[1].path.resolve()} 2"; : > looked', sacct="exit 1"
    )
    assert [one.summary.run.path.parts[0] for one in wait.wait_for_runs(runs)] == ["a", "c", "b"]


@pytest.mark.usefixtures("patient")
def test_wait_says_how_each_run_ended(counting_slurm: FakeSlurm) -> None:
    counting_slurm.install(sacct="exit 1", squeue="exit 0")  # a SLURM that forgets what it was given
    found = cnnjob("submit", "toy.toml", "--wait")
    [run] = Run.all(Path("runs"))
    gone = "lost, job 17 left the queue before it started (cancelled or purged)"
    assert (found.exit_code, found.stdout.splitlines()[-1]) == (1, f"{run.path}: {gone}")
    write_result(run)
    assert cnnjob("submit", "toy.toml", "--wait").exit_code == 0


SCRIPT_LOST = "it saved and stopped at step 150, but its batch script was killed or lost before restarting it"


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    ("make", "sacct", "code", "said"),
    [
        (finished_run, "", 0, "finished, test accuracy 80.00 %"),
        (stopped_in_job, "", 75, f"stopped, {SCRIPT_LOST}"),
        (lost_in_job, "17|NODE_FAIL|0:0|n7|x", 75, "lost, its job's node failed (n7)"),
        (failed_run, "", 1, "failed, KeyError: 'x'"),
        (crash_loop, "", 1, "failed, 3 restarts without progress, each time killed by signal 9 (SIGKILL)"),
        (own_error, "", 1, "failed, resources.backend: no CuPy"),
        (cancelled_by_script, "", 1, "cancelled, its job 17 was cancelled"),
        (waits_in_queue, "17|CANCELLED by 987654|0:0||x", 1, "cancelled, its job 17 was cancelled by user 987654"),
        (waits_in_queue, "17|OUT_OF_MEMORY|0:125|n1|x", 1, "failed, it ran out of memory"),
        (waits_in_queue, "", 1, "lost, job 17 left the queue before it started (cancelled or purged)"),
        (submitted_again, "", 1, "stopped, job 18 left the queue before it started (cancelled or purged)"),
    ],
)
def test_wait_ends_with_75_only_where_the_same_command_resumes(
    counting_slurm: FakeSlurm,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], Run],
    sacct: str,
    code: int,
    said: str,
) -> None:
    counting_slurm.install(squeue="exit 0", sacct=f'echo "{sacct}"')
    runs = [make(Path("runs")), finished_run(Path("others"))]
    try:
        cli._wait_for(runs)
        left = 0
    except typer.Exit as end:
        left = end.exit_code
    assert left == code
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines) == sorted([f"{runs[0].path}: {said}", f"{runs[1].path}: finished, test accuracy 80.00 %"])


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("JobHeldUser", "it is held by its user. To change that:\n  scontrol release 17"),
        ("JobHeldAdmin", "it is held by an administrator"),
        (
            "PartitionTimeLimit",
            "it requests more time than its partition allows, so it will never start. To change that:",
        ),
    ],
)
def test_a_job_that_does_not_start_by_itself_is_said_once(
    counting_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str], reason: str, said: str
) -> None:
    run = waits_in_queue(Path("runs"))
    line = f"17|PENDING|{reason}||N/A|N/A|"
    counting_slurm.install(
        squeue=f'echo x >> looked; [ "$(wc -l < looked)" -gt 3 ] || echo "{line}"', wc='exec /usr/bin/wc "$@"'
    )
    with pytest.raises(typer.Exit):
        cli._wait_for([run])
    out = capsys.readouterr().out
    assert f"{run.path}: job 17 will not start by itself; {said}" in out
    assert out.count("will not start by itself") == 1


@pytest.mark.usefixtures("patient")
def test_a_scheduler_that_stays_silent_ends_the_waiting(
    counting_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = waits_in_queue(Path("runs"))
    silent = 'echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1'
    counting_slurm.install(squeue=f"[ -e looked ] && exit 0; : > looked; {silent}", sacct="exit 1")
    assert [one.left_queue for one in wait.wait_for_runs([run])] == [True]
    monkeypatch.setattr(wait, "SILENT_SECONDS", 0.0)
    counting_slurm.install(squeue=silent)
    with pytest.raises(SchedulerError, match="Stopped waiting; the jobs are not affected"):
        list(wait.wait_for_runs([run]))
