"""Runs that an older version began: the finished ones stay readable, the others are not resumed."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from cnnjob import api, files
from cnnjob.data.dataset import Dataset
from cnnjob.errors import DataError, JobError
from cnnjob.jobs.job import FORMAT, Job
from cnnjob.jobs.json_files import SEAL, add_seal
from cnnjob.reporting import groups, record
from cnnjob.runs.run import UNSEALED, Run
from cnnjob.slurm import diagnosis, next_command, status
from cnnjob.training.split import split_training_images, validation_indices
from cnnjob.training.train import train
from tests.helpers.cli import JOB, cnnjob
from tests.helpers.progress import StopsAt
from tests.helpers.toy_jobs import dataset, job

HEAD = '"name": "toy", "dataset": "toy", "seed": 0'
MODEL = """
"model": {
  "blocks": [
    {"conv": 4, "kernel": 3, "stride": 1, "pad": 1, "pool": 2, "batch_norm": null,
     "order": ["norm", "activation", "pool"], "activation": "relu", "init": "he", "bias": true, "bias_init": 0.0,
     "learning_rate_factor": 1.0, "frozen": false},
    {"dense": 8, "activation": "relu", "init": "he", "bias": true, "bias_init": 0.0, "learning_rate_factor": 1.0,
     "frozen": false}
  ],
  "classifier": {"init": "he", "bias": true, "bias_init": 0.0, "learning_rate_factor": 1.0, "frozen": false,
                 "output_scale": 1.0}
}"""
PLAIN = f"""{{
{HEAD}, "data": {{"pixels": "standardised", "validation_fraction": 0.25, "augment": null}}, {MODEL},
"train": {{"epochs": 2, "batch_size": 8, "learning_rate": 0.05, "schedule": "constant", "warmup": 0.0,
  "start_factor": 0.0, "end_factor": 0.0, "optimiser": "sgd", "momentum": 0.9, "nesterov": false, "beta2": 0.999,
  "eps": 1e-08, "weight_decay": 0.0, "decoupled_weight_decay": false, "lookahead": null, "label_smoothing": 0.0,
  "precision": "float32", "select_on": "validation", "test_time_augmentation": "none", "early_stopping": null,
  "checkpoint_seconds": 60.0}},
"resources": {{"backend": "numpy"}}}}"""
NESTEROV = f"""{{
{HEAD}, "data": {{"pixels": "standardised", "validation_fraction": 0.25, "augment": null}}, {MODEL},
"train": {{"epochs": 2, "batch_size": 8, "learning_rate": 0.05, "schedule": "triangular", "warmup": 0.2,
  "start_factor": 0.5, "end_factor": 0.1, "optimiser": "sgd", "momentum": 0.8, "nesterov": true, "beta2": 0.999,
  "eps": 1e-08, "weight_decay": 0.01, "decoupled_weight_decay": true, "lookahead": null, "label_smoothing": 0.0,
  "precision": "float32", "select_on": "validation", "test_time_augmentation": "none", "early_stopping": null,
  "checkpoint_seconds": 60.0}},
"resources": {{"backend": "numpy"}}}}"""
ADAMW = f"""{{
{HEAD}, "data": {{"pixels": "standardised", "validation_fraction": 0.25, "augment": null}}, {MODEL},
"train": {{"epochs": 2, "batch_size": 8, "learning_rate": 0.05, "schedule": "cosine", "warmup": 0.1,
  "start_factor": 0.0, "end_factor": 0.05, "optimiser": "adamw", "momentum": 0.8, "nesterov": false, "beta2": 0.99,
  "eps": 1e-07, "weight_decay": 0.01, "decoupled_weight_decay": false, "lookahead": null, "label_smoothing": 0.0,
  "precision": "float32", "select_on": "validation", "test_time_augmentation": "none", "early_stopping": null,
  "checkpoint_seconds": 60.0}},
"resources": {{"backend": "numpy"}}}}"""
IDLE = f"""{{
{HEAD}, "data": {{"pixels": "standardised", "validation_fraction": 0.25,
  "augment": {{"flip": "none", "translate": 0}}}},
"model": {{
  "blocks": [
    {{"conv": 4, "kernel": 3, "stride": 1, "pad": 1, "pool": 1, "batch_norm": null,
      "order": ["activation", "pool", "norm"], "activation": "relu", "init": "he", "bias": true, "bias_init": 0.0,
      "learning_rate_factor": 0.0, "frozen": false}},
    {{"dense": 8, "activation": "relu", "init": "he", "bias": false, "bias_init": 0.5, "learning_rate_factor": 1.0,
      "frozen": false}},
    {{"dropout": 0.0}}
  ],
  "classifier": {{"init": "he", "bias": false, "bias_init": 0.0, "learning_rate_factor": 2.0, "frozen": true,
                 "output_scale": 1.0}}
}},
"train": {{"epochs": 2, "batch_size": 8, "learning_rate": 0.05, "schedule": "constant", "warmup": 0.0,
  "start_factor": 0.3, "end_factor": 0.1, "optimiser": "sgd", "momentum": 0.9, "nesterov": false, "beta2": 0.9,
  "eps": 1e-06, "weight_decay": 0.0, "decoupled_weight_decay": true, "lookahead": null, "label_smoothing": 0.0,
  "precision": "tf32", "select_on": "validation", "test_time_augmentation": "none",
  "early_stopping": {{"patience": 5}}, "checkpoint_seconds": 60.0}},
"resources": {{"backend": "numpy"}}}}"""
"""Of settings that cannot act, which are refused today."""


def literal(text: str) -> Job:
    return Job.checked(json.loads(text), "job.json", 2)


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        (PLAIN, {}),
        (
            NESTEROV,
            {
                "train__optimiser": {"sgd": {"momentum": 0.8, "nesterov": True, "decoupled_weight_decay": True}},
                "train__schedule": {"triangular": {"warmup": 0.2, "start_factor": 0.5, "end_factor": 0.1}},
                "train__weight_decay": 0.01,
            },
        ),
        (
            ADAMW,
            {
                "train__optimiser": {"adamw": {"beta1": 0.8, "beta2": 0.99, "eps": 1e-7}},
                "train__schedule": {"cosine": {"warmup": 0.1, "end_factor": 0.05}},
                "train__weight_decay": 0.01,
            },
        ),
    ],
    ids=["plain", "nesterov", "adamw"],
)
def test_a_job_of_the_older_layout_means_what_it_meant(text: str, changes: dict[str, Any]) -> None:
    assert literal(text) == job(**changes)


def test_settings_that_could_not_act_do_no_harm() -> None:
    read = literal(IDLE)
    assert (read.data.augment, read.train.early_stopping, len(read.model.blocks)) == (None, None, 2)
    with pytest.raises(JobError, match="learning_rate_factor: at 0, nothing in the block is trained"):
        Job.checked(read.model_dump(mode="json"), "job.json")


def test_what_is_no_job_of_the_older_layout_is_said() -> None:
    untrained = json.loads(PLAIN) | {"train": {}}
    contents: tuple[Any, ...] = (3, [], {"train": 3}, {"train": {"optimiser": [], "momentum": {}}}, untrained)
    for content in contents:
        with pytest.raises(JobError, match=r"job\.json: not a valid job"):
            Job.checked(content, "job.json", 2)


def as_older(run: Run, text: str) -> Run:
    """Give a run of today the job file of an older version, and the name that this gave to its folder."""
    frozen = {key: value for key, value in run.manifest().items() if key in {"data", "digest"}}
    run.job_file.write_text(json.dumps(frozen | {"job": json.loads(text)}))
    path = run.path.with_name("toy-0123abcd")
    run.path.rename(path)
    return Run(path)


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("toy.toml").write_text(f"resources.backend = 'numpy'\n{JOB}")
    return dataset(Path("data"))


def test_a_finished_run_stays_readable(toys: Dataset) -> None:
    assert cnnjob("train", "toy.toml").exit_code == 0
    run = as_older(Run.all(Path("runs"))[0], PLAIN)
    for command in (
        ["show", str(run.path)], ["status", str(run.path)], ["predict", str(run.path), "test:0", "val:3"],
        ["export", str(run.path)],
    ):  # fmt: skip
        done = cnnjob(*command)
        assert done.exit_code == 0, done.output
        said = done.stdout if command[0] == "status" else done.stderr
        assert UNSEALED in said
        assert "job.json has format 2; its settings" in said
    remarks = record.read_record(run, run.name).remarks
    assert UNSEALED in remarks
    assert any("job.json has format 2; " in remark for remark in remarks)
    assert "run: toy-0123abcd" in cnnjob("show", str(run.path)).stdout
    read = record.read_record(run, run.name)
    assert (read.row["state"], read.reasons, read.settings["train.optimiser.sgd.momentum"]) == ("finished", [], 0.9)
    assert len(validation_indices(run, toys)) == 54
    assert list(validation_indices(run, toys)) != list(split_training_images(run.job(), toys)[1])


@pytest.mark.usefixtures("toys")
def test_a_run_of_the_older_format_is_a_group_of_its_own() -> None:
    cnnjob("train", "toy.toml")
    as_older(Run.all(Path("runs"))[0], PLAIN)
    cnnjob("train", "toy.toml")
    found = groups.group_runs([record.read_record(run, run.name, pictures=False) for run in Run.all(Path("runs"))])
    assert {group.label for group in found} == {"format 2", "format –"}


@pytest.mark.usefixtures("toys")
def test_a_run_from_before_a_key_existed_stays_in_its_group() -> None:
    cnnjob("train", "toy.toml")
    run = Run.all(Path("runs"))[0]
    content = json.loads(run.job_file.read_text())
    del content["job"]["train"]["label_smoothing"]
    for block in content["job"]["model"]["blocks"]:
        del block["bias_epochs"]
    run.job_file.write_text(json.dumps(add_seal({key: value for key, value in content.items() if key != SEAL})))
    cnnjob("train", "toy.toml", "--set", "seed=1")
    records = [record.read_record(run, run.name, pictures=False) for run in Run.all(Path("runs"))]
    assert [(len(group.records), group.label) for group in groups.group_runs(records)] == [(2, "toy")]


def test_an_unfinished_run_is_named_and_begun_anew(toys: Dataset) -> None:
    from tests.helpers.toy_jobs import run_of

    assert train(run_of(job(), toys, Path("runs")), StopsAt(3)).state == "stopped"
    older = as_older(Run.all(Path("runs"))[0], PLAIN)
    before = {path: path.read_bytes() for path in older.path.rglob("*") if path.is_file()}
    with pytest.raises(
        DataError, match=r"toy-0123abcd: created by another version of cnnjob \(found job format 2, expected 3\)"
    ):
        train(older)
    for command in ("train", "submit"):
        refused = cnnjob(command, str(older.path))
        assert (refused.exit_code, "so the run cannot be resumed. Pass the job" in refused.output) == (2, True)
    [stands] = status.query_statuses([older]).statuses
    assert (stands.state, stands.detail) == ("stopped", "started by another version of cnnjob, so it cannot be resumed")
    cause = diagnosis.diagnose(stands)
    assert "cannot be resumed, so the command starts it from the beginning" in cause.sentence
    assert cause.command == next_command.continue_command(older) == "cnnjob train toy.toml"
    assert "created by another version of cnnjob, so it is not resumed" in str(
        record.read_record(older, "x").row["reason"]
    )
    begun = cnnjob("train", "toy.toml")
    assert begun.exit_code == 0
    said = "runs/toy-0123abcd: created by another version of cnnjob, and not finished. "
    assert said in " ".join(begun.output.split())
    [new] = [run for run in Run.all(Path("runs")) if run.path != older.path]
    assert (new.state(), new.manifest()["format"]) == ("finished", FORMAT)
    assert said not in cnnjob("train", "toy.toml").output
    assert {path: path.read_bytes() for path in older.path.rglob("*") if path.is_file()} == before
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_a_submission_names_the_run_that_it_begins_anew(toys: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    from cnnjob.cli.submit import _create_runs
    from tests.helpers.toy_jobs import run_of

    older = as_older(run_of(job(), toys, Path("runs")), PLAIN)
    for expected in (True, False):
        made = _create_runs([(job(), toys), (job(seed=1), toys)], Path("runs"))
        assert (f"{older.path}: created by another version of cnnjob" in capsys.readouterr().err) == expected
        train(next(iter(made.values()))[0])


def test_a_run_of_another_job_or_other_data_is_not_named(toys: Dataset) -> None:
    from cnnjob.runs.creation import describe_replaced_runs
    from tests.helpers.toy_jobs import run_of

    other = as_older(run_of(job(), toys, Path("runs")), PLAIN.replace('"epochs": 2', '"epochs": 3'))
    mine = run_of(job(), toys, Path("runs"))
    assert not list(describe_replaced_runs([mine]))
    frozen = files.read_json(other.job_file)
    other.job_file.write_text(json.dumps(frozen | {"job": json.loads(PLAIN)}))
    assert str(other.path) in next(describe_replaced_runs([mine]))
    with pytest.warns(UserWarning, match="so it is not resumed; the new run is"):
        api.train(job())
    other.job_file.write_text("{")
    assert not list(describe_replaced_runs([run_of(job(seed=5), toys, Path("runs"))]))


def test_a_run_without_a_job_of_its_name_is_named_by_its_folder(toys: Dataset) -> None:
    from tests.helpers.toy_jobs import run_of

    run = run_of(job(name="nameless"), toys, Path("runs"))
    assert next_command.continue_command(run) == f"cnnjob train {run.path}"
    assert cnnjob("train", str(run.path)).exit_code == 0
    assert run.state() == "finished"
    renamed = as_older(run, PLAIN.replace('"name": "toy"', '"name": "nameless"'))
    assert next_command.continue_command(renamed) == "cnnjob train JOB"
