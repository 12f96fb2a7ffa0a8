"""Evaluations of a finished run on other datasets: the figures, the files, and what is refused."""

import csv
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import cnnjob
from cnnjob.data.dataset import Dataset
from cnnjob.data.prepare.writer import Chunk, DatasetContents, write
from cnnjob.errors import DataError, JobError
from cnnjob.nn.cuda.availability import why_unavailable
from cnnjob.reporting.record import read_record
from cnnjob.reporting.report import report
from cnnjob.runs.run import Run
from cnnjob.training.inference.evaluation import evaluate
from tests.helpers.cli import cnnjob as command
from tests.helpers.older_files import as_format_1
from tests.helpers.toy_jobs import CLASSES, blots, dataset, trained


def variant(path: Path, names: Sequence[str] = CLASSES, *, side: int = 6, channels: int = 1) -> Dataset:
    """Write the toy images with other class names or another shape, their labels following the names."""
    order = [names.index(name) if name in names else label for label, name in enumerate(CLASSES)]

    def changed(chunk: Chunk) -> Chunk:
        images = np.repeat(chunk.images[:, :side, :side], channels, axis=3)
        return replace(chunk, images=images, labels=np.array(order)[chunk.labels])

    path.parent.mkdir(exist_ok=True)
    counts = {"train": 216, "test": 40}
    write(path, path.stem, DatasetContents(tuple(names), {"x": "0" * 64}, map(changed, blots(counts))), {})
    return Dataset.open(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(tmp_path_factory.mktemp("made")).run


def test_an_evaluation_on_the_runs_own_test_images_is_its_result(run: Run) -> None:
    before = run.result_file.read_bytes()
    found = evaluate(run, Dataset.open(Path(run.data()["path"])))
    assert found.overall.test_accuracy == run.result()["test_accuracy"]
    assert found.overall.test_loss == pytest.approx(run.result()["test_loss"], rel=1e-5)
    assert (found.counts.sum(axis=1).tolist(), found.remarks) == ([14, 13, 13], ())
    written = json.loads(found.path.read_text())
    assert written == found.content()
    assert written["classes"][0] | {"class": "row", "support": 14} == written["classes"][0]
    assert written["dataset"]["digest"] == run.data()["digest"]
    rows = list(csv.reader(found.path.with_suffix(".csv").read_text().splitlines()))
    assert rows[0] == ["true class", *CLASSES]
    assert [[int(cell) for cell in row[1:]] for row in rows[1:]] == found.counts.tolist()
    assert found.path.parent == run.path / "evaluations"
    assert run.result_file.read_bytes() == before


def test_progress_is_reported_and_the_backend_is_noted(run: Run, tmp_path: Path) -> None:
    events: list[tuple[str, int, int]] = []
    write(
        tmp_path / "large.h5", "large", DatasetContents(CLASSES, {"x": "0" * 64}, blots({"train": 9, "test": 600})), {}
    )
    large = Dataset.open(tmp_path / "large.h5")
    found = evaluate(run, large, on_progress=lambda *event: events.append(event))
    assert events == [("evaluating", done, 600) for done in (0, 256, 512, 600)]
    assert found.counts.sum() == 600
    assert found.content()["backend"] == found.backend == "numpy"  # the toy job asks for it
    with pytest.raises(JobError, match=r"--backend: no such backend \(found gpu\)\. Choose from auto, numpy, cuda"):
        evaluate(run, large, backend="gpu")
    if why_unavailable():
        with pytest.raises(JobError, match=r"--backend: 'cuda', but .* Use --backend numpy"):
            evaluate(run, large, backend="cuda")


def test_classes_in_another_order_are_matched_by_name_and_others_by_position(run: Run, tmp_path: Path) -> None:
    own = evaluate(run, dataset(tmp_path))
    turned = evaluate(run, variant(tmp_path / "a" / "toy.h5", ("corner", "row", "column")))
    assert (turned.counts.tolist(), own.remarks) == (own.counts.tolist(), ())
    [remark] = turned.remarks
    assert remark.endswith("(found 'corner' first instead of 'row'), so they are matched by name")
    other = evaluate(run, variant(tmp_path / "b" / "toy.h5", ("line", "column", "corner")))
    assert other.counts.tolist() == own.counts.tolist()
    assert "(found 'line' instead of 'row'; 1 of 3 differ), so classes are matched by position" in other.remarks[0]
    assert len({own.path, turned.path, other.path}) == 3  # datasets of the same name, told apart by their digests
    assert all(path.name.startswith("toy-test-") for path in (own.path, turned.path, other.path))


def test_a_dataset_that_does_not_fit_the_network_is_refused(run: Run, tmp_path: Path) -> None:
    small = variant(tmp_path / "small.h5", side=5)
    with pytest.raises(JobError, match=r"requires images of shape 6×6×1 \(found 5×5×1\)\. Choose .* --size 6x6"):
        evaluate(run, small)
    coloured = variant(tmp_path / "coloured.h5", channels=3)
    with pytest.raises(JobError, match=r"shape 6×6×1 \(found 6×6×3\)\. Choose a dataset of grey images"):
        evaluate(run, coloured)
    four = variant(tmp_path / "four.h5", (*CLASSES, "blank"))
    with pytest.raises(JobError, match=r"not the number of classes that .* predicts \(found 4, expected 3\)"):
        evaluate(run, four)
    with pytest.raises(DataError, match="no split 'val'"):
        evaluate(run, dataset(tmp_path), "val")


def test_a_damaged_dataset_or_an_unfinished_run_is_refused(run: Run, tmp_path: Path) -> None:
    made = dataset(tmp_path)
    content = made.path.read_bytes()
    image = made.load("test")[0][7].tobytes()
    made.path.write_bytes(content.replace(image, bytes(len(image))))
    with pytest.raises(DataError, match="damaged"):
        evaluate(run, made)
    with pytest.raises(DataError, match="no such run"):
        evaluate(Run(tmp_path / "gone"), made)


def test_a_file_of_the_older_format_is_evaluated(run: Run, tmp_path: Path) -> None:
    older = Dataset.open(as_format_1(dataset(tmp_path).path))
    assert evaluate(run, older).counts.tolist() == evaluate(run, Dataset.open(Path(run.data()["path"]))).counts.tolist()


def test_the_command_and_the_function(run: Run, tmp_path: Path) -> None:
    path = run.data()["path"]
    printed = command("evaluate", str(run.path), "--on", path)
    assert printed.exit_code == 0, printed.output
    assert printed.stdout.splitlines()[0].split() == ["class", "precision", "recall", "F1", "support"]
    accuracy = f"accuracy {100 * run.result()['test_accuracy']:.2f} %"
    assert f"{run.path}: {accuracy}, loss " in printed.stdout
    assert "on 40 test images" in printed.stdout
    assert max(map(len, printed.stdout.splitlines()[:6])) <= 80
    as_json = json.loads(command("evaluate", str(run.path), "--on", path, "--split", "train", "--json").stdout)
    assert (as_json["images"], as_json["split"]) == (216, "train")
    assert np.sum(as_json["confusion"]) == 216
    assert cnnjob.evaluate(run, path, "train").overall.test_accuracy == as_json["accuracy"]
    variant(tmp_path / "data" / "lines.h5", ("line", "column", "corner"))
    warned = command("evaluate", str(run.path), "--on", "lines", "--data", str(tmp_path / "data"))
    assert (warned.exit_code, "warning: " in warned.stderr) == (0, True)
    refused = command("evaluate", str(run.path), "--on", "gone")
    assert (refused.exit_code, "no such dataset" in refused.stderr) == (3, True)


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    run = trained(tmp_path).run
    (tmp_path / "elsewhere").mkdir()
    run.evaluations_folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="must not be a symbolic link"):
        evaluate(run, dataset(tmp_path))
    assert not list((tmp_path / "elsewhere").iterdir())


def test_the_report_lists_a_runs_evaluations(tmp_path: Path) -> None:
    run = trained(tmp_path).run
    evaluate(run, variant(tmp_path / "others" / "<lines>.h5", ("line", "column", "corner")))
    damaged = evaluate(run, dataset(tmp_path), "train")
    record = read_record(run, run.name)
    assert [(each["dataset"]["name"], each["split"]) for each in record.evaluations] == [
        ("<lines>", "test"), ("toy", "train"),
    ]  # fmt: skip
    report([run], tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    assert ">Evaluations</h2>" in page
    assert re.search(r'<th scope="row">&lt;lines&gt; [0-9a-f]{8}</th><td>test</td><td class="n">40</td>', page)
    assert "Confusion matrix and classes on &lt;lines&gt; " in page
    assert page.count('aria-label="Classes of ') == 3  # those of the run, and of each evaluation
    assert [each["counts"].tolist() for each in record.evaluations][1] == damaged.counts.tolist()
    damaged.path.write_text("{}")
    record = read_record(run, run.name)
    assert len(record.evaluations) == 1
    assert "dataset is missing" in record.reasons[0]
    assert record.row["state"] == "finished"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "do not add up to 40 images"),
        ("true class,row\nrow,x\n", "not a confusion matrix"),
        ("true class,row\nrow,-1\n", "not a confusion matrix"),
        ("true class,row\nrow,1,2\n", "not a confusion matrix"),
        ("true class,row\nrow,7\n", "do not add up to 40 images"),
    ],
)
def test_a_damaged_confusion_matrix_is_named(content: str, reason: str, run: Run, tmp_path: Path) -> None:
    copy = Run(Path(shutil.copytree(run.path, tmp_path / run.name, ignore=lambda *_: {"evaluations"})))
    evaluate(copy, dataset(tmp_path)).path.with_suffix(".csv").write_text(content)
    record = read_record(copy, "toy")
    assert any(reason in found and found.startswith("evaluations/toy-test-") for found in record.reasons)
    assert record.row["state"] == "finished"
    report([copy], tmp_path / "report")


def test_the_matrix_of_other_classes_is_not_shown(run: Run, tmp_path: Path) -> None:
    copy = Run(Path(shutil.copytree(run.path, tmp_path / run.name, ignore=lambda *_: {"evaluations"})))
    evaluate(copy, dataset(tmp_path)).path.with_suffix(".csv").write_text("true class,row\nrow,40\n")
    report([copy], tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    assert ">Evaluations</h2>" in page
    assert "Confusion matrix and classes on toy" not in page
