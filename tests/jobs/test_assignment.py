"""--set and --sweep: all that TOML allows in one assignment works, or is refused; nothing is dropped."""

import datetime as dt
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnjob.errors import JobError
from cnnjob.jobs.assignment import format_key, parse_assignment, split_assignment, split_values
from cnnjob.jobs.job import Job


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("train.epochs=3", "train.epochs", 3),
        ("train.epochs = 3", "train.epochs", 3),
        (" train . epochs\t=\t3 ", "train.epochs", 3),
        ("\ntrain.epochs = 3\n", "train.epochs", 3),
        ('"train"."epochs"=3', "train.epochs", 3),
        ("'train'.epochs=3", "train.epochs", 3),
        ('"a.b=c"."d\\"e"=3', '"a.b=c"."d\\"e"', 3),
        ("train.epochs=1_000", "train.epochs", 1000),
        ("train.epochs=0x10", "train.epochs", 16),
        ("train.epochs=3 # as before", "train.epochs", "3 # as before"),
        ("train.epochs=[3, # three\n]", "train.epochs", [3]),
        ("a=1e-3", "a", 0.001),
        ("a=true", "a", True),
        ("a=2026-11-29", "a", dt.date(2026, 11, 29)),
        ("a='x # y, z'", "a", "x # y, z"),
        ('a="x\\ty"', "a", "x\ty"),
        ('a="""x\ny"""', "a", "x\ny"),
        ("a='''x\ny'''", "a", "x\ny"),
        ("a=[1, [2]]", "a", [1, [2]]),
        ("a=[\n1,\n2,\n]", "a", [1, 2]),
        ("a={ b = 1, c.d = 2 }", "a", {"b": 1, "c": {"d": 2}}),
        ("a=cosine", "a", "cosine"),
        ("a=data/my set#1.h5", "a", "data/my set#1.h5"),
        ("a=x=y", "a", "x=y"),
        ("a=2,3", "a", "2,3"),
        ("a=3,", "a", "3,"),
        ("a=it's", "a", "it's"),
        ("a=2],b=[3", "a", "2],b=[3"),
    ],
)
def test_one_assignment(text: str, key: str, value: Any) -> None:
    names, found = parse_assignment(text)
    assert (format_key(names), found) == (key, value)
    assert split_assignment(f"{format_key(names)}=1", "--set", "")[0] == names


@pytest.mark.parametrize(
    "text",
    [
        "", "=", "=3", "a", "a=", "a= ", ".a=3", "a.=3", "a..b=3", "a b=3", "a\n=3", "[a]\nb=3", '"a=3', '"\\q"=3',
        "a=2\nb=7", "train.epochs=2\ntrain.batch_size=7", "a=2\r\nb=7", "a=2 # two\nb=7", "a=2\n[b]", "a=2\n[[b]]",
        "a=2]\nb=[3", "a=[2],[3]", "a='x'\nb='y'", "a='x','y'", "a='x", 'a="x', 'a="\\q"', "a=[1", "a={b=1",
        "a={b=1}}", "a={b=1,}\nc=3", "a=[1] 2", "a='x' y", "a=x\ny", "a=x\0y", "a=x\x1b[2J",
        f"a={'[' * 5000}", "a=[" + "9" * 5000,
    ],
)  # fmt: skip
def test_what_is_not_one_assignment_is_refused_whole(text: str) -> None:
    with pytest.raises(JobError) as error:
        parse_assignment(text)
    message = str(error.value)
    assert message.startswith("--set ")
    assert message.isprintable()
    assert len(message) < 400


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1,2", ["1", "2"]),
        (" 1 , 2 ", ["1", "2"]),
        ("[1,2],[3]", ["[1,2]", "[3]"]),
        ("{a=[1,2],b=','},x", ["{a=[1,2],b=','}", "x"]),
        ('\'a,b\',"c,\\",d",e', ["'a,b'", '"c,\\",d"', "e"]),
        ('"""a,\n"b",""",2', ['"""a,\n"b","""', "2"]),
        ("'''a','b''',2", ["'''a','b'''", "2"]),
        ("it's,that's", ["it's", "that's"]),
        ("[1,2", ["[1,2"]),
        ("'a,b", ["'a,b"]),
        ("]1,2", ["]1", "2"]),
        ("1,", ["1", ""]),
    ],
)
def test_values_are_cut_at_the_commas_between_them(text: str, found: list[str]) -> None:
    assert split_values(text) == found


def test_a_long_value_takes_no_longer_than_its_length() -> None:
    for text in ("[" + "1," * 50_000 + "]", '"' + '\\"' * 50_000, "[" * 50_000, "'," * 50_000):
        assert "".join(split_values(text)).count("1") == text.count("1")
        with pytest.raises(JobError):
            Job.load("mnist", [f"train.epochs={text}"])
    with pytest.raises(JobError, match=r"too long \(found 300,002 characters\)\. Use a job file"):
        parse_assignment(f"a={'1' * 300_000}")


@given(st.text(), st.text())
def test_any_text_is_an_assignment_or_a_job_error(key: str, value: str) -> None:
    for text in (key, f"{key}={value}", f"a.b={value}"):
        with suppress(JobError):
            names, _ = parse_assignment(text)
            assert split_assignment(f"{format_key(names)}=1", "--set", "")[0] == names


def test_an_assignment_that_a_later_one_would_undo_is_refused() -> None:
    nested, whole = "train.optimiser.sgd.momentum=0.5", "train.optimiser=sgd"
    with pytest.raises(
        JobError,
        match=r"momentum=0\.5: undone by the later --set train\.optimiser=sgd, which replaces all of train\.opt",
    ):
        Job.load("mnist", [nested, whole])
    sgd = Job.load("mnist", [whole, nested]).train.optimiser.sgd
    assert sgd
    assert sgd.momentum == 0.5
    assert Job.load("mnist", ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    "override",
    [
        "train.lookahead.every=7", "data.augment.translate=1", "train.early_stopping.patience=2",
        "train.schedule.triangular.warmup=0.1", "model.blocks.0.batch_norm.momentum=0.3",
    ],
)  # fmt: skip
def test_a_key_of_a_table_that_is_said_in_short_can_be_set(override: str) -> None:
    key = override.partition("=")[0]
    *table, _ = key.split(".")
    for value in ("true", "false", "triangular" if "schedule" in key else "true"):
        short = ".".join(table[:2] if "schedule" in key else table)
        if "schedule" in key and value != "triangular":
            continue
        loaded = Job.load("mnist-cnn", ["train.select_on=validation", f"{short}={value}", override])
        assert loaded != Job.load("mnist-cnn", ["train.select_on=validation"])


@pytest.mark.parametrize(
    "override", ["train.schedule.cosine.warmup=0.1", "train.schedule.triangular.end_factor=0.5",
                 "train.optimiser.adamw.beta2=0.9", "train.optimiser.sgd.momentum=0.5"],
)  # fmt: skip
def test_a_key_of_another_kind_than_the_files_chooses_that_kind(tmp_path: Path, override: str) -> None:
    key, _, value = override.partition("=")
    _, table, kind, name = key.split(".")
    for schedule, optimiser in (("'constant'", "'sgd'"), ("{ constant = { warmup = 0.2 } }", "'adamw'")):
        (tmp_path / "a.toml").write_text(
            "dataset = 'digits'\nmodel.blocks = []\n[train]\nepochs = 1\nbatch_size = 8\nlearning_rate = 0.1\n"
            f"schedule = {schedule}\noptimiser = {optimiser}\n"
        )
        chosen = getattr(Job.load(str(tmp_path / "a.toml"), [override]).train, table).model_dump()
        assert chosen[kind][name] == float(value)
        assert [other for other, settings in chosen.items() if settings is not None] == [kind]


def test_a_key_of_another_kind_is_refused() -> None:
    with pytest.raises(JobError, match=r"which selects a different train\.optimiser\.muon\.others\. Use only"):
        Job.load("mnist", ["train.optimiser.muon.others.adamw.eps=0.1", "train.optimiser.muon.others.sgd.momentum=0.5"])
    muon = Job.load(
        "mnist", ["train.optimiser.muon.others.sgd.learning_rate=0.1", "train.optimiser.muon.ns_steps=3"]
    ).train.optimiser.muon
    assert muon
    assert muon.others.sgd
    assert (muon.others.sgd.learning_rate, muon.others.adamw, muon.ns_steps) == (0.1, None, 3)
    with pytest.raises(JobError, match=r"which selects a different train\.optimiser"):
        Job.load("mnist", ["train.optimiser.adamw.beta2=0.9", "train.optimiser.sgd.momentum=0.5"])
    with pytest.raises(JobError, match="there is no 'sgd' to set"):
        Job.load("mnist", ["train.optimiser=adamw", "train.optimiser.sgd.momentum=0.5"])
    with pytest.raises(JobError, match="there is no"):
        Job.load("mnist", [f"model.blocks.{'9' * 5000}.conv=3"])
