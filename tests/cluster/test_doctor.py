"""``cnnjob doctor`` on a real SLURM: the profile that it writes is one that a job runs with."""

import json
import re
from pathlib import Path

import pytest

from tests.cluster.conftest import Start
from tests.cluster.places import SMALL, Place

pytestmark = pytest.mark.slurm


def test_doctor_and_a_job_with_its_profile(cluster: Start, user_python: Path, request: pytest.FixtureRequest) -> None:
    place = Place.make(cluster(*SMALL), user_python, request.node.name, epochs=2)
    rows = {row["check"]: row for row in json.loads(place.cnnjob("doctor", "--json").stdout)}
    assert not [row for row in rows.values() if row["level"] == "bad"]
    assert re.fullmatch(r"SLURM \d+\.\d+\.\d+ answers; 4 partitions", rows["SLURM"]["message"])
    assert rows["partition low"]["message"] == (
        "1 node with 4 cores, 8 GB and 2 GPUs; at most 1 d; preempted (REQUEUE)"
    )
    assert rows["stopping"]["message"].startswith("5 s from SIGTERM")
    place.cnnjob("doctor", "--write-profile", "found", "--partition", "gpu")
    said = place.cnnjob("submit", "toy.toml", "--profile", "found", "--wait").stdout
    assert re.search(r"1 node, 1 task, 2 cores, 3 G, 2 h on gpu\n.*: finished, test accuracy", said), said
