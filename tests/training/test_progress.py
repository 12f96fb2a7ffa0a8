"""Progress of training: events, and the estimate of the time left."""

import re
from pathlib import Path
from typing import Any

import pytest

from cnnjob.training.progress import NoProgress, ProgressText, TimeEstimate
from cnnjob.training.train import train
from tests.helpers.cli import JOB
from tests.helpers.toy_jobs import dataset, job, run_of

STEPS, EPOCHS = 20, 6
STEP_SECONDS, EVALUATION_SECONDS, FIRST_STEP_SECONDS = 0.5, 3.0, 7.0


@pytest.mark.parametrize("resumed_at", [0, 47, 2 * STEPS])
def test_the_time_left_is_right_in_every_epoch_and_after_a_resume(resumed_at: int) -> None:
    """Once an evaluation has been seen, the estimate is exact; before, it lacks the evaluations."""
    now = 0.0
    estimate = TimeEstimate(STEPS, EPOCHS, lambda: now)
    first_epoch = resumed_at // STEPS + 1
    for done in range(resumed_at, STEPS * EPOCHS):
        epoch, step = done // STEPS + 1, done % STEPS + 1
        now += FIRST_STEP_SECONDS if done == resumed_at else STEP_SECONDS
        estimate.step(epoch, step)
        if done == resumed_at:
            assert estimate.seconds_left() is None
        else:
            evaluation = 0.0 if epoch == first_epoch else EVALUATION_SECONDS
            in_epoch = (STEPS - step) * STEP_SECONDS + evaluation
            in_all = in_epoch + (EPOCHS - epoch) * (STEPS * STEP_SECONDS + evaluation)
            assert estimate.seconds_left() == pytest.approx((in_epoch, in_all))
        if step == STEPS:
            now += EVALUATION_SECONDS
            estimate.end_epoch()


class Events(NoProgress):
    """Records all events."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def loss(self, loss: float) -> None:
        self.seen.append(loss)

    def step(self, epoch: int, step: int) -> None:
        self.seen.append((epoch, step))

    def end_epoch(self, record: dict[str, Any]) -> None:
        self.seen.append(record)


def test_each_step_has_its_loss_and_each_epoch_its_record(tmp_path: Any) -> None:
    events = Events()
    run = run_of(job(), dataset(tmp_path), tmp_path / "runs")
    train(run, events)
    records = [event for event in events.seen if isinstance(event, dict)]
    assert records == run.history()
    start = 0
    for record in records:
        end = events.seen.index(record)
        losses, steps = events.seen[start:end:2], events.seen[start + 1 : end : 2]
        assert steps == [(record["epoch"], step) for step in range(1, len(steps) + 1)]
        assert sum(losses) / len(losses) == pytest.approx(record["train_loss"])
        start = end + 1


NOTEBOOK = """
from pathlib import Path
from cnnjob import Job, train
train(Job.load("toy.toml", ["train.epochs=3"]), data=Path("data"))
"""


def test_a_notebook_shows_a_bar_and_its_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    dataset(tmp_path / "data")
    (tmp_path / "toy.toml").write_text(JOB)
    cells = [nbformat.v4.new_code_cell(code) for code in (NOTEBOOK, NOTEBOOK.replace("data=", "progress=False, data="))]
    cells[1].source = cells[1].source.replace("epochs=3", "epochs=2")
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(
        notebook, kernel_name="python3", timeout=120, resources={"metadata": {"path": tmp_path}}
    ).execute()
    bar, shown = (output["data"] for output in cells[0].outputs if output.output_type != "stream")
    assert re.search(r"━{16}\S* epoch 3/3 · loss [\d.]+ · val acc [\d.]+ %", bar["text/plain"])
    assert "epoch 3/3" in bar["text/html"]
    assert shown["text/plain"].startswith("Run runs/toy-")
    assert [output.output_type for output in cells[1].outputs] == ["execute_result"]


def test_a_narrow_terminal_has_the_whole_time_left_and_no_line_that_is_too_long() -> None:
    text = ProgressText(40, 100)
    for step in range(1, 11):
        text.loss(0.5)
        text.step(1, step)
    text.end_epoch({"epoch": 1, "train_loss": 0.5, "validation_accuracy": 0.91})
    assert re.fullmatch(
        r"epoch 2/100 · step 1/40 · val acc 91\.0 % · \d+ s left of this epoch · \d+ (s|min)( \d+ s)? in all",
        text.step(2, 1),
    )
    for width in (63, 45, 30):
        line = text.step(2, 2, width)
        assert len(line) <= width
        assert line.startswith("epoch 2/100")
        assert line.endswith(" left in all")
