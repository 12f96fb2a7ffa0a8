"""Faults planted in the kernels are caught by the tests that run them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda.emulation import needs_compiler
from tests.cuda.faults import HARMLESS, Fault
from tests.cuda.more_faults import ALL_FAULTS

pytestmark = [needs_compiler, pytest.mark.cuda_emulated]

EVERY = int(os.environ.get("CNNJOB_FAULTS_EVERY", "4"))
"""Of so many faults one is planted; 1 is all, which takes half an hour on two cores."""
CHOSEN = [fault for number, fault in enumerate(ALL_FAULTS) if number % EVERY == 0 or fault in HARMLESS]
ROOT = Path(__file__).parent.parent.parent
WITHOUT = -1
"""The place of no fault."""


@pytest.fixture(scope="module")
def outcomes() -> dict[int, str]:
    """Whether the tests pass, by the number of the fault; shared out over the cores."""
    cores, numbers = len(os.sched_getaffinity(0)), [WITHOUT, *map(ALL_FAULTS.index, CHOSEN)]
    command = [sys.executable, "-m", "tests.cuda.planting"]
    workers = [
        subprocess.Popen([*command, *map(str, numbers[core::cores])], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for core in range(cores)
    ]
    lines = [line.split() for worker in workers for line in worker.communicate()[0].splitlines()]
    return {int(number): outcome for number, outcome in lines}


def test_kernels_without_a_fault_pass(outcomes: dict[int, str]) -> None:
    assert outcomes[WITHOUT] == "passes"


@pytest.mark.parametrize(
    "fault",
    CHOSEN,
    ids=lambda fault: f"{fault.file} {fault.old} {fault.place} -> {fault.new or 'nothing'}".replace("\n", " "),
)
def test_a_fault_is_caught(outcomes: dict[int, str], fault: Fault) -> None:
    assert outcomes[ALL_FAULTS.index(fault)] == ("passes" if fault in HARMLESS else "fails")


def test_few_faults_are_harmless() -> None:
    assert len(HARMLESS) <= 2
    assert HARMLESS.keys() <= set(ALL_FAULTS)
