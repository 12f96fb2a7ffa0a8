"""Job files: every problem at once, near matches, overrides, and a name that depends on what matters."""

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnjob import nn
from cnnjob.errors import DataError, JobError
from cnnjob.jobs import job as jobs
from cnnjob.jobs.job import Job
from cnnjob.jobs.settings import EarlyStoppingSettings, LookaheadSettings
from cnnjob.jobs.toml import format_toml
from tests.helpers.run_folders import pending_run
from tests.helpers.toy_jobs import job

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
  model.blocks.0.kernle: no such key. Did you mean 'kernel'?
  model.blocks.1.learning_rate_factor: input should be greater than or equal to 0, found -1
  model.blocks.2: no such block. Did you mean 'conv'? A block has one of the keys KINDS
  model.blocks.3: no such block. A block has one of the keys KINDS
  model.classifier.init: input should be 'he' or a standard deviation from 0 to 10, found 'she'
  train.epochs: missing
  train.batch_size: input should be an integer, found 'many'
  train.early_stopping.patience: missing
  train.early_stopping.patients: no such key. Did you mean 'patience'?
  train.epoch: no such key. Did you mean 'epochs'?
  sed: no such key. Did you mean 'seed'?
  datta: no such key. Did you mean 'data'?""".replace("KINDS", "conv, dense, dropout, global_pool, residual")


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
        ("train.optimiser.sgd.momentum=1.0", "train.optimiser.sgd.momentum: input should be less than 1, found 1.0"),
        ("train.batch_size=8.0", "train.batch_size: input should be an integer, found 8.0"),
        ("seed=-1", "seed: input should be greater than or equal to 0, found -1"),
        ("name=../evil", "name: input should have 1 to 100 characters "),
        ('name=""', "name: input should have 1 to 100 characters "),
        ('dataset=""', "dataset: input should be a non-empty string"),
        ("train.select_on=last", "train.early_stopping: needs a split to watch"),
        ("model.blocks=3", "model.blocks: input should be an array, found 3"),
        ("model.blocks.0.kernel=big", "model.blocks.0.kernel: input should be an integer, found 'big'"),
    ],
)
def test_one_problem(change: str, message: str) -> None:
    with pytest.raises(JobError) as error:
        Job.load("mnist", [change])
    assert message in str(error.value)


CONV = {"conv": 3, "kernel": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": [CONV | {"order": ["norm", "pool"]}]},
         "model.blocks.0.order: input should contain 'norm', 'activation' and 'pool' exactly once each, found "
         "['norm', 'pool']"),
        ({"blocks": [CONV | {"order": ["norm", "pool", "relu"]}]},
         "model.blocks.0.order.2: input should be 'norm', 'activation' or 'pool', found 'relu'"),
        ({"blocks": [CONV | {"batch_norm": {"momentun": 0.1}}]},
         "model.blocks.0.batch_norm.momentun: no such key. Did you mean 'momentum'?"),
        ({"blocks": [CONV | {"batch_norm": {"momentum": 1.5}}]},
         "model.blocks.0.batch_norm.momentum: input should be less than or equal to 1, found 1.5"),
        ({"blocks": [CONV | {"batch_norm": 3}]},
         "model.blocks.0.batch_norm: input should be a table of settings, found 3"),
        ({"blocks": [CONV | {"activation": "swish"}]},
         "model.blocks.0.activation: input should be 'relu', 'gelu', 'silu' or 'none', found 'swish'"),
        ({"blocks": [CONV | {"init": "white"}]},
         "model.blocks.0.init: input should be 'he', 'dirac', 'whitening' or a standard deviation from 0 to 10, found "
         "'white'"),
        ({"blocks": [{"dense": 3, "init": "dirac"}]},
         "model.blocks.0.init: input should be 'he' or a standard deviation from 0 to 10, found 'dirac'"),
        ({"blocks": [CONV, CONV | {"init": "whitening"}]}, "model.blocks: only the first block"),
        ({"blocks": [{"residual": [CONV | {"init": "whitening"}]}]}, "model.blocks: only the first"),
        ({"blocks": [{"residual": [CONV | {"kernle": 3}, {"dropout": 2}]}]},
         "model.blocks.0.residual.0.kernle: no such key. Did you mean 'kernel'?\n"
         "  model.blocks.0.residual.1.dropout: input should be less than 1, found 2"),
        ({"blocks": [{"residual": [{"dense": 3}]}]},
         "model.blocks.0.residual.0: no such block. A block has one of the keys conv, dropout"),
        ({"blocks": [{"global_pool": "average"}]},
         "model.blocks.0.global_pool: input should be 'mean' or 'max', found 'average'"),
        ({"classifier": {"output_scale": 0.0}},
         "model.classifier.output_scale: input should be greater than 0, found 0.0"),
        ({"train__optimiser": {"adamw": {"nesterov": True}}},
         "train.optimiser.adamw.nesterov: no such key. The keys are beta1, beta2, eps"),
        ({"train__optimiser": {"sgd": {"nesterov": True, "momentum": 0.0}}},
         "train.optimiser.sgd.nesterov: needs momentum (found momentum = 0)"),
        ({"train__optimiser": {"adamm": {}}}, "train.optimiser.adamm: no such key. Did you mean 'adam'?"),
        ({"train__optimiser": {"muon": {"momentum": 0.0}}},
         "train.optimiser.muon.nesterov: needs momentum (found momentum = 0)"),
        ({"train__optimiser": {"muon": {"others": "sgd"}}},
         "train.optimiser.muon.others.sgd.learning_rate: missing"),
        ({"train__optimiser": {"muon": {"others": "adam"}}},
         "train.optimiser.muon.others: input should be 'sgd' or 'adamw', or a table with one of these keys, found "
         "'adam'. Did you mean 'adamw'?"),
        ({"train__optimiser": {"muon": {"others": {"sgd": {"learning_rate": 1.0, "decoupled_weight_decay": True}}}}},
         "train.optimiser.muon.others.sgd.decoupled_weight_decay: has no effect without weight_decay. Set weight_decay "
         "in the same table"),
        ({"train__optimiser": {"muon": {"normalise_weights": True}}, "train__weight_decay": 0.1},
         "train.weight_decay: has no effect but to change the learning rate, since optimiser.muon.normalise_weights"),
        ({"train__clip_norm": -1.0},
         "train.clip_norm: input should be greater than 0, found -1.0"),
        ({"train__clip_norm": True}, "train.clip_norm: input should be a number, found true"),
        ({"train__optimiser": {"sgd": {}, "adamw": {}}},
         "train.optimiser: input should be 'sgd', 'adam', 'adamw' or 'muon', or a table with one of these keys, "
         "found { sgd = {}, adamw = {} }"),
        ({"train__lookahead": {"every": 0}},
         "train.lookahead.every: input should be greater than or equal to 1, found 0"),
        ({"train__lookahead": {"alpha": 0.5}}, "train.lookahead.alpha: no such key. The keys are every, "),
        ({"train__label_smoothing": 1.0}, "train.label_smoothing: input should be less than 1, found 1.0"),
        ({"train__schedule": {"cosine": {"warmup": 1.0}}},
         "train.schedule.cosine.warmup: input should be less than 1, found 1.0"),
        ({"train__schedule": "steps"},
         "train.schedule: input should be 'constant', 'cosine', 'triangular', 'step' or 'one_cycle', or a table with "
         "one of these keys, found 'steps'. Did you mean 'step'?"),
        ({"train__test_time_augmentation": True},
         "train.test_time_augmentation: input should be 'none', 'flip' or 'flip_translate', found true"),
        ({"data__augment": {"flip": "sometimes", "translate": 65}},
         "data.augment.flip: input should be 'none', 'random' or 'alternating', found 'sometimes'\n"
         "  data.augment.translate: input should be less than or equal to 64, found 65"),
        ({"data__augment": {"cutout": 2.5, "mixup": -1}},
         "data.augment.cutout: input should be an integer, found 2.5\n"
         "  data.augment.mixup: input should be greater than or equal to 0, found -1"),
    ],
)  # fmt: skip
def test_one_problem_of_a_network_or_its_training(changes: dict[str, Any], message: str) -> None:
    named = {key if "__" in key else f"model__{key}": value for key, value in changes.items()}
    with pytest.raises(JobError) as error:
        job(**named)
    assert f"not a valid job:\n  {message}" in str(error.value)


def test_what_is_left_out_follows_from_what_is_said() -> None:
    plain, normalised, biased, empty = job(
        model__blocks=[CONV, CONV | {"batch_norm": True}, CONV | {"batch_norm": {"scale": False}, "bias": True},
                       CONV | {"batch_norm": {}}]
    ).model.blocks  # fmt: skip
    assert plain == nn.Conv(filters=3, kernel=2, pad=1, bias=True)
    assert normalised == empty == nn.Conv(filters=3, kernel=2, pad=1, batch_norm=nn.BatchNorm(), bias=False)
    assert biased == nn.Conv(filters=3, kernel=2, pad=1, batch_norm=nn.BatchNorm(scale=False), bias=True)
    assert [job(train__lookahead=said).train.lookahead for said in (True, False, {"every": 2})] == [
        LookaheadSettings(),
        None,
        LookaheadSettings(every=2),
    ]
    same = job(model__blocks=[CONV | {"batch_norm": False, "order": ("norm", "activation", "pool")}])
    assert same.digest("data") == job(model__blocks=[CONV]).digest("data")


EVERYTHING = {
    "data__augment": {"flip": "alternating", "translate": 2, "cutout": 3, "mixup": 0.2},
    "model__blocks": [
        {
            "conv": 4,
            "kernel": 2,
            "pad": 0,
            "init": "whitening",
            "frozen": True,
            "activation": "silu",
            "bias_epochs": 1,
        },
        {
            "conv": 6,
            "pool": 2,
            "batch_norm": {"momentum": 0.4, "scale": False},
            "order": ["pool", "norm", "activation"],
        },
        {"residual": [{"conv": 6, "batch_norm": True}, {"dropout": 0.1}, {"conv": 6, "activation": "none"}]},
        {"global_pool": "max"},
    ],
    "model__classifier": {"output_scale": 0.2, "bias": False},
    "train__optimiser": {"adamw": {"beta2": 0.99}},
    "train__lookahead": {"every": 3},
    "train__clip_norm": 1.0,
    "train__ema": {"decay": 0.9},
    "train__schedule": {"triangular": {"warmup": 0.2}},
    "train__label_smoothing": 0.1,
    "train__test_time_augmentation": "flip_translate",
}


def test_a_job_of_everything_is_printed_as_a_file_says_it() -> None:
    loaded = job(**EVERYTHING)
    printed = format_toml(loaded.model_dump(mode="json", exclude_none=True))
    assert Job.checked(tomllib.loads(printed), "printed") == loaded
    assert 'order = ["pool", "norm", "activation"]' in printed
    assert "  { residual = [\n    { conv = 6, " in printed
    assert Job.checked(loaded.model_dump(mode="json"), "frozen") == loaded


def test_each_setting_of_everything_renames_the_run() -> None:
    digests = {job(**{key: value}).digest("data") for key, value in EVERYTHING.items()}
    assert len({*digests, job().digest("data")}) == len(EVERYTHING) + 1


def test_overrides_are_toml_values_or_bare_words() -> None:
    loaded = Job.load(
        "mnist", ["train.epochs=3", "dataset=other", "model.blocks=[{dense=5}]", "model.blocks.0.dense=6", "name='x y'"]
    )
    assert (loaded.train.epochs, loaded.dataset, loaded.name) == (3, "other", "x y")
    assert loaded.model.blocks == (nn.Dense(units=6),)
    replaced = Job.load("mnist", ["model.blocks.1={dropout=0.5}", "train.early_stopping.patience=2"])
    assert replaced.model.blocks[1] == nn.Dropout(0.5)
    assert replaced.train.early_stopping == EarlyStoppingSettings(patience=2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs", "not of the form KEY=VALUE"),
        ("=3", "not of the form KEY=VALUE"),
        ("train..x=3", "not of the form KEY=VALUE"),
        ("model.blocks.9.conv=3", "there is no '9' to set"),
        ("model.blocks.9=3", "there is no 'model.blocks.9' to set"),
        ("dataset.name=3", "there is no 'dataset.name' to set"),
        ("model.blocks=[{conv=3", "conv=3: not a single TOML assignment "),
    ],
)
def test_an_override_that_leads_nowhere_is_said(override: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        Job.load("mnist", [override])


def test_unknown_jobs_are_said_with_a_near_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError, match=r"mnst: no such job. Did you mean 'mnist'\? Pass .* one of these jobs: cifar10, "
    ):
        Job.load("mnst")
    for name in ("gone.toml", "jobs/gone"):
        with pytest.raises(DataError, match=r"no such file\. Pass a \.toml file .* To list all jobs:\n  cnnjob show"):
            Job.load(name)


def test_a_job_of_ones_own_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jobs").mkdir()
    shipped_text = jobs.find_job_file("mnist").read_text()
    (tmp_path / "jobs" / "mnist.toml").write_text(shipped_text.replace("epochs = ", "epochs = 1"))
    shipped = Job.load("mnist")
    monkeypatch.chdir(tmp_path)
    assert Job.load("mnist").train.epochs > shipped.train.epochs
    assert jobs.list_jobs()["mnist"] == Path("jobs/mnist.toml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "not UTF-8 text"),
        (b"= 3", "not readable as TOML"),
        (b"[train", "not readable as TOML"),
        (b'dataset = "a', "not readable as TOML"),
        (b"a=" + b"9" * 5000, "not readable as TOML"),
        (b"a=" + b"[" * 9000, "not readable as TOML (its tables or arrays are nested too deep"),
        (b"a" + b".a" * 64 + b"=3", "not readable as TOML (a dotted key has more than 64 parts"),
        (b"a" + b" . a" * 64 + b"=3", "not readable as TOML (a dotted key has more than 64 parts"),
        (b"#" * 300_000, "too large (found 300,000 bytes"),
    ],
)
def test_what_is_no_toml_is_said(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "job.toml"
    path.write_bytes(content)
    with pytest.raises(JobError, match=re.escape(message)):
        Job.load(str(path))


def test_a_job_file_that_is_none_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "job.toml")
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "large.toml").write_bytes(b"#" * 2**21)
    for name, why in (("job", "found a pipe"), ("folder", "found a folder"), ("large", "the maximum is 262,144")):
        with pytest.raises(JobError, match=why):
            Job.load(str(tmp_path / f"{name}.toml"))


@given(st.text(max_size=200))
def test_any_text_is_a_job_or_a_job_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(text, errors="replace")
    with pytest.raises(JobError):
        Job.load(str(path))


def test_the_manifest_of_a_run_names_its_job(tmp_path: Path) -> None:
    run = pending_run(tmp_path)
    assert Job.load(str(run.job_file)) == Job.load(str(run.path)) == run.job()


@pytest.mark.parametrize("name", sorted(jobs.list_jobs()))
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
        job(seed=1), job(train__optimiser={"sgd": {"momentum": 0.5}}), job(train__epochs=3), job(data__pixels="unit"),
        job(model__blocks=[{"conv": 4, "kernel": 3, "pool": 2, "init": 0.01}, {"dense": 8}]),
    ]  # fmt: skip
    assert {variant.digest("data") for variant in same} == {digest}
    assert len({digest, *(variant.digest("data") for variant in other), job().digest("other data")}) == 7
    assert job(model__blocks=[{"conv": 4, "kernel": 3, "pad": 1, "pool": 2}, {"dense": 8}]).digest("data") == digest


def test_windows_line_ends_and_byte_order_marks_are_read(tmp_path: Path) -> None:
    shipped = jobs.find_job_file("mnist").read_bytes()
    (tmp_path / "mnist.toml").write_bytes(b"\xef\xbb\xbf" + shipped.replace(b"\n", b"\r\n"))
    assert Job.load(str(tmp_path / "mnist.toml")) == Job.load("mnist")


def test_early_stopping_can_be_switched_off() -> None:
    assert Job.load("mnist", ["train.early_stopping=false"]).train.early_stopping is None


def test_settings_that_are_added_rename_no_run() -> None:
    """A job that sets what there was in format 3 when it was new, and its digest of that time."""
    blocks: list[dict[str, Any]] = [
        {"conv": 4, "kernel": 2, "pad": 0, "init": "whitening", "frozen": True, "activation": "gelu"},
        {
            "conv": 6,
            "pool": 2,
            "batch_norm": {"momentum": 0.4, "scale": False},
            "order": ["pool", "norm", "activation"],
        },
        {"residual": [{"conv": 6, "batch_norm": True}, {"dropout": 0.1}, {"conv": 6, "activation": "none"}]},
        {"global_pool": "max"},
    ]
    of_then = job(
        data__augment={"flip": "alternating", "translate": 2}, model__blocks=blocks,
        model__classifier={"output_scale": 0.2, "bias": False}, train__optimiser={"adamw": {"beta2": 0.99}},
        train__lookahead={"every": 3}, train__schedule={"triangular": {"warmup": 0.2}}, train__label_smoothing=0.1,
        train__test_time_augmentation="flip_translate",
    )  # fmt: skip
    assert of_then.digest("data") == "f6ddee83cf82da4f0e6b5ecc8f1a4b51e063d6dfab58ca06790a3c2d89ee19d1"


def test_the_digest_is_the_same_on_every_machine() -> None:
    assert job().digest("data") == "4bc0fc83d665bd60624381f9163a632ecf9d29dbb2cb73410ae17973fff30f5d"


@pytest.mark.parametrize(
    ("train", "lines"),
    [
        (
            {"momentum": 0.5, "nesterov": True},
            [
                "train.momentum: is now train.optimiser.sgd.momentum. "
                "In a job file: optimiser = { sgd = { momentum = 0.5, nesterov = true } }",
                "train.nesterov: is now train.optimiser.sgd.nesterov. "
                "In a job file: optimiser = { sgd = { momentum = 0.5, nesterov = true } }",
            ],
        ),
        (
            {"optimiser": "adamw", "momentum": 0.5, "nesterov": False},
            [
                "train.momentum: is now train.optimiser.adamw.beta1. "
                "In a job file: optimiser = { adamw = { beta1 = 0.5 } }",
                "train.nesterov: has no effect with optimiser 'adamw', only with 'sgd' or 'muon'. Remove it, "
                "or write optimiser = { muon = { nesterov = false } }",
            ],
        ),
        (
            {"schedule": "cosine", "warmup": 0.1},
            ["train.warmup: is now train.schedule.cosine.warmup. "
             "In a job file: schedule = { cosine = { warmup = 0.1 } }"],
        ),
        (
            {"end_factor": 0.1, "beta2": 0.9},
            [
                "train.end_factor: has no effect with schedule 'constant', only with 'cosine' or 'triangular'. Remove "
                "it, or write schedule = { triangular = { end_factor = 0.1 } }",
                "train.beta2: has no effect with optimiser 'sgd', only with 'adam' or 'adamw'. Remove it, "
                "or write optimiser = { adamw = { beta2 = 0.9 } }",
            ],
        ),
        (
            {"schedule": {"triangular": {}}, "start_factor": 0.1},
            ["train.start_factor: is now train.schedule.triangular.start_factor. "
             "In a job file: schedule = { triangular = { start_factor = 0.1 } }"],
        ),
    ],
)  # fmt: skip
def test_a_key_of_the_older_layout_is_refused_with_its_new_spelling(train: dict[str, Any], lines: list[str]) -> None:
    with pytest.raises(JobError) as error:
        job(**{f"train__{key}": value for key, value in train.items()})
    assert str(error.value).splitlines()[1:] == [f"  {line}" for line in lines]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__schedule": {"cosine": {"start_factor": 0.1}}}, "train.schedule.cosine.start_factor: needs a "),
        ({"train__schedule": {"constant": {"warmup": 0.1, "start_factor": 1.0}}}, "train.schedule.constant.start_f"),
        ({"train__schedule": {"cosine": {"end_factor": 1.0}}}, "train.schedule.cosine.end_factor: at 1, the learning"),
        ({"train__schedule": {"step": {"warmup": 0.1, "start_factor": 1.0}}}, "train.schedule.step.start_factor: a w"),
        ({"train__schedule": {"one_cycle": {"base_momentum": 0.9}}},
         "train.schedule.one_cycle.base_momentum: should be less than optimiser.sgd.momentum (found 0.9 and 0.9). "
         "Lower it, or omit it to keep the momentum the same"),
        ({"train__schedule": {"one_cycle": {"base_momentum": 0.8}}, "train__optimiser": "muon"},
         "train.schedule.one_cycle.base_momentum: needs optimiser 'sgd', 'adam' or 'adamw' (found 'muon'). Omit it"),
        ({"train__schedule": {"one_cycle": {"base_momentum": 0.8}}, "train__optimiser": {"adam": {"beta1": 0.5}}},
         "train.schedule.one_cycle.base_momentum: should be less than optimiser.adam.beta1 (found 0.8 and 0.5). Lower"),
        ({"train__schedule": {"step": {"milestones": []}}}, "train.schedule.step.milestones: input should be an array"),
        ({"train__schedule": {"step": {"milestones": [30, 0.5]}}}, "train.schedule.step.milestones: input should be"),
        ({"train__schedule": {"step": {"milestones": [2, 1]}}}, "train.schedule.step.milestones: input should be an "),
        ({"train__schedule": {"step": {"milestones": [0.5, 0.5]}}}, "train.schedule.step.milestones: input should be"),
        ({"train__schedule": {"step": {"milestones": [True]}}}, "train.schedule.step.milestones: input should be an "),
        ({"train__schedule": {"step": {"milestones": [1.5]}}},
         "train.schedule.step.milestones: input should be an array of epochs in ascending order, such as [30, 60], or "
         "of fractions of the training, such as [0.5, 0.75], found [1.5]"),
        ({"train__schedule": {"step": {"warmup": 0.6}}},
         "train.schedule.step.milestones: the learning rate would fall during the warm-up, which takes 0.6 of all "
         "steps (found 0.5). Set a later milestone, or a shorter warmup"),
        ({"train__epochs": 4, "train__schedule": {"step": {"warmup": 0.3, "milestones": [1, 3]}}},
         "train.schedule.step.milestones: the learning rate would fall during the warm-up"),
        ({"train__optimiser": {"sgd": {"decoupled_weight_decay": True}}}, "train.optimiser.sgd.decoupled_weight_dec"),
        ({"data__augment": {"crop": 2, "translate": 1}},
         "data.augment.crop: moves images, as translate does (found crop = 2 and translate = 1). Set only one of the "),
        ({"data__augment": True}, "data.augment: no augmentation is set. Set one, such as { flip = 'random' }, or"),
        ({"train__precision": "tf32"}, "train.precision: 'tf32' needs a GPU (found resources.backend = 'numpy')"),
        (
            {"train__precision": "float16", "resources__backend": "auto", "model__blocks": [{"dense": 3}]},
            "train.precision: 'float16' affects convolutions only (found none in model.blocks). Set 'tf32'",
        ),
        ({"model__blocks": [CONV | {"bias": False, "bias_init": 1.0}]}, "model.blocks.0.bias_init: there is no bias"),
        ({"model__blocks": [CONV | {"bias": False, "bias_epochs": 1}]},
         "model.blocks.0.bias_epochs: there is no bias (found bias_epochs = 1). Set bias = true, or omit bias_epochs"),
        ({"model__blocks": [CONV | {"batch_norm": True, "bias_init": 1.0}]}, "model.blocks.0.bias_init: there is no "),
        ({"model__blocks": [{"dense": 3, "learning_rate_factor": 0.0}]}, "model.blocks.0.learning_rate_factor: at 0, "),
        ({"model__blocks": [{"dense": 3, "bias": False, "frozen": True, "learning_rate_factor": 2.0}]},
         "model.blocks.0.learning_rate_factor: a frozen block without a bias has nothing to train. "
         "Omit learning_rate_factor"),
        ({"model__classifier": {"bias": False, "bias_init": 1.0}}, "model.classifier.bias_init: there is no bias"),
        ({"model__blocks": [CONV | {"batch_norm": {"learning_rate_factor": 0.0}}]},
         "model.blocks.0.batch_norm.scale: at learning_rate_factor = 0, the scale stays 1. Set scale = false"),
    ],
)  # fmt: skip
def test_what_cannot_act_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError) as error:
        job(**changes)
    assert f"not a valid job:\n  {message}" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"train__learning_rate": 1e-300}, "train.learning_rate"),
        ({"train__weight_decay": 1e-40}, "train.weight_decay"),
        ({"model__classifier": {"output_scale": 1e-39}}, "model.classifier.output_scale"),
        ({"train__optimiser": {"adamw": {"eps": 5e-324}}}, "train.optimiser.adamw.eps"),
        ({"train__optimiser": {"sgd": {"momentum": 1 - 2**-53}}}, "train.optimiser.sgd.momentum"),
        ({"model__blocks": [{"dropout": 0.9999999999}]}, "model.blocks.0.dropout"),
    ],
)
def test_a_number_that_float32_takes_for_another_is_refused(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(JobError, match=rf"{key}: input should be (0, or at least 1.17549e-38|less than 1 in float32)"):
        job(**changes)
    job(train__learning_rate=1.2e-38, train__optimiser={"sgd": {"momentum": 0.9999999}})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"train__optimiser": "sgd"}, {"train__optimiser": {"sgd": {"momentum": 0.9, "nesterov": False}}}),
        ({"train__optimiser": "adamw"}, {"train__optimiser": {"adamw": True}}),
        ({"train__schedule": "constant"}, {"train__schedule": {"constant": {"warmup": 0}}}),
        (
            {"train__epochs": 4, "train__schedule": {"step": {"milestones": [2, 3]}}},
            {"train__epochs": 4, "train__schedule": {"step": {"milestones": [2, 3, 4, 9]}}},
        ),
        (
            {"train__epochs": 1, "train__schedule": {"constant": {"warmup": 0.1}}},
            {"train__epochs": 1, "train__schedule": {"step": {"milestones": [1, 3], "warmup": 0.1}}},
        ),
        ({"train__schedule": "step"}, {"train__schedule": {"step": {"milestones": [0.5, 0.75], "gamma": 0.1}}}),
        ({"data__augment": False}, {"data__augment": {"flip": "none", "translate": 0}}),
        ({"data__augment": False}, {"data__augment": {"crop": 0, "cutout": 0, "mixup": 0}}),
        ({"train__early_stopping": False}, {"train__early_stopping": {"patience": 1}}),
        (
            {"train__epochs": 1, "data__augment": {"flip": "random"}},
            {"train__epochs": 1, "data__augment": {"flip": "alternating"}},
        ),
        ({"data__validation_fraction": 0.0}, {"data__validation_fraction": -0.0}),
        ({"train__optimiser": {"sgd": {"momentum": 0}}}, {"train__optimiser": {"sgd": {"momentum": -0.0}}}),
        ({"model__blocks": [{"dense": 4, "init": 0}]}, {"model__blocks": [{"dense": 4, "init": -0.0}]}),
        ({"model__blocks": [CONV]}, {"model__blocks": [CONV | {"order": ["pool", "activation", "norm"], "pad": 1}]}),
        (
            {"model__blocks": [CONV | {"pool": 2, "activation": "gelu", "order": ["pool", "activation", "norm"]}]},
            {"model__blocks": [CONV | {"pool": 2, "activation": "gelu", "order": ["pool", "norm", "activation"]}]},
        ),
        (
            {"model__blocks": [CONV | {"pool": 2, "batch_norm": True}]},
            {"model__blocks": [CONV | {"pool": 2, "batch_norm": True, "order": ["norm", "pool", "activation"]}]},
        ),
        (
            {"model__blocks": [{"dropout": 0.2}, CONV]},
            {"model__blocks": [{"dropout": 0.2}, {"dropout": 0.0}, CONV, {"dropout": 0}]},
        ),
        ({"model__blocks": [{"residual": [CONV]}]}, {"model__blocks": [{"residual": [CONV, {"dropout": 0.0}]}]}),
        (
            {"train__epochs": 3, "model__blocks": [CONV, {"residual": [CONV]}]},
            {
                "train__epochs": 3,
                "model__blocks": [CONV | {"bias_epochs": 3}, {"residual": [CONV | {"bias_epochs": 9}]}],
                "model__classifier": {"bias_epochs": 3},
            },
        ),
    ],
)
def test_two_spellings_of_one_training_are_one_job(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert job(**one).digest("data") == job(**other).digest("data")
    assert job(**one) == job(**other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"train__epochs": 3}, {"train__epochs": 3, "train__early_stopping": {"patience": 1}}),
        ({"model__blocks": [{"dropout": 0.2}]}, {"model__blocks": [{"dropout": 0.0}, {"dropout": 0.2}]}),
        (
            {"model__blocks": [CONV | {"pool": 2, "activation": "gelu"}]},
            {"model__blocks": [CONV | {"pool": 2, "activation": "gelu", "order": ["norm", "pool", "activation"]}]},
        ),
        ({"train__schedule": "cosine"}, {"train__schedule": {"cosine": {"warmup": 0.1, "start_factor": 1.0}}}),
        ({"data__augment": {"flip": "random"}}, {"data__augment": {"flip": "alternating"}}),
        (
            {"train__epochs": 3, "model__blocks": [CONV | {"bias_epochs": 2}]},
            {"train__epochs": 3, "model__blocks": [CONV | {"bias_epochs": 3}]},
        ),
        (
            {"model__blocks": [CONV | {"pool": 2, "batch_norm": True, "order": ["activation", "pool", "norm"]}]},
            {"model__blocks": [CONV | {"pool": 2, "batch_norm": True, "order": ["pool", "activation", "norm"]}]},
        ),
    ],
)
def test_what_may_act_makes_another_run(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert job(**one).digest("data") != job(**other).digest("data")


@pytest.mark.parametrize("name", sorted(jobs.list_jobs()))
@pytest.mark.parametrize("kind", ["train.optimiser", "train.schedule"])
def test_each_kind_can_be_swept_over_on_every_job(name: str, kind: str) -> None:
    from cnnjob.jobs.sweep import expand, job_differences

    kinds = {"train.optimiser": "sgd,adam,adamw,muon", "train.schedule": "constant,cosine,triangular,step,one_cycle"}[
        kind
    ]
    found = expand(name, [], [f"{kind}={kinds}"])
    assert job_differences(found) == [f"{kind}={one}" for one in kinds.split(",")]


VALUES: tuple[Any, ...] = (
    True,
    -1,
    7.5,
    10**400,
    float("nan"),
    "",
    "x\n",
    [1],
    {"a": 1},
    {"a": {"b": "c" * 500}},
    16**9999,
)


def keys_of(table: dict[str, Any], above: str = "") -> list[str]:
    below = [
        key for name, value in table.items() if isinstance(value, dict) for key in keys_of(value, f"{above}{name}__")
    ]
    return [*(above + name for name in table), *below]


@pytest.mark.parametrize("key", keys_of(job(**EVERYTHING | {"train__early_stopping": {"patience": 1}}).model_dump()))
def test_a_wrong_value_of_any_key_is_said_in_the_words_of_a_job_file(key: str) -> None:
    refused = 0
    for value in VALUES:
        try:
            job(**{"model__blocks": [], key: value})
        except JobError as error:
            refused += 1
            for line in str(error).splitlines()[1:]:
                assert line.startswith(f"  {key.replace('__', '.')}")
                assert not re.search(r"tuple|dictionary|valid [a-z]|instance|True|False|None|pattern", line), line
                assert len(line) < 400
                assert line.isprintable()
    assert refused


def test_a_block_of_two_kinds_is_said() -> None:
    with pytest.raises(
        JobError, match=r"model\.blocks\.0: several blocks in one table .found conv and dense.. Put each in its own"
    ):
        job(model__blocks=[CONV | {"dense": 3}])


def test_of_many_problems_the_first_are_said() -> None:
    with pytest.raises(JobError, match=r"and 1951 more$"):
        Job.checked({f"key{number}": 1 for number in range(1997)}, "job.toml")
