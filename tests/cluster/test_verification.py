"""``cnnjob verify-resume`` on a real SLURM: its task is killed, the batch script brings it back, with the same bits."""

import json
import signal
import subprocess
from pathlib import Path

import pytest

from cnnjob.runs.run import Run
from tests.cluster import lab
from tests.cluster.conftest import Start
from tests.helpers.cli import JOB
from tests.helpers.toy_jobs import dataset

EPOCHS = 400
TOML = JOB.replace("epochs = 2", f"epochs = {EPOCHS}\ncheckpoint_seconds = 0.2") + '[resources]\nbackend = "numpy"\n'
VERIFY = ("verify-resume", "toy.toml", "--steps", "100000", "-p", "debug", "-t", "10m", "-c", "1", "--mem", "500M")

pytestmark = pytest.mark.slurm


@pytest.fixture
def one(cluster: Start) -> lab.Cluster:
    return cluster("--nodes", 1, "--kill-wait", 5)


@pytest.fixture
def place(one: lab.Cluster, request: pytest.FixtureRequest) -> Path:
    """A folder of the ordinary user's, with a space in its name."""
    folder = one.home / f"to be {request.node.name}"
    one.run("mkdir", folder)
    (folder / "data").mkdir()
    dataset(folder / "data")
    (folder / "toy.toml").write_text(TOML)
    return folder


def test_verified(one: lab.Cluster, place: Path, user_python: Path) -> None:
    command = (user_python, "-m", "cnnjob", *VERIFY, "--kills", "2", "--seed", "1", "--keep", "both", "--json")
    found = one.run(*command, cwd=place, timeout=120)
    comparison = json.loads(found.stdout)
    assert comparison["same"], found.stdout
    assert [kill["resumed_at_step"] >= kill["saved_step"] > 0 for kill in comparison["kills"]] == [True, True]
    assert comparison["attempts"] == 3
    [killed] = [path for path in (place / "both" / "killed").iterdir() if not path.name.startswith(".")]
    assert [attempt["why"] for attempt in Run(killed).attempts()] == [None, None, "finished"]


def test_interrupted_it_cancels_its_jobs(one: lab.Cluster, place: Path, user_python: Path) -> None:
    words = [lab.SCRIPT, "run", one.folder, "env", f"--chdir={place}", "setsid", user_python, "-m", "cnnjob", *VERIFY]
    process = subprocess.Popen(
        [str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    lab.until(lambda: len(list(place.glob("verify-resume/*/*/*/attempts/*.json"))) == 2, 40, "both runs")
    own = [path for path in Path("/proc").glob("[0-9]*") if is_ours(path, place)]
    [pid] = [int(path.name) for path in own]
    one.run("kill", "-INT", str(pid))
    _, said = process.communicate(timeout=60)
    assert said.splitlines()[-1] == "cnnjob: interrupted"
    assert process.returncode == 128 + signal.SIGINT
    assert not one.admin("squeue", "--noheader").strip()
    assert sorted(path.name for path in place.iterdir()) == ["data", "toy.toml"]


def is_ours(process: Path, place: Path) -> bool:
    """Whether a process is the interpreter of ``verify-resume`` in the folder."""
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
        return b"verify-resume" in words and words[1:2] == [b"-m"] and (process / "cwd").resolve() == place
    except OSError:
        return False
