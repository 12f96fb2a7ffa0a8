"""Which jobs carry which runs: several for one, others' jobs, copied and moved runs. Without a SLURM."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cnnjob import files
from cnnjob.errors import BusyError, SchedulerError
from cnnjob.runs import process
from cnnjob.runs.claims import claim
from cnnjob.runs.run import Run
from cnnjob.slurm import status
from cnnjob.slurm import wait as waiting
from cnnjob.slurm.diagnosis import diagnose
from cnnjob.slurm.job_array import JobArray
from cnnjob.slurm.node import node_task
from cnnjob.slurm.scheduler import client
from cnnjob.slurm.submit import locks, queued_runs, submission
from cnnjob.slurm.submit.request import Request
from tests.helpers.cli import cnnjob
from tests.helpers.fake_slurm import ANSWERS, FakeSlurm, queue_row, recorded_calls, set_answers
from tests.helpers.run_folders import change_json, finished_run, owner_record, pending_run, running_run, stopped_run
from tests.helpers.slurm_runs import (
    UID,
    MakeRun,
    cancelled_by_script,
    crash_loop,
    failed_run,
    lost_in_job,
    on_another_host,
    status_of,
    stopped_in_job,
    waiting_run,
    with_decision,
    with_job,
)
from tests.helpers.toy_jobs import dataset, job, run_of

pytestmark = pytest.mark.usefixtures("idle_slurm")


SUBMITS = ("srun", "sbatch", "scontrol")
ALLOCATION = queue_row("RUNNING", node="n1", job="44", comment="my own work")


def test_a_training_inside_a_job_of_the_user_is_stopped_and_the_job_is_not(idle_slurm: FakeSlurm) -> None:
    """As ``cnnjob train`` in an ``salloc``, on this host."""
    run = running_run(Path("runs"))
    with subprocess.Popen(["/bin/sleep", "60"]) as child:
        started = process._start_of(child.pid)
        change_json(run.attempt_files()[-1], pid=child.pid, pid_started=started, job_id="44")
        set_answers(idle_slurm, ALLOCATION)
        assert (status_of(run).state, status_of(run).job_id) == ("running", "44")
        assert cnnjob("cancel", str(run.path)).stdout == f"{run.path}: asked process {child.pid} to save and stop\n"
    assert not [line for line in recorded_calls(idle_slurm) if "scancel" in line]
    change_json(run.attempt_files()[-1], ended=process.now(), why="stopped: SIGTERM", step=150)
    assert status_of(run).state == "cancelled"


def test_a_training_inside_a_job_of_the_user_on_another_host(idle_slurm: FakeSlurm) -> None:
    run = on_another_host(running_run(Path("runs")), 20, "44")
    set_answers(idle_slurm, ALLOCATION)
    said = cnnjob("cancel", str(run.path)).stdout
    assert said.startswith(
        f"{run.path}: not cancelled: process {os.getpid()} on n1 is training it, inside job 44, which cnnjob did not "
    )
    assert said.endswith(f"\n  ssh n1 kill -TERM {os.getpid()}\n")
    change_json(run.attempt_files()[-1], job_step="3")
    assert "asked step 44.3 to save and stop; its job keeps running" in cnnjob("cancel", str(run.path)).stdout
    assert [line for line in recorded_calls(idle_slurm) if "scancel" in line] == ["scancel --signal=TERM 44.3"]
    idle_slurm.install(scancel='echo "scancel: error: Invalid job id 44.3" >&2; exit 1')
    refused = cnnjob("cancel", str(run.path))
    assert (refused.exit_code, "step 44.3 was not asked to stop: scancel" in refused.stdout) == (4, True)
    assert status_of(run).state == "running"


def test_a_waiting_job_and_a_training_outside_of_it_both_end(idle_slurm: FakeSlurm) -> None:
    run = with_job(running_run(Path("runs")), "18")
    set_answers(idle_slurm, queue_row("PENDING", job="18"))
    with subprocess.Popen(["/bin/sleep", "60"]) as child:
        change_json(run.attempt_files()[-1], pid=child.pid, pid_started=process._start_of(child.pid))
        said = f"cancelled job 18, which was waiting; asked process {child.pid} to save and stop"
        assert cnnjob("cancel", str(run.path)).stdout == f"{run.path}: {said}\n"
    assert files.read_json(run.slurm_folder / "cancelled.json")["jobs"] == ["18"]


def test_a_waiting_job_ends_though_the_step_outside_of_it_does_not(idle_slurm: FakeSlurm) -> None:
    run = with_job(on_another_host(running_run(Path("runs")), 20, "44"), "18")
    change_json(run.attempt_files()[-1], job_step="3")
    denied = 'case "$*" in *44.3*) echo "scancel: error: Invalid job id 44.3" >&2; exit 1;; esac'
    set_answers(idle_slurm, queue_row("PENDING", job="18"), scancel=denied)
    found = cnnjob("cancel", str(run.path))
    assert found.exit_code == 4
    assert "cancelled job 18, which was waiting; step 44.3 was not asked to stop" in found.stdout
    assert files.read_json(run.slurm_folder / "cancelled.json")["jobs"] == ["18"]


def test_a_job_that_has_submitted_its_successor_trains_no_more(idle_slurm: FakeSlurm) -> None:
    """Its process was killed, so its record has no end."""
    run = with_decision(with_job(on_another_host(running_run(Path("runs")), 20), "18"), restarted="successor")
    set_answers(idle_slurm, queue_row("PENDING", job="18"))
    found = cnnjob("cancel", str(run.path))
    assert (found.exit_code, found.stdout) == (0, f"{run.path}: cancelled job 18, which was waiting\n")


@pytest.mark.parametrize(
    ("make", "restarted", "said"),
    [
        (stopped_in_job, "", "job 17 is ending. Run the same command again in a moment"),
        (stopped_in_job, "requeued", ""),
    ],
)
def test_a_job_that_ends_and_does_not_bring_its_run_back_is_not_waited_for_long(
    idle_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, make: MakeRun, restarted: str, said: str
) -> None:
    monkeypatch.setattr(queued_runs, "ENDING_SECONDS", 0.0)
    run = with_decision(make(Path("runs")), restarted=restarted)
    set_answers(idle_slurm, queue_row("COMPLETING"), **{name: ANSWERS[name] for name in SUBMITS})
    if said:
        with pytest.raises(BusyError, match=said):
            submission.submit([run], Request())
    else:
        assert [done.status for done in submission.submit([run], Request())] == ["queued as 17"]


def test_the_other_runs_of_a_sweep_are_submitted_while_a_job_of_one_is_ending(
    idle_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queued_runs, "ENDING_SECONDS", 0.0)
    ending, other = with_decision(stopped_in_job(Path("runs")), restarted=""), pending_run(Path("runs"), seed=1)
    answers = {name: ANSWERS[name] for name in SUBMITS} | {"sbatch": 'echo "Submitted batch job 18"'}
    set_answers(idle_slurm, queue_row("COMPLETING"), **answers)
    with pytest.raises(submission.PartlyBusyError, match=f"^{ending.path}: job 17 is ending") as error:
        submission.submit([ending, other], Request())
    assert [(done.run, done.job_id) for done in error.value.done] == [(other, "18")]


def test_a_job_that_is_ending_is_waited_for(idle_slurm: FakeSlurm) -> None:
    run, said = with_decision(stopped_in_job(Path("runs")), restarted=""), list[str]()
    answers = {name: ANSWERS[name] for name in SUBMITS} | {"sbatch": 'echo "Submitted batch job 18"'}
    set_answers(idle_slurm, queue_row("COMPLETING"), **answers)

    def say(text: str) -> None:
        said.append(text)
        (idle_slurm.folder.parent / "squeue.txt").write_text("")

    assert [done.job_id for done in submission.submit([run], Request(), None, say)] == ["18"]
    assert said == ["1 of 1 run: the job is ending; waiting up to 15 s"]


def test_a_cancelled_job_that_is_ending_is_not_what_a_run_waits_for(
    idle_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queued_runs, "ENDING_SECONDS", 0.0)
    run = stopped_in_job(Path("runs"))
    set_answers(idle_slurm, queue_row("COMPLETING"), **{name: ANSWERS[name] for name in SUBMITS})
    assert "cancelled job 17" in cnnjob("cancel", str(run.path)).stdout
    with pytest.raises(BusyError, match="job 17 is ending"):
        submission.submit([run], Request())
    set_answers(idle_slurm)
    assert [done.status for done in submission.submit([run], Request())] == ["submitted"]


def test_a_job_with_the_number_of_ours_and_another_comment_is_not_cancelled(idle_slurm: FakeSlurm) -> None:
    """The number of a job on another cluster, where the same folders are."""
    with_job(pending_run(Path("runs")), shown=f"cnnjob {Path('runs').resolve()}/x 1")
    for comment in ("", "my own work", "cnnjob /another/folder 1"):
        set_answers(idle_slurm, queue_row("RUNNING", comment=comment))
        assert "cancelled job" not in cnnjob("cancel", "runs").stdout
    assert not [line for line in recorded_calls(idle_slurm) if "scancel" in line]


def test_every_job_of_a_run_is_cancelled_and_told(idle_slurm: FakeSlurm) -> None:
    """Two arrays carry the same runs, after two submissions of which one was killed."""
    runs = [pending_run(Path("runs"), seed=seed) for seed in range(2)]
    sweep = JobArray.of(runs)
    sweep.write()
    lines = [queue_row("RUNNING", job=f"17_{n}", comment=sweep.comment) for n in range(2)]
    set_answers(idle_slurm, "".join(lines) + queue_row("PENDING", job="18_[0-1]", comment=sweep.comment))
    assert [one.detail for one in status.query_statuses(runs).statuses] == [
        "its job is starting; job 18_0 also belongs to it", "its job is starting; job 18_1 also belongs to it",
    ]  # fmt: skip
    said = cnnjob("cancel", "runs").stdout
    assert said.count("which will save before it ends") == 2
    assert [line for line in recorded_calls(idle_slurm) if "scancel" in line] == ["scancel 17_0 17_1 18_0 18_1"]


def test_what_of_several_jobs_is_refused_is_said(idle_slurm: FakeSlurm) -> None:
    run = with_job(pending_run(Path("runs")))
    denied = "scancel: error: Kill job error on job id 18: Access/permission denied"
    theirs = queue_row("PENDING", job="18", comment=f"cnnjob {run.path.resolve()} 1")
    set_answers(idle_slurm, queue_row("PENDING") + theirs, scancel=f'echo "{denied}" >&2')
    said = cnnjob("cancel", str(run.path)).stdout
    assert said == f"{run.path}: cancelled job 17, which was waiting; job 18 was not cancelled: {denied}\n"
    assert files.read_json(run.slurm_folder / "cancelled.json")["jobs"] == ["17"]


@pytest.mark.parametrize(
    "make",
    [finished_run, failed_run, cancelled_by_script, crash_loop, stopped_run, lost_in_job, pending_run, waiting_run],
)
def test_cancel_names_the_state_that_status_names(make: MakeRun) -> None:
    run = make(Path("runs"))
    [told] = json.loads(cnnjob("status", str(run.path), "--json").stdout)
    assert cnnjob("cancel", str(run.path)).stdout == f"{run.path}: nothing to cancel: {told['state']}\n"


@pytest.mark.parametrize(
    ("first", "then", "ids"),
    [
        (queue_row("RUNNING"), queue_row("COMPLETING") + queue_row("PENDING", job="18"), ["18"]),  # a successor
        (queue_row("RUNNING"), queue_row("PENDING", "BeginTime"), ["17"]),  # requeued
        (queue_row("COMPLETING"), queue_row("RUNNING", job="18", node="n1"), ["18"]),
        (
            queue_row("PENDING") + queue_row("RUNNING", job="18"),
            queue_row("PENDING") + queue_row("COMPLETING", job="18"),
            [],
        ),
    ],
)
def test_what_resumes_a_run_while_it_is_cancelled_is_cancelled_too(
    idle_slurm: FakeSlurm, first: str, then: str, ids: list[str]
) -> None:
    run = with_job(stopped_in_job(Path("runs")))
    comment = f"cnnjob {run.path.resolve()} 1"
    for name, rows in (("first", first), ("then", then)):
        (idle_slurm.folder.parent / name).write_text(rows.replace("|\n", f"|{comment}\n"))
    read = 'f=../first; [ -e ../asked ] && f=../then; while read -r l; do echo "$l"; done < $f'
    idle_slurm.install(squeue=read, sacct="exit 1", scancel='echo "$*" >> ../asked')
    found = cnnjob("cancel", str(run.path))
    assert (found.exit_code, "which was submitted in the meantime" in found.stdout) == (0, bool(ids))
    assert recorded_calls(idle_slurm)[1:] == ids
    assert set(ids) <= set(files.read_json(run.slurm_folder / "cancelled.json")["jobs"])


def test_a_queue_that_is_silent_after_a_cancellation_is_said(idle_slurm: FakeSlurm) -> None:
    run = with_job(pending_run(Path("runs")))
    rows = queue_row("PENDING", comment=f"cnnjob {run.path.resolve()} 1").strip()
    idle_slurm.install(squeue=f'[ -e ../asked ] && exit 1; echo "{rows}"', scancel='echo "$*" >> ../asked')
    found = cnnjob("cancel", str(run.path))
    assert (found.exit_code, found.stdout.count("cancelled job 17, which was waiting; another job may have been")) == (
        4,
        1,
    )


# --- copies and moves


def copied(run: Run) -> Run:
    shutil.copytree(run.path, "copy")
    return Run(Path("copy"))


def in_job(root: Path) -> Run:
    """A run of this host in job 17, whose records name its folder."""
    run = running_run(root)
    change_json(run.attempt_files()[-1], job_id="17")
    return with_job(run, **run.identity())


def test_a_copy_owns_no_job_and_no_process(idle_slurm: FakeSlurm) -> None:
    run = in_job(Path("runs"))
    set_answers(idle_slurm, queue_row("RUNNING", node="n1", comment=f"cnnjob {run.path.resolve()} 1"))
    copy = copied(run)
    assert (status_of(run).state, status_of(copy).state) == ("running", "lost")
    assert (status_of(copy).job_id, status_of(copy).node) == (None, process.process_identity()["host"])
    assert status_of(copy).detail == f"a copy of {run.path.resolve()}, whose jobs do not train this copy"
    assert cnnjob("cancel", "copy").stdout == "copy: nothing to cancel: lost\n"
    assert not [line for line in recorded_calls(idle_slurm) if "scancel" in line]
    assert claim(copy).number == 2
    assert run.state() == "running"


def test_a_copy_of_a_cancelled_run_is_not_cancelled(idle_slurm: FakeSlurm) -> None:
    run = with_job(pending_run(Path("runs")), **Run(Path("runs")).identity())
    change_json(run.submission_file, **run.identity())
    set_answers(idle_slurm, queue_row("PENDING", comment=f"cnnjob {run.path.resolve()} 1"))
    assert "cancelled job 17" in cnnjob("cancel", str(run.path)).stdout
    set_answers(idle_slurm)
    assert (status_of(run).state, status_of(copied(run)).state) == ("cancelled", "pending")


def test_a_run_that_was_moved_while_its_job_waits(idle_slurm: FakeSlurm) -> None:
    run = pending_run(Path("runs"))
    old = run.path.resolve()
    with_job(run, **run.identity())
    set_answers(
        idle_slurm,
        queue_row("PENDING", "Priority", comment=f"cnnjob {old} 1"),
        **{name: ANSWERS[name] for name in SUBMITS},
    )
    moved = Run(run.path.rename("elsewhere"))
    assert (status_of(moved).state, status_of(moved).job_id) == ("pending", "17")
    assert (
        status_of(moved).detail
        == f"jobs of higher priority start first; job 17 is for {old}, the previous path of this folder"
    )
    with pytest.raises(BusyError, match=rf"job 17 is in the queue for {old}\. .*\n  cnnjob cancel elsewhere"):
        submission.submit([moved], Request())
    assert "cancelled job 17" in cnnjob("cancel", "elsewhere").stdout


@pytest.mark.parametrize(("depth", "names"), [(0, "x"), (1, "mnt/{1}"), (2, "mnt/{0}/{1}"), (9, "mnt/x/{0}/{1}")])
def test_another_name_of_a_folder_is_no_move(idle_slurm: FakeSlurm, depth: int, names: str) -> None:
    """An automounter or another host mounts so many of the folders above a run at a place of its own."""
    run = pending_run(Path("runs"))
    known = run.identity()
    deep = len(known["parents"])
    folder = str(run.path.resolve()) if depth > deep else f"/host/{names.format('runs', run.name)}"
    with_job(run, **(known | {"folder": folder, "parents": known["parents"][:depth]}))
    set_answers(idle_slurm, queue_row("PENDING", "Priority"), **{name: ANSWERS[name] for name in SUBMITS})
    assert (status_of(run).job_id, status_of(run).detail) == ("17", "jobs of higher priority start first")
    assert [done.status for done in submission.submit([run], Request())] == ["queued as 17"]


def test_a_link_to_the_folder_above_is_no_move(idle_slurm: FakeSlurm) -> None:
    run = pending_run(Path("runs"))
    with_job(run, **(run.identity() | {"folder": str(Path("other", run.name).absolute())}))
    set_answers(idle_slurm, queue_row("PENDING", "Priority"))
    assert "the previous path of this folder" in status_of(run).detail
    Path("other").symlink_to("runs")
    for path in (run.path, Path("other", run.name), Path("runs", "..", "other", run.name)):
        assert status_of(Run(path)).detail == "jobs of higher priority start first"


@pytest.mark.parametrize("moved", ["old/{}", "runs/x", "deeper/runs/{}"])
def test_a_folder_above_that_was_moved_is_a_move(idle_slurm: FakeSlurm, moved: str) -> None:
    run = pending_run(Path("runs"))
    with_job(run, **run.identity())
    set_answers(idle_slurm, queue_row("PENDING", "Priority"))
    place = Path(moved.format(run.name))
    place.parent.parent.mkdir(exist_ok=True)
    (run.path if place.name == "x" else Path("runs")).rename(place if place.name == "x" else place.parent)
    assert "the previous path of this folder" in status_of(Run(place)).detail


def test_a_slow_copy_of_a_run_that_is_trained_is_not_trained(idle_slurm: FakeSlurm) -> None:
    """Its heartbeat is copied minutes after the record of the attempt."""
    run = on_another_host(running_run(Path("runs")), 20)
    copy = copied(run)
    os.utime(copy.attempt_files()[-1], (time.time() - 400,) * 2)
    os.utime(copy.heartbeat_file)
    set_answers(idle_slurm)
    found = status_of(copy, thorough=True)
    assert (found.state, found.detail) == ("lost", f"a copy of {run.path.resolve()}, whose jobs do not train this copy")
    assert diagnose(found).sentence.startswith(f"it is a copy of {run.path.resolve()}, made while that run was being")
    assert claim(copy).number == 2
    assert run.state() == "running"


def test_what_may_be_a_run_under_another_name_is_held_by_its_heartbeat(idle_slurm: FakeSlurm) -> None:
    """Some file systems number a folder otherwise on each host."""
    run = on_another_host(running_run(Path("runs")), 20)
    change_json(run.attempt_files()[-1], folder="/name/on/n1", inode=1)
    silent(run, 20)
    set_answers(idle_slurm)
    assert status_of(run).state == "running"
    assert status_of(run).detail == "a copy of /name/on/n1, or the same folder at another path; last heartbeat 20 s ago"
    with pytest.raises(BusyError):
        claim(run)
    silent(run, 301)
    assert claim(run).number == 2


def silent(run: Run, seconds: float) -> None:
    """Let the last sign of life be so old."""
    for sign in (run.attempt_files()[-1], run.heartbeat_file):
        os.utime(sign, (time.time() - seconds,) * 2)


def test_a_run_that_was_moved_to_another_disk_while_its_job_waits(idle_slurm: FakeSlurm) -> None:
    """Moved so, it is a copy of a folder that is gone."""
    run = pending_run(Path("runs"))
    old = run.path.resolve()
    with_job(run, **run.identity())
    copy = copied(run)
    shutil.rmtree(old)
    set_answers(
        idle_slurm, queue_row("PENDING", comment=f"cnnjob {old} 1"), **{name: ANSWERS[name] for name in SUBMITS}
    )
    with pytest.raises(BusyError, match=rf"job 17 is in the queue for {old}, which no longer exists.*\n  scancel 17"):
        submission.submit([copy], Request())


def test_a_copy_is_submitted_as_a_run_of_its_own(idle_slurm: FakeSlurm) -> None:
    run = pending_run(Path("runs"))
    with_job(run, **run.identity())
    waiting = queue_row("PENDING", comment=f"cnnjob {run.path.resolve()} 1")
    answers = {name: ANSWERS[name] for name in SUBMITS}
    set_answers(idle_slurm, waiting, **(answers | {"sbatch": 'echo "Submitted batch job 18"'}))
    [done] = submission.submit([copied(run)], Request())
    assert done.job_id == "18"
    set_answers(idle_slurm, waiting + queue_row("PENDING", job="18", comment=f"cnnjob {Path('copy').resolve()} 1"))
    assert [status_of(each).job_id for each in (run, Run(Path("copy")))] == ["17", "18"]


# --- runs of several users


def test_only_jobs_of_users_who_have_to_do_with_a_run_are_asked_for(idle_slurm: FakeSlurm) -> None:
    run = pending_run(Path("runs"))
    Path("runs").chmod(0o777)
    row = queue_row("PENDING", comment=f"cnnjob {run.path.resolve()} 1").strip()
    idle_slurm.install(squeue=f'echo "$*" >> ../asked; case "$*" in *4321*) echo "{row}";; esac')
    assert status_of(run).detail == "not submitted"
    Path("runs/.submitter-4321").touch()
    Path("runs/.submitter-x").touch()
    assert status_of(run).job_id == "17"
    assert ["--user=" in line for line in recorded_calls(idle_slurm)] == [True, True]
    assert f"--user={','.join(map(str, sorted([UID, 4321])))} " in recorded_calls(idle_slurm)[-1]


def test_who_submits_leaves_a_file_before_the_job_is_there(idle_slurm: FakeSlurm) -> None:
    run = pending_run(Path("runs"))
    answers = {name: ANSWERS[name] for name in SUBMITS}
    set_answers(idle_slurm, **(answers | {"sbatch": f'[ -e runs/.submitter-{UID} ] && echo "Submitted batch job 18"'}))
    assert [done.job_id for done in submission.submit([run], Request())] == ["18"]


def test_a_hidden_job_is_not_taken_for_one_that_has_ended(idle_slurm: FakeSlurm) -> None:
    unknown = 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1'
    for private, ended in (("none", True), ("jobs,usage", False)):
        config = f'echo "PrivateData             = {private}"; echo "ClusterName             = LAB"'
        idle_slurm.install(scontrol=f'case "$*" in *config*) {config};; *) {unknown};; esac')
        assert client.job_is_over(owner_record(cluster="lab"), 100) == ended


def hidden_and_mine(idle_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, queue: str) -> tuple[Run, Run]:
    """Two runs at a site that hides the jobs of other users: one that another user submitted, one of this user."""
    theirs, mine = waiting_run(Path("runs")), pending_run(Path("runs"), seed=1)
    monkeypatch.setattr(os, "getuid", lambda: UID + 1)
    monkeypatch.setenv("LOGNAME", "me")
    comment = f"cnnjob {mine.path.resolve()} 1"
    set_answers(
        idle_slurm, queue_row(queue, job="18", comment=comment) if queue else "", scontrol='echo "PrivateData = jobs"'
    )
    return theirs, mine


def test_a_hidden_job_keeps_nobody_from_cancelling_another(
    idle_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, mine = hidden_and_mine(idle_slurm, monkeypatch, "PENDING")
    found = cnnjob("cancel", str(theirs.path), str(mine.path))
    told = found.stdout.splitlines()
    assert told[0].startswith(
        f"{theirs.path}: not cancelled: another user's job 17 may belong to this run, and this site"
    )
    assert (found.exit_code, told[1]) == (5, f"{mine.path}: cancelled job 18, which was waiting")
    assert [line for line in recorded_calls(idle_slurm) if "scancel" in line] == ["scancel 18"]


def test_a_hidden_job_keeps_nobody_from_waiting_for_another(
    idle_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, mine = hidden_and_mine(idle_slurm, monkeypatch, "")
    monkeypatch.setattr(waiting, "SILENT_SECONDS", 0.0)
    over: list[Path] = []
    with pytest.raises(SchedulerError, match="hides the jobs of other users"):
        over.extend(one.summary.run.path for one in waiting.wait_for_runs([theirs, mine]))
    assert over == [mine.path]
    with_decision(theirs, said="not restarted after the job's own error")
    assert [one.state for one in waiting.wait_for_runs([theirs, mine])] == ["failed", "pending"]


# --- two jobs for one run

HOLD = """
import sys
from pathlib import Path
from cnnjob.slurm.submit import locks
with locks.submitting(Path(sys.argv[1])) as held:
    print(held, flush=True)
    sys.stdin.readline()
"""


def test_a_submission_waits_for_another(tmp_path: Path) -> None:
    known = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=known) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        with (tmp_path / locks.LOCK).open("r+") as file:
            assert not locks.acquire(file.fileno(), 0)
            other.stdin.write("\n")
            other.stdin.flush()
            assert locks.acquire(file.fileno(), 60)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=known) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        owner, said, answer = other.pid, list[str](), other.stdin

        def say(text: str) -> None:
            said.append(text)
            answer.write("\n")
            answer.flush()

        with locks.submitting(tmp_path, say) as held:
            assert held
    [sentence] = said
    assert f"waiting for another submission to end (process {owner} of " in sentence
    with locks.submitting(tmp_path / "nowhere") as held:
        assert not held


@pytest.mark.parametrize(("holder", "waits_for_it"), [("21_0", True), ("19", False)])
def test_an_earlier_job_waits_until_a_later_one_is_cancelled(
    tmp_path: Path, idle_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, holder: str, *, waits_for_it: bool
) -> None:
    run = run_of(job(), dataset(tmp_path), tmp_path / "runs")
    claim(run).note(host="elsewhere", job_id=holder, cluster="lab")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "lab")
    monkeypatch.setattr(node_task, "POLL_SECONDS", 0.01)
    monkeypatch.setenv("SLURM_JOB_ID", "20")
    monkeypatch.setenv("SLURM_JOB_END_TIME", "4102444800")
    idle_slurm.install(scontrol='[ -e asked ] && echo "JobState=CANCELLED" || echo "JobState=RUNNING"; : > asked')
    if waits_for_it:
        assert node_task.NodeTask(str(run.path), 30)._run_attempt() == 0
        assert run.state() == "finished"
    else:
        with pytest.raises(BusyError):
            node_task.NodeTask(str(run.path), 30)._run_attempt()


def test_a_run_without_an_attempt_has_no_later_job(monkeypatch: pytest.MonkeyPatch) -> None:
    run = pending_run(Path("runs"))
    run.attempts_folder.mkdir(exist_ok=True)
    monkeypatch.setenv("SLURM_JOB_ID", "20")
    assert not node_task._has_later_job(run)


def test_of_two_jobs_the_later_one_is_cancelled_by_its_submission(idle_slurm: FakeSlurm) -> None:
    """The other submission came between the look at the queue and this one's sbatch."""
    runs = [pending_run(Path("runs"), seed=seed) for seed in range(3)]
    (theirs := JobArray.of(runs[:2])).write()
    lines = queue_row("RUNNING", job="16_0", comment=theirs.comment) + queue_row(
        "PENDING", job="16_1", comment=theirs.comment
    )
    answers = {name: ANSWERS[name] for name in SUBMITS}
    others = 'printf "%s" "$(cat ../others)"; echo'
    (idle_slurm.folder.parent / "others").write_text(lines.strip())
    set_answers(idle_slurm, **answers, cat='exec /bin/cat "$@"')
    idle_slurm.install(squeue=f"[ -e submitted ] && {others}", sbatch=': > submitted; echo "Submitted batch job 17"')
    done = submission.submit(runs, Request())
    assert [(one.job_id, one.status) for one in done] == [
        (None, "queued as 16_0"), (None, "queued as 16_1"), ("17_2", "submitted"),
    ]  # fmt: skip
    assert recorded_calls(idle_slurm) == ["scancel 17_0 17_1"]
    assert [run.submission_file.exists() for run in runs] == [False, False, True]
    Path("submitted").unlink()
    idle_slurm.install(scancel='echo "scancel: error: Kill job error on job id 17: Access/permission denied" >&2')
    with pytest.raises(SchedulerError, match=r"job 16_0, 16_1 was submitted for the same runs .*\n  scancel 17"):
        submission.submit(runs[:2], Request())


def test_a_job_that_is_kept_for_a_twin_has_what_it_runs(idle_slurm: FakeSlurm) -> None:
    """An sbatch that names no job: of the two with this comment the newer is taken, cancelled, and the older kept."""
    run = pending_run(Path("runs"))
    comment = f"cnnjob {run.path.resolve()} 1"
    set_answers(
        idle_slurm, queue_row("PENDING", job="16", comment=comment) + queue_row("PENDING", job="18", comment=comment)
    )
    queue = (idle_slurm.folder / "squeue").read_text().partition("\n")[2]
    idle_slurm.install(**{name: ANSWERS[name] for name in SUBMITS})
    idle_slurm.install(squeue=f"[ -e taken ] || exit 0; {queue}", sbatch=": > taken; echo welcome")
    [done] = submission.submit([run], Request())
    assert (done.job_id, done.status) == (None, "queued as 16")
    assert [line for line in recorded_calls(idle_slurm) if "scancel" in line] == ["scancel 18"]
    assert {path.name for path in run.slurm_folder.glob("16_*")} == {"16_submitted.pkl"}
