"""Job files: every problem at once, near matches, overrides, and a name that depends on what matters."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnjob import jobs, models
from cnnjob.errors import JobError
from cnnjob.jobs import Job
from tests.toys import job

WRONG = """
dataset = "mnist"
sed = 3
[model]
blocks = [{conv=32, kernle=3}, {dense=128, learning_rate_factor=-1}, {convv=3}, 7]
classifier = {init = "she"}
[train]
epoch = 3
batch_size = "many"
learning_rate = 0.05
early_stopping = {patients = 3}
[datta]
"""

PROBLEMS = """\
  model.blocks.0.kernle: no such key, did you mean 'kernel'?
  model.blocks.1.learning_rate_factor: input should be greater than or equal to 0, found -1
  model.blocks.2: no such block, did you mean 'conv'?; a block has one of the keys KINDS
  model.blocks.3: no such block; a block has one of the keys KINDS
  model.classifier.init: none of 'he', 'dirac', 'whitening' or a standard deviation from 0 to 10, found 'she'
  train.epochs: missing
  train.batch_size: input should be a valid integer, found 'many'
  train.early_stopping.patience: missing
  train.early_stopping.patients: no such key, did you mean 'patience'?
  train.epoch: no such key, did you mean 'epochs'?
  sed: no such key, did you mean 'seed'?
  datta: no such key, did you mean 'data'?""".replace("KINDS", "conv, dense, dropout, global_pool, residual")


def write(folder: Path, text: str) -> str:
    path = folder / "job.toml"
    path.write_text(text)
    return str(path)


def test_all_problems_are_said_at_once_with_near_matches(tmp_path: Path) -> None:
    path = write(tmp_path, WRONG)
    with pytest.raises(JobError) as error:
        Job.load(path)
    assert str(error.value) == f"{path}: not a valid job:\n{PROBLEMS}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.learning_rate=0", "train.learning_rate: input should be greater than 0, found 0"),
        ("train.learning_rate=nan", "train.learning_rate: input should be a finite number, found nan"),
        ("train.momentum=1.0", "train.momentum: input should be less than 1, found 1.0"),
        ("train.batch_size=8.0", "train.batch_size: input should be a valid integer, found 8.0"),
        ("seed=-1", "seed: input should be greater than or equal to 0, found -1"),
        ("name=../evil", "name: string should match pattern"),
        ("name=", "name: string should match pattern"),
        ("dataset=", "dataset: string should have at least 1 character"),
        ("train.select_on=last", "early stopping needs a split to watch"),
        ("model.blocks=3", "model.blocks: input should be a valid tuple, found 3"),
        ("model.blocks.0.kernel=big", "model.blocks.0.kernel: input should be a valid integer, found 'big'"),
    ],
)
def test_one_problem(change: str, message: str) -> None:
    with pytest.raises(JobError) as error:
        Job.load("mnist", [change])
    assert message in str(error.value)


def test_overrides_are_toml_values_or_bare_words() -> None:
    loaded = Job.load(
        "mnist", ["train.epochs=3", "dataset=other", "model.blocks.0.conv=7", "model.blocks=[{dense=5}]", "name='x y'"]
    )
    assert (loaded.train.epochs, loaded.dataset, loaded.name) == (3, "other", "x y")
    assert [block.model_dump()["dense"] for block in loaded.model.blocks] == [5]
    replaced = Job.load("mnist", ["model.blocks.1={dropout=0.5}", "train.early_stopping.patience=2"])
    assert isinstance(replaced.model.blocks[1], models.Dropout)
    assert replaced.train.early_stopping == jobs.EarlyStopping(patience=2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", "not of the form key=value"),
        ("=3", "not of the form key=value"),
        ("train..x=3", "not of the form key=value"),
        ("model.blocks.9.conv=3", "'9' leads nowhere"),
        ("model.blocks.9=3", "'model.blocks.9' leads nowhere"),
        ("dataset.name=3", "'dataset.name' leads nowhere"),
    ],
)
def test_an_override_that_leads_nowhere_is_said(override: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        Job.load("mnist", [override])


def test_unknown_jobs_are_said_with_a_near_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(JobError, match=r"mnst: no such job, did you mean 'mnist'\?; the jobs are cifar10, "):
        Job.load("mnst")
    for name in ("gone.toml", "jobs/gone"):
        with pytest.raises(JobError, match=r"no such file; a job is a \.toml file, or one of the names"):
            Job.load(name)


def test_a_job_of_ones_own_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "mnist.toml").write_text(jobs.find("mnist").read_text().replace("epochs = ", "epochs = 1"))
    shipped = Job.load("mnist")
    monkeypatch.chdir(tmp_path)
    assert Job.load("mnist").train.epochs > shipped.train.epochs
    assert jobs.known()["mnist"] == Path("jobs/mnist.toml")


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"= 3", b"[train", b'dataset = "a', b"a=" + b"9" * 5000, b"a=" + b"[" * 9000]
)
def test_what_is_no_toml_is_said(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "job.toml"
    path.write_bytes(content)
    with pytest.raises(JobError, match="not readable as TOML"):
        Job.load(str(path))


@given(st.text(max_size=200))
def test_any_text_is_a_job_or_a_job_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(text, errors="replace")
    with pytest.raises(JobError):
        Job.load(str(path))


@pytest.mark.parametrize("name", sorted(jobs.known()))
def test_the_shipped_jobs_are_valid_and_survive_being_written_down(name: str) -> None:
    loaded = Job.load(name)
    assert Job.checked(loaded.model_dump(mode="json"), name) == loaded


def test_the_digest_depends_on_what_decides_the_result_and_on_nothing_else() -> None:
    digest = job().digest("data")
    same = [
        job(train__checkpoint_seconds=1.0), job(resources__backend="auto"),
        job(name="other"), job(dataset="elsewhere.h5"),
    ]  # fmt: skip
    other = [
        job(seed=1), job(train__momentum=0.5), job(train__epochs=3), job(data__pixels="unit"),
        job(model__blocks=[{"conv": 4, "kernel": 3, "pool": 2, "init": 0.01}, {"dense": 8}]),
    ]  # fmt: skip
    assert {variant.digest("data") for variant in same} == {digest}
    assert len({digest, *(variant.digest("data") for variant in other), job().digest("other data")}) == 7
    assert job(model__blocks=[{"conv": 4, "kernel": 3, "pad": 1, "pool": 2}, {"dense": 8}]).digest("data") == digest


def test_windows_line_ends_and_byte_order_marks_are_read(tmp_path: Path) -> None:
    shipped = jobs.find("mnist").read_bytes()
    (tmp_path / "mnist.toml").write_bytes(b"\xef\xbb\xbf" + shipped.replace(b"\n", b"\r\n"))
    assert Job.load(str(tmp_path / "mnist.toml")) == Job.load("mnist")


def test_early_stopping_can_be_switched_off() -> None:
    assert Job.load("mnist", ["train.early_stopping=false"]).train.early_stopping is None


def test_the_digest_is_the_same_on_every_machine() -> None:
    assert job().digest("data") == "5fa4326a874ef7b877706fb268e41ec7679da009154835389ef4a662e38d8687"
