"""Several clusters that share a file system: a job's number is another job's there. Without a SLURM."""

import os
import shlex
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cnnjob import files
from cnnjob.errors import BusyError
from cnnjob.runs import process, restart_log
from cnnjob.runs.claims import claim
from cnnjob.runs.run import Run
from cnnjob.slurm.node import node_task, restart
from cnnjob.slurm.scheduler import client, job_states
from cnnjob.slurm.submit import submission
from cnnjob.slurm.submit.request import Request
from tests.helpers.cli import cnnjob
from tests.helpers.fake_slurm import ANSWERS, FakeSlurm, queue_row, recorded_calls, set_answers
from tests.helpers.run_folders import change_json, finished_run, owner_record, pending_run, running_run, stopped_run
from tests.helpers.slurm_runs import on_another_host, status_of, with_decision, with_job, with_log
from tests.helpers.slurm_runs import set_job as life_of_job

pytestmark = pytest.mark.usefixtures("idle_slurm")


UNKNOWN = 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1'
SUBMITS = {name: ANSWERS[name] for name in ("srun", "sbatch")}


def at_lab(job: str = UNKNOWN) -> str:
    """What scontrol answers on the cluster lab."""
    return f"""case "$*" in
*config*) echo scontrol >> ../asked; echo "ClusterName = Lab"; echo "PrivateData = none"; echo "MaxArraySize = 1001";;
*partition*) echo "PartitionName=debug MaxTime=1-00:00:00 State=UP";;
*) {job};;
esac"""


def at(seconds: float) -> str:
    """A time from now as SLURM writes it."""
    return f"{datetime.now() + timedelta(seconds=seconds):%FT%T}"  # noqa: DTZ005 - as SLURM reports it


def knows(**facts: Any) -> str:
    """What scontrol answers of a job."""
    known = {"UserId": f"me({os.getuid()})", "Restarts": 0, "SubmitTime": at(-60), "EndTime": at(-1)}
    return f"echo {shlex.quote(' '.join(f'{key}={value}' for key, value in (known | facts).items()))}"


@pytest.mark.parametrize(
    ("record", "silent", "answer", "ended"),
    [
        ({}, 0, {"JobState": "NODE_FAIL"}, True),
        ({}, 100, {"JobState": "RUNNING", "EndTime": "Unknown"}, False),
        ({}, 100, None, True),
        ({}, 20, None, False),
        # of another cluster: its heartbeat alone tells
        ({"cluster": "other"}, 200, {"JobState": "FAILED"}, False),
        ({"cluster": "other"}, 200, None, False),
        *(({}, 20, {"JobState": state}, True) for state in sorted(job_states.ENDED)),
        # of an older version, which wrote down no cluster
        ({"cluster": None}, 20, {"JobState": "FAILED"}, False),
        ({"cluster": None}, 100, {"JobState": "FAILED"}, True),
        ({"cluster": None}, 200, None, False),
        # another job has the number: of another user, or given anew
        ({}, 20, {"JobState": "FAILED", "UserId": f"x({os.getuid() + 1})"}, False),
        ({}, 20, {"JobState": "FAILED", "SubmitTime": at(4000), "EndTime": at(4001)}, False),
        ({}, 100, {"JobState": "RUNNING", "SubmitTime": at(4000), "EndTime": "Unknown"}, True),
        ({}, 20, {"JobState": "FAILED", "SubmitTime": at(-9000), "EndTime": at(-8000)}, False),
        ({"cluster": None}, 200, {"JobState": "FAILED", "SubmitTime": at(-9000), "EndTime": at(-8000)}, False),
        # the same job, put back into the queue since then
        ({}, 100, {"JobState": "PENDING", "SubmitTime": at(4000), "EndTime": "Unknown", "Restarts": 1}, False),
        ({}, 20, {"JobState": "FAILED", "SubmitTime": at(4000), "EndTime": at(4001), "Restarts": 1}, True),
    ],
)
def test_whether_the_job_of_an_attempt_has_ended(
    idle_slurm: FakeSlurm, record: Mapping[str, Any], silent: float, answer: Mapping[str, Any] | None, *, ended: bool
) -> None:
    idle_slurm.install(scontrol=at_lab(UNKNOWN if answer is None else knows(**answer)))
    assert client.job_is_over(owner_record(**record), silent) is ended
    assert client.make_job_is_over(lambda: ())(owner_record(**record), silent) is ended


def held_at(cluster: str | None, make: Any = running_run, **facts: Any) -> Run:
    """A run that job 17 of a cluster holds."""
    run = with_job(make(Path("runs")), cluster=cluster)
    if run.attempt_files():
        on_another_host(run, 20)
        change_json(run.attempt_files()[-1], cluster=cluster, **facts)
    return run


def test_a_run_that_is_trained_on_another_cluster_is_not_taken_over(idle_slurm: FakeSlurm) -> None:
    run = held_at("other")
    set_answers(idle_slurm, queue_row("CANCELLED"), "17|FAILED|1:0|n1|\n", scontrol=at_lab(), **SUBMITS)
    for _ in range(2):
        with pytest.raises(BusyError):
            claim(run, client.job_is_over)
        assert (status_of(run).state, status_of(run).job_id, status_of(run).node) == ("running", "17", "n1")
        assert [done.status for done in submission.submit([run], Request())] == ["running"]
        change_json(run.attempt_files()[-1], cluster=None)  # an older version wrote down none
        on_another_host(run, 20)
        change_json(run.submission_file, cluster=None)
        set_answers(idle_slurm, scontrol=at_lab())


@pytest.mark.parametrize(
    ("make", "state"), [(pending_run, "pending"), (stopped_run, "stopped"), (running_run, "running")]
)
def test_a_job_of_another_cluster_is_left_to_it(idle_slurm: FakeSlurm, make: Any, state: str) -> None:
    run = held_at("other", make)
    for queued in ("", queue_row("RUNNING", node="n9"), queue_row("CANCELLED")):  # another job with its number here
        set_answers(idle_slurm, queued, "17|CANCELLED by 5|0:0||\n", scontrol=at_lab(), **SUBMITS)
        found = status_of(run, thorough=True)
        where = "job 17 is on cluster other; this cluster is lab"
        assert (found.state, found.detail, found.job) == (state, where, None)
        cancelled = cnnjob("cancel", str(run.path))
        assert (cancelled.exit_code, cancelled.stdout) == (
            5, f"{run.path}: not cancelled: {where}. To cancel it:\n  scancel -M other 17\n",
        )  # fmt: skip
        removed = cnnjob("clean", str(run.path), "--yes")
        assert removed.exit_code == 5
        assert run.path.exists()
        if state != "running":
            assert "scancel -M other 17" in removed.stderr
            with pytest.raises(
                BusyError,
                match=r"squeue -M other -j 17\n"
                r"If the job has ended, remove its record and submit again:\n  rm .*job\.json$",
            ):
                submission.submit([run], Request())
    assert not [line for line in recorded_calls(idle_slurm) if "scancel" in line]
    if state == "stopped":
        run.submission_file.unlink()
        set_answers(idle_slurm, scontrol=at_lab(), **SUBMITS)
        assert [done.status for done in submission.submit([run], Request())] == ["submitted"]
        assert files.read_json(run.submission_file)["cluster"] == "lab"


def test_what_the_batch_script_of_another_cluster_left_is_submitted_here(idle_slurm: FakeSlurm) -> None:
    run = with_decision(held_at("other", stopped_run), cluster="other", ended_by="cancelled", said="cancelled")
    set_answers(idle_slurm, queue_row("RUNNING"), scontrol=at_lab(), **SUBMITS)
    assert status_of(run).state == "cancelled"
    assert cnnjob("cancel", str(run.path)).stdout == f"{run.path}: nothing to cancel: cancelled\n"
    assert [done.status for done in submission.submit([run], Request())] == ["submitted"]


def test_a_job_here_is_not_taken_for_an_earlier_one_of_another_cluster(idle_slurm: FakeSlurm) -> None:
    """Both have the number 17."""
    run = held_at("other", stopped_run)
    with_job(run, cluster="lab", attempt=2)
    with_decision(run, cluster="other", ended_by="cancelled", said="cancelled")
    files.write_json(restart_log.cancellation_file(run), {"by": "me", "jobs": ["17"], "cluster": "other", "attempt": 1})
    set_answers(idle_slurm, queue_row("PENDING", "Priority"), scontrol=at_lab())
    assert (status_of(run).state, status_of(run).detail) == ("pending", "jobs of higher priority start first")
    set_answers(idle_slurm, "", "17|TIMEOUT|0:0|n1|\n", scontrol=at_lab())
    assert status_of(run).state == "stopped"


def test_a_training_inside_a_job_of_another_cluster(idle_slurm: FakeSlurm) -> None:
    run = on_another_host(running_run(Path("runs")), 20)
    change_json(run.attempt_files()[-1], cluster="other", job_step="3")
    set_answers(idle_slurm, queue_row("RUNNING", comment="another's"), scontrol=at_lab())
    assert status_of(run).job is None
    assert cnnjob("cancel", str(run.path)).stdout.endswith("\n  scancel -M other --signal=TERM 17.3\n")
    change_json(run.attempt_files()[-1], job_step=None)
    on_another_host(run, 20)
    assert cnnjob("cancel", str(run.path)).stdout.endswith(f"\n  ssh n1 kill -TERM {os.getpid()}\n")


def test_a_job_that_started_long_after_an_attempt_is_not_the_one_it_is_in(idle_slurm: FakeSlurm) -> None:
    """SLURM was installed anew, and counts from 1 again."""
    run = on_another_host(running_run(Path("runs")), 20, "44")
    for started, job_id in ((at(-5), "44"), (at(4000), None)):
        set_answers(idle_slurm, f"44|RUNNING|None|n7|{started}|N/A|my own work\n")
        assert getattr(status_of(run).job, "job_id", None) == job_id


def test_a_cluster_is_known_by_its_variables_or_its_configuration(
    idle_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.current_cluster() == ""
    idle_slurm.install(scontrol=at_lab())
    assert client.current_cluster() == "lab"
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "Inside")
    assert (client.current_cluster(), process.cluster()) == ("inside", None)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert process.process_identity()["cluster"] == "inside"
    for chosen, name in (("third", "third"), ("all", ""), ("a,b", "")):
        monkeypatch.setenv("SLURM_CLUSTERS", chosen)
        assert client.current_cluster() == name


def test_a_job_without_the_variable_asks_for_its_cluster(
    idle_slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle_slurm.install(scontrol=at_lab())
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "")
    life_of_job(monkeypatch, "17", 0)
    run = finished_run(tmp_path)
    assert node_task.NodeTask(str(run.path), 30)._run_attempt() == 0
    assert process.cluster() == "lab"


@pytest.mark.parametrize(("cluster", "free"), [("lab", True), ("other", False), (None, False)])
def test_a_later_life_takes_over_from_one_of_its_own_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: str | None, *, free: bool
) -> None:
    run = running_run(tmp_path)
    change_json(run.attempt_files()[-1], host="n1", job_id="17", cluster=cluster)
    life_of_job(monkeypatch, "17", 1)
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "lab")
    if free:
        assert claim(run).number == 2
    else:
        with pytest.raises(BusyError):
            claim(run)


def test_a_cancellation_on_another_cluster_is_none_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = with_log(stopped_run(tmp_path), "")
    life_of_job(monkeypatch, "17", 0)
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "lab")
    for cluster, cancelled in (("lab", True), ("other", False), (None, True)):
        files.write_json(restart_log.cancellation_file(run), {"by": "me", "jobs": ["17"], "cluster": cluster})
        assert restart._was_cancelled(run) is cancelled


def test_three_questions_for_runs_of_several_clusters(idle_slurm: FakeSlurm) -> None:
    for seed, cluster in enumerate(["lab", "other", None, "lab"]):
        with_job(stopped_run(Path("runs"), seed=seed), str(17 + seed), cluster=cluster)
    set_answers(idle_slurm, scontrol=at_lab())
    assert cnnjob("status").exit_code == 0
    assert recorded_calls(idle_slurm) == ["scontrol", "squeue", "sacct"]
