"""From run folders of known content to tables and figures, whatever state the folders are in."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from cnnjob import files
from cnnjob.errors import DataError, JobError
from cnnjob.reporting.figures import FORMATS
from cnnjob.reporting.record import COLUMNS, OPTIMISTIC, read_record
from cnnjob.reporting.report import Report, report
from cnnjob.runs.run import Run
from tests.helpers import run_folders as folders
from tests.helpers import slurm_runs
from tests.helpers import toy_jobs as toys

TABLES = {
    *("index.html", "groups.csv", "groups.md", "groups.tex"),
    *("metrics.csv", "metrics.json", "metrics.md", "metrics.tex", "classes.csv"),
}
"""What every report has, whatever can be read of its runs."""


def only(run: Run) -> dict[str, Any]:
    """The row of a run, read alone."""
    return read_record(run, run.name).row


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_finished_run_has_a_whole_row(tmp_path: Path) -> None:
    run = folders.finished_run(tmp_path)
    precision, recall, f1 = [2 / 3, 3 / 4, 1, 1], [2 / 3, 1, 1, 1 / 2], [2 / 3, 6 / 7, 1, 2 / 3]
    assert only(run) == {
        "run": run.name,
        "job": "tiny",
        "group": None,
        "seed": 0,
        "batch_size": 10,
        "learning_rate": 0.05,
        "state": "finished",
        "test_accuracy": 0.8,
        "test_loss": pytest.approx(-(8 * np.log(0.7) + 2 * np.log(0.1)) / 10),
        "precision_macro": pytest.approx(np.mean(precision)),
        "recall_macro": pytest.approx(np.mean(recall)),
        "f1_macro": pytest.approx(np.mean(f1)),
        "epochs": 4,
        "best_epoch": 3,
        "train_seconds": 12.5,
        "parameters": 114,
        "device": "cpu: test",
        "commit": folders.COMMIT,
        "data_sha256": folders.DATA_DIGEST,
        "selected_on": "validation",
        "test_time_augmentation": "none",
        "reason": None,
    }


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """The report of two finished runs, a stopped one and a foreign folder."""
    root = tmp_path_factory.mktemp("mixed")
    folders.finished_run(root / "runs", name="a")
    folders.finished_run(root / "runs", name="b", split="test", channels=3, seed=7)
    folders.stopped_run(root / "runs", name="c")
    (root / "runs" / "foreign | <x>").mkdir()
    return root, report(Run.all(root / "runs"), root / "report", formats=FORMATS)


def test_the_tables_say_the_same(mixed: tuple[Path, Report]) -> None:
    root, made = mixed
    assert [row["state"] for row in made.rows] == ["finished", "finished", "stopped", "foreign"]
    assert json.loads((root / "report" / "metrics.json").read_bytes()) == made.rows
    assert all(tuple(row) == COLUMNS for row in made.rows)
    as_text = [{name: "" if cell is None else str(cell) for name, cell in row.items()} for row in made.rows]
    assert csv_rows(root / "report" / "metrics.csv") == as_text


def test_the_tables_have_the_settings_that_differ(tmp_path: Path) -> None:
    folders.finished_run(tmp_path / "runs", learning_rate=0.1)
    folders.finished_run(tmp_path / "runs", weight_decay=0.5)
    folders.pending_run(tmp_path / "runs", batch_size=20, epochs=9)
    (tmp_path / "runs" / "foreign").mkdir()
    made = report(Run.all(tmp_path / "runs"), tmp_path / "report")
    varied = ("learning_rate", "batch_size", "weight_decay", "train.epochs")
    found = {row["run"]: tuple(row[name] for name in varied) for row in made.rows}
    assert found["foreign"] == (None,) * 4
    assert sorted(value for value in found.values() if value[0]) == [
        (0.05, 10, 0.5, 4), (0.05, 20, 0.0, 9), (0.1, 10, 0.0, 4),
    ]  # fmt: skip
    assert [tuple(row) for row in made.rows] == [tuple(made.rows[0])] * 4
    assert tuple(made.rows[0])[4:9] == ("batch_size", "learning_rate", "train.epochs", "weight_decay", "state")
    in_paper = (tmp_path / "report" / "metrics.tex").read_text().splitlines()[3]
    assert in_paper.startswith("run & seed & batch size & learning rate & train.epochs & state & ")


def test_the_history_has_a_row_per_epoch_and_goes_when_it_cannot_be_read(tmp_path: Path) -> None:
    run = folders.finished_run(tmp_path / "runs")
    report([run], tmp_path / "report")
    path = tmp_path / "report" / "runs" / run.name / "history.csv"
    rows = csv_rows(path)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert [float(row["train_loss"]) for row in rows] == [record["train_loss"] for record in run.history()]
    assert (rows[0]["step"], rows[0]["learning_rate"], rows[0]["seconds"], rows[0]["test_loss"]) == (
        "100", "0.05", "1.0", "",
    )  # fmt: skip
    assert rows[3]["ended"] == "2026-01-01T00:00:04+00:00"
    run.history_file.write_text("")
    report([run], tmp_path / "report")
    assert not path.exists()


def test_the_classes_have_a_row_each(mixed: tuple[Path, Report]) -> None:
    root, made = mixed
    rows = csv_rows(root / "report" / "classes.csv")
    assert [row["run"] for row in rows] == [made.rows[0]["run"]] * 4 + [made.rows[1]["run"]] * 4
    assert [row["class"] for row in rows[:4]] == ["ant", "bee", "cat", "dog"]
    assert [float(row["precision"]) for row in rows[:4]] == pytest.approx([2 / 3, 3 / 4, 1, 1])
    assert [float(row["recall"]) for row in rows[:4]] == pytest.approx([2 / 3, 1, 1, 1 / 2])
    assert [float(row["f1"]) for row in rows[:4]] == pytest.approx([2 / 3, 6 / 7, 1, 2 / 3])
    assert [row["support"] for row in rows[:4]] == ["3", "3", "2", "2"]


def test_the_markdown_is_rounded_and_says_what_must_be_known(mixed: tuple[Path, Report]) -> None:
    root, made = mixed
    lines = (root / "report" / "metrics.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert table[0] == f"| {' | '.join(COLUMNS)} |"
    assert f"| {made.rows[0]['run']} | tiny" not in table[2]
    assert "| 0.8000 | 0.7459 |" in table[2]
    assert "| c0ffeec0 | dddddddd |" in table[2]
    assert table[5].startswith("| foreign \\| &lt;x&gt; |")
    assert f"- {made.rows[1]['run']}: {OPTIMISTIC}" in lines
    assert sum(OPTIMISTIC in line for line in lines) == 1


def test_every_link_of_the_markdown_leads_to_a_file(mixed: tuple[Path, Report]) -> None:
    root, _ = mixed
    text = (root / "report" / "metrics.md").read_text()
    links = [part.partition(")")[0] for part in text.split("](")[1:]]
    assert len(links) == 1 + 3 + 3 + 1
    assert all((root / "report" / link).is_file() for link in links)


def test_the_figures_open(mixed: tuple[Path, Report]) -> None:
    root, made = mixed
    assert set(content(root / "report")) == {str(path.relative_to(root / "report")) for path in made.files}
    figures = [path for path in made.files if path.suffix in {".png", ".svg", ".pdf"}]
    assert len(figures) == 3 * (1 + 3 + 3 + 1)
    for path in figures:
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.verify()
        elif path.suffix == ".pdf":
            assert path.read_bytes().startswith(b"%PDF-")
        else:
            assert ET.parse(path).getroot().tag.endswith("svg")


def test_the_same_run_elsewhere_gives_the_same_bytes(mixed: tuple[Path, Report], tmp_path: Path) -> None:
    root, made = mixed
    name = made.rows[0]["run"]
    shutil.copytree(root / "runs" / name, tmp_path / name)
    again = report([Run(tmp_path / name)], tmp_path / "report", formats=FORMATS)
    assert content(tmp_path / "report" / "runs") == {
        path: data for path, data in content(root / "report" / "runs").items() if path.startswith(name)
    }
    assert again.rows == made.rows[:1]


def test_the_order_of_the_runs_does_not_matter(tmp_path: Path) -> None:
    runs = [folders.pending_run(tmp_path / "runs", seed=seed) for seed in range(5)]
    report(runs, tmp_path / "one")
    report(reversed(runs), tmp_path / "other")
    assert content(tmp_path / "one") == content(tmp_path / "other")


def test_what_has_not_changed_is_not_written_again(tmp_path: Path) -> None:
    run = folders.pending_run(tmp_path / "runs")
    first, again = (report([run], tmp_path / "report") for _ in range(2))
    assert first.written == first.files == again.files
    assert not again.written


def test_a_report_needs_neither_cupy_nor_submitit_nor_the_trainer() -> None:
    code = "import sys, cnnjob.reporting.report; "
    others = ("cupy", "submitit", "cnnjob.training.train", "cnnjob.slurm")
    code += f"print(*(m for m in sys.modules if m.startswith({others})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stdout.strip()


def test_what_has_changed_is_updated_and_what_is_gone_is_removed(tmp_path: Path) -> None:
    run, out = folders.finished_run(tmp_path / "runs"), tmp_path / "report"
    own = out / "runs" / run.name
    run.weights_file.unlink()
    run.history_file.unlink()
    first = report([run], out, formats=FORMATS)
    assert {path.name for path in own.iterdir()} >= {"confusion.png", "confusion.svg"}
    (out / "mine.txt").write_text("kept")
    run.predictions_file.unlink()
    again = report([run], out, formats=FORMATS)
    assert {path.name for path in again.written} >= {"index.html", "metrics.csv", "metrics.md", "classes.csv"}
    assert set(first.files) - set(again.files) == {own / f"confusion.{kind}" for kind in ("png", "svg", "pdf")}
    assert not (own / "confusion.png").exists()
    assert (out / "mine.txt").exists()


OWN_ERROR = "not restarted after the job's own error"
UNFINISHED: dict[str, tuple[Callable[[Path], Run], str]] = {
    "pending": (folders.pending_run, "pending: not started yet"),
    "running": (folders.running_run, "running on "),
    "stopped": (folders.stopped_run, "stopped: SIGTERM"),
    "lost": (folders.lost_run, "lost: the process died without recording why"),
    "failed": (lambda root: folders.stopped_run(root, why="failed: the loss is nan"), "failed: the loss is nan"),
}


@pytest.mark.parametrize("state", UNFINISHED)
def test_an_unfinished_run_is_listed_with_its_reason(state: str, tmp_path: Path) -> None:
    make, reason = UNFINISHED[state]
    record = read_record(make(tmp_path), "run")
    assert (record.row["state"], record.row["job"]) == (state, "tiny")
    assert record.row["reason"].startswith(reason)
    assert record.row["test_accuracy"] is None
    assert record.row["epochs"] == (None if state == "pending" else 2)
    assert (record.curve is None) == (state == "pending")


@pytest.mark.parametrize(
    ("make", "state", "reason"),
    [
        (slurm_runs.cancelled_by_script, "cancelled", "cancelled; submit it again to resume it"),
        (slurm_runs.crash_loop, "failed", "failed: 3 restarts without progress"),
        (
            lambda root: slurm_runs.with_decision(slurm_runs.waiting_run(root), said=OWN_ERROR),
            "failed",
            f"failed: {OWN_ERROR}; cnnjob status RUN shows the error",
        ),
    ],
)
def test_the_records_of_slurm_jobs_count(make: Callable[[Path], Run], state: str, reason: str, tmp_path: Path) -> None:
    record = read_record(make(tmp_path), "run")
    assert record.row["state"] == state
    assert record.row["reason"].startswith(reason)
    page = report([make(tmp_path / "again")], tmp_path / "report").files[0].parent / "index.html"
    assert f'class="state {state}"' in page.read_text()


def test_the_best_epoch_and_the_restarts_are_in_the_curve(tmp_path: Path) -> None:
    curve = read_record(folders.finished_run(tmp_path), "run").curve
    assert curve is not None
    assert (curve.best_epoch, curve.restarts, curve.watched) == (3, (1.5,), "validation")


def test_what_was_done_on_a_dirty_tree_or_with_other_threads_is_said(tmp_path: Path) -> None:
    run = folders.finished_run(tmp_path)
    folders.change_json(run.environment_file, dirty=True)
    folders.change_json(run.result_file, bits_may_differ_from_step=150)
    record = read_record(run, "run")
    assert record.row["commit"] == f"{folders.COMMIT}-dirty"
    assert record.remarks == ["bits may differ from step 150 onwards: resumed with different versions or threads"]


CONTRADICTIONS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "accuracy": ({"test_accuracy": 0.81}, ["test_accuracy is 0.81, but predictions.npz gives 0.8"]),
    "loss": ({"test_loss": 0.1}, ["test_loss is 0.1, but predictions.npz gives 0.74585"]),
    "epochs": ({"epochs": 5, "steps": 500}, ["epochs is 5, but history.jsonl gives 4", "steps is 500, but history"]),
    "best epoch": ({"best_epoch": 4}, ["best_epoch is 4, but history.jsonl gives 3"]),
    "selected on": ({"selected_on": "last"}, ["selected_on is last, but job.json gives validation"]),
    "views": ({"test_time_augmentation": "flip"}, ["test_time_augmentation is flip, but job.json gives none"]),
}
"""What a result may say of the run, and what is then remarked."""
CONTRADICTIONS |= {
    "parameters": ({"parameters": 113}, ["parameters is 113, but weights.npz gives 114"]),
    "attempts": ({"attempts": 3}, ["attempts is 3, but attempts/ gives 2"]),
    "device": ({"device": "gpu: x"}, ["device is gpu: x, but attempts/ gives cpu: test"]),
    "backend": ({"backend": "cuda"}, ["backend is cuda, but environment.json gives numpy"]),
    "precision": ({"precision": "tf32"}, ["precision is tf32, but environment.json gives float32"]),
    "hours": ({"gpu_hours": 1.0}, ["gpu_hours is 1.0, but result.json gives 0.0"]),
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_a_result_that_other_files_contradict_is_remarked(what: str, tmp_path: Path) -> None:
    said, expected = CONTRADICTIONS[what]
    run = folders.finished_run(tmp_path / "runs")
    assert read_record(run, run.name).contradictions == []
    if {"backend", "precision", "device"} & said.keys():
        folders.change_json(run.environment_file, backend="numpy", precision="float32")
        folders.change_json(run.attempt_files()[-1], device="cpu: test")
    folders.change_json(run.result_file, **said)
    record = read_record(run, run.name)
    assert len(record.contradictions) == len(expected)
    for remark, beginning in zip(record.contradictions, expected, strict=True):
        assert remark.startswith(f"result.json: {beginning}")
    assert set(record.contradictions) <= set(record.remarks)
    assert record.row["state"] == "finished"
    assert record.row["reason"] == "; ".join(record.contradictions)
    report([run], tmp_path / "report")
    assert expected[0][:20] in (tmp_path / "report" / "metrics.md").read_text()


ODD_EPOCHS: dict[str, tuple[dict[str, Any], str]] = {
    "step": ({"step": 301}, "step of epoch 3 is 301.0, but its first line gives 300.0"),
    "rate": ({"learning_rate": 0.04}, "learning_rate of epoch 3 is 0.04, but job.json gives 0.05"),
    "speed": ({"images_per_second": 900.0}, "images_per_second of epoch 3 is 900.0, but its time gives 1000.0"),
}


@pytest.mark.parametrize("what", ODD_EPOCHS)
def test_an_epoch_that_contradicts_the_others_or_the_job_is_remarked(what: str, tmp_path: Path) -> None:
    said, remark = ODD_EPOCHS[what]
    run = folders.finished_run(tmp_path)
    epochs = run.history()
    epochs[2] |= said
    run.history_file.write_text("".join(f"{files.canonical_json(epoch)}\n" for epoch in epochs))
    assert read_record(run, run.name).contradictions == [f"history.jsonl: {remark}"]
    run.history_file.write_text("".join(f"{files.canonical_json(epoch)}\n" for epoch in epochs[1:]))
    assert "history.jsonl: damaged (its epochs are not 1, 2, 3" in str(read_record(run, run.name).row["reason"])


@pytest.mark.parametrize(
    ("train", "epochs"),
    [({"epochs": 5}, 5), ({"epochs": 9, "early_stopping": {"patience": 2}}, 5), ({"epochs": 3}, 3)],
    ids=["none", "patience", "fewer"],
)
def test_a_history_of_another_length_than_the_jobs_is_remarked(
    train: dict[str, Any], epochs: int, tmp_path: Path
) -> None:
    run = folders.finished_run(tmp_path)
    frozen = run.manifest()["job"]
    folders.change_job(run, job=frozen | {"train": frozen["train"] | train})
    where = "history.jsonl: the number of epochs is"
    last = 9 if "early_stopping" in train else epochs  # the third of four is the best
    assert read_record(run, run.name).contradictions == [f"{where} 4, but job.json gives {last}"]
    folders.write_history(run, 6, "validation")
    folders.change_json(run.result_file, epochs=6, steps=600)
    assert read_record(run, run.name).contradictions == [f"{where} 6, but job.json gives {epochs}"]


def test_predictions_that_contradict_themselves_or_the_job_are_remarked(tmp_path: Path) -> None:
    run = folders.finished_run(tmp_path)
    data = files.read_json(run.job_file)["data"] | {"class_names": ["ant", "bee", "cat", "eel"]}
    data |= {"image_shape": [5, 6, 1], "mean": [0.5], "std": [0.5]}
    folders.change_job(run, data=data)
    folders.change_arrays(run.predictions_file, lambda arrays: arrays.update(wrong_indices=np.array([9, 2])))
    remarks = read_record(run, run.name).contradictions
    assert [remark.partition(" is ")[0] for remark in remarks] == [
        "predictions.npz: class_names", "predictions.npz: wrong_indices", "predictions.npz: the shape of wrong_images",
    ]  # fmt: skip


@pytest.mark.parametrize("select_on", ["last", "test"])
def test_the_best_epoch_is_that_of_the_split_that_selects(select_on: str, tmp_path: Path) -> None:
    run = folders.finished_run(tmp_path, split="test", select_on=select_on)
    best = 4 if select_on == "last" else 3
    folders.change_json(run.result_file, selected_on=select_on, best_epoch=best)
    assert read_record(run, run.name).contradictions == []
    folders.change_json(run.result_file, best_epoch=2)
    assert read_record(run, run.name).contradictions == [
        f"result.json: best_epoch is 2, but history.jsonl gives {best}"
    ]
    folders.change_json(run.result_file, best_epoch=best, test_accuracy=0.9)
    found = {remark.partition(", but ")[2] for remark in read_record(run, run.name).contradictions}
    assert found == {"predictions.npz gives 0.8", *(["history.jsonl gives 0.8"] if select_on == "test" else [])}


@pytest.mark.parametrize(
    "train",
    [
        {"early_stopping": {"patience": 2}, "epochs": 30},
        {"select_on": "last", "test_time_augmentation": "flip"},
        {"select_on": "test", "epochs": 4, "lookahead": {"every": 3}},
    ],
    ids=["early", "last", "test"],
)
def test_a_trained_run_contradicts_nothing(train: dict[str, Any], tmp_path: Path) -> None:
    run = toys.trained(tmp_path, **{f"train__{key}": value for key, value in train.items()}).run
    assert read_record(run, run.name).contradictions == []


def test_views_at_test_time_are_said(tmp_path: Path) -> None:
    run = folders.finished_run(tmp_path / "runs")
    folders.change_json(run.result_file, test_time_augmentation="none")
    assert read_record(run, run.name).remarks == []
    folders.change_json(run.result_file, test_time_augmentation="flip")
    other = folders.finished_run(tmp_path / "runs", name="other", test_time_augmentation="flip_translate")
    folders.change_json(other.result_file, test_time_augmentation="flip_translate")
    runs = [run, other, folders.stopped_run(tmp_path / "runs", name="c")]
    made = report(runs, tmp_path / "report")
    assert {row["job"]: row["test_time_augmentation"] for row in made.rows} == {
        "tiny": "flip",
        "other": "flip_translate",
        "c": None,
    }
    assert csv_rows(tmp_path / "report" / "metrics.csv")[-1]["test_time_augmentation"] == "flip"
    assert {row["test_time_augmentation"] for row in csv_rows(tmp_path / "report" / "groups.csv")} == {
        "none",
        "flip_translate",
    }
    page = (tmp_path / "report" / "index.html").read_text()
    assert ">test_time_augmentation<" in page
    for name in ("metrics.md", "index.html"):
        assert "test-time augmentation: flip" in (tmp_path / "report" / name).read_text()


def test_the_settings_of_nested_blocks_are_in_words(tmp_path: Path) -> None:
    run = folders.finished_run(tmp_path)
    body = [{"conv": 8, "order": ["norm", "pool"]}, {"dropout": 0.1}]
    frozen = files.read_json(run.job_file)
    frozen["job"]["model"]["blocks"] = [{"conv": 5, "batch_norm": {"eps": 0.1}}, {"residual": body}]
    folders.change_job(run, **frozen)
    settings = read_record(run, run.name).settings
    assert settings["model.blocks"] == "conv 5, residual (conv 8 + dropout 0.1)"
    assert settings["model.blocks.1.batch_norm.eps"] == 0.1
    assert settings["model.blocks.2.residual.1.order"] == "norm pool"
    frozen["job"]["model"]["blocks"] = [{}]
    folders.change_job(run, **frozen)
    assert read_record(run, run.name).row["state"] == "damaged"


def rewrite(name: str, text: str) -> Callable[[Run], object]:
    return lambda run: (run.path / name).write_text(text)


def cut(name: str) -> Callable[[Run], object]:
    return lambda run: (run.path / name).write_bytes((run.path / name).read_bytes()[:-100])


def arrays(name: str, **values: np.ndarray) -> Callable[[Run], object]:
    return lambda run: folders.change_arrays(run.path / name, lambda old: old.update(values))


def folder_for(name: str) -> Callable[[Run], object]:
    def harm(run: Run) -> None:
        (run.path / name).unlink()
        (run.path / name).mkdir()

    return harm


DAMAGES: dict[str, tuple[Callable[[Run], object], str, str]] = {
    "no predictions": (lambda run: run.predictions_file.unlink(), "finished", "predictions.npz: no such file"),
    "cut predictions": (cut("predictions.npz"), "finished", "predictions.npz: damaged (its checksum"),
    "labels of other classes": (
        arrays("predictions.npz", labels=np.full(10, 4)),
        "finished",
        "predictions.npz: not a valid predictions file",
    ),
    "one label": (
        arrays("predictions.npz", labels=np.array([0])),
        "finished",
        "predictions.npz: not a valid predictions file",
    ),
    "flat predictions": (
        arrays("predictions.npz", probabilities=np.ones(3)),
        "finished",
        "predictions.npz: not a valid predictions file",
    ),
    "no probabilities": (
        arrays("predictions.npz", probabilities=np.full((10, 3), -1e30, np.float32)),
        "finished",
        "predictions.npz: not a valid predictions file",
    ),
    "predictions of another run": (
        arrays("predictions.npz", labels=np.zeros(10, np.int64)),
        "finished",
        "predictions.npz: wrong_indices is [2, 9], but the order of its probabilities gives [2, 3, 4, 5, 6, 7, 8]",
    ),
    "cut weights": (cut("weights.npz"), "finished", "weights.npz: damaged (its checksum"),
    "weights without a number": (
        arrays("weights.npz", **{"conv1/weights": np.full((3, 3, 1, 2), np.nan)}),
        "finished",
        "weights.npz: damaged (the filters of layer conv1 ",
    ),
    "vast filters": (
        arrays("weights.npz", **{"conv1/weights": np.full((3, 3, 1, 2), 1e300)}),
        "finished",
        "weights.npz: damaged (the filters of layer conv1 ",
    ),
    "oblong filters": (arrays("weights.npz", **{"conv1/weights": np.ones((3, 2, 1, 2))}), "finished", "weights.npz: "),
    "cut job": (cut("job.json"), "damaged", "job.json: not readable as JSON"),
    "foreign job": (rewrite("job.json", "[]"), "damaged", "job.json: damaged (it is not an object)"),
    "job of nothing": (
        rewrite("job.json", '{"job": 5, "data": 5, "digest": 5}'),
        "damaged",
        "job.json: damaged (job is not an object)",
    ),
    "cut result": (cut("result.json"), "damaged", "result.json: not readable as JSON"),
    "foreign result": (rewrite("result.json", "[1]"), "damaged", "result.json: damaged (it is not an object)"),
    "empty result": (
        rewrite("result.json", "{}"),
        "damaged",
        "result.json: damaged (test_accuracy is missing)",
    ),
    "cut history": (cut("history.jsonl"), "finished", "history.jsonl, line 4: damaged"),
    "history without end": (
        rewrite("history.jsonl", '{"epoch": Infinity}'),
        "finished",
        "history.jsonl, line 1: damaged",
    ),
    "history of nothing": (
        rewrite("history.jsonl", "1\n[]\n"),
        "finished",
        "history.jsonl, line 1: damaged (it is not an object)",
    ),
    "history that turns back": (
        rewrite("history.jsonl", '{"epoch": 2, "step": 2}\n{"epoch": 1, "step": 1}\n'),
        "finished",
        "history.jsonl: damaged (its epochs",
    ),
    "foreign environment": (
        rewrite("environment.json", "7"),
        "finished",
        "environment.json: damaged (it is not an object)",
    ),
    "foreign attempt": (
        rewrite("attempts/0002.json", "7"),
        "finished",
        "attempts/0002.json: damaged (it is not an object)",
    ),
    "binary history": (lambda run: run.history_file.write_bytes(b"\xff\xfe"), "finished", "history.jsonl: not UTF-8"),
    "folder for a file": (
        folder_for("environment.json"),
        "finished",
        "environment.json: not a regular file (found a folder)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_listed_with_what_can_be_read(damage: str, tmp_path: Path) -> None:
    harm, state, reason = DAMAGES[damage]
    run = folders.finished_run(tmp_path)
    harm(run)
    row = only(run)
    assert row["state"] == state
    assert row["reason"].startswith(reason)
    assert row["job"] == (None if "job" in damage else "tiny")
    assert row["test_accuracy"] == (0.3 if damage == "predictions of another run" else 0.8)


def test_a_broken_last_attempt_of_an_unfinished_run_is_damage(tmp_path: Path) -> None:
    run = folders.stopped_run(tmp_path)
    run.attempt_files()[-1].write_text("{}")
    assert only(run)["state"] == "damaged"


def test_a_result_that_is_no_number_is_damage(tmp_path: Path) -> None:
    run = folders.finished_run(tmp_path)
    text = run.result_file.read_text().replace("12.5", "NaN").replace('"best_epoch": 3', '"best_epoch": [3]')
    run.result_file.write_text(text)
    run.weights_file.unlink()
    run.predictions_file.unlink()
    run.history_file.write_text('{"epoch": 1, "step": 100, "train_loss": Infinity}\n')
    made = report([run], tmp_path / "report")
    assert made.rows[0]["state"] == "damaged"
    assert json.loads((tmp_path / "report" / "metrics.json").read_text())[0]["test_accuracy"] is None


def test_a_run_without_a_history_or_convolutions_has_no_such_figures(tmp_path: Path) -> None:
    run = folders.finished_run(tmp_path)
    run.history_file.unlink()
    folders.change_arrays(run.weights_file, lambda arrays: arrays.pop("conv1/weights"))
    folders.change_json(run.result_file, parameters=69)
    made = report([run], tmp_path / "report", formats=["svg"])
    assert [row["reason"] for row in made.rows] == ["history.jsonl: missing or empty, so there are no learning curves"]
    assert {path.stem for path in made.files if path.suffix == ".svg"} == {"confusion"}


def test_figures_are_drawn_only_if_asked_for(tmp_path: Path) -> None:
    run, out = folders.finished_run(tmp_path / "runs"), tmp_path / "report"
    assert not [path for path in report([run], out).files if path.suffix in {".png", ".svg", ".pdf"}]
    made = report([run], out, formats=["png"])
    assert sorted(path.stem for path in made.files if path.suffix == ".png") == [
        "confusion",
        "curves",
        "curves",
        "filters",
    ]
    assert "(curves.png)" in (out / "metrics.md").read_text()
    assert report([run], out, formats=["svg"]).files != made.files
    assert (out / "curves.svg").is_file()


def test_figures_that_still_show_the_runs_are_kept_and_others_are_removed(tmp_path: Path) -> None:
    run, out = folders.stopped_run(tmp_path / "runs"), tmp_path / "report"
    own = out / "runs" / run.name / "curves.png"
    report([run], out, formats=["png"])
    drawn = content(out)
    again = report([run], out)
    assert not again.written
    assert own in again.files
    assert content(out) == drawn
    folders.write_history(run, 3, "validation")
    later = report([run], out)
    assert not own.exists()
    assert not (out / "curves.png").exists()
    assert own not in later.files
    assert "curves.png" not in (out / "metrics.md").read_text()


def test_progress_counts_runs_and_figures(tmp_path: Path) -> None:
    runs = [folders.stopped_run(tmp_path / "runs", seed=seed) for seed in range(2)]
    told: list[tuple[str, int, int]] = []
    report(runs, tmp_path / "report", formats=["svg"], on_progress=lambda *step: told.append(step))
    reading = [("reading runs", done, 2) for done in range(2)]
    assert told == [*reading, *(("drawing figures", done, 3) for done in range(3))]


def test_a_folder_counts_once_and_the_report_is_no_run(tmp_path: Path) -> None:
    run = folders.pending_run(tmp_path)
    out = tmp_path / "report"
    again = Run(tmp_path / "report" / ".." / run.name)
    assert len(report([run, again], out).rows) == 1
    assert len(report(Run.all(tmp_path), out).rows) == 1
    assert len(report(Run.all(tmp_path), tmp_path / "other").rows) == 1  # the first report is no run either


def test_a_report_among_the_runs_or_in_one(tmp_path: Path) -> None:
    run = folders.running_run(tmp_path / "runs")
    for _ in range(2):
        assert len(report(Run.all(tmp_path / "runs"), tmp_path / "runs").rows) == 1
    assert len(report(Run.all(tmp_path / "runs"), tmp_path / "report").rows) == 1  # runs/runs has histories
    for out in (tmp_path, run.path):
        with pytest.raises(JobError, match=f"{out}: the report would be written into the run {run.path}"):
            report([run], out)


def test_figures_of_names_that_hold_no_letters_are_sound(tmp_path: Path) -> None:
    run = folders.finished_run(tmp_path / "runs")
    run.path.rename(run.path.with_name("a\x1bb\n"))
    (moved,) = Run.all(tmp_path / "runs")
    made = report([moved], tmp_path / "report", formats=["svg"])
    for path in made.files:
        if path.suffix == ".svg":
            ET.parse(path)
    assert {path.suffix for path in made.files} >= {".svg"}


def test_runs_that_share_a_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    runs = [folders.running_run(tmp_path / place) for place in ("here", "there")]
    made = report(runs, tmp_path / "report", formats=["png"])
    assert [row["run"] for row in made.rows] == [str(run.path) for run in runs]
    assert len({path.parent for path in made.files if path.name == "curves.png"}) == 1 + 2


@pytest.mark.parametrize("word", [[], {}, 1])
def test_a_word_of_the_result_that_is_none_is_damage_of_one_run(word: object, tmp_path: Path) -> None:
    run = folders.finished_run(tmp_path / "runs")
    folders.change_json(run.result_file, test_time_augmentation=word, selected_on=word)
    other = folders.finished_run(tmp_path / "runs", seed=1)
    folders.change_json(other.result_file, test_time_augmentation="flip")
    made = report([run, other], tmp_path / "report")
    assert {row["run"]: row["state"] for row in made.rows} == {run.name: "damaged", other.name: "finished"}


def test_runs_of_like_paths_have_figures_of_their_own(tmp_path: Path) -> None:
    runs = [folders.running_run(tmp_path / place) for place in ("a_b", "a/b")]
    made = report(runs, tmp_path / "report", formats=["png"])
    assert len({path for path in made.files if path.name == "curves.png"}) == 1 + 2


def test_a_folder_whose_name_is_no_text_is_listed(tmp_path: Path) -> None:
    folder = Path(str(tmp_path / "runs") + "/\udcff\n\x1b")
    folder.mkdir(parents=True)
    made = report([Run(folder)], tmp_path / "report")
    assert [(row["run"], row["reason"]) for row in made.rows] == [
        ("\\udcff\\n\\x1b", "not a cnnjob run: it has no job.json")
    ]
    assert {path.name for path in made.files} == TABLES
    assert "\n| \\udcff\\n\\x1b |  |" in (tmp_path / "report" / "metrics.md").read_text()


def test_a_folder_that_cannot_be_looked_into_is_listed(tmp_path: Path) -> None:
    row = only(Run(tmp_path / ("x" * 300)))
    assert row["state"] == "foreign"
    assert row["reason"].startswith("cannot be read as a run (OSError: ")


def test_a_word_that_is_no_text_can_be_written(tmp_path: Path) -> None:
    run = folders.pending_run(tmp_path / "runs")
    folders.change_job(run, job=files.read_json(run.job_file)["job"] | {"name": "\udcff"})
    assert report([run], tmp_path / "report").rows[0]["job"] == "\\udcff"


def test_a_history_of_no_steps_has_no_restarts(tmp_path: Path) -> None:
    run = folders.finished_run(tmp_path)
    run.history_file.write_text('{"epoch": 1, "step": 0, "train_loss": 1.0}\n')
    curve = read_record(run, "run").curve
    assert curve is not None
    assert (curve.restarts, curve.watched) == ((), "train")


def test_no_run_at_all_is_an_error() -> None:
    with pytest.raises(DataError, match=r"report: no runs found\. To train one:\n  cnnjob train JOB"):
        report([])


def test_an_output_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "report").write_text("mine")
    with pytest.raises(JobError, match=r"report/index.html: cannot be written \(.*\). Choose another folder"):
        report([folders.pending_run(tmp_path / "runs")], tmp_path / "report")
