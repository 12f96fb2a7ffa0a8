"""Grids over a job: every combination, each once."""

from pathlib import Path

import pytest

from cnnjob.errors import JobError
from cnnjob.jobs.sweep import expand, job_differences
from tests.helpers.cli import JOB


@pytest.fixture
def toml(tmp_path: Path) -> str:
    path = tmp_path / "toy.toml"
    path.write_text(f"seed = 7\n{JOB.lstrip()}")
    return str(path)


def test_without_a_sweep_there_is_the_job(toml: str) -> None:
    [job] = expand(toml, ["train.epochs=3"], [])
    assert (job.seed, job.train.epochs) == (7, 3)


def test_every_combination_the_seeds_fastest(toml: str) -> None:
    found = expand(toml, [], ["train.learning_rate=0.1,0.2", "train.schedule=constant,cosine"], seeds=2)
    assert [(job.train.learning_rate, job.train.schedule.kind, job.seed) for job in found] == [
        (rate, schedule, seed) for rate in (0.1, 0.2) for schedule in ("constant", "cosine") for seed in (7, 8)
    ]


def test_what_is_repeated_is_one(toml: str) -> None:
    assert [job.seed for job in expand(toml, [], ["seed=1, 1,2"])] == [1, 2]
    assert len(expand(toml, [], ["train.learning_rate=0.1,0.10,1e-1"])) == 1


def test_a_value_may_be_a_table_or_a_list(toml: str) -> None:
    blocks = "model.blocks=[{dense=4},{dropout=0.5}],[{dense=8}]"
    assert [len(job.model.blocks) for job in expand(toml, [], [blocks])] == [2, 1]
    stopping = "train.early_stopping={patience=1},false"
    found = expand(toml, ["train.epochs=4"], [stopping])
    assert [job.train.early_stopping is None for job in found] == [False, True]


def test_what_tells_one_from_another(toml: str) -> None:
    assert job_differences(expand(toml, [], [])) == [""]
    stopping = "train.early_stopping={patience=1},false"
    assert job_differences(expand(toml, ["train.epochs=4"], [stopping], seeds=2)) == [
        "seed=7, train.early_stopping.patience=1", "seed=8, train.early_stopping.patience=1",
        "seed=7, train.early_stopping=None", "seed=8, train.early_stopping=None",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("sweeps", "seeds", "message"),
    [
        (["seed"], None, "--sweep seed: not of the form KEY=A,B"),
        (["=1,2"], None, "--sweep =1,2: not of the form KEY=A,B"),
        (["seed="], None, "--sweep seed=: not of the form KEY=A,B"),
        (["seed=1", "seed=2"], None, "seed: swept twice"),
        (["seed=1,2"], 3, "seed: swept twice"),
        (
            ["train.epochs=1,2"],
            10**9,
            "--sweep, --seeds: too many runs (found 2,000,000,000, at most 10,000)",
        ),
        (
            ["train.epochs=1,2\ntrain.batch_size=7"],
            None,
            "epochs=2\\ntrain.batch_size=7: not a single TOML assignment ",
        ),
        (["'train'.epochs = 1,2", "train.epochs=3"], None, "train.epochs: swept twice"),
        (["train.epoch=1,2"], None, "train.epoch: no such key. Did you mean 'epochs'?"),
        (["train.epochs=1,none"], None, "train.epochs: input should be an integer, found 'none'"),
        (["model.blocks=[{dense=4},"], None, "model.blocks=[{dense=4},: not a single TOML assignment "),
    ],
)
def test_mistakes(toml: str, sweeps: list[str], seeds: int | None, message: str) -> None:
    with pytest.raises(JobError) as error:
        expand(toml, [], sweeps, seeds)
    assert message in str(error.value)
