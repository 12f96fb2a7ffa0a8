"""Two real clusters that share a file system."""

import json
from pathlib import Path

import pytest

from tests.cluster import lab
from tests.cluster.conftest import Start
from tests.cluster.places import SMALL, Place

pytestmark = pytest.mark.slurm


def test_a_run_that_is_trained_on_another_cluster(cluster: Start, user_python: Path) -> None:
    """The other knows its job's number as that of a job which has ended, then not at all."""
    first, second = cluster(*SMALL, "--host-names"), cluster(*SMALL, "--set", "ClusterName=other")
    place = Place.make(first, user_python, "two", epochs=3000)
    job = place.submit()
    place.until_saved()
    elsewhere = Place(second, user_python, place.folder)
    assert place.run.attempts()[-1]["cluster"] == "lab"
    while int(second.submit("--wrap", "true")) < int(job):
        pass
    lab.until(lambda: second.state(job) == "COMPLETED", 30, "a job of the same number")
    run = place.run.path.relative_to(place.folder)
    [told] = json.loads(elsewhere.cnnjob("status", run, "--json").stdout)
    where = f"job {job} is on cluster lab; this cluster is other"
    assert (told["state"], told["detail"]) == ("running", where)
    assert elsewhere.cnnjob("train", "toy.toml", check=False).returncode == 5
    assert "running, nothing submitted" in elsewhere.cnnjob("submit", "toy.toml").stdout
    refused = elsewhere.cnnjob("cancel", run, check=False)
    assert (refused.returncode, refused.stdout) == (
        5, f"{run}: not cancelled: {where}. To cancel it:\n  scancel -M lab {job}\n",
    )  # fmt: skip
    assert first.state(job) == "RUNNING"
    assert "cancelled job" in place.cnnjob("cancel", run).stdout
    place.until_ended(job, "CANCELLED")
    assert [attempt["attempt"] for attempt in place.run.attempts()] == [1]
    assert elsewhere.cnnjob("cancel", run).stdout == f"{run}: nothing to cancel: cancelled\n"
