"""``status``, ``logs`` and ``cancel`` on a real SLURM, with and without accounting."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import lab
from tests.cluster.conftest import Start
from tests.cluster.places import REQUEST, SMALL, Place

LONG = 20_000
SHORT = ("--set", "train.epochs=2")


@pytest.fixture
def place(cluster: Start, user_python: Path, request: pytest.FixtureRequest) -> Place:
    return Place.make(
        cluster(*SMALL, *getattr(request, "param", ())), user_python, request.node.name.split("[")[0], LONG
    )


def facts(place: Place) -> dict[str, Any]:
    [found] = json.loads(place.cnnjob("status", "--json").stdout)
    return dict(found)


def until(place: Place, state: str, is_so: Callable[[dict[str, Any]], bool] = bool) -> dict[str, Any]:
    """Wait for a state that fits; what status then says."""
    found: list[dict[str, Any]] = []

    def seen() -> bool:
        found.append(facts(place))
        return found[-1]["state"] == state and is_so(found[-1])

    lab.until(seen, 40, f"{state} in {found[-1:]}")
    return found[-1]


@pytest.mark.slurm
def test_a_batch_script_that_was_killed_after_a_requeue(place: Place) -> None:
    job = place.submit()
    place.until_saved()
    place.kill()
    place.until_saved(n_attempts=2)
    assert place.said() == [f"job {job} is requeued"]
    place.cluster.run("scancel", "--batch", job)
    place.until_ended(job, "FAILED")
    found = until(place, "stopped")
    killed = r"it saved and stopped at step \d+, but its batch script was killed or lost before restarting it"
    assert re.fullmatch(killed, found["cause"])
    undecided = "attempts/0002.json: stopped: SIGTERM; its batch script recorded no decision about a restart"
    assert found["evidence"] == undecided
    assert place.said() == [f"job {job} is requeued"]


@pytest.mark.slurm
@pytest.mark.parametrize("place", [(), ("--accounting",)], indirect=True, ids=["no accounts", "accounts"])
def test_from_waiting_to_cancelled(place: Place, request: pytest.FixtureRequest) -> None:
    job = place.submit("--sbatch", "begin=now+1hour")
    found = facts(place)
    assert (found["state"], found["job_id"], found["slurm_reason"]) == ("pending", job, "BeginTime")
    assert found["cause"].startswith(
        "its job is waiting: its earliest start time has not been reached, expected to start at 20"
    )
    place.cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")
    place.until_saved()
    found = until(place, "running")
    assert (found["restarts"], found["slurm_state"], found["epochs"]) == (0, "RUNNING", LONG)
    assert found["node"] == "n1"
    said = place.cnnjob("cancel", "runs").stdout
    assert said == f"{place.run.path.relative_to(place.folder)}: cancelled job {job}, which will save before it ends\n"
    place.until_ended(job, "CANCELLED")
    found = until(place, "cancelled")
    assert found["command"].startswith("cnnjob submit toy.toml --partition low --time 10m --cpus-per-task 1 --mem 500M")
    if request.node.callspec.id == "accounts":
        found = until(place, "cancelled", lambda one: "user" in one["cause"])
        assert found["cause"] == f"its job {job} was cancelled by nobody (user 65534)"
        assert found["evidence"] == "sacct: CANCELLED by 65534"
    assert place.cnnjob("cancel", "runs").stdout.endswith(": nothing to cancel: cancelled\n")


@pytest.mark.slurm
def test_cancelled_while_it_waits_without_accounts(place: Place) -> None:
    job = place.submit("--sbatch", "begin=now+1hour")
    place.cluster.run("scancel", job)
    found = facts(place)
    assert (found["state"], found["evidence"]) == ("cancelled", "squeue: CANCELLED")
    place.submit(*SHORT)
    [other] = [one for one in json.loads(place.cnnjob("status", "--json").stdout) if one["epochs"] == 2]
    lab.until(lambda: "finished" in place.cnnjob("status", other["path"]).stdout, 40, "the end")


@pytest.mark.slurm
def test_following_over_a_requeue(place: Place) -> None:
    job = place.submit()
    place.until_saved()
    path = place.folder / "followed.txt"
    with path.open("w") as output:
        words = [str(lab.SCRIPT), "run", str(place.cluster.folder), "env", f"--chdir={place.folder}"]
        command = [*words, str(place.python), "-m", "cnnjob", "logs", str(place.run.path), "-f"]
        child = subprocess.Popen(command, stdout=output)
    lab.until(lambda: "epoch " in path.read_text(), 20, "the first life's log")
    place.cluster.run("scontrol", "requeue", job)
    lab.until(lambda: "--- attempt 2 on " in path.read_text(), 40, "the second life's log")
    assert facts(place)["restarts"] == 1
    place.cnnjob("cancel", "runs")
    assert child.wait(60) == 1  # it was cancelled


@pytest.mark.slurm
def test_a_job_that_waits_for_the_end_of_a_reservation(place: Place) -> None:
    words = ("ReservationName=kept", "StartTime=now+5minutes", "Duration=60", "Users=root", "Nodes=ALL")
    place.cluster.admin("scontrol", "create", "reservation", *words)
    try:
        place.submit()  # of ten minutes
        found = until(place, "pending", lambda one: one["slurm_reason"] != "None")
    finally:
        place.cluster.clear()
        place.cluster.admin("scontrol", "delete", "ReservationName=kept")
    assert "its nodes are reserved for maintenance or other jobs, starting before it could end" in found["cause"]


@pytest.mark.slurm
def test_a_task_of_an_array_that_is_cancelled_while_it_waits(place: Place) -> None:
    """Without accounts SLURM has no record of it."""
    place.cnnjob("submit", "toy.toml", *REQUEST, "--seeds", "3", "--sbatch", "begin=now+1hour")
    before = json.loads(place.cnnjob("status", "--json").stdout)
    assert [one["state"] for one in before] == ["pending"] * 3
    place.cluster.run("scancel", before[1]["job_id"])
    now = json.loads(place.cnnjob("status", "--json").stdout)
    assert [one["state"] for one in now if one["run"] != before[1]["run"]] == ["pending"] * 2
    [gone] = [one for one in now if one["run"] == before[1]["run"]]
    job = before[1]["job_id"]
    assert gone["cause"] == f"job {job} left the queue before it started (cancelled or purged)"
    assert gone["command"].startswith("cnnjob submit")
