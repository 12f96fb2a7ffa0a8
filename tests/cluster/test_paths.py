"""The whole path on a real SLURM: prepare, submit, report; a sweep, in parts; what a site would refuse."""

import re
from pathlib import Path

import pytest

from cnnjob.runs.run import Run
from tests.cluster.conftest import Start
from tests.cluster.places import Place

pytestmark = pytest.mark.slurm
DIGITS = ("--profile", "lab", "--partition", "gpu", "--time", "5m", "--cpus-per-task", "1", "--mem", "500M")
SHORT = ("--set", "train.epochs=2")


@pytest.fixture
def place(cluster: Start, user_python: Path, request: pytest.FixtureRequest) -> Place:
    """An empty folder of the ordinary user's, on a cluster whose arrays have at most three elements."""
    one = cluster("--nodes", 2, "--set", "MaxArraySize=3")
    folder = one.home / request.node.name
    one.run("mkdir", folder)
    found = Place(one, user_python, folder)
    found.cnnjob("prepare", "digits")
    return found


def test_prepare_submit_report(place: Place) -> None:
    said = place.cnnjob("submit", *DIGITS, *SHORT, "--wait").stdout
    assert re.search(r": submitted as job \d+: 1 node, 1 task, 1 core, 500 M, 5 min on gpu\n", said), said
    assert re.search(r": finished, test accuracy \d\d\.\d\d %\n$", said), said
    place.cnnjob("report", "runs/")
    assert (place.folder / "report" / "metrics.md").exists()


def test_a_sweep_is_arrays_of_what_the_site_allows(place: Place) -> None:
    sweep = ("submit", "digits", *DIGITS, *SHORT, "--sweep", "train.learning_rate=0.05,0.1", "--seeds", "2")
    said = place.cnnjob(*sweep, "--parallel", "2", "--wait").stdout
    jobs = re.findall(r": submitted as job (\d+)(?:_(\d))?: ", said)
    assert [element for _, element in jobs] == ["0", "1", "2", ""]
    assert said.count(": finished, test accuracy ") == 4
    runs = Run.all(place.folder / "runs")
    assert {run.attempts()[0]["job_id"] for run in runs} == {f"{job}_{n}" if n else job for job, n in jobs}
    starts, ends = ([run.attempts()[0][key] for run in runs] for key in ("started", "ended"))
    assert sorted(ends)[1] <= sorted(starts)[2]  # never three at once
    again = place.cnnjob(*sweep).stdout
    assert again.count(": finished, nothing submitted\n") == 4
    place.cnnjob("report", "runs/")


def test_a_dry_run_asks_slurm_and_tells_what_will_happen(place: Place) -> None:
    found = place.cnnjob("submit", *DIGITS, "--partition", "low", "--dry-run").stdout
    assert re.search(r"\nSLURM: Job \d+ to start at 20\S+ using 1 processors on nodes n1 in partition low\n", found)
    assert "\npreemption: a job preempted in low receives SIGTERM and has 5 s to save and stop; SLURM req" in found
    assert not (place.folder / "runs").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--time", "2-0"), "--time 2-0: longer than the limit of partition gpu (1 d). Request less"),
        (
            ("--partition", "gpo"),
            "--partition gpo: no such partition. Did you mean 'gpu'? Valid names for this site: debug, gpu",
        ),
        (("--mem", "9000G"), "sbatch: refused, sbatch: error: "),
        (("--constraint", "nvlink"), "sbatch: refused, sbatch: error: "),
    ],
)
def test_what_the_site_refuses_is_one_message(place: Place, options: tuple[str, str], message: str) -> None:
    found = place.cnnjob("submit", *DIGITS, *options, check=False)
    assert (found.returncode, found.stderr.count("\n")) == (4, 1), found.stderr
    assert message in found.stderr
