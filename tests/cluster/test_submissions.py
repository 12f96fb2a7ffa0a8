"""Several submissions of the same runs on a real SLURM, and jobs of others: one job per run, no other job cancelled.

    CNNJOB_SUBMISSIONS=50 pytest -m slurm tests/cluster/test_submissions.py -k two_shells

submits the same sweep from two shells so many times, with locks and without.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cnnjob.runs import Run
from tests.cluster import lab
from tests.cluster.conftest import Start
from tests.cluster.places import REQUEST, Place
from tests.durability.faults import NO_COMPILER, compiler

pytestmark = pytest.mark.slurm

TIMES = int(os.environ.get("CNNJOB_SUBMISSIONS", "3"))
LONG = 20_000
SMALL = ("--nodes", 1, "--kill-wait", 5)


@pytest.fixture(scope="module")
def no_locks() -> Iterator[dict[str, str]]:
    """Variables under which a process gets no locks."""
    if not compiler():
        pytest.skip(NO_COMPILER)
    with lab.folder() as folder:
        library = folder / "nolocks.so"
        source = Path(__file__).with_name("nolocks.c")
        subprocess.run([str(compiler()), "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        yield {"LD_PRELOAD": str(library)}


@pytest.fixture
def place(cluster: Start, user_python: Path, request: pytest.FixtureRequest) -> Place:
    return Place.make(cluster(*SMALL), user_python, re.sub(r"\W+", "-", request.node.name), LONG)


def start(place: Place, *words: object, **variables: str) -> "subprocess.Popen[str]":
    """Start a command in a shell of its own."""
    known = {key: value for key, value in os.environ.items() if not key.startswith(("COV", "SLURM_", "PYTEST"))}
    setting = [f"{key}={value}" for key, value in variables.items()]
    command = [lab.SCRIPT, "run", place.cluster.folder, "env", f"--chdir={place.folder}", *setting, place.python]
    whole = [str(word) for word in (*command, "-m", "cnnjob", *words)]
    return subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=known)


def live(place: Place) -> list[str]:
    """The ids of the jobs that wait or run."""
    return place.cluster.admin("squeue", "--noheader", "--array", "--states=PENDING,RUNNING", "--format=%i").split()


@pytest.mark.parametrize("locks", [True, False], ids=["with locks", "without locks"])
def test_two_shells_submit_one_sweep(place: Place, no_locks: dict[str, str], *, locks: bool) -> None:
    for time in range(TIMES):
        submit_from_two_shells(place, f"runs-{time}", ("3", "3" if time % 2 else "2"), {} if locks else no_locks)


def submit_from_two_shells(place: Place, runs: str, seeds: tuple[str, str], variables: dict[str, str]) -> None:
    """Each run has one job, whichever was first, and cancelling leaves none."""
    options = ("submit", "toy.toml", *REQUEST, "--runs", runs)
    shells = [start(place, *options, "--seeds", count, **variables) for count in seeds]
    said = [shell.communicate(timeout=120) for shell in shells]
    assert [shell.returncode for shell in shells] == [0, 0], said
    told = [re.findall(r": (?:submitted|queued) as (?:job )?([\d_]+)", out) for out, _ in said]
    assert sorted(map(len, told)) == sorted(map(int, seeds)), said
    carriers = {job for jobs in told for job in jobs}
    assert len(carriers) == 3, said
    if seeds == ("3", "3"):
        assert len({job.partition("_")[0] for job in carriers}) == 1, said
    lab.until(lambda: set(live(place)) <= carriers, 30, "one job per run")
    found = place.cnnjob("cancel", runs).stdout
    assert found.count("cancelled job ") == 3, found
    lab.until(lambda: not place.cluster.admin("squeue", "--noheader"), 60, "an empty queue")
    states = {run.state() for run in Run.all(place.folder / runs)}
    assert states <= {"pending", "stopped"}, states
