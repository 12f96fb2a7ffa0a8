"""Fine-tuning as typed: what the commands say of the initial weights, sweeps over them, and verifications."""

import json
import re
import shutil
from pathlib import Path

import pytest

import cnnjob as api
from tests.helpers.cli import JOB, cnnjob
from tests.helpers.toy_jobs import corrupt, dataset

FROM = "model.init_from="
QUICK = ("--set", "train.epochs=1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two finished runs, of two seeds."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "data").mkdir()
        dataset(folder / "data")
        (folder / "toy.toml").write_text(JOB)
        assert cnnjob("submit", "toy.toml", "--local", "--seeds", "2", "--set", "train.epochs=3").exit_code == 0
    return folder


@pytest.fixture
def parents(here: Path, trained: Path) -> list[str]:
    """The names of two finished runs, of two seeds, in copies of their folders."""
    shutil.copytree(trained / "runs", here / "runs")
    return sorted(path.name for path in (here / "runs").iterdir() if path.name.startswith("toy-"))


def test_every_command_says_which_layers_are_taken(parents: list[str]) -> None:
    name = parents[0]
    said = f"initial weights: {name} (SHA-256 "
    taken = "  taken: conv1 (frozen), dense1, classifier\n"
    child = ("toy.toml", "--set", f"{FROM}{name[:9]}", "--set", "model.blocks.0.frozen=true", *QUICK)
    shown = cnnjob("show", *child).stdout
    assert said in shown
    assert taken in shown
    assert f'init_from = "runs/{name}"' in shown
    initial = json.loads(cnnjob("show", *child, "--json").stdout)["initial"]
    assert initial["run"] == name
    assert (initial["taken"], initial["frozen"], initial["new"]) == (["conv1", "dense1", "classifier"], ["conv1"], {})
    dry = cnnjob("submit", *child, "--dry-run").stdout
    assert said in dry
    assert taken in dry
    assert "rehearsal: attempt 2: " in dry
    trained = cnnjob("train", *child)
    assert trained.exit_code == 0, trained.output
    assert said in trained.stderr
    assert taken in trained.stderr
    run = re.findall(r"runs/(toy-\w+): finished", trained.stdout)[0]
    assert f"run: {run}\n" in shown
    of_run = cnnjob("show", run).stdout
    assert said in of_run
    assert taken in of_run
    assert json.loads(cnnjob("show", "toy.toml", "--json").stdout)["initial"] is None
    corrupt(Path("runs") / run / "initial.npz")
    damaged = cnnjob("show", run)
    assert (damaged.exit_code, damaged.stderr.count("\n")) == (3, 1)
    assert f"runs/{run}/initial.npz: damaged" in damaged.stderr
    assert cnnjob("predict", run, "test:0").exit_code == 0
    assert cnnjob("status", run).exit_code == 0


def test_weights_are_swept_over_by_the_names_of_their_runs(parents: list[str]) -> None:
    swept = cnnjob("submit", "toy.toml", "--local", "--sweep", f"{FROM}{','.join(parents)},false", *QUICK)
    assert swept.exit_code == 0, swept.output
    for name in parents:
        assert swept.stdout.count(f"initial weights: {name} ") == 1
        assert f"({FROM}runs/{name})" in swept.stdout
    assert f"({FROM}None)" in swept.stdout
    assert swept.stdout.count("finished, test accuracy") == 3


def test_a_run_is_resumed_from_its_folder_without_its_source(parents: list[str]) -> None:
    assert cnnjob("submit", "toy.toml", "--local", "--set", f"{FROM}{parents[1]}", *QUICK).exit_code == 0
    [child] = [path for path in Path("runs").glob("toy-*") if (path / "initial.npz").exists()]
    (child / "result.json").unlink()
    assert cnnjob("status", str(child)).stdout.endswith(f"next:      cnnjob train {child}\n")
    shutil.rmtree(Path("runs") / parents[1])
    assert ": finished" in cnnjob("train", str(child)).stdout
    assert ": was finished" in cnnjob("train", "toy.toml", "--set", f"{FROM}{parents[1]}", *QUICK).stdout
    gone = cnnjob("train", "toy.toml", "--set", f"{FROM}{parents[1]}", "--set", "seed=9")
    assert gone.exit_code == 3
    assert f"model.init_from: {parents[1]}: no such run" in gone.stderr
    listed = cnnjob("clean")
    assert "initial.npz" not in listed.output


def test_a_fine_tuned_run_resumes_bit_for_bit(parents: list[str]) -> None:
    done = cnnjob(
        "verify-resume", "toy.toml", "--kills", "2", "--seed", "1", "--set", f"{FROM}{parents[0]}", "--set",
        "model.blocks.0.frozen=true", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["same"]


def test_a_job_in_python_can_start_from_weights(parents: list[str]) -> None:
    job = api.Job.load("toy.toml", [f"{FROM}{parents[0]}", "train.epochs=1"])
    run = api.train(job)
    assert run.manifest()["initial"]["run"] == parents[0]
    assert api.train(job) == run
    assert (run.path / "initial.npz").read_bytes() == (Path("runs") / parents[0] / "weights.npz").read_bytes()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("3", "model.init_from: input should be a string, found 3"),
        ("[]", "model.init_from: input should be a string, found []"),
        ("''", "model.init_from: input should be a non-empty string, found ''"),
    ],
)
def test_a_wrong_value_is_said(here: Path, value: str, message: str) -> None:
    refused = cnnjob("show", "toy.toml", "--set", f"{FROM}{value}")
    assert (refused.exit_code, refused.stderr) == (2, f"cnnjob: toy.toml with --set: not a valid job:\n  {message}\n")
    pinned = cnnjob("show", "toy.toml", "--set", "model.init_sha256=abc")
    assert (
        "model.init_sha256: input should be a SHA-256 of 64 hexadecimal digits in lower case, found 'abc'"
        in pinned.stderr
    )
    alone = cnnjob("show", "toy.toml", "--set", f"model.init_sha256={'a' * 64}")
    assert "model.init_sha256: has no effect without init_from. Set init_from, or omit init_sha256" in alone.stderr
    assert here.exists()


def test_the_same_sweep_from_the_latest_run_finds_its_runs_again(parents: list[str]) -> None:
    sweep = ("submit", "toy.toml", "--local", "--seeds", "2", "--set", f"{FROM}latest", *QUICK)
    first = cnnjob(*sweep)
    assert first.exit_code == 0, first.output
    again = cnnjob(*sweep).stdout
    assert again.count("finished, left alone") == 2
    more = cnnjob(*sweep[:4], "3", *sweep[5:]).stdout
    assert more.count("finished, left alone") == 2
    assert more.count("will be trained here") == 1
    for said in (first.stdout, again, more):
        assert re.findall(r"initial weights: (\S+)", said) in ([parents[0]], [parents[1]])
