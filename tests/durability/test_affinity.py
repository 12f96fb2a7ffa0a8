"""On one core or on two, and changing over in the middle: the same bits."""

import os
from pathlib import Path

import pytest

from tests.durability.faults import run_script

pytestmark = pytest.mark.durability


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores: taskset -c 0,1 pytest ...")
def test_the_cores_do_not_change_the_bits(folder: Path) -> None:
    reports = run_script("affinity", folder)
    assert {tuple(report["cores"]) for report in reports} == {(1, 1), (1, 2), (2, 1)}
    assert [report for report in reports if report["wrong"]] == []
